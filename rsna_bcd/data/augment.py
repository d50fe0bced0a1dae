"""Augmentation by albumentations.

The pixels of a sample depend on (seed, epoch, index) and on nothing else: neither on the number of
workers nor on earlier draws. Without this, albumentations repeats its random stream in
every epoch whose workers are restarted, because each worker inherits the same generator.
"""

import copy
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsna_bcd.errors import InputError

_DRAWS = 24  # of a transform: one that turns a quarter of the images is missed once in 1,000 times
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it calls home at import
if TYPE_CHECKING:  # imported where a chain is made: without transforms, nothing needs it
    import albumentations


class Augmentation:
    """A chain of albumentations, drawn for each (seed, epoch, index).

    Args:
        transforms: applied in order, each with its own probability; empty leaves images alone.
    """

    def __init__(self, transforms: Sequence["albumentations.BasicTransform"]) -> None:
        self._chain: Any = None
        if transforms:
            import albumentations

            self._chain = albumentations.Compose(list(transforms))

    def __call__(self, pixels: NDArray[Any], key: Sequence[int]) -> NDArray[Any]:
        """Augment one image.

        Args:
            pixels: (H, W), uint8 or float32 in [0, 1].
            key: non-negative integers that the result depends on: (seed, epoch, index).

        Returns:
            The same shape and type.

        Raises:
            InputError: a transform changed the shape or the type, or does not take one channel.
        """
        if self._chain is None:
            return pixels
        generator = np.random.default_rng(list(key))
        self._chain.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        # A trailing channel: some transforms take a bare (H, W) for colour channels.
        try:
            result = self._chain(image=pixels[..., None])["image"]
        except (ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"The augmentation ({self._names()}) cannot take {pixels.dtype} images of one "
                f"channel: {reason}. Leave the transform out of augment.transforms."
            ) from error
        if result.shape != (*pixels.shape, 1) or result.dtype != pixels.dtype:
            raise InputError(
                f"The augmentation ({self._names()}) returns {result.dtype} {result.shape} for "
                f"{pixels.dtype} {(*pixels.shape, 1)}. A transform must keep shape and type."
            )
        return np.ascontiguousarray(result[..., 0])

    def _names(self) -> str:
        return ", ".join(type(one).__name__ for one in _single_transforms(self._chain))


def turns_upside_down(
    augmentation: Callable[[NDArray[Any], Sequence[int]], NDArray[Any]], size: tuple[int, int]
) -> bool:
    """Whether an augmentation may show the upper half of an image below the lower one.

    It is tried on a square above the middle and on one below, each transform by itself and always
    applied, so that it need not be known by name: whether the two change places, wherever they are
    shifted and whatever their brightness becomes.

    Args:
        augmentation: as `Augmentation`.
        size: height and width of the images in pixels.
    """
    height, width = size
    blank = np.full(size, 60, np.uint8)
    above, below = blank.copy(), blank.copy()
    columns = slice(width * 3 // 8, width * 5 // 8)
    above[height * 5 // 16 : height * 7 // 16, columns] = 200
    below[height * 9 // 16 : height * 11 // 16, columns] = 200
    tried = [augmentation]
    if isinstance(augmentation, Augmentation):
        tried = [Augmentation([transform]) for transform in _single_transforms(augmentation._chain)]
    for one in tried:
        for draw in range(_DRAWS):
            plain, *both = (
                one(pixels.copy(), (0, 0, draw)).astype(np.float64)
                for pixels in (blank, above, below)
            )
            upper, lower = (_row_of_square(pixels - plain) for pixels in both)
            if upper > lower + height / 100:  # NaN, out of sight, is not
                return True
    return False


def _row_of_square(difference: NDArray[np.float64]) -> float:
    """The mean row of the pixels (H, W) in which two images differ most; NaN if they are equal."""
    contrast = np.abs(difference - np.median(difference))
    if contrast.max() < 10:
        return np.nan
    rows, _ = np.nonzero(contrast > contrast.max() / 2)
    return float(rows.mean())


def _single_transforms(chain: Any) -> Iterator[Any]:
    """Copies of the transforms of a chain, also of those inside `OneOf` and the like, with p=1."""
    for transform in getattr(chain, "transforms", ()):
        if transform.p > 0 and hasattr(transform, "transforms"):
            yield from _single_transforms(transform)
        elif transform.p > 0:
            alone = copy.deepcopy(transform)
            alone.p = 1.0
            yield alone
