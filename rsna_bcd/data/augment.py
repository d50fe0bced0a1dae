"""Augmentation by albumentations.

The pixels of a sample depend on (seed, epoch, index) and on nothing else: neither on the number of
workers nor on earlier draws. Without this, albumentations repeats its random stream in
every epoch whose workers are restarted, because each worker inherits the same generator.
"""

import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsna_bcd.errors import InputError

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
