"""From features to outputs: metadata as features, and heads beside that of cancer."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.tables.metadata import TARGETS, Metadata

_METADATA_FEATURES = 32


class MetadataInput(nn.Module):
    """Adds features of the metadata to those of the image.

    A layer, normalised by sample (so that other patients of a batch have no influence), its
    activation, a second layer, normalised again to the scale of an image's features.

    Args:
        metadata: values of the patient and image; None adds nothing.

    Attributes:
        inputs: entries of a batch that it looks at.
        width: number of features added.
    """

    def __init__(self, metadata: Metadata | None) -> None:
        super().__init__()
        self.inputs: tuple[str, ...] = () if metadata is None else ("metadata",)
        self.width = 0 if metadata is None else _METADATA_FEATURES
        if metadata is not None:
            self.layers = nn.Sequential(
                nn.Linear(metadata.width, self.width),
                nn.LayerNorm(self.width),
                nn.GELU(),
                nn.Linear(self.width, self.width),
                nn.LayerNorm(self.width),
            )

    def forward(self, features: Tensor, metadata: Tensor | None) -> Tensor:
        """Append to features (B, C) those of the metadata (B, M)."""
        if not self.inputs:
            return features
        assert metadata is not None, "the batch carries no metadata"
        return torch.cat([features, self.layers(metadata)], dim=1)


class AuxiliaryHeads(nn.ModuleDict):
    """A linear layer for each auxiliary target.

    Args:
        names: of the targets, keys of `TARGETS`.
        features: their number.

    Raises:
        InputError: a name that is no target.
    """

    def __init__(self, names: Iterable[str], features: int) -> None:
        names = list(names)
        unknown = [name for name in names if name not in TARGETS]
        if unknown:
            raise InputError(
                f"network.auxiliary: {', '.join(unknown)} is no auxiliary target. There are "
                f"{', '.join(TARGETS)}."
            )
        super().__init__({name: nn.Linear(features, TARGETS[name].width) for name in names})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Compute of features (B, C) for each target (B,), or (B, K) if it has K classes."""
        return {
            name: head(features) if TARGETS[name].kind == "categorical" else head(features)[:, 0]
            for name, head in self.items()
        }
