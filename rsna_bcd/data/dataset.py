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

# Last part of the keys of random streams; augmentation has (seed, epoch, row). Not 0: numpy takes
# a key with zeros at its end for the one without.
_DRAW_VIEWS, _FORGET = 1, 2


Sample = dict[str, torch.Tensor]
_PADDING = {"image": 0, "mask": False, "view": OTHER_VIEW, "other": False}


@dataclass(frozen=True)
class Annotations:
    """Metadata and targets of samples.

    Attributes:
        metadata: (N, M), an input of the network; None where it has no such input.
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


@dataclass(frozen=True)
class Crops:
    """The crops of a prepared folder, augmented in training.

    Attributes:
        folder: the prepared folder.
        augment: None for validation.
        seed: of all that is drawn.
        in_memory: crops that need not be read from disk, by file.
    """

    folder: Path
    augment: Augmentation | None
    seed: int
    in_memory: Mapping[Path, Crop] = field(default_factory=dict)

    def read(self, path: str, epoch: int, row: int) -> NDArray[np.uint8] | NDArray[np.float32]:
        """One crop as the training input; its augmentation depends on (seed, epoch, row) alone."""
        kept = self.in_memory.get(self.folder / path)
        pixels = as_training_input(read_crop(self.folder / path) if kept is None else kept.copy())
        return pixels if self.augment is None else self.augment(pixels, (self.seed, epoch, row))

    def generator(self, epoch: int, index: int, stream: int) -> np.random.Generator | None:
        """A random stream of one sample in training; None in validation."""
        if self.augment is None:
            return None
        return np.random.default_rng([self.seed, epoch, index, stream])


class _Samples(Dataset[Sample]):
    def __init__(
        self, samples: pd.DataFrame, crops: Crops, annotations: Annotations | None
    ) -> None:
        self._labels = samples.get("target", samples["label"]).to_numpy(np.float32)
        self._crops = crops
        self._annotations = annotations or Annotations()

    def __len__(self) -> int:
        return len(self._labels)

    def _with_annotations(self, sample: Sample, epoch: int, index: int) -> Sample:
        forget = self._crops.generator(epoch, index, _FORGET)
        label = {"label": torch.tensor(self._labels[index]), "index": torch.tensor(index)}
        return {**sample, **label, **self._annotations.sample(index, forget)}


class CropDataset(_Samples):
    """Crops and labels by (epoch, index).

    The epoch comes with each index, from the sampler, and so reaches a worker process however long
    that worker lives.

    Args:
        images: rows with `path`, relative to the folder of `crops`, and `label` (0 or 1), in place
            of which a sample has the `target` (in [0, 1]) where there is such a column.
        crops: reads them.
        annotations: of each row of `images`.
    """

    def __init__(
        self, images: pd.DataFrame, crops: Crops, annotations: Annotations | None = None
    ) -> None:
        super().__init__(images, crops, annotations)
        self._paths = images["path"].tolist()

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Read one sample.

        Args:
            key: (epoch, index), the index being the row of `images`.

        Returns:
            `image` (1, H, W), uint8 or float32 in [0, 1] (see `as_training_input`);
            `label` () float32; `index` () int64; and metadata and targets (`Annotations.sample`).
        """
        epoch, index = key
        image = torch.from_numpy(self._crops.read(self._paths[index], epoch, index))[None]
        return self._with_annotations({"image": image}, epoch, index)


class BreastDataset(_Samples):
    """Breasts and labels by (epoch, index): several crops per sample.

    All draws depend on (seed, epoch, index) alone, the augmentation of each image on
    (seed, epoch, its row).

    Args:
        breasts: rows with `prediction_id`, `patient_id` and `label`, or `target`, as above.
        images: rows with `prediction_id`, `patient_id`, `view` and `path`, relative to the folder
            of `crops`: at least one per breast, and all of a patient, for the other breast.
        crops: reads them.
        views: chooses the images.
        annotations: of each row of `breasts`.
    """

    def __init__(
        self,
        breasts: pd.DataFrame,
        images: pd.DataFrame,
        crops: Crops,
        views: Views,
        annotations: Annotations | None = None,
    ) -> None:
        super().__init__(breasts, crops, annotations)
        self._views = views
        breast_rows = images.groupby("prediction_id").indices  # rows, ascending
        patient_rows = images.groupby("patient_id").indices
        self._own = [breast_rows[breast] for breast in breasts["prediction_id"]]
        self._other = [
            np.setdiff1d(patient_rows[patient], own)
            for patient, own in zip(breasts["patient_id"], self._own, strict=True)
        ]
        self._view: list[str] = images["view"].tolist()
        self._paths = images["path"].tolist()

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Read one sample.

        Args:
            key: (epoch, index), the index being the row of `breasts`.

        Returns:
            As from `breast_sample`; `label` () float32; `index` () int64; and metadata and targets
            (`Annotations.sample`).
        """
        epoch, index = key
        own, other = self._own[index], self._other[index]

        def load(position: int, other_breast: bool) -> NDArray[np.uint8] | NDArray[np.float32]:
            row = int((other if other_breast else own)[position])
            return self._crops.read(self._paths[row], epoch, row)

        sample = breast_sample(
            self._views,
            [self._view[row] for row in own],
            [self._view[row] for row in other],
            load,
            self._crops.generator(epoch, index, _DRAW_VIEWS),
        )
        return self._with_annotations(sample, epoch, index)


def breast_sample(
    settings: Views,
    own: Sequence[str | None],
    other: Sequence[str | None],
    load: Callable[[int, bool], NDArray[Any]],
    generator: np.random.Generator | None = None,
) -> Sample:
    """Make a sample of the images of one breast.

    Args:
        settings: choose the images and their places.
        own: the view of each of its readable images, at least one, in the table's order.
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
    empty = np.zeros_like(next(image for image in images if image is not None))
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

    def padded(tensor: torch.Tensor, name: str) -> torch.Tensor:
        if name not in _PADDING:
            return tensor
        shape = (most - len(tensor), *tensor.shape[1:])
        return torch.cat([tensor, tensor.new_full(shape, _PADDING[name])])

    return {
        name: torch.stack([padded(sample[name], name) for sample in samples]) for name in samples[0]
    }
