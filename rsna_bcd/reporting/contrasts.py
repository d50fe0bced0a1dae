"""How much each group differs from the rest of its factor, over the same resampled patients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.reporting.judged import JudgedBreasts
from rsna_bcd.reporting.subgroups import CANCER, LEAST, SITE, Part, parts
from rsna_bcd.scoring.intervals import (
    Interval,
    Score,
    bootstrap_distributions,
    percentile_interval,
)
from rsna_bcd.scoring.metrics import auroc, sensitivity, specificity


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
    sides = {
        f"{side} {number}": _score(judged, pair.score, getattr(pair, side))
        for number, pair in enumerate(compared)
        for side in ("inside", "outside")
    }
    values = bootstrap_distributions(sides, judged.labels, judged.patients, resamples, seed)
    found = []
    for number, pair in enumerate(compared):
        inside, outside = (
            score.metric(judged.labels[score.rows], np.asarray(score.probabilities)[score.rows])
            for score in (sides[f"inside {number}"], sides[f"outside {number}"])
        )
        ends = percentile_interval(values[f"inside {number}"] - values[f"outside {number}"])
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


def _score(judged: JudgedBreasts, score: str, rows: NDArray[np.bool_]) -> Score:
    """The score of some rows."""
    if score == "AUROC":
        return Score(auroc, judged.probabilities, rows)
    return Score(sensitivity if score == "sensitivity" else specificity, judged.decisions, rows)
