"""Probability calibration, and how well probabilities are calibrated.

All calibrations are monotone, and thresholds apply before them: a calibration never changes a
decision or an order (isotonic steps may make neighbours equal).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression
from sklearn.linear_model import LogisticRegression

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.intervals import Interval, bootstrap_interval
from rsna_bcd.scoring.metrics import Floats, auroc, brier, check_inputs, logit, sigmoid

CalibrationMethod = Literal["temperature", "platt", "isotonic"]

_CHANCE_DRAWS = 500  # of labels; the standard error of the chance level is 1 / 80 of it


@dataclass(frozen=True)
class Temperature:
    """Logits divided by a temperature and shifted: sigmoid(logit(p) / temperature + bias).

    Attributes:
        temperature: Above 0; above 1 where the probabilities were overconfident.
        bias: 0 under `temperature`. Networks that were trained on more cancers than there are need
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
    """A piecewise linear, never falling function, constant outside of its knots.

    Attributes:
        x: (K,) probabilities, ascending.
        y: (K,) calibrated, never falling, in [0, 1].
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


def fit_calibration(
    labels: ArrayLike, probabilities: ArrayLike, method: CalibrationMethod
) -> Calibration:
    """Fit a calibration to out-of-fold rows.

    `temperature` scales the logits (Guo et al., ICML 2017), `platt` scales and shifts them (Platt,
    1999), `isotonic` is the best monotone function in squares (Zadrozny and Elkan, KDD 2002), which
    wants some hundred positives.

    Raises:
        InputError: one class only; probabilities that are equal, or that fall
            where the share of cancers rises, so that no monotone function fits; or probabilities so
            far from the prevalence that no temperature fits.
    """
    y, p, _ = check_inputs(labels, probabilities)
    for name, values in (("labels", y), ("probabilities", p)):
        if values.min() == values.max():
            raise InputError(
                f"All {len(y)} {name} equal {values[0]:g}: no calibration can be fitted. Use more "
                "folds, or calibration=none."
            )
    if method == "isotonic":
        # Not scikit-learn's, which takes probabilities that differ in the last digit for equal.
        x, index, counts = np.unique(p, return_inverse=True, return_counts=True)
        fitted = isotonic_regression(np.bincount(index, y) / counts, weights=counts)
        # Within a block of equal values only the first and the last knot matter.
        knots = np.unique([*fitted.blocks[:-1], *(fitted.blocks[1:] - 1)])
        return Isotonic(tuple(x[knots].tolist()), tuple(np.clip(fitted.x[knots], 0, 1).tolist()))
    # Platt's targets, a little inside of 0 and 1, so that separable rows have a finite slope: every
    # row counts as a positive one by its target, and as a negative one by the rest.
    positives = float(y.sum())
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))
    z = logit(p)
    regression = LogisticRegression(
        C=np.inf,  # no penalty
        fit_intercept=method == "platt",
        solver="newton-cholesky",
        tol=1e-10,
    ).fit(
        np.concatenate([z, z])[:, None],
        np.repeat([1, 0], len(z)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope, bias = float(regression.coef_[0, 0]), float(regression.intercept_[0])
    if slope <= 0:
        raise InputError(_why_slope_is_negative(y, p, method))
    return Temperature(1 / slope, bias if method == "platt" else 0.0)


def _why_slope_is_negative(y: Floats, p: Floats, method: CalibrationMethod) -> str:
    """The reason, and the remedy."""
    if auroc(y, p) < 0.5:
        return (
            "Probabilities of breasts with cancer are lower than those of the others: calibration "
            "would reverse them. Look at the members' scores, or use calibration=none."
        )
    if method == "platt":
        return (
            "Breasts with cancer rank higher than the others, but their mean logit does not: no "
            "straight line calibrates them. Use calibration=isotonic, or none."
        )
    return (
        f"Probabilities are {p.mean():.3f} on average, but {y.mean():.3f} of the breasts have "
        "cancer: a temperature alone cannot correct that, because it pulls towards one half. Use "
        "calibration=platt, which shifts them as well."
    )


def calibration_to_json(calibration: Calibration | None) -> dict[str, Any] | None:
    """Plain numbers under `method` and the attributes' names; None stays None."""
    if calibration is None:
        return None
    method = "isotonic" if isinstance(calibration, Isotonic) else "temperature"
    return {"method": method} | asdict(calibration)


