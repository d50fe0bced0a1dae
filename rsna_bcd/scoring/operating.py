"""Operating points: what a threshold means in radiology's terms, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.arrays import Floats, checked
from rsna_bcd.scoring.bootstrap import Interval, Score, score_bootstraps
from rsna_bcd.scoring.decisions import Confusion, confusion, decide
from rsna_bcd.scoring.metrics import OPERATING
from rsna_bcd.scoring.plateau import cut_at_rate, midway
from rsna_bcd.scoring.ranking import Cuts, cuts

_FAR = 0.5  # of the share asked for: what is farther from it would bear a wrong name


@dataclass(frozen=True)
class OperatingPoint:
    """Decisions, and what is right and wrong about them.

    Attributes:
        threshold: That made them; NaN where several did.
        counts: Of rows.
        pf1: Of the decisions, the ordinary F1.
        sensitivity: Share of the positives that are called.
        specificity: Share of the negatives that are not called.
        accuracy: Share of the decisions that are right.
        balanced_accuracy: Mean of sensitivity and specificity.
        ppv: Share of the calls that are right.
        recall_rate: Share of all rows that is called.
    """

    threshold: float
    counts: Confusion[float]
    pf1: Interval
    sensitivity: Interval
    specificity: Interval
    accuracy: Interval
    balanced_accuracy: Interval
    ppv: Interval
    recall_rate: Interval


def operating_points(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    *,
    recall_rates: Sequence[float] = (0.015, 0.035, 0.10),
    specificities: Sequence[float] = (0.90, 0.95),
    thresholds: Mapping[str, float] | None = None,
    decisions: Mapping[str, ArrayLike] | None = None,
    n: int = 2000,
    seed: int = 0,
) -> dict[str, OperatingPoint]:
    """Rates at fixed recall rates, at fixed specificities and at given thresholds.

    Each point is a threshold, chosen on these rows and then the same in all resamples, so that what
    was fixed has an interval as well: another screening round would not meet it exactly.

    Args:
        labels: (N,), each 0 or 1; both occur.
        probabilities: (N,).
        patients: (N,), an id per row.
        recall_rates: Shares of the rows to call; the nearest possible one is taken. A share of less
            than one row, or that no threshold comes near, has no point.
        specificities: The least to keep; the lowest threshold that does is taken. One that allows
            less than one false alarm, or that no threshold comes near, has no point.
        thresholds: More thresholds, by name.
        decisions: (N,) of 0 and 1 each, by name, such as cross-fitted ones.
        n: Number of resamples of the patients.
        seed: Of the resampling.

    Returns:
        By name: what was given by name first, then `recall rate 1.5 %` and so on, then
        `specificity 90 %` and so on.

    Raises:
        InputError: one class only, a rate that is not between 0 and 1, or a name in both
            `thresholds` and `decisions`.
    """
    y, p, _ = checked(labels, probabilities, None)
    counts = cuts(y, p)
    if counts.positives == 0 or counts.negatives == 0:
        raise InputError(
            f"Operating points need breasts of both classes, but there are {counts.positives:.0f} "
            f"positive and {counts.negatives:.0f} negative ones. Use more folds."
        )
    limits = dict(thresholds or {})
    twice = sorted(limits.keys() & (decisions or {}).keys())
    if twice:
        raise InputError(f"{twice[0]!r} names both a threshold and decisions. Rename one of them.")
    found_at = {f"recall rate {_percent(r)}": _at_recall_rate(counts, r) for r in recall_rates}
    found_at |= {f"specificity {_percent(s)}": _at_specificity(counts, s) for s in specificities}
    limits |= {name: limit for name, limit in found_at.items() if limit is not None}
    called = {name: np.asarray(given) for name, given in (decisions or {}).items()}
    called |= {name: decide(p, limit) for name, limit in limits.items()}
    scores = {
        f"{rate} at {name}": Score(metric, made)
        for name, made in called.items()
        for rate, metric in OPERATING.items()
    }
    found = score_bootstraps(scores, y, patients, n, seed)
    return {
        name: OperatingPoint(
            threshold=limits.get(name, float("nan")),
            counts=confusion(y, made),
            **{rate: found[f"{rate} at {name}"] for rate in OPERATING},
        )
        for name, made in called.items()
    }


def _at_recall_rate(counts: Cuts, rate: float) -> float | None:
    _check_rate("recall rate", rate)
    called = counts.true_positives + counts.false_positives
    return _threshold(counts, cut_at_rate(called, float(called[-1]), rate), called, rate)


def _at_specificity(counts: Cuts, least: float) -> float | None:
    _check_rate("specificity", least)
    kept: Floats = 1 - counts.false_positives / counts.negatives
    cut = int(np.sum(kept >= least - 1e-12)) - 1  # 1 - 0.1 is not quite 0.9
    return _threshold(counts, cut, counts.false_positives, 1 - least)


def _threshold(counts: Cuts, cut: int, called: Floats, rate: float) -> float | None:
    """Of a cut; None where it calls a share that is far from the rate, or the rate is of no row."""
    wanted = rate * float(called[-1])
    if cut < 0 or wanted < 1 - 1e-9 or abs(float(called[cut]) - wanted) > _FAR * wanted:
        return None
    return float(midway(counts.scores)[cut])


def _check_rate(what: str, rate: float) -> None:
    if not 0 < rate < 1:
        raise InputError(f"A {what} of {rate} is not between 0 and 1.")


def _percent(rate: float) -> str:
    return f"{100 * rate:g} %"
