"""Choosing patches of an image by a map of what is suspicious, and cutting them out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rsna_bcd.errors import InputError


@torch.no_grad()
def choose_patches(saliency: Tensor, n_patches: int, patch: int, size: Sequence[int]) -> Tensor:
    """Place patches greedily where the sum of the map is largest (Shen et al., 2021, algorithm 1).

    There, what a patch covers is set to zero before the next is placed, which may overlap it. Here
    a later patch overlaps an earlier one only where no place is free, and then as little as can be.

    Args:
        saliency: (B, 1, h, w), not negative.
        n_patches: K.
        patch: side of a patch in pixels of the image.
        size: H and W of the image, which the map covers.

    Returns:
        (B, K, 2) int64, the upper left corners as row and column; the patches lie inside the image.

    Raises:
        InputError: a patch is larger than the image.
    """
    if patch > min(size):
        raise InputError(
            f"network.patch={patch} is more than an image of {size[0]} x {size[1]} holds. "
            "Take a smaller patch or a larger crop."
        )
    cells = saliency.shape[-2:]
    # Cells that a patch needs, rounded up so that patches that share no cell share no pixel.
    window = [-(-patch * c // s) for c, s in zip(cells, size, strict=True)]
    sums = F.avg_pool2d(saliency.float(), window, stride=1, divisor_override=1)[:, 0]
    rows = torch.arange(sums.shape[-2], device=sums.device)[:, None]
    columns = torch.arange(sums.shape[-1], device=sums.device)
    overlap = torch.zeros_like(sums)  # cells of a window there that are covered already
    corners = []
    for _ in range(n_patches):
        best = torch.where(overlap > 0, -overlap, sums).flatten(1).argmax(dim=1)
        row, column = (best // len(columns))[:, None, None], (best % len(columns))[:, None, None]
        corners.append(torch.stack([row.flatten(), column.flatten()], dim=1))
        high = (window[0] - (rows - row).abs()).clamp(min=0)
        wide = (window[1] - (columns - column).abs()).clamp(min=0)
        overlap = overlap + high * wide
    return _to_pixels(torch.stack(corners, dim=1), cells, window, patch, size)


def _to_pixels(
    corners: Tensor, cells: torch.Size, window: list[int], patch: int, size: Sequence[int]
) -> Tensor:
    """Centre patches on windows of cells whose corners (B, K, 2) are given."""
    pixels = []
    for axis in (0, 1):
        # A cell is size / cells pixels; in integers, so that no two patches are rounded together.
        twice_the_centre = (2 * corners[..., axis] + window[axis]) * size[axis]  # times cells
        pixels.append((twice_the_centre - patch * cells[axis]) // (2 * cells[axis]))
    return torch.stack(pixels, dim=-1)


def cut_patches(images: Tensor, corners: Tensor, patch: int) -> Tensor:
    """Cut patches out of images, pixel by pixel.

    Args:
        images: (B, 1, H, W).
        corners: (B, K, 2) int64, as `choose_patches` gives them.
        patch: side of a patch.

    Returns:
        (B, K, 1, patch, patch).
    """
    along = torch.arange(patch, device=images.device)
    rows = (corners[..., 0, None] + along)[..., :, None]  # (B, K, patch, 1)
    columns = (corners[..., 1, None] + along)[..., None, :]  # (B, K, 1, patch)
    image = torch.arange(images.shape[0], device=images.device)[:, None, None, None]
    return images[:, 0][image, rows, columns][:, :, None]
