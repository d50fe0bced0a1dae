"""Crops as tensors, by image or by breast."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from rsna_bcd.data.augment import Augmentation
from rsna_bcd.imaging.crops import Crop, as_training_input, read_crop
from rsna_bcd.tables.metadata import Metadata
from rsna_bcd.tables.views import OTHER_VIEW, Views, view_number

# Of the keys of random streams, where augmentation has (seed, epoch, row). Not 0: numpy takes a
# key with zeros at its end for the one without.
_DRAW_VIEWS, _FORGET = 1, 2


Sample = dict[str, torch.Tensor]
_PADDING = {"image": 0, "mask": False, "view": OTHER_VIEW, "other": False}


@dataclass(frozen=True)
class Annotations:
    """Metadata and targets of samples.

    Attributes:
        metadata: (N, M), to be given to the network; None where it has no such input.
        encoder: made `metadata`.
        targets: (N,) each, NaN where missing.
    """

    metadata: NDArray[np.float32] | None = None
    encoder: Metadata | None = None
    targets: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def sample(self, index: int, generator: np.random.Generator | None) -> Sample:
        """`metadata` (M,), where there is any, and `target_<column>` () of one sample.

        Args:
            index: of the sample.
            generator: draws the columns to forget, in training; None forgets nothing.
        """
        sample = {f"target_{name}": torch.tensor(t[index]) for name, t in self.targets.items()}
        if self.metadata is not None and self.encoder is not None:
            row = self.metadata[index]
            if generator is not None:
                row = self.encoder.forgetting(row, generator)
            sample["metadata"] = torch.from_numpy(row)
        return sample


_NO_ANNOTATIONS = Annotations()


class CropDataset(Dataset[Sample]):
    """Crops and labels by (epoch, index).

    The epoch comes with each index, from the sampler, and so reaches a worker process however long
    that worker lives.

    Args:
        images: rows with `path`, relative to `folder`, and `label` (0 or 1).
        folder: the prepared folder.
        augment: None for validation.
        seed: of the augmentation.
        annotations: of each row of `images`.
        in_memory: crops that need not be read from disk, by file.
    """

    def __init__(
        self,
        images: pd.DataFrame,
        folder: Path,
        augment: Augmentation | None,
        seed: int,
        annotations: Annotations = _NO_ANNOTATIONS,
        in_memory: Mapping[Path, Crop] | None = None,
    ) -> None:
        self._crops = _Crops(images, folder, augment, seed, in_memory or {})
        self._labels = images["label"].to_numpy(np.float32)
        self._annotations = annotations

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Read one sample.

        Args:
            key: (epoch, index), the index being the row of `images`.

        Returns:
            `image` (1, H, W), uint8 or float32 in [0, 1] (see `as_training_input`);
            `label` () float32; `index` () int64; and metadata and targets (`Annotations.sample`).
        """
        epoch, index = key
        return {
            "image": torch.from_numpy(self._crops.read(epoch, index))[None],
            "label": torch.tensor(self._labels[index]),
            "index": torch.tensor(index),
            **self._annotations.sample(index, self._crops.generator(epoch, index, _FORGET)),
        }


class BreastDataset(Dataset[Sample]):
    """Breasts and labels by (epoch, index): several crops a sample.

    What is drawn depends on (seed, epoch, index) alone; each image is augmented by itself, and its
    augmentation depends on (seed, epoch, its row) alone.

    Args:
        breasts: rows with `prediction_id`, `patient_id` and `label` (0 or 1).
        images: rows with `prediction_id`, `patient_id`, `view` and `path`, relative to `folder`: at
            least one a breast. All of a patient's are here, for the other breast.
        folder: the prepared folder.
        views: which images are seen.
        augment: None for validation.
        seed: of the augmentation and of the choice of images.
        annotations: of each row of `breasts`.
        in_memory: crops that need not be read from disk, by file.
    """

    def __init__(
        self,
        breasts: pd.DataFrame,
        images: pd.DataFrame,
        folder: Path,
        views: Views,
        augment: Augmentation | None,
        seed: int,
        annotations: Annotations = _NO_ANNOTATIONS,
        in_memory: Mapping[Path, Crop] | None = None,
    ) -> None:
        self._crops = _Crops(images, folder, augment, seed, in_memory or {})
        self._labels = breasts["label"].to_numpy(np.float32)
        self._views = views
        self._annotations = annotations
        breast_rows = images.groupby("prediction_id").indices  # rows, ascending
        patient_rows = images.groupby("patient_id").indices
        self._own = [breast_rows[breast] for breast in breasts["prediction_id"]]
        self._other = [
            np.setdiff1d(patient_rows[patient], own)
            for patient, own in zip(breasts["patient_id"], self._own, strict=True)
        ]
        self._view: list[str] = images["view"].tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Read one sample.

        Args:
            key: (epoch, index), the index being the row of `breasts`.

        Returns:
            What `breast_sample` makes of its images; `label` () float32; `index` () int64; and what
            is known besides (`Annotations.sample`).
        """
        epoch, index = key
        own, other = self._own[index], self._other[index]

        def load(position: int, other_breast: bool) -> NDArray[np.uint8] | NDArray[np.float32]:
            return self._crops.read(epoch, int((other if other_breast else own)[position]))

        images = breast_sample(
            self._views,
            [self._view[row] for row in own],
            [self._view[row] for row in other],
            load,
            self._crops.generator(epoch, index, _DRAW_VIEWS),
        )
        return {
            **images,
            "label": torch.tensor(self._labels[index]),
            "index": torch.tensor(index),
            **self._annotations.sample(index, self._crops.generator(epoch, index, _FORGET)),
        }


class _Crops:
    """The crops of a table, augmented where they are for training."""

    def __init__(
        self,
        images: pd.DataFrame,
        folder: Path,
        augment: Augmentation | None,
        seed: int,
        in_memory: Mapping[Path, Crop],
    ) -> None:
        self._files = [folder / path for path in images["path"]]
        self._in_memory = in_memory
        self._augment = augment
        self._seed = seed

    def read(self, epoch: int, row: int) -> NDArray[np.uint8] | NDArray[np.float32]:
        """One crop as the training input."""
        file = self._files[row]
        kept = self._in_memory.get(file)
        pixels = as_training_input(read_crop(file) if kept is None else kept.copy())
        if self._augment is not None:
            pixels = self._augment(pixels, (self._seed, epoch, row))
        return pixels

    def generator(self, epoch: int, index: int, stream: int) -> np.random.Generator | None:
        """A random stream of one sample in training; None in validation."""
        if self._augment is None:
            return None
        return np.random.default_rng([self._seed, epoch, index, stream])


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
