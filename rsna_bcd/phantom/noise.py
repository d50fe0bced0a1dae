"""Periodic random fields with a power-law spectrum, the texture of breast tissue.

The spectrum of mammograms falls as 1/f^beta with beta about 3 (Burgess, Jacobson and Judy, "Human
observer detection experiments with mammograms and power-law noise", Medical Physics 28, 2001).
"""

import functools

import cv2
import numpy as np

SIZE = 1024  # pixels of a field, a power of two for the FFT


@functools.cache
def power_law(beta: float, lowest: float, index: int) -> np.ndarray:
    """Make one field; cached, because an FFT costs more than all the rest of an image.

    Images differ by where and in which direction they look at the fields, so a few are enough.

    Args:
        beta: the power spectrum falls as 1/f^beta.
        lowest: frequencies below so many cycles a field are removed: the coarsest structure is
            SIZE / lowest pixels.
        index: which of the fields with this spectrum.

    Returns:
        (SIZE, SIZE) float32, read-only, mean 0, standard deviation 1, periodic in both directions.
    """
    rng = np.random.default_rng([SIZE, round(100 * beta), round(lowest), index])
    white = np.fft.rfft2(rng.standard_normal((SIZE, SIZE), dtype=np.float32))
    y = np.fft.fftfreq(SIZE, 1 / SIZE).astype(np.float32)[:, None]
    x = np.fft.rfftfreq(SIZE, 1 / SIZE).astype(np.float32)[None, :]
    frequency = np.hypot(x, y)
    amplitude = np.maximum(frequency, 1) ** np.float32(-beta / 2) * (frequency >= lowest)
    field = np.fft.irfft2(white * amplitude, s=(SIZE, SIZE)).astype(np.float32)
    field = (field - field.mean()) / field.std()
    field.flags.writeable = False
    return field


def look_up(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample a periodic field at the float32 coordinates `x`, `y` (H, W), in its pixels."""
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
