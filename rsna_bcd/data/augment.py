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

_DRAWS = 16  # of a transform: one that turns half of the images is missed once in 65,536 times
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
            InputError: a transform changed the shape or the type.
        """
        if self._chain is None:
            return pixels
        generator = np.random.default_rng(list(key))
        self._chain.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        # A trailing channel: some transforms take a bare (H, W) for colour channels.
        result = self._chain(image=pixels[..., None])["image"]
        if result.shape != (*pixels.shape, 1) or result.dtype != pixels.dtype:
            names = ", ".join(type(transform).__name__ for transform in self._chain.transforms)
            raise InputError(
                f"The augmentation ({names}) returns {result.dtype} {result.shape} for "
                f"{pixels.dtype} {(*pixels.shape, 1)}. A transform must keep shape and type."
            )
        return np.ascontiguousarray(result[..., 0])


def turns_upside_down(
    augmentation: Callable[[NDArray[Any], Sequence[int]], NDArray[Any]], size: tuple[int, int]
) -> bool:
    """Whether an augmentation may show the upper half of an image below the lower one.

    It is tried on a pattern in the upper half, each transform by itself and always applied, so that
    it need not be known by name.

    Args:
        augmentation: as `Augmentation`.
        size: height and width of the images in pixels.
    """
    height = size[0]
    rows, columns = np.indices(size) * 8 // np.array(size)[:, None, None]
    pattern = (200 * ((rows + columns) % 2) * (rows < 4)).astype(np.uint8)
    tried = [augmentation]
    if isinstance(augmentation, Augmentation):
        tried = [Augmentation([transform]) for transform in _single_transforms(augmentation._chain)]
    for one in tried:
        for draw in range(_DRAWS):
            result = one(pattern.copy(), (0, 0, draw)).astype(np.float64)
            if result[height // 2 :].var() > 1.5 * result[: height // 2].var():
                return True
    return False


def _single_transforms(chain: Any) -> Iterator[Any]:
    """Copies of the transforms of a chain, also of those inside `OneOf` and the like, with p=1."""
    for transform in getattr(chain, "transforms", ()):
        if transform.p > 0 and hasattr(transform, "transforms"):
            yield from _single_transforms(transform)
        elif transform.p > 0:
            alone = copy.deepcopy(transform)
            alone.p = 1.0
            yield alone
