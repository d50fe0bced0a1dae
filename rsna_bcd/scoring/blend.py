"""Blend several models' probabilities of the same breasts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.metrics import Floats, check_inputs, logit, sigmoid

BlendMethod = Literal["mean", "logit_mean", "rank_mean"]

# In simulations (`tests/scoring/test_blend.py`) 1 to 10 did equally well. At 60 cancers this costs
# .004 of average precision where members are alike, and gains .07 where one of three is weak.
SHRINKAGE = 3.0

_KNOTS = 1000  # of a stored distribution; between them ranks rise linearly


@dataclass(frozen=True)
class RankTransform:
    """A member's out-of-fold distribution function, which `rank_mean` averages.

    Ranks within a test set would depend on which breasts are in it. These depend on the breast
    alone. But a test breast has the mean over the folds, which is less extreme than the single fold
    behind each of the out-of-fold rows that it is ranked among.

    Attributes:
        probabilities: (K,) ascending, all different.
        ranks: (K,) the share of out-of-fold rows below each, those equal to it counting half.
    """

    probabilities: tuple[float, ...]
    ranks: tuple[float, ...]

    def __post_init__(self) -> None:
        p, r = np.array(self.probabilities), np.array(self.ranks)
        rising = len(p) == len(r) > 1 and (np.diff(p) > 0).all() and (np.diff(r) > 0).all()
        if not (rising and p[0] >= 0 and p[-1] <= 1 and r[0] >= 0 and r[-1] <= 1):
            raise InputError("The ranks of a member do not rise: fit the ensemble again.")

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Ranks of probabilities: (N,) in [0, 1] to (N,) in [0, 1], in the same order."""
        p = np.asarray(probabilities, dtype=np.float64)
        return np.interp(p, self.probabilities, self.ranks)


def fit_rank_transform(probabilities: ArrayLike, name: str = "a member") -> RankTransform:
    """The distribution of a model's out-of-fold probabilities.

    Up to 1,000 different values have their exact midranks. Of more as many are kept, closer to each
    other the higher they are: each stands for the same share of the rows above it, so that nearly
    all of the few highest are kept. 0 and 1 are added, so that values outside of the range of the
    out-of-fold rows still differ.

    Raises:
        InputError: all are equal; the message has the `name` of the model.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    values, first = np.unique(p, return_index=True)
    if len(values) < 2:
        raise InputError(
            f"All {len(p)} probabilities of {name} equal {p[0]:g}: they cannot be ranked. Train "
            "it longer or again, or leave it out."
        )
    ranks = (rankdata(p)[first] - 0.5) / len(p)
    if len(values) > _KNOTS:
        depth = -np.log1p(-ranks)
        kept = np.unique(np.searchsorted(depth, np.linspace(depth[0], depth[-1], _KNOTS)))
        values, ranks = values[kept], ranks[kept]
    below, above = bool(values[0] > 0), bool(values[-1] < 1)
    return RankTransform(
        (*[0.0] * below, *values.tolist(), *[1.0] * above),
        (*[0.0] * below, *ranks.tolist(), *[1.0] * above),
    )


def transform_scores(
    probabilities: ArrayLike, method: BlendMethod, ranks: Sequence[RankTransform] | None = None
) -> Floats:
    """The scores that a blend averages: (M, N) probabilities, their logits or their ranks.

    Raises:
        InputError: `rank_mean` without the ranks of each model.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if method == "mean":
        return p
    if method == "logit_mean":
        return logit(p)
    if ranks is None or len(ranks) != len(p):
        raise InputError("rank_mean needs the ranks of each member: fit the ensemble again.")
    return np.stack([own.apply(row) for own, row in zip(ranks, p, strict=True)])


