"""Both breasts compared in space: feature maps of the same view, aligned."""

from collections.abc import Callable
from pathlib import Path
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsna_bcd.models.aggregators import Aggregator
from rsna_bcd.models.breast import BreastClassifier, BreastSettings
from rsna_bcd.models.checkpoint import start_from

_TISSUE = 0.02  # brighter than the background, of [0, 1]
_SHARPNESS = 8  # power of a row's tissue width: the widest rows decide


class BilateralClassifier(BreastClassifier):
    """The logit of cancer for a breast, from its images and the other breast's, compared in space.

    Radiologists read asymmetries. The map of each image is compared with the mean map of the other
    breast's images of the same view: both are aligned (`align`), a convolution of 1 x 1 sees the
    map and the difference, and the largest responses are added to the image's features. They are 0
    at the start, so that the network begins as `BreastClassifier`, from whose weights, or those of
    an image-level network, it may start. An image without a counterpart is not compared.

    Augmentation flips image by image: it must not flip vertically (`augment=upright`, or `none`).

    Args:
        backbone: see `BreastClassifier`, also for those not named here.
        aggregator: reduces the features of the breast's own images.
        comparison: channels of the convolution.

    Raises:
        InputError: as `BreastClassifier`.
    """

    compares_places = True  # `train` checks the augmentation

    def __init__(
        self,
        backbone: str,
        aggregator: Callable[[int], Aggregator],
        *,
        comparison: int = 128,
        **settings: Unpack[BreastSettings],
    ) -> None:
        file = settings.pop("checkpoint_path", None)  # read when all layers are there
        settings["pretrained"] = settings.get("pretrained", True) and file is None
        super().__init__(backbone, aggregator, **settings)
        self.contrast = nn.Conv2d(2 * self.width, comparison, kernel_size=1)
        self.asymmetry = nn.Linear(comparison, self.width, bias=False)
        nn.init.zeros_(self.asymmetry.weight)
        if file is not None:
            start_from(self, Path(file))

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        view: Tensor,
        other: Tensor,
        metadata: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the outputs of breasts, see `BreastClassifier`."""
        maps = self.map_present(self.feature_map, images, mask)  # (B, V, C, h, w)
        features = self.map_present(self.pooled, maps, mask)
        padded = self.layout.pad(images.flatten(0, 1))
        aligned = align(maps.flatten(0, 1), padded, images.shape[-1]).unflatten(0, mask.shape)
        own, others = mask & ~other, mask & other
        pairs = own[:, :, None] & others[:, None, :] & (view[:, :, None] == view[:, None, :])
        n = pairs.sum(dim=2, keepdim=True)
        weights = pairs.to(aligned.dtype) / n.clamp(min=1)
        opposite = torch.einsum("bvu,buchw->bvchw", weights, aligned)
        both = torch.cat([aligned, aligned - opposite], dim=2).flatten(0, 1)
        responses = self.contrast(both).relu().amax(dim=(2, 3)).unflatten(0, mask.shape)
        features = features + self.asymmetry(responses) * (n > 0)
        return self.outputs(features, own, view, other, metadata)

    def encoded_mask(self, mask: Tensor, other: Tensor) -> Tensor:
        """The images that are encoded: also those of the other breast."""
        return mask


def align(maps: Tensor, images: Tensor, width: int) -> Tensor:
    """Shift feature maps so that the chest wall is on the left and the nipple's row in the middle.

    The side with more tissue has the chest wall; the row of the nipple is that where the tissue is
    widest, a weighted mean.

    Args:
        maps: (B, C, h, w).
        images: (B, 1, H, W) in [0, 1], of which the maps are.
        width: of the images without their padding on the right.

    Returns:
        (B, C, h, w): zeros where a map ends.
    """
    height, columns = maps.shape[-2:]
    darkest = images[:, 0, :, :width].amin(dim=(1, 2), keepdim=True)  # 0, but for augmentation
    tissue = (images[:, 0] - darkest > _TISSUE).float()
    left = tissue[..., : width // 2].sum(dim=(1, 2))
    right = tissue[..., width - width // 2 : width].sum(dim=(1, 2))
    widths = tissue.mean(dim=2).pow(_SHARPNESS)  # (B, H)
    rows = _centres(images.shape[-2], images)
    row = (widths * rows).sum(dim=1) / widths.sum(dim=1).clamp(min=1e-12)
    y = (_centres(height, images) + row[:, None])[:, :, None].expand(-1, -1, columns)
    x = _centres(columns, images)
    mirrored = 2 * width / images.shape[-1] - 2 - x  # about the middle of the width
    x = torch.where((right > left)[:, None], mirrored, x)[:, None, :].expand(-1, height, -1)
    aligned = F.grid_sample(maps.float(), torch.stack([x, y], dim=-1), align_corners=False)
    return aligned.to(maps.dtype)


def _centres(n: int, like: Tensor) -> Tensor:
    """The centres of n cells of [-1, 1]."""
    return (torch.arange(n, device=like.device, dtype=torch.float32) * 2 + 1) / n - 1
