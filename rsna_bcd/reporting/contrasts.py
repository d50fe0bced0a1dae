"""How much each group differs from the rest of its factor, over the same resampled patients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.reporting.judged import JudgedBreasts
from rsna_bcd.reporting.subgroups import CANCER, LEAST, SITE, Part, parts
from rsna_bcd.scoring.metrics import Floats
from rsna_bcd.scoring.intervals import Interval
from rsna_bcd.scoring.intervals import percentile_interval
from rsna_bcd.scoring.metrics import auroc
from rsna_bcd.scoring.intervals import Judged
from rsna_bcd.scoring.intervals import RowSum
from rsna_bcd.scoring.intervals import patient_indices
from rsna_bcd.scoring.intervals import patient_resamples as drawn


@dataclass(frozen=True)
class Contrast:
    """A score of a group beside that of the rest of its factor.

    Attributes:
        title: of the group, within a sentence.
        rest: of the others, likewise.
        score: `sensitivity`, `specificity` or `AUROC`.
        inside: the group's score.
        outside: that of the rest.
        difference: `inside - outside`, its ends from resamples in which both are defined.
        always: whether it is to be said whatever it is.
    """

    title: str
    rest: str
    score: str
    inside: float
    outside: float
    difference: Interval
    always: bool

    @property
    def is_apart(self) -> bool:
        """Whether the interval excludes 0."""
        return self.difference.low > 0 or self.difference.high < 0


def contrasts(
    judged: JudgedBreasts, facts: pd.DataFrame, resamples: int = 500, seed: int = 0
) -> list[Contrast]:
    """Compare each group with the rest of its factor, in each score that both have.

    Of two groups that make up a factor, one is compared with the other. Both sides need `LEAST`
    breasts of the class that the score is about.

    Args:
        judged: the breasts.
        facts: from `cohort.facts_of`, in their order.
        resamples: of the patients; all groups see the same ones.
        seed: of the resamples.
    """
    compared = _pairs(judged, parts(facts, judged.labels))
    patient, n_patients = patient_indices(judged.patients)
    sides = [(_side(judged, patient, p.score, p.inside), _side(judged, patient, p.score, p.outside))
             for p in compared]  # fmt: skip
    blocks = [
        np.stack([first(counts) - second(counts) for first, second in sides])
        for counts in drawn(n_patients, len(patient), resamples, seed)
        if sides
    ]
    once = np.ones((1, n_patients))
    found = []
    for number, (pair, (first, second)) in enumerate(zip(compared, sides, strict=True)):
        inside, outside = float(first(once)[0]), float(second(once)[0])
        ends = percentile_interval(np.concatenate([block[number] for block in blocks]))
        if ends[0] == ends[1]:  # nothing varies: nothing is known of chance
            ends = (float("nan"), float("nan"))
        found.append(
            Contrast(
                pair.title, pair.rest, pair.score, inside, outside,
                Interval(inside - outside, *ends), pair.always,
            )
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class _Pair:
    """Rows of a group and of the rest of its factor, for one score."""

    title: str
    rest: str
    score: str
    inside: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    always: bool


def _pairs(judged: JudgedBreasts, found: Sequence[Part]) -> list[_Pair]:
    """All that is compared: rows of the class that a share is about, of both for the AUROC."""
    cancer, pairs = judged.labels == 1, []
    for factor in dict.fromkeys(part.factor for part in found):
        own = [part for part in found if part.factor == factor]
        whole = np.any([part.inside for part in own], axis=0)
        for part in own[:1] if len(own) == 2 else own:
            rest = whole & ~part.inside
            title = own[1].title if len(own) == 2 else "the others"
            for score, rows in (("sensitivity", cancer), ("specificity", ~cancer)):
                if part.of_cancer is not None and part.of_cancer != (score == "sensitivity"):
                    continue
                if _enough(part.inside & rows, rest & rows):
                    pairs.append(
                        _Pair(
                            part.title, title, score, part.inside & rows, rest & rows,
                            factor in (CANCER, SITE),
                        )
                    )  # fmt: skip
            # What is recorded of one class alone is ranked against all of the other.
            other = np.zeros_like(cancer) if part.of_cancer is None else cancer != part.of_cancer
            inside, outside = part.inside | other, rest | other
            if _enough(*(side & rows for side in (inside, outside) for rows in (cancer, ~cancer))):
                pairs.append(
                    _Pair(part.title, title, "AUROC", inside, outside, factor in (CANCER, SITE))
                )
    return pairs


def _enough(*sets: NDArray[np.bool_]) -> bool:
    return all(int(rows.sum()) >= LEAST for rows in sets)


def _side(
    judged: JudgedBreasts, patient: NDArray[np.intp], score: str, rows: NDArray[np.bool_]
) -> Callable[[Floats], Floats]:
    """The score of some rows in each resample: (R, P) to (R,); NaN where none of them is drawn."""
    if score == "AUROC":
        ranked = Judged(judged.labels[rows], judged.probabilities[rows], patient[rows])
        ranked.metrics.append(auroc)
        return lambda counts: ranked.scores(counts)[0]
    right = judged.decisions == (1 if score == "sensitivity" else 0)
    hits = RowSum(patient, (rows & right).astype(np.float64))
    of_all = RowSum(patient, rows.astype(np.float64))

    def share(counts: Floats) -> Floats:
        drawn_rows = of_all(counts)
        empty = np.full_like(drawn_rows, np.nan)
        return np.divide(hits(counts), drawn_rows, out=empty, where=drawn_rows > 0)

    return share
