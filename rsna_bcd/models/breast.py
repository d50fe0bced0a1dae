"""Networks that look at a breast: at any number of its images, or at two as one picture.

`image` (B, V, 1, H, W) comes with `mask`, `view` and `other`, (B, V) each, see `aggregators`. What
the mask leaves out is padding, and has no influence whatsoever.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn

from rsna_bcd.models.aggregators import Aggregator, masked_mean
from rsna_bcd.models.checkpoint import start_from
from rsna_bcd.models.encoder import Encoder, EncoderSettings
from rsna_bcd.models.heads import AuxiliaryHeads, MetadataInput
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.tables.metadata import Metadata
from rsna_bcd.tables.views import Level

_CC, _MLO = 0, 1


class BreastSettings(EncoderSettings, total=False):
    """Arguments of `BreastClassifier` that networks derived from it pass on."""

    pretrained: bool
    checkpoint_path: str | Path | None
    dropout: float
    auxiliary: Iterable[str]
    metadata: Metadata | None


class BreastClassifier(Encoder):
    """The logit of cancer for a breast, from all its images.

    Args:
        backbone: see `ImageClassifier`, also for those not named here.
        aggregator: makes the aggregator, given the number of features of an image.
        checkpoint_path: also of a run of an image-level network.

    Attributes:
        dense: in inference, encode padding as well, and drop its features afterwards: the same
            result at more cost, without shapes that depend on data, as exporting needs it.

    Raises:
        InputError: as `ImageClassifier`.
    """

    unit: Level = "breast"
    contract_is_tested = True
    inputs: tuple[str, ...] = ("mask", "view", "other")

    def __init__(
        self,
        backbone: str,
        aggregator: Callable[[int], Aggregator],
        *,
        pretrained: bool = True,
        checkpoint_path: str | Path | None = None,
        dropout: float = 0.0,
        auxiliary: Iterable[str] = (),
        metadata: Metadata | None = None,
        **encoder: Unpack[EncoderSettings],
    ) -> None:
        super().__init__(backbone, pretrained=pretrained and checkpoint_path is None, **encoder)
        self.aggregator = aggregator(self.width)
        self.metadata = MetadataInput(metadata)
        self.inputs = (*self.inputs, *self.metadata.inputs)
        width = self.aggregator.width + self.metadata.width
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)
        self.auxiliary = AuxiliaryHeads(auxiliary, width)
        self.dense = False
        if checkpoint_path is not None:
            start_from(self, Path(checkpoint_path))

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        view: Tensor,
        other: Tensor,
        metadata: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the outputs of breasts.

        Args:
            images: (B, V, 1, H, W) in [0, 1].
            mask: (B, V) bool, True where there is an image; one of the breast itself at least.
            view: (B, V) int64: 0 CC, 1 MLO, 2 any other.
            other: (B, V) bool, True for images of the other breast.
            metadata: (B, M).

        Returns:
            `logit` (B,), and each auxiliary target, (B,) or of K classes (B, K).
        """
        mask = self.encoded_mask(mask, other)
        features = self.map_present(self.encode, images, mask)  # (B, V, C)
        return self.outputs(features, mask, view, other, metadata)

    def encoded_mask(self, mask: Tensor, other: Tensor) -> Tensor:
        """Mask of the images that are encoded, (B, V) bool: others are ignored."""
        return mask if self.aggregator.context else mask & ~other

    def map_present(
        self, function: Callable[[Tensor], Tensor], images: Tensor, mask: Tensor
    ) -> Tensor:
        """Apply a function of images (N, ...) to (B, V, ...): zeros outside the mask."""
        flat = images.flatten(0, 1)
        if self.dense and not self.training:
            results = function(flat)
            there = mask.reshape(-1, *[1] * (results.ndim - 1))
            results = results.masked_fill(~there, 0)
        else:
            # Padding is not encoded: it costs nothing, and BatchNorm does not learn from it.
            rows = mask.flatten().nonzero()[:, 0]
            computed = function(flat[rows])
            shape = flat.shape[0], *computed.shape[1:]
            results = computed.new_zeros(shape).index_copy(0, rows, computed)
        return results.unflatten(0, mask.shape)

    def outputs(
        self, features: Tensor, mask: Tensor, view: Tensor, other: Tensor, metadata: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the outputs of breasts from features (B, V, C) of their images."""
        if self.aggregator.late:
            return self._reduce_outputs(features, mask, view, other, metadata)
        breasts = self.aggregator(features, mask, view, other)
        breasts = self.dropout(self.metadata(breasts, metadata))
        return {"logit": self.head(breasts)[:, 0], **self.auxiliary(breasts)}

    def _reduce_outputs(
        self, features: Tensor, mask: Tensor, view: Tensor, other: Tensor, metadata: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the outputs of each image, and reduce them; auxiliary ones to their mean."""
        n_images = mask.shape[1]
        if metadata is not None:
            # Not repeat_interleave: of a free number of views, the ONNX for it is wrong.
            metadata = metadata[:, None].expand(-1, n_images, -1).flatten(0, 1)
        rows = self.dropout(self.metadata(features.flatten(0, 1), metadata))
        logits = self.head(rows)[:, 0].unflatten(0, mask.shape)
        auxiliary = {k: v.unflatten(0, mask.shape) for k, v in self.auxiliary(rows).items()}
        return {
            "logit": self.aggregator(logits, mask, view, other),
            **{name: masked_mean(values, mask) for name, values in auxiliary.items()},
        }


class SideBySide(ImageClassifier):
    """The logit of cancer for a breast, from one CC and one MLO next to each other as one picture.

    The first of each counts, CC on the left; one that is absent is black. Where there is neither,
    the first two images are looked at, whatever their views. Those of the other breast never are.
    Constructed as `ImageClassifier`; `image_size` is that of one image.
    """

    unit: Level = "breast"
    contract_is_tested = True
    inputs: tuple[str, ...] = ("mask", "view", "other")
    _side_by_side = 2

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        mask: Tensor,
        view: Tensor,
        other: Tensor,
        metadata: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the outputs of breasts, see `BreastClassifier`."""
        return super().forward(side_by_side(images, mask & ~other, view), metadata)


def side_by_side(images: Tensor, mask: Tensor, view: Tensor) -> Tensor:
    """Put the first CC and the first MLO within the mask next to each other.

    Args:
        images: (B, V, 1, H, W).
        mask: (B, V) bool.
        view: (B, V) int64.

    Returns:
        (B, 1, H, 2 W), CC on the left; black where there is none. A breast of other views only has
        the images of its first two places instead.
    """
    rows = torch.arange(images.shape[0], device=images.device)
    place = torch.arange(mask.shape[1], device=images.device)
    has_standard_views = (mask & (view <= _MLO)).any(dim=1, keepdim=True)
    halves = []
    for half in (_CC, _MLO):
        # No torch.where of truth values: ONNX Runtime has none.
        wanted = (has_standard_views & (view == half)) | (~has_standard_views & (place == half))
        suitable = mask & wanted
        first = suitable.int().argmax(dim=1)
        there = suitable.any(dim=1)[:, None, None, None]
        halves.append(torch.where(there, images[rows, first], 0))
    return torch.cat(halves, dim=-1)
