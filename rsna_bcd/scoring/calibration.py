"""From the blend's probabilities to such that mean what they say, and how far they are from it.

All maps here are monotone, and thresholds apply before them: a calibration never changes a decision
or an order (isotonic steps may make neighbours equal).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.arrays import Floats, checked
from rsna_bcd.scoring.logits import logit, sigmoid
from rsna_bcd.scoring.ranking import auroc

Method = Literal["temperature", "platt", "isotonic"]

_STEPS = 100  # of Newton's method, which needs about 8


@dataclass(frozen=True)
class Temperature:
    """Logits divided by a temperature and shifted: sigmoid(logit(p) / temperature + bias).

    Attributes:
        temperature: Above 0; above 1 where the probabilities were too sure of themselves.
        bias: 0 under `temperature`. Networks that were shown more cancers than there are need
            one: `platt`.
    """

    temperature: float
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.temperature < np.inf and np.isfinite(self.bias)):
            raise InputError(f"{self} is no calibration: fit it again.")

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Calibrated probabilities: (N,) in [0, 1] to (N,) in (0, 1), in the same order."""
        return sigmoid(logit(probabilities) / self.temperature + self.bias)


@dataclass(frozen=True)
class Isotonic:
    """A rising line through knots, level outside of them.

    Attributes:
        x: (K,) probabilities, ascending.
        y: (K,) what they become, never falling, in [0, 1].
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        x, y = np.array(self.x), np.array(self.y)
        rising = len(x) == len(y) > 0 and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
        if not (rising and y[0] >= 0 and y[-1] <= 1):
            raise InputError("The knots of the isotonic calibration do not rise: fit it again.")

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Calibrated probabilities: (N,) to (N,) in [0, 1], in the same order or equal."""
        return np.interp(np.asarray(probabilities, dtype=np.float64), self.x, self.y)


Calibration = Temperature | Isotonic


def fit_calibration(labels: ArrayLike, probabilities: ArrayLike, method: Method) -> Calibration:
    """Fit a calibration to out-of-fold rows.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,), in [0, 1].
        method: `temperature` scales the logits (Guo et al., ICML 2017), `platt` scales and shifts
            them (Platt, 1999), `isotonic` is the best monotone map in squares (Zadrozny and Elkan,
            KDD 2002), which wants some hundred positives.

    Raises:
        InputError: an unknown method, one class only, or probabilities that are equal or fall where
            the share of cancers rises, so that a monotone map has nothing to hold on to; or
            probabilities so far from the prevalence that no temperature mends them.
    """
    if method not in get_args(Method):
        raise InputError(f"calibration is {', '.join(get_args(Method))} or none, not {method!r}.")
    y, p, _ = checked(labels, probabilities, None)
    if y.min() == y.max() or p.min() == p.max():
        what = "labels" if y.min() == y.max() else "probabilities"
        raise InputError(
            f"All {len(y)} {what} equal {(y if what == 'labels' else p)[0]:g}: there "
            "is nothing to calibrate by. Use more folds, or calibration=none."
        )
    return _isotonic(y, p) if method == "isotonic" else _temperature(y, p, method == "platt")


def _temperature(y: Floats, p: Floats, shifted: bool) -> Temperature:
    """Slope and intercept of the logits with the highest likelihood, by Newton's method.

    Targets are Platt's, a little inside of 0 and 1, so that separable rows have a finite slope.
    """
    positives = float(y.sum())
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))
    z = logit(p)
    design = np.stack([z, np.ones_like(z)])[: 2 if shifted else 1]

    def loss(at: Floats) -> float:
        z = np.sum(at[:, None] * design, axis=0)
        return float(np.sum(np.logaddexp(0, z) - target * z))

    at = np.array([1.0, 0.0])[: len(design)]
    for _ in range(_STEPS):
        q = sigmoid(np.sum(at[:, None] * design, axis=0))
        gradient = np.sum((q - target) * design, axis=1)
        curvature = np.sum(q * (1 - q) * design[:, None] * design[None], axis=2)
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        size, gain = 1.0, float(np.sum(step * gradient))
        while size > 1e-9 and loss(at - size * step) > loss(at) - 1e-4 * size * gain:
            size /= 2  # the loss is convex: a short enough step lowers it
        at = at - size * step
        if gain < 1e-12 * len(y):
            break
    if at[0] <= 0:
        raise InputError(_why_falling(y, p, shifted))
    return Temperature(float(1 / at[0]), float(at[1]) if shifted else 0.0)


def _why_falling(y: Floats, p: Floats, shifted: bool) -> str:
    """Why the likeliest slope is not positive, and what to do."""
    if auroc(y, p) < 0.5:
        return (
            "Probabilities of breasts with cancer are lower than those of the others: to calibrate "
            "would turn them round. Look at the members' scores, or use calibration=none."
        )
    if shifted:
        return (
            "Breasts with cancer rank higher than the others, but their mean logit does not: no "
            "straight line calibrates them. Use calibration=isotonic, or none."
        )
    return (
        f"Probabilities are {p.mean():.3f} on average, but {y.mean():.3f} of the breasts have "
        "cancer: a temperature alone cannot mend that, because it pulls towards one half. Use "
        "calibration=platt, which shifts them as well."
    )


