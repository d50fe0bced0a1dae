"""Periodic random fields with a power-law spectrum, the texture of breast tissue.

The spectrum of mammograms falls as 1/f^beta with beta about 3 (Burgess, Jacobson and Judy, "Human
observer detection experiments with mammograms and power-law noise", Medical Physics 28, 2001).
"""

import functools

import cv2
import numpy as np

SIZE = 512  # pixels of a field: a power of two for the FFT, and small enough for the cache

# Name of a stack of fields -> for each field the exponent beta of its spectrum and its lowest
# frequency, cycles a field. Fields of a stack are looked at in the same place, which is cheaper.
_STACKS = {
    "radial": ((3.0, 2), (4.5, 9), (4.0, 22)),  # clouds of glands, a coarse and a fine net
    "plain": ((3.0, 2), (2.8, 6)),  # where which net prevails; lumps
    "stripes": ((2.6, 12),),  # of muscle
}


@functools.cache
def fields(name: str) -> np.ndarray:
    """Make a stack of fields; cached, because an FFT costs more than all the rest of an image.

    Images differ by where they look at the fields, so one stack of each kind is enough.

    Returns:
        (SIZE, SIZE, n) float32, read-only, each field with mean 0 and standard deviation 1,
        periodic in both directions.
    """
    rng = np.random.default_rng(list(name.encode()))
    stack = np.stack([power_law(beta, lowest, rng) for beta, lowest in _STACKS[name]], axis=-1)
    stack.flags.writeable = False
    return stack


def power_law(beta: float, lowest: float, rng: np.random.Generator) -> np.ndarray:
    """Make a field whose power spectrum falls as 1/f^beta from `lowest` cycles a field.

    Returns:
        (SIZE, SIZE) float32, mean 0, standard deviation 1.
    """
    white = np.fft.rfft2(rng.standard_normal((SIZE, SIZE), dtype=np.float32))
    y = np.fft.fftfreq(SIZE, 1 / SIZE).astype(np.float32)[:, None]
    x = np.fft.rfftfreq(SIZE, 1 / SIZE).astype(np.float32)[None, :]
    frequency = np.hypot(x, y)
    amplitude = np.maximum(frequency, 1) ** np.float32(-beta / 2) * (frequency >= lowest)
    field = np.fft.irfft2(white * amplitude, s=(SIZE, SIZE)).astype(np.float32)
    return (field - field.mean()) / field.std()


def look_up(stack: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample periodic fields at the float32 coordinates `x`, `y` (H, W), in their pixels."""
    return cv2.remap(stack, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
