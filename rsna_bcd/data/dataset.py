"""Crops as tensors, by image or by breast."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from rsna_bcd.data.augment import Augmentation
from rsna_bcd.data.breasts import Sample, breast_sample
from rsna_bcd.imaging.crops import Crop, as_training_input, read_crop
from rsna_bcd.tables.metadata import Metadata
from rsna_bcd.tables.views import Views

# Of the keys of random streams, where augmentation has (seed, epoch, row). Not 0: numpy takes a
# key with zeros at its end for the one without.
_DRAW_VIEWS, _FORGET = 1, 2


@dataclass(frozen=True)
class Known:
    """What is known of samples besides their pixels.

    Attributes:
        metadata: (N, M), to be given to the network; None where it has no such input.
        encoder: what encoded them.
        targets: (N,) each, NaN where missing.
    """

    metadata: NDArray[np.float32] | None = None
    encoder: Metadata | None = None
    targets: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def of(self, index: int, generator: np.random.Generator | None) -> Sample:
        """`metadata` (M,), where there is any, and `target_<column>` () of one sample.

        Args:
            index: of the sample.
            generator: decides what is forgotten, in training; None forgets nothing.
        """
        sample = {f"target_{name}": torch.tensor(t[index]) for name, t in self.targets.items()}
        if self.metadata is not None and self.encoder is not None:
            row = self.metadata[index]
            if generator is not None:
                row = self.encoder.forgetting(row, generator)
            sample["metadata"] = torch.from_numpy(row)
        return sample


_NOTHING = Known()


class CropDataset(Dataset[Sample]):
    """Crops and labels by (epoch, index).

    The epoch comes with each index, from the sampler, and so reaches a worker process however long
    that worker lives.

    Args:
        images: rows with `path`, relative to `folder`, and `label` (0 or 1).
        folder: the prepared folder.
        augment: None for validation.
        seed: of the augmentation.
        known: of each row of `images`.
        in_memory: crops that need not be read from disk, by file.
    """

    def __init__(
        self,
        images: pd.DataFrame,
        folder: Path,
        augment: Augmentation | None,
        seed: int,
        known: Known = _NOTHING,
        in_memory: Mapping[Path, Crop] | None = None,
    ) -> None:
        self._crops = _Crops(images, folder, augment, seed, in_memory or {})
        self._labels = images["label"].to_numpy(np.float32)
        self._known = known

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Read one sample.

        Args:
            key: (epoch, index), the index being the row of `images`.

        Returns:
            `image` (1, H, W), uint8 or float32 in [0, 1] (see `as_training_input`);
            `label` () float32; `index` () int64; and what is known besides (`Known.of`).
        """
        epoch, index = key
        return {
            "image": torch.from_numpy(self._crops.read(epoch, index))[None],
            "label": torch.tensor(self._labels[index]),
            "index": torch.tensor(index),
            **self._known.of(index, self._crops.generator(epoch, index, _FORGET)),
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
        known: of each row of `breasts`.
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
        known: Known = _NOTHING,
        in_memory: Mapping[Path, Crop] | None = None,
    ) -> None:
        self._crops = _Crops(images, folder, augment, seed, in_memory or {})
        self._labels = breasts["label"].to_numpy(np.float32)
        self._views = views
        self._known = known
        of_breast = images.groupby("prediction_id").indices  # rows, ascending
        of_patient = images.groupby("patient_id").indices
        self._own = [of_breast[breast] for breast in breasts["prediction_id"]]
        self._other = [
            np.setdiff1d(of_patient[patient], own)
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
            is known besides (`Known.of`).
        """
        epoch, index = key
        own, other = self._own[index], self._other[index]

        def load(position: int, of_other: bool) -> NDArray[np.uint8] | NDArray[np.float32]:
            return self._crops.read(epoch, int((other if of_other else own)[position]))

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
            **self._known.of(index, self._crops.generator(epoch, index, _FORGET)),
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
