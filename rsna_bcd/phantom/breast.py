"""The breast of a patient: what all its views share."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Breast:
    """Sizes, density and the seed of the tissue.

    Attributes:
        reach: distance from the chest wall to the nipple, mm.
        half_width: half the width seen from above, mm.
        half_height: distance from the nipple to the inframammary fold seen from the side, mm.
        roundness: exponent of the outline's superellipse; 2 is an ellipse.
        density: BI-RADS density, A to D.
        implant: whether there is an implant behind the tissue.
        seed: of everything finer.
    """

    reach: float
    half_width: float
    half_height: float
    roundness: float
    density: str
    implant: bool
    seed: int


def sample_breast(size: float, density: str, implant: bool, rng: np.random.Generator) -> Breast:
    """Draw a breast; `size` is a standard score shared by both breasts of a patient."""
    size = size + 0.2 * rng.standard_normal()
    reach = float(np.clip(86 + 17 * size, 52, 135))
    return Breast(
        reach=reach,
        half_width=float(np.clip(reach * rng.uniform(0.9, 1.1), 50, 115)),
        half_height=float(np.clip(reach * rng.uniform(0.65, 0.85), 42, 95)),
        roundness=rng.uniform(1.8, 2.4),
        density=density,
        implant=implant,
        seed=int(rng.integers(2**32)),
    )
