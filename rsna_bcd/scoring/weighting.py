"""Weights of a blend, fitted to out-of-fold rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.arrays import Floats, checked
from rsna_bcd.scoring.blend import Blend, Ranks, on_scale
from rsna_bcd.scoring.logits import logit, sigmoid

# In simulations (`tests/scoring/test_weighting.py`) 1 to 10 did equally well. At 60 cancers this
# costs .004 of average precision where members are alike, and gains .07 where one of three is weak.
PULL = 3.0
_STEPS = 200  # of Newton's method, which needs about 10
_EXACT = 1e-10  # of the loss a row


def fit_weights(
    labels: ArrayLike,
    probabilities: ArrayLike,
    rule: Blend,
    ranks: Sequence[Ranks] | None = None,
    pull: float = PULL,
    names: Sequence[str] | None = None,
) -> Floats:
    """Non-negative weights whose blend predicts the labels best.

    A logistic regression of the labels on what the blend averages (probabilities, logits or ranks),
    with an intercept and coefficients that are not negative, and a pull towards equal ones:

        sum of log-losses + pull / 2 * sum of (coefficient - mean coefficient)^2

    which is convex and has one minimum. Intercept and overall size absorb that the members are not
    calibrated, so that only their order counts; the blend has the same order as the regression.
    The pull has the weight of a few breasts with cancer: with few of them, or members that are
    alike, weights stay near equal. The score of these same rows is optimistic, a little.

    Source: stacking with coefficients that are not negative: Breiman, Machine Learning 24 (1996).

    Args:
        labels: (N,), each 0 or 1; both occur.
        probabilities: (M, N), M models, each in [0, 1].
        rule: Of the blend.
        ranks: Each model's, for `rank_mean`.
        pull: Above 0.
        names: Of the models, for errors; None numbers them.

    Returns:
        (M,), with sum 1; all equal where no model orders the labels better than chance.

    Raises:
        InputError: one class only, or a model whose probabilities are all equal.
    """
    y, _, _ = checked(labels, labels, None)
    if y.min() == y.max():
        raise InputError(f"All {len(y)} labels equal {y[0]:g}: no weights can be fitted.")
    x = on_scale(probabilities, rule, ranks)
    for number, row in enumerate(x):
        checked(y, row, None)
        if row.min() == row.max():
            name = names[number] if names else f"member {number + 1}"
            raise InputError(
                f"All probabilities of {name} are equal: it has no weight. Leave it out."
            )
    n_models = len(x)
    x = x - x.mean(axis=1, keepdims=True)
    x = x / x.mean(axis=0).std() if x.mean(axis=0).std() > 0 else x
    apart = np.eye(n_models) - 1 / n_models  # from a coefficient to its distance from the mean
    problem = _Regression(y, np.concatenate([x, np.ones((1, len(y)))]), pull * apart)
    coefficients = problem.solve()
    total = coefficients.sum()
    return coefficients / total if total > 0 else np.full(n_models, 1 / n_models)


class _Regression:
    """A penalised logistic regression whose coefficients, but the last, are not negative."""

    def __init__(self, labels: Floats, design: Floats, penalty: Floats) -> None:
        self.y, self.x = labels, design  # (N,), (M + 1, N)
        self.penalty = np.zeros((len(design), len(design)))
        self.penalty[:-1, :-1] = penalty

    def loss(self, at: Floats) -> float:
        z = np.sum(at[:, None] * self.x, axis=0)
        penalty = float(np.sum(at * np.sum(self.penalty * at, axis=1)))
        return float(np.sum(np.logaddexp(0, z) - self.y * z)) + penalty / 2

    def solve(self) -> Floats:
        """Newton's method on the coefficients that are free, projected (Bertsekas, 1982): (M,)."""
        at = np.zeros(len(self.x))
        prevalence = self.y.mean()
        at[-1] = logit(prevalence)
        for _ in range(_STEPS):
            trial = self._step(at)
            gain = self.loss(at) - self.loss(trial)
            if gain <= 0:
                break
            at = trial
            if gain < _EXACT * len(self.y):
                break
        return at[:-1]

    def _step(self, at: Floats) -> Floats:
        """The next estimate; `at` itself where there is none better."""
        p = sigmoid(np.sum(at[:, None] * self.x, axis=0))
        gradient = np.sum((p - self.y) * self.x, axis=1) + np.sum(self.penalty * at, axis=1)
        free = (at > 0) | (gradient < 0)
        free[-1] = True  # the intercept
        weighted = (p * (1 - p))[None] * self.x[free]
        curvature = np.sum(weighted[:, None] * self.x[free][None], axis=2)
        curvature += self.penalty[np.ix_(free, free)]
        direction = np.zeros_like(at)
        direction[free] = np.linalg.lstsq(curvature, gradient[free], rcond=None)[0]
        size, before = 1.0, self.loss(at)
        while size > _EXACT:
            trial = at - size * direction
            trial[:-1] = np.maximum(trial[:-1], 0)
            if self.loss(trial) <= before - 1e-4 * float(np.sum(gradient * (at - trial))):
                return trial
            size /= 2
        return at
