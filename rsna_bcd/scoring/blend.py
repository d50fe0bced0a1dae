"""Several models' probabilities of the same breasts become one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.arrays import Floats
from rsna_bcd.scoring.logits import logit, sigmoid

Blend = Literal["mean", "logit_mean", "rank_mean"]

_KNOTS = 1000  # of a stored distribution; between them ranks rise linearly


@dataclass(frozen=True)
class Ranks:
    """Where a probability stands among a model's out-of-fold ones: what `rank_mean` averages.

    Ranks within a test set would depend on which breasts it happens to hold. These depend on the
    breast alone, also for one by itself. But a test breast has the mean over the folds, which is
    less extreme than the single fold behind each of the out-of-fold rows that it is ranked among.

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
        return np.interp(
            np.asarray(probabilities, dtype=np.float64), self.probabilities, self.ranks
        )


def fit_ranks(probabilities: ArrayLike, name: str = "a member") -> Ranks:
    """The distribution of a model's out-of-fold probabilities.

    Up to 1,000 different values have their exact midranks. Of more as many are kept, closer to each
    other the higher they are: each stands for the same share of the rows above it, so that among
    the few that may be called nearly all are kept.
    0 and 1 are added, so that values outside of what was seen are still told apart.

    Args:
        probabilities: (N,), in [0, 1].
        name: Of the model, for the error.

    Raises:
        InputError: all are equal.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    values, counts = np.unique(p, return_counts=True)
    if len(values) < 2:
        raise InputError(
            f"All {len(p)} probabilities of {name} equal {p[0]:g}: they cannot be ranked. Train "
            "it longer or anew, or leave it out."
        )
    ranks = (np.cumsum(counts) - counts / 2) / len(p)
    if len(values) > _KNOTS:
        depth = -np.log1p(-ranks)
        kept = np.unique(np.searchsorted(depth, np.linspace(depth[0], depth[-1], _KNOTS)))
        values, ranks = values[kept], ranks[kept]
    below, above = bool(values[0] > 0), bool(values[-1] < 1)
    return Ranks(
        (*[0.0] * below, *values.tolist(), *[1.0] * above),
        (*[0.0] * below, *ranks.tolist(), *[1.0] * above),
    )


def on_scale(probabilities: ArrayLike, rule: Blend, ranks: Sequence[Ranks] | None = None) -> Floats:
    """What a blend takes the weighted mean of: (M, N) probabilities, their logits or their ranks.

    Raises:
        InputError: an unknown rule, or `rank_mean` without the ranks of each model.
    """
    if rule not in get_args(Blend):
        raise InputError(f"blend is {' or '.join(get_args(Blend))}, not {rule!r}.")
    p = np.asarray(probabilities, dtype=np.float64)
    if rule == "mean":
        return p
    if rule == "rank_mean":
        if ranks is None or len(ranks) != len(p):
            raise InputError("rank_mean needs the ranks of each member: fit the ensemble again.")
        return np.stack([own.apply(row) for own, row in zip(ranks, p, strict=True)])
    return logit(p)


def blend(
    probabilities: ArrayLike,
    rule: Blend,
    weights: ArrayLike | None = None,
    ranks: Sequence[Ranks] | None = None,
) -> Floats:
    """Weighted mean over the models, of the probabilities, of their logits or of their ranks.

    The mean of the logits listens to a model that is sure; the mean of the probabilities hardly
    does where all are small. The mean of the ranks takes of each model nothing but the order; what
    comes out is no probability, but may be calibrated to one.

    Args:
        probabilities: (M, N), M models, each in [0, 1].
        rule: `mean`, `logit_mean` or `rank_mean`.
        weights: (M,), not negative and not all 0; None weighs all alike. Only their ratios count.
        ranks: Each model's, from `fit_ranks`, for `rank_mean`.

    Returns:
        (N,), in [0, 1]. One model alone comes back as it is under `mean`.

    Raises:
        InputError: an unknown rule, `rank_mean` without ranks, or weights that are unfit.
    """
    scaled = on_scale(probabilities, rule, ranks)
    w = np.ones(len(scaled)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(scaled),) or not np.isfinite(w).all() or (w < 0).any() or w.sum() == 0:
        raise InputError(
            f"weights={w.tolist()} must be {len(scaled)} numbers, one a member, none negative and "
            "not all 0."
        )
    # Sums of rows, not a product of matrices: a row comes out the same whatever is beside it.
    mean = np.sum((w / w.sum())[:, None] * scaled, axis=0)
    return sigmoid(mean) if rule == "logit_mean" else np.clip(mean, 0.0, 1.0)