def blend(
    probabilities: ArrayLike,
    method: BlendMethod,
    weights: ArrayLike | None = None,
    ranks: Sequence[RankTransform] | None = None,
) -> Floats:
    """Weighted mean over the models, of the probabilities, of their logits or of their ranks.

    In the mean of the logits a confident model weighs more than in that of small probabilities. The
    mean of the ranks uses the order of each model alone; it is no probability, but may be
    calibrated to one.

    Args:
        probabilities: (M, N), M models.
        method: `mean`, `logit_mean` or `rank_mean`.
        weights: (M,), not negative and not all 0; None weighs all alike. Only their ratios count.
        ranks: Each model's, from `fit_rank_transform`, for `rank_mean`.

    Returns:
        (N,), in [0, 1].

    Raises:
        InputError: `rank_mean` without ranks, or invalid weights.
    """
    scores = transform_scores(probabilities, method, ranks)
    w = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(scores),) or not np.isfinite(w).all() or (w < 0).any() or w.sum() == 0:
        raise InputError(
            f"weights={w.tolist()} must be {len(scores)} numbers, one per member, none negative "
            "and not all 0."
        )
    # Sums of rows, not a matrix product: a row's result does not depend on the rows beside it.
    mean = np.sum((w / w.sum())[:, None] * scores, axis=0)
    return sigmoid(mean) if method == "logit_mean" else np.clip(mean, 0.0, 1.0)


def fit_weights(
    labels: ArrayLike,
    probabilities: ArrayLike,
    method: BlendMethod,
    ranks: Sequence[RankTransform] | None = None,
    shrinkage: float = SHRINKAGE,
    names: Sequence[str] | None = None,
) -> Floats:
    """Non-negative weights whose blend predicts the labels best.

    A logistic regression of the labels on the averaged quantity (probabilities, logits or ranks),
    with an intercept and non-negative coefficients, shrunk towards equal ones:

        sum of log-losses + shrinkage / 2 * sum of (coefficient - mean coefficient)^2

    which is convex and has one minimum. Intercept and overall size absorb that the members are not
    calibrated, so that only their order counts; the blend has the same order as the regression.
    The shrinkage has the weight of a few breasts with cancer: with few of them, or members that are
    alike, weights stay near equal. The score on these same rows is optimistic, a little.

    Source: stacking with non-negative coefficients: Breiman, Machine Learning 24 (1996).

    Returns:
        (M,) for the (M, N) probabilities of M models, with sum 1; all equal where no model orders
        the labels better than chance.

    Raises:
        InputError: one class only, or a model whose probabilities are all equal.
    """
    y, _, _ = check_inputs(labels, labels)
    if y.min() == y.max():
        raise InputError(f"All {len(y)} labels equal {y[0]:g}: no weights can be fitted.")
    x = transform_scores(probabilities, method, ranks)
    n_models = len(x)
    names = names or [f"member {number + 1}" for number in range(n_models)]
    for name, row in zip(names, x, strict=True):
        check_inputs(y, row)
        if row.min() == row.max():
            raise InputError(
                f"All probabilities of {name} are equal: it has no weight. Leave it out."
            )
    x = x - x.mean(axis=1, keepdims=True)
    spread = x.mean(axis=0).std()
    x = x / spread if spread > 0 else x

    def loss(parameters: Floats) -> tuple[float, Floats]:
        coefficients = parameters[:-1]
        z = np.sum(coefficients[:, None] * x, axis=0) + parameters[-1]
        excess = coefficients - coefficients.mean()
        residual = sigmoid(z) - y
        value = np.sum(np.logaddexp(0, z) - y * z) + shrinkage / 2 * np.sum(excess**2)
        gradient = np.sum(residual * x, axis=1) + shrinkage * excess
        return float(value), np.append(gradient, residual.sum())

    coefficients = _minimise(loss, np.append(np.zeros(n_models), logit(y.mean())))[:-1]
    total = coefficients.sum()
    return coefficients / total if total > 0 else np.full(n_models, 1 / n_models)


def _minimise(loss: Callable[[Floats], tuple[float, Floats]], start: Floats) -> Floats:
    """Minimise a loss (with its gradient) over parameters of which the last alone may be < 0."""
    bounds = [(0, None)] * (len(start) - 1) + [(None, None)]
    fitted = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    # To the last digits, which differences of the loss cannot resolve but its gradient can.
    free = np.append(fitted[:-1] > 0, True)

    def free_gradient(parameters: Floats) -> Floats:
        full = np.zeros(len(start))
        full[free] = parameters
        return loss(full)[1][free]

    fitted[free] = scipy.optimize.root(free_gradient, fitted[free], tol=1e-12).x
    return np.append(np.maximum(fitted[:-1], 0), fitted[-1])
