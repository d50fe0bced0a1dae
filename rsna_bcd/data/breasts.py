"""A breast as tensors: the same for training crops and for files on their way through inference."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rsna_bcd.tables.views import OTHER_VIEW, Views, view_number

Sample = dict[str, torch.Tensor]
_PADDING = {"image": 0, "mask": False, "view": OTHER_VIEW, "other": False}


def breast_sample(
    settings: Views,
    own: Sequence[str | None],
    other: Sequence[str | None],
    load: Callable[[int, bool], NDArray[Any]],
    generator: np.random.Generator | None = None,
) -> Sample:
    """Make a sample of the images of one breast.

    Args:
        settings: which of them, and where.
        own: the view of each of its images that can be read, at least one, in the table's order.
        other: those of the patient's other breast.
        load: from a position in `own`, or in `other` and True, to the image, (H, W) uint8 or
            float32 in [0, 1].
        generator: draws among repeats in training; None takes the first.

    Returns:
        `image` (V, 1, H, W), zeros where a place is empty; `mask` (V,) bool, whether it is not;
        `view` (V,) int64 (`view_number`); `other` (V,) bool, whether the place is of the other
        breast.
    """
    places = settings.places(own, other, generator)
    images: list[NDArray[Any] | None] = []
    views: list[str | None] = []
    for place in places:
        at = place.position
        images.append(None if at is None else load(at, place.other))
        views.append(None if at is None else (other if place.other else own)[at])
    present = [image for image in images if image is not None]
    empty = np.zeros_like(present[0])
    pixels = np.stack([empty if image is None else image for image in images])
    return {
        "image": torch.from_numpy(pixels)[:, None],
        "mask": torch.tensor([image is not None for image in images]),
        "view": torch.tensor([view_number(view) for view in views]),
        "other": torch.tensor([place.other for place in places]),
    }


def collate_breasts(samples: Sequence[Sample]) -> Sample:
    """Stack samples, those with fewer places padded with empty ones to the most of the batch."""
    most = max(len(sample["mask"]) for sample in samples)
    return {
        name: torch.stack([_padded(sample[name], most, name) for sample in samples])
        for name in samples[0]
    }


def _padded(tensor: torch.Tensor, places: int, name: str) -> torch.Tensor:
    """Add empty places at the end, if it is a tensor of places."""
    if name not in _PADDING or len(tensor) == places:
        return tensor
    padding = tensor.new_full((places - len(tensor), *tensor.shape[1:]), _PADDING[name])
    return torch.cat([tensor, padding])
