"""Images of breasts for tests: an ellipse cut by the chest wall, on a background."""

import numpy as np
from numpy.typing import NDArray


def breast_image(
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
        height: of the image.
        width: of the image.
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
    image = np.where(distance < 1, 0.7 - 0.4 * distance**4, background)
    image += np.random.default_rng(seed).normal(0, noise, image.shape) if noise else 0
    image = np.clip(image, 0, 1).astype(np.float32)
    return image[:, ::-1].copy() if right else image


def oblique_image(
    height: int = 400, width: int = 320, *, abdomen: float = 0.0, right: bool = False
) -> NDArray[np.float32]:
    """A mediolateral oblique view: axilla at the upper edge, the fold at .8 of the height.

    Args:
        height: of the image.
        width: of the image.
        abdomen: width of the strip below the fold, part of the image's; 0: none.
        right: chest wall at the right edge.

    Returns:
        (height, width) in [0, 1]; tissue between .35 and .7 on a background of 0.
    """
    y, x = np.arange(height) / height, np.arange(width) / width
    axilla = 0.3 + 0.2 * np.sin(np.clip((y - 0.15) / 0.35, 0, 1) * np.pi / 2) ** 2
    reach = axilla * np.sqrt(np.clip(1 - np.clip((y - 0.5) / 0.3, 0, 1) ** 2, 0, 1))
    reach = np.maximum(reach, np.where(y > 0.75, abdomen, 0))
    distance = x[None] / np.maximum(reach, 1e-6)[:, None]
    image = np.where(distance < 1, 0.7 - 0.35 * distance**4, 0).astype(np.float32)
    image[reach == 0] = 0
    return image[:, ::-1].copy() if right else image