def _isotonic(y: Floats, p: Floats) -> Isotonic:
    """Pool adjacent violators: neighbours out of order share their mean."""
    x, which, counts = np.unique(p, return_inverse=True, return_counts=True)
    sums = np.bincount(which, weights=y)
    blocks: list[tuple[float, float, int]] = []  # labels, rows, knots
    for positives, rows in zip(sums.tolist(), counts.tolist(), strict=True):
        block = (positives, float(rows), 1)
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            last = blocks.pop()
            block = (last[0] + block[0], last[1] + block[1], last[2] + block[2])
        blocks.append(block)
    level = np.repeat([b[0] / b[1] for b in blocks], [b[2] for b in blocks])
    inner = np.concatenate(
        [[False], (level[1:-1] == level[:-2]) & (level[1:-1] == level[2:]), [False]]
    )
    keep = ~inner[: len(level)]  # between equal neighbours a knot adds nothing
    return Isotonic(tuple(x[keep].tolist()), tuple(level[keep].tolist()))


def calibration_to_json(calibration: Calibration | None) -> dict[str, Any] | None:
    """Plain numbers under `method` and the attributes' names; None stays None."""
    if calibration is None:
        return None
    if isinstance(calibration, Isotonic):
        return {"method": "isotonic", "x": list(calibration.x), "y": list(calibration.y)}
    return {
        "method": "temperature",
        "temperature": calibration.temperature,
        "bias": calibration.bias,
    }


def calibration_from_json(record: Mapping[str, Any] | None) -> Calibration | None:
    """What `calibration_to_json` wrote.

    Raises:
        InputError: the values are no calibration.
        KeyError, TypeError: a key is absent, or too many.
    """
    if record is None:
        return None
    values = {key: value for key, value in record.items() if key != "method"}
    if record["method"] == "temperature":
        return Temperature(**values)
    if record["method"] == "isotonic":
        return Isotonic(**{key: tuple(numbers) for key, numbers in values.items()})
    raise InputError(f"{record['method']!r} is no method of calibration that is known here.")


@dataclass(frozen=True)
class Reliability:
    """Bins of rows by probability, those without rows left out.

    Attributes:
        predicted: (B,) mean probability.
        observed: (B,) share of positives.
        counts: (B,) rows.
    """

    predicted: Floats
    observed: Floats
    counts: Floats


def bins_of(
    probabilities: ArrayLike, bins: int, by: Literal["count", "width"] = "count"
) -> NDArray[np.intp]:
    """The bin of each probability, 0 .. bins - 1: (N,) to (N,); see `reliability`."""
    p = np.asarray(probabilities, dtype=np.float64)
    parts = np.linspace(0, 1, bins + 1)
    edges = np.quantile(p, parts) if by == "count" else parts
    return np.searchsorted(edges[1:-1], p)  # an edge belongs to the bin below it


def reliability(
    labels: ArrayLike,
    probabilities: ArrayLike,
    bins: int = 10,
    by: Literal["count", "width"] = "count",
    weights: ArrayLike | None = None,
) -> Reliability:
    """What share is positive where a probability was given.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,), in [0, 1].
        bins: Number of them.
        by: `count`: quantiles, each of about as many rows; fewer bins where many are equal.
            `width`: equal parts of [0, 1], all but the first almost empty in screening.
        weights: (N,) counts of the rows; the bins are those of the rows without.
    """
    y, p, w = checked(labels, probabilities, weights)
    which = bins_of(p, bins, by)
    sums = [np.bincount(which, values, bins) for values in (w, w * y, w * p)]
    counts, found, said = np.array(sums, dtype=np.float64)
    some = counts > 0
    return Reliability(said[some] / counts[some], found[some] / counts[some], counts[some])


def ece(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None, bins: int = 10
) -> float:
    """Expected calibration error: mean distance of share and probability over bins of equal count.

    It is never quite 0 by chance alone: about as large as a bin's standard error
    (`calibration_intervals.calibration_error` says how large).

    Source: Naeini et al., AAAI 2015; bins of equal count: Nixon et al., CVPR workshops 2019.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,), in [0, 1].
        weights: (N,) counts of the rows; None counts each once.
        bins: Number of them.

    Returns:
        In [0, 1].
    """
    found = reliability(labels, probabilities, bins, weights=weights)
    gaps = np.abs(found.predicted - found.observed)
    return float(np.sum(found.counts * gaps) / found.counts.sum())


def brier(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean squared distance of probability and label: 0 is perfect.

    The prevalence r, said of every breast, scores r (1 - r): .0202 at the competition's.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,), in [0, 1].
        weights: (N,) counts of the rows; None counts each once.
    """
    y, p, w = checked(labels, probabilities, weights)
    return float(np.sum(w * (p - y) ** 2) / w.sum())
