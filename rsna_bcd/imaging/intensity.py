"""Intensity statistics of a crop: what can be known of a breast without looking at its shapes.

They feed the plain baseline that a network has to beat, and that the synthetic lesions must defeat.
"""

import numpy as np
from numpy.typing import NDArray

_PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 99.9)
_BINS = 16
_SPARSE = 10  # pixels; of a breast with fewer there is nothing to say

FEATURES = (
    "area",
    "mean",
    "sd",
    "skewness",
    "kurtosis",
    *(f"percentile_{p:g}" for p in _PERCENTILES),
    *(f"bin_{i}" for i in range(_BINS)),
    "gradient_mean",
    "gradient_energy",
    "gradient_99",
)


def intensity_statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Statistics of the grey values of the breast, and of the steps between neighbours in it.

    The breast is what is above 0, the background of a crop.

    Args:
        pixels: (H, W), a crop.

    Returns:
        (len(FEATURES),): share of the frame; moments and percentiles in grey levels; share of each
        of 16 bins of 16 levels; mean, mean square and 99th percentile of the gradient's length in
        levels per pixel. All but the area are NaN where hardly a pixel is above 0.
    """
    breast = pixels > 0
    count = int(breast.sum())
    if count < _SPARSE:
        return np.array([breast.mean(), *[np.nan] * (len(FEATURES) - 1)])
    levels = np.arange(256)
    share = np.bincount(pixels[breast], minlength=256) / count
    mean = share @ levels
    centred = levels - mean
    sd = np.sqrt(share @ centred**2)
    # A flat breast has no shape of its distribution: the moments are those of a point, 0.
    skewness, kurtosis = (share @ (centred / sd) ** k if sd > 0 else 0.0 for k in (3, 4))
    # The lowest level with at least p % of the pixels at or below it.
    percentiles = np.searchsorted(np.cumsum(share), np.array(_PERCENTILES) / 100 - 1e-12)
    gradient = _gradient(pixels, breast)
    return np.array(
        [
            breast.mean(),
            mean,
            sd,
            skewness,
            kurtosis,
            *percentiles,
            *share.reshape(_BINS, -1).sum(axis=1),
            gradient.mean(),
            np.mean(gradient**2),
            np.quantile(gradient, 0.99),
        ]
    )


def _gradient(pixels: NDArray[np.uint8], breast: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Length of the forward difference wherever pixel, right and lower neighbour are breast."""
    inside = breast[:-1, :-1] & breast[:-1, 1:] & breast[1:, :-1]
    if not inside.any():
        return np.zeros(1)
    values = pixels.astype(np.float64)  # differences of uint8 would wrap
    down = (values[1:, :-1] - values[:-1, :-1])[inside]
    right = (values[:-1, 1:] - values[:-1, :-1])[inside]
    return np.hypot(down, right)
