"""A timm backbone, a pooling and one logit per image.

Contract, the same in training, inference and export (`models.prediction`): input float32
(B, 1, H, W) in [0, 1], tissue bright; output `logit` (B,). The normalisation that the pretrained
weights expect is part of the network.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

from torch import Tensor, nn

from rsna_bcd.models.checkpoint import start_from
from rsna_bcd.models.encoder import Encoder, EncoderSettings
from rsna_bcd.models.heads import AuxiliaryHeads, MetadataInput
from rsna_bcd.tables.metadata import Metadata
from rsna_bcd.tables.views import Level


class ImageClassifier(Encoder):
    """The logit of cancer for one image.

    Args:
        backbone: see `Encoder`.
        checkpoint_path: start from this file instead of pretrained weights: weights of the same
            timm network, or a checkpoint of a run, see `models.checkpoint`.
        dropout: before the last layer.
        auxiliary: names of further columns to predict (of a mapping, its keys).
        metadata: columns known besides the pixels.
        encoder: the other arguments of `Encoder`.

    Raises:
        InputError: an unknown backbone, pooling or column, weights that cannot be had, or weights
            of another network.
    """

    unit: Level = "image"
    contract_is_tested = True
    inputs: tuple[str, ...] = ()

    def __init__(
        self,
        backbone: str,
        *,
        pretrained: bool = True,
        checkpoint_path: str | Path | None = None,
        dropout: float = 0.0,
        auxiliary: Iterable[str] = (),
        metadata: Metadata | None = None,
        **encoder: Unpack[EncoderSettings],
    ) -> None:
        super().__init__(backbone, pretrained=pretrained and checkpoint_path is None, **encoder)
        self.metadata = MetadataInput(metadata)
        self.inputs = (*self.inputs, *self.metadata.inputs)
        width = self.width + self.metadata.width
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)
        self.auxiliary = AuxiliaryHeads(auxiliary, width)
        if checkpoint_path is not None:
            start_from(self, Path(checkpoint_path))

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the outputs of images (B, 1, H, W) in [0, 1] and their metadata (B, M).

        Returns:
            `logit` (B,), and each auxiliary target, (B,) or of K classes (B, K).
        """
        features = self.dropout(self.metadata(self.encode(images), metadata))
        return {"logit": self.head(features)[:, 0], **self.auxiliary(features)}
