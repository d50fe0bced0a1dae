"""Networks too small to learn, which look at everything that a batch may hold."""

from typing import Any

import torch
from torch import Tensor, nn


class TinyBreasts(nn.Module):
    """A breast's logit from a few averages of each image, its view, and whose breast it is.

    Args:
        metadata_width: of the metadata; 0 for none.
        pretrained: void, as is `checkpoint_path`; every network has them.
    """

    unit = "breast"

    def __init__(
        self, metadata_width: int = 0, pretrained: bool = True, checkpoint_path: Any = None
    ) -> None:
        super().__init__()
        self.inputs = ("mask", "view", "other", *(["metadata"] if metadata_width else []))
        self.features = nn.Linear(16 * 8, 8)
        self.view = nn.Embedding(3, 8)
        self.other = nn.Embedding(2, 8)
        self.head = nn.Linear(8 + metadata_width, 1)
        with torch.no_grad():  # so that breasts differ in the first digits
            self.features.weight.mul_(8)
            self.head.weight.mul_(4)

    def forward(
        self,
        image: Tensor,
        mask: Tensor,
        view: Tensor,
        other: Tensor,
        metadata: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute `logit` (B,) of images (B, V, 1, H, W)."""
        small = nn.functional.adaptive_avg_pool2d(image.flatten(0, 1), (16, 8))
        features = self.features(small.flatten(1)).unflatten(0, image.shape[:2])
        features = (features + self.view(view) + self.other(other.long())).tanh()
        pooled = (features * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        if metadata is not None:
            pooled = torch.cat([pooled, metadata], dim=1)
        return {"logit": self.head(pooled)[:, 0]}


class TinyImages(nn.Module):
    """An image's logit from a few of its averages and its metadata.

    Args:
        metadata_width: of the metadata; 0 for none.
        pretrained: void, as is `checkpoint_path`; every network has them.
    """

    unit = "image"

    def __init__(
        self, metadata_width: int = 0, pretrained: bool = True, checkpoint_path: Any = None
    ) -> None:
        super().__init__()
        self.inputs = ("metadata",) if metadata_width else ()
        self.head = nn.Linear(16 * 8 + metadata_width, 1)

    def forward(self, image: Tensor, metadata: Tensor | None = None) -> dict[str, Tensor]:
        """Compute `logit` (B,) of images (B, 1, H, W)."""
        seen = nn.functional.adaptive_avg_pool2d(image, (16, 8)).flatten(1)
        if metadata is not None:
            seen = torch.cat([seen, metadata], dim=1)
        return {"logit": self.head(seen)[:, 0]}
