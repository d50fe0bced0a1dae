"""Several models' probabilities of the same breasts become one."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.arrays import Floats

Blend = Literal["mean", "logit_mean"]

_MARGIN = 1e-7  # keeps the logits of 0 and 1 finite


def blend(probabilities: ArrayLike, rule: Blend, weights: ArrayLike | None = None) -> Floats:
    """Weighted mean over the models, of the probabilities or of their logits.

    The mean of the logits listens to a model that is sure; the mean of the probabilities hardly
    does where all are small.

    Args:
        probabilities: (M, N), M models, each in [0, 1].
        rule: `mean` or `logit_mean`.
        weights: (M,), not negative and not all 0; None weighs all alike. Only their ratios count.

    Returns:
        (N,), in [0, 1]. One model alone comes back as it is under `mean`.

    Raises:
        InputError: an unknown rule, or weights that are unfit.
    """
    if rule not in get_args(Blend):
        raise InputError(f"blend is {' or '.join(get_args(Blend))}, not {rule!r}.")
    p = np.asarray(probabilities, dtype=np.float64)
    w = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(p),) or not np.isfinite(w).all() or (w < 0).any() or w.sum() == 0:
        raise InputError(
            f"weights={w.tolist()} must be {len(p)} numbers, one a member, none negative and not "
            "all 0."
        )
    w = w / w.sum()
    if rule == "mean":
        return w @ p
    p = np.clip(p, _MARGIN, 1 - _MARGIN)
    return 1 / (1 + np.exp(-(w @ np.log(p / (1 - p)))))
