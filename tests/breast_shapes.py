"""Outlines of breasts for tests: an ellipse cut by the chest wall, on a background."""

import numpy as np
from numpy.typing import NDArray


def breast_picture(
    height: int = 400,
    width: int = 320,
    *,
    reach: float = 0.5,
    half_height: float = 0.4,
    right: bool = False,
    background: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> NDArray[np.float32]:
    """A breast at the left edge, or at the right one.

    Args:
        height: of the picture.
        width: of the picture.
        reach: of the nipple from the chest wall, part of the width.
        half_height: of the breast, part of the height.
        right: chest wall at the right edge.
        background: its grey level.
        noise: standard deviation of the noise everywhere.
        seed: of the noise.

    Returns:
        (height, width) in [0, 1]; tissue between .3 and .7, fainter towards the skin.
    """
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    distance = np.hypot(
        columns / (reach * width), (rows + 0.5 - height / 2) / (half_height * height)
    )
    picture = np.where(distance < 1, 0.7 - 0.4 * distance**4, background)
    picture += np.random.default_rng(seed).normal(0, noise, picture.shape) if noise else 0
    picture = np.clip(picture, 0, 1).astype(np.float32)
    return picture[:, ::-1].copy() if right else picture
