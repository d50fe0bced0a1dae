"""Mixup and cutmix: samples of a batch blended in pairs, their labels in the same shares."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rsna_bcd.errors import InputError
from rsna_bcd.models.prediction import Batch, to_input
from rsna_bcd.tables.metadata import TARGETS
from rsna_bcd.tables.views import Level

Kind = Literal["mixup", "cutmix"]

_TARGET = "target_"
_ARRANGEMENT = ("mask", "view", "other")  # of the images of a breast


class Mix:
    """Blends each sample of a batch with another one of it.

    mixup (Zhang et al., 2018) takes a share of one image and the rest of another; cutmix (Yun et
    al., 2019) pastes a box of one into the other. Shares are drawn once per batch, and the label
    becomes the same share of both. So do binary and continuous auxiliary targets and metadata; a
    categorical target counts only where both agree, and a missing one stays missing.

    Breasts are mixed image by image, and only with a breast of the same arrangement of images (and
    else left alone); they cannot be cut: a box is another place in each view.

    With several ranks, each mixes within its own part of the batch, all by the same share and the
    same permutation.

    Args:
        kind: of blending.
        alpha: shares follow Beta(alpha, alpha): near 0 or 1 where it is small, even where it is 1.
        probability: share of the batches that are mixed.
    """

    def __init__(
        self,
        kind: Kind,
        alpha: Annotated[float, Field(gt=0)],
        probability: Annotated[float, Field(ge=0, le=1)],
    ) -> None:
        self._kind = kind
        self._alpha = alpha
        self.probability = probability

    def check(self, level: Level) -> None:
        """Refuse settings that make no sense for a kind of sample.

        Raises:
            InputError: breasts are to be cut.
        """
        if self.probability and self._kind == "cutmix" and level == "breast":
            raise InputError(
                "mix.kind=cutmix pastes a box of one image into another, which is another place "
                "in each view of a breast. Choose mix.kind=mixup or mix.probability=0."
            )

    def __call__(self, batch: Batch, key: Sequence[int]) -> Batch:
        """Blend a batch.

        Args:
            batch: see `models.prediction`; it is left alone.
            key: non-negative integers that the draws depend on: (seed, step).

        Returns:
            A batch of the same form, its image float32 in [0, 1].
        """
        generator = np.random.default_rng(list(key))
        if generator.random() >= self.probability:
            return batch
        share = float(generator.beta(self._alpha, self._alpha))
        partner = torch.from_numpy(generator.permutation(len(batch["label"])))
        partner = partner.to(batch["label"].device)
        for name in (n for n in _ARRANGEMENT if n in batch):
            same = (batch[name] == batch[name][partner]).all(dim=1)
            partner = torch.where(same, partner, torch.arange(len(partner), device=same.device))
        image = to_input(batch["image"])
        if self._kind == "cutmix":
            box = _box(image.shape[-2:], 1 - share, generator)
            inside = torch.zeros(image.shape[-2:], dtype=torch.bool, device=image.device)
            inside[box] = True
            share = 1 - inside.double().mean().item()
            image = torch.where(inside, image[partner], image)
        else:
            image = share * image + (1 - share) * image[partner]
        mixed = {name: _blend(name, value, partner, share) for name, value in batch.items()}
        return mixed | {"image": image}


def _box(size: Sequence[int], area: float, generator: np.random.Generator) -> tuple[slice, slice]:
    """A box of the image's aspect anywhere in it, with a share of its area before it is cut."""
    sides = []
    for length in size:
        half = length * area**0.5 / 2
        centre = generator.uniform(0, length)
        sides.append(slice(round(max(0, centre - half)), round(min(length, centre + half))))
    return sides[0], sides[1]


def _blend(name: str, value: Tensor, partner: Tensor, share: float) -> Tensor:
    column = name.removeprefix(_TARGET)
    if name.startswith(_TARGET) and TARGETS[column].kind == "categorical":
        return torch.where(value == value[partner], value, torch.nan)
    if name.startswith(_TARGET) or name in ("label", "metadata"):
        return share * value + (1 - share) * value[partner]
    return value
