"""A network that looks at the whole image coarsely and at a few patches of it closely.

In the manner of GMIC (Shen et al., An interpretable classifier for high-resolution breast cancer
screening images utilizing weakly supervised localization, Medical Image Analysis 68, 2021). What
differs: any timm backbones; patches that do not overlap; the fusion takes metadata as well.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.models.aggregators import GatedAttention
from rsna_bcd.models.backbone import backbone_groups
from rsna_bcd.models.checkpoint import start_from
from rsna_bcd.models.encoder import Encoder, EncoderSettings, the_rest
from rsna_bcd.models.heads import AuxiliaryHeads, MetadataInput
from rsna_bcd.tables.metadata import Metadata
from rsna_bcd.tables.views import Level


class GlobalLocal(nn.Module):
    """The logit of cancer for one image.

    A small network turns the image, made smaller, into a saliency map; the mean of its largest
    values is a first opinion. Where it is largest, patches are cut out of the image in full
    resolution. A second network looks at each, attention weighs them to a second opinion. The final
    one comes from the features of both.

    Args:
        backbone: name of the timm network for the patches.
        global_backbone: name of the timm network for the whole image; a small one.
        checkpoint_path: start from this file. Where it fits only one of the two networks,
            `pretrained` decides about the other.
        downscale: the whole image is looked at in 1 / downscale of its height and width.
        n_patches: number of patches K.
        patch: their side in pixels of the image.
        top: share of the map's cells whose mean is the whole image's logit.
        dropout: before the last layer. For the others see `ImageClassifier`.
        encoder: the other arguments of `Encoder`, for both. `pooling` is of the patches' feature
            maps: that of the whole image is reduced to its maximum.

    Raises:
        InputError: as `ImageClassifier`; or a number is out of range.
    """

    unit: Level = "image"
    contract_is_tested = True

    def __init__(
        self,
        backbone: str,
        global_backbone: str,
        *,
        pretrained: bool = True,
        checkpoint_path: str | Path | None = None,
        downscale: int = 2,
        n_patches: int = 6,
        patch: int = 256,
        top: float = 0.02,
        dropout: float = 0.0,
        auxiliary: Iterable[str] = (),
        metadata: Metadata | None = None,
        **encoder: Unpack[EncoderSettings],
    ) -> None:
        super().__init__()
        for name, number in (("downscale", downscale), ("n_patches", n_patches), ("patch", patch)):
            if number < 1:
                raise InputError(f"network.{name}={number}: give 1 or more.")
        if not 0 < top <= 1:
            raise InputError(f"network.top={top}: give a share of the map, above 0 and up to 1.")

        size = encoder.pop("image_size", None)
        if size is not None:
            _check_patch(patch, size)
            if downscale > min(size):
                raise InputError(
                    f"network.downscale={downscale} leaves no pixel of an image of {size[0]} x "
                    f"{size[1]}. Take a smaller one or a larger crop."
                )
        whole = None if size is None else (size[0] // downscale, size[1] // downscale)

        def make_global(pretrained: bool) -> Encoder:
            own: EncoderSettings = {**encoder, "pooling": "max", "image_size": whole}
            return Encoder(global_backbone, pretrained=pretrained, **own)

        def make_local(pretrained: bool) -> Encoder:
            own: EncoderSettings = {**encoder, "image_size": (patch, patch)}
            return Encoder(backbone, pretrained=pretrained, **own)

        download = pretrained and checkpoint_path is None
        self.global_encoder = make_global(download)
        self.local_encoder = make_local(download)
        self.saliency = nn.Conv2d(self.global_encoder.width, 1, kernel_size=1)
        self.attention = GatedAttention(self.local_encoder.width, hidden=128)
        self.local_head = nn.Linear(self.local_encoder.width, 1)
        self.metadata = MetadataInput(metadata)
        self.inputs = self.metadata.inputs
        width = self.global_encoder.width + self.local_encoder.width + self.metadata.width
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)
        self.auxiliary = AuxiliaryHeads(auxiliary, width)
        self._downscale, self._n_patches, self._patch, self._top = downscale, n_patches, patch, top
        if checkpoint_path is not None:
            without = start_from(self, Path(checkpoint_path))
            if pretrained and "global_encoder" in without:
                self.global_encoder = make_global(pretrained=True)
            if pretrained and "local_encoder" in without:
                self.local_encoder = make_local(pretrained=True)

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the outputs of images (B, 1, H, W) in [0, 1] and their metadata (B, M).

        Returns:
            `logit` (B,), from everything; `logit_global` (B,), from the saliency map;
            `logit_local` (B,), from the patches; `penalty_saliency` (), the mean of the map, which
            is to be small; and each auxiliary target, (B,) or of K classes (B, K).
        """
        whole = F.avg_pool2d(images, self._downscale) if self._downscale > 1 else images
        coarse = self.global_encoder.feature_map(whole)
        scores = self.saliency(coarse).float()  # (B, 1, h, w)
        saliency = scores.sigmoid()
        corners = choose_patches(saliency, self._n_patches, self._patch, images.shape[-2:])
        patches = cut_patches(images, corners, self._patch)
        fine = self.local_encoder.encode(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        everything = torch.ones(fine.shape[:2], dtype=torch.bool, device=fine.device)
        weights = self.attention(fine, everything)
        local = (weights[..., None] * fine).sum(dim=1)
        features = torch.cat([self.global_encoder.pooled(coarse), local], dim=1)
        features = self.dropout(self.metadata(features, metadata))
        return {
            "logit": self.head(features)[:, 0],
            "logit_global": top_logit(scores.flatten(1), self._top),
            "logit_local": self.local_head(local)[:, 0],
            "penalty_saliency": saliency.mean(),
            **self.auxiliary(features),
        }

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Group all parameters by depth, see `Encoder.layer_groups`.

        The last blocks of both backbones share a group, and so on towards their stems.
        """
        deep, shallow = (
            backbone_groups(encoder.backbone)
            for encoder in (self.local_encoder, self.global_encoder)
        )
        if len(deep) < len(shallow):
            deep, shallow = shallow, deep
        offset = len(deep) - len(shallow)
        groups = deep[:offset] + [a + b for a, b in zip(deep[offset:], shallow, strict=True)]
        return [*groups, the_rest(self, groups)]


def top_logit(scores: Tensor, top: float) -> Tensor:
    """The logit of the mean probability of the largest scores.

    Args:
        scores: logits (B, N).
        top: the share of them that counts, at least one.

    Returns:
        (B,), finite where the probabilities are 0 or 1 in floating point.
    """
    largest = scores.topk(max(1, round(top * scores.shape[1])), dim=1).values
    return F.logsigmoid(largest).logsumexp(1) - F.logsigmoid(-largest).logsumexp(1)


@torch.no_grad()
def choose_patches(saliency: Tensor, n_patches: int, patch: int, size: Sequence[int]) -> Tensor:
    """Place patches greedily where the sum of the map is largest (Shen et al., 2021, algorithm 1).

    There, the area of a patch is set to zero before the next is placed, which may overlap it. Here
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
    _check_patch(patch, size)
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


def _check_patch(patch: int, size: Sequence[int]) -> None:
    if patch > min(size):
        raise InputError(
            f"network.patch={patch} is more than an image of {size[0]} x {size[1]} holds. "
            "Take a smaller patch or a larger crop."
        )


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