def calibration_from_json(record: Mapping[str, Any] | None) -> Calibration | None:
    """The inverse of `calibration_to_json`.

    Raises:
        InputError: the values are no calibration.
        KeyError, TypeError: a key is absent, or unknown.
    """
    if record is None:
        return None
    values = {key: value for key, value in record.items() if key != "method"}
    if record["method"] == "temperature":
        return Temperature(**values)
    if record["method"] == "isotonic":
        return Isotonic(**{key: tuple(numbers) for key, numbers in values.items()})
    raise InputError(f"{record['method']!r} is no known method of calibration.")


@dataclass(frozen=True)
class ReliabilityCurve:
    """Bins of rows by probability, those without rows left out.

    Attributes:
        predicted: (B,) mean probability.
        observed: (B,) share of positives.
        counts: (B,) rows.
    """

    predicted: Floats
    observed: Floats
    counts: Floats


def _bin_indices(
    probabilities: Floats, bins: int, by: Literal["count", "width"] = "count"
) -> NDArray[np.intp]:
    """The bin of each probability, 0 .. bins - 1: (N,) to (N,)."""
    edges = np.linspace(0, 1, bins + 1)
    if by == "count":
        edges = np.quantile(probabilities, edges)
    return np.searchsorted(edges[1:-1], probabilities)  # an edge belongs to the bin below it


def reliability_curve(
    labels: ArrayLike,
    probabilities: ArrayLike,
    bins: int = 10,
    by: Literal["count", "width"] = "count",
) -> ReliabilityCurve:
    """Share of positives over mean probability: scikit-learn's `calibration_curve`, with counts.

    Bins by `count` are quantiles, each of about as many rows; fewer where many are equal. Those by
    `width` are equal parts of [0, 1], all but the first almost empty in screening.
    """
    y, p, _ = check_inputs(labels, probabilities)
    index = _bin_indices(p, bins, by)
    counts = np.bincount(index, minlength=bins).astype(np.float64)
    filled = counts > 0
    predicted, observed = (np.bincount(index, values, bins)[filled] for values in (p, y))
    return ReliabilityCurve(predicted / counts[filled], observed / counts[filled], counts[filled])


def ece(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error, in [0, 1], over bins of equal count.

    By chance alone it is about as large as a bin's standard error (`calibration_error`).

    Source: Naeini et al., AAAI 2015; bins of equal count: Nixon et al., CVPR workshops 2019.
    """
    curve = reliability_curve(labels, probabilities, bins)
    return float(np.average(np.abs(curve.predicted - curve.observed), weights=curve.counts))


@dataclass(frozen=True)
class CalibrationError:
    """An expected calibration error, and that of perfectly calibrated probabilities.

    It has no interval: a distance is never below 0, so that resampling, which adds noise to noise,
    gives larger ones throughout, and perfectly calibrated probabilities an interval above 0.

    Attributes:
        value: `ece`, in [0, 1].
        chance: Its mean if the same probabilities were true of as many rows. A value near to it
            shows no miscalibration.
    """

    value: float
    chance: float

    def __str__(self) -> str:
        return f"{self.value:.4f} (by chance {self.chance:.4f})"


class CalibrationScores(TypedDict):
    """`brier` with its interval, `ece` with its chance level."""

    brier: Interval
    ece: CalibrationError


def calibration_scores(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    n: int = 2000,
    seed: int = 0,
) -> CalibrationScores:
    """Brier score with its interval by patient, and expected calibration error."""
    return {
        "brier": bootstrap_interval(brier, labels, probabilities, patients, n, seed),
        "ece": calibration_error(labels, probabilities, seed),
    }


def calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, seed: int = 0, bins: int = 10
) -> CalibrationError:
    """Expected calibration error beside its chance level.

    For the latter, labels are drawn from the probabilities row by row. Breasts of a patient are
    correlated in truth, so the chance level is a little higher than this.
    """
    y, p, _ = check_inputs(labels, probabilities)
    index = _bin_indices(p, bins)
    expected = np.bincount(index, p, bins)
    generator = np.random.default_rng(seed)
    gaps = [
        np.abs(expected - np.bincount(index[generator.random(len(p)) < p], minlength=bins)).sum()
        for _ in range(_CHANCE_DRAWS)
    ]
    return CalibrationError(ece(y, p, bins), float(np.mean(gaps) / len(p)))
