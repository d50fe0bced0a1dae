"""Metrics of breast-level probabilities and decisions, and the tables that name them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.special
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError

Floats = NDArray[np.float64]
Metric = Callable[..., float]  # (labels, probabilities, weights=None)
Aggregation = Literal["mean", "max"]  # from the images of a breast to the breast

LOGIT_MARGIN = 1e-7  # keeps the logits of 0 and 1 finite


def logit(probabilities: ArrayLike) -> Floats:
    """log(p / (1 - p)), with p clipped to `LOGIT_MARGIN` from 0 and 1."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), LOGIT_MARGIN, 1 - LOGIT_MARGIN)
    return np.asarray(scipy.special.logit(p), dtype=np.float64)


def sigmoid(logits: ArrayLike) -> Floats:
    """1 / (1 + exp(-logit)), in float64."""
    return np.asarray(scipy.special.expit(np.asarray(logits, dtype=np.float64)))


def check_inputs(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> tuple[Floats, Floats, Floats]:
    """Labels, probabilities and weights as float64 arrays of one length.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,), finite. Any scores will do for a metric of the order.
        weights: (N,), not negative; None counts every row once.

    Raises:
        InputError: a label is neither 0 nor 1, or a probability is not finite: a network that
            diverged must not be scored as if it had predicted "no cancer".
        ValueError: the lengths differ (a mistake of the caller, not of the data).
    """
    y = np.asarray(labels, dtype=np.float64)
    p = np.asarray(probabilities, dtype=np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    if y.ndim != 1 or y.shape != p.shape or y.shape != w.shape:
        raise ValueError(
            f"labels, probabilities and weights must be (N,), not {y.shape}, {p.shape}, {w.shape}"
        )
    for name, values, invalid, remedy in (
        ("Labels must be 0 or 1", y, (y != 0) & (y != 1), ""),
        (
            "Probabilities must be finite",
            p,
            ~np.isfinite(p),
            " The network that made them diverged: train it again with a smaller learning rate.",
        ),
    ):
        if invalid.any():
            row = int(np.argmax(invalid))
            raise InputError(
                f"{name}, but row {row} is {values[row]} ({int(invalid.sum())} of {len(values)} "
                f"rows are invalid).{remedy}"
            )
    return y, p, w


@dataclass(frozen=True)
class ThresholdCounts:
    """Counts of the decisions `score >= scores[k]`.

    Attributes:
        scores: (K,) the distinct scores, descending.
        tp: (K,) true positives, by weight.
        fp: (K,) false positives, by weight.
    """

    scores: Floats
    tp: Floats
    fp: Floats

    @property
    def predicted_positive(self) -> Floats:
        """(K,), weight of the rows at or above each score."""
        return self.tp + self.fp

    @property
    def positives(self) -> float:
        """Weight of all positives."""
        return float(self.tp[-1]) if len(self.tp) else 0.0

    @property
    def negatives(self) -> float:
        """Weight of all negatives."""
        return float(self.fp[-1]) if len(self.fp) else 0.0


def threshold_counts(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None
) -> ThresholdCounts:
    """Counts at every distinct score, those of weight 0 too; linear in N where rows are sorted.

    scikit-learn's `confusion_matrix_at_thresholds`, which checks its arguments for longer than
    this takes; the bootstrap needs thousands.
    """
    y, s, w = check_inputs(labels, scores, weights)
    order = np.argsort(-s, kind="stable")
    s, w = s[order], w[order]
    last = np.flatnonzero(np.append(s[1:] != s[:-1], True)[: len(s)])  # of each run of equal scores
    tp = np.cumsum(w * y[order])[last]
    return ThresholdCounts(s[last], tp, np.cumsum(w)[last] - tp)


def auroc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve, in [0, 1]; ties count half. NaN where a class is absent."""
    c = threshold_counts(labels, scores, weights)
    if c.positives == 0 or c.negatives == 0:
        return float("nan")
    area = np.trapezoid(np.append(0.0, c.tp), np.append(0.0, c.fp))
    return float(area) / (c.positives * c.negatives)


def average_precision(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Sum of precision times increase in recall over the thresholds; NaN without positives.

    In [0, 1]; a random order scores the prevalence. Not interpolated, as in scikit-learn.
    """
    c = threshold_counts(labels, scores, weights)
    if c.positives == 0:
        return float("nan")
    precision = c.tp / np.where(c.predicted_positive > 0, c.predicted_positive, 1)
    return float(np.sum(np.diff(c.tp, prepend=0.0) * precision)) / c.positives


def pf1(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Probabilistic F1, the competition's metric, in [0, 1].

    Probabilities are clipped to [0, 1]. With S the sum of the positives' probabilities, precision
    is S / (sum of all probabilities) and recall S / (number of positives); the score is their
    harmonic mean, 2 S / (sum of all probabilities + number of positives). On decisions of 0 and 1
    it is the ordinary F1.

    The organisers' code divides by zero when all probabilities are 0 or there is no positive;
    here both score 0. A constant 1 scores about .0405 at the competition's prevalence.

    Source: https://www.kaggle.com/competitions/rsna-breast-cancer-detection/overview/evaluation
    """
    y, p, w = check_inputs(labels, probabilities, weights)
    p = np.clip(p, 0.0, 1.0)
    return float(pf1_from_counts(np.sum(w * y * p), np.sum(w * p), np.sum(w * y)))


def pf1_from_counts(tp: ArrayLike, predicted_positive: ArrayLike, positives: ArrayLike) -> Floats:
    """2 tp / (predicted positive + positives), 0 where both are 0; arrays element by element."""
    total = np.add(predicted_positive, positives, dtype=np.float64)
    return np.divide(np.multiply(tp, 2.0), total, out=np.zeros_like(total), where=total > 0)


def brier(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean squared difference of probability and label: 0 is perfect.

    The prevalence r, predicted for every breast, scores r (1 - r): .0202 at the competition's.
    """
    y, p, w = check_inputs(labels, probabilities, weights)
    return float(np.sum(w * (p - y) ** 2) / np.sum(w))


def decide(probabilities: ArrayLike, threshold: ArrayLike) -> NDArray[np.int64]:
    """(N,): 1 where a probability is at or above the threshold (one, or (N,)), else 0."""
    p = np.asarray(probabilities, dtype=np.float64)
    return (p >= np.asarray(threshold, dtype=np.float64)).astype(np.int64)


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of decisions. A rate whose denominator is 0 is NaN."""

    true_positives: float
    false_positives: float
    false_negatives: float
    true_negatives: float


def confusion_matrix(
    labels: ArrayLike,
    probabilities: ArrayLike,
    weights: ArrayLike | None = None,
    threshold: float = 0.5,
) -> ConfusionMatrix:
    """Counts of the decisions `probability >= threshold`; decisions may be given as they are."""
    y, p, w = check_inputs(labels, probabilities, weights)
    predicted = p >= threshold
    tp, positives = float(np.sum(w * y * predicted)), float(np.sum(w * y))
    fp = float(np.sum(w * predicted)) - tp
    return ConfusionMatrix(tp, fp, positives - tp, float(np.sum(w)) - positives - fp)


def _ratio(part: float, *others: float) -> float:
    total = part + sum(others)
    return part / total if total else float("nan")


def sensitivity(labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of the positives that are predicted positive (recall)."""
    c = confusion_matrix(labels, decisions, weights)
    return _ratio(c.true_positives, c.false_negatives)


def specificity(labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of the negatives that are predicted negative."""
    c = confusion_matrix(labels, decisions, weights)
    return _ratio(c.true_negatives, c.false_positives)


def accuracy(labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of the decisions that are right."""
    c = confusion_matrix(labels, decisions, weights)
    return _ratio(c.true_positives + c.true_negatives, c.false_positives, c.false_negatives)


def balanced_accuracy(
    labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Mean of sensitivity and specificity: chance scores 0.5 at any prevalence."""
    return (sensitivity(labels, decisions, weights) + specificity(labels, decisions, weights)) / 2


def ppv(labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Positive predictive value (precision): share of the positive decisions that are right."""
    c = confusion_matrix(labels, decisions, weights)
    return _ratio(c.true_positives, c.false_positives)


def recall_rate(labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of all rows that are predicted positive: radiology's recall rate, not the recall."""
    c = confusion_matrix(labels, decisions, weights)
    return _ratio(c.true_positives + c.false_positives, c.false_negatives + c.true_negatives)


# Tables of metrics under their names in files and reports. A metric added to one of them appears
# wherever it is used: bootstrap, operating points, cross-fitted scores, report.
# Of probabilities: only their order counts.
RANKING: dict[str, Metric] = {"auroc": auroc, "average_precision": average_precision}

# Of decisions of 0 and 1, on which pF1 is the ordinary F1.
DECISION: dict[str, Metric] = {
    "pf1": pf1,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "accuracy": accuracy,
}

# Of decisions at an operating point.
OPERATING: dict[str, Metric] = {
    **DECISION,
    "balanced_accuracy": balanced_accuracy,
    "ppv": ppv,
    "recall_rate": recall_rate,
}
