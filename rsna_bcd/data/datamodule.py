"""One fold of a prepared folder as training and validation batches."""

import logging
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd
import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from rsna_bcd.data.augment import Augmentation
from rsna_bcd.data.dataset import Annotations, BreastDataset, CropDataset, Crops, collate_breasts
from rsna_bcd.data.sampler import EpochSampler, Key, ShardSampler
from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import Crop, read_crops
from rsna_bcd.tables.distillation import SoftTargets
from rsna_bcd.tables.folds import check_folds, read_folds, share_of_patients
from rsna_bcd.tables.images import read_images
from rsna_bcd.tables.metadata import Metadata, check_targets, encode_breast_targets, encode_targets
from rsna_bcd.tables.views import Level, Views


def split_batch(batch_size: int, n_ranks: int) -> int:
    """Samples per rank; an `InputError` if the batch cannot be split evenly."""
    if batch_size % n_ranks:
        raise InputError(
            f"batch_size={batch_size} is over all ranks and must be a multiple of their number, "
            f"{n_ranks}."
        )
    return batch_size // n_ranks


class CropDataModule(pl.LightningDataModule):
    """Batches of one fold: dicts, as `CropDataset` and `BreastDataset` describe them.

    A sample is an image or a breast. Unreadable images are dropped; a sample without a readable
    image is only in `expected`.

    Args:
        folder: prepared folder with `train.csv` and the crops.
        folds: CSV of `patient_id, fold`.
        fold: the fold held out; "all" trains on everything and holds out nothing.
        augment: for training images.
        batch_size: samples over all ranks.
        negatives_per_positive: see `EpochSampler`.
        workers: processes that read and augment; 0 does it in the training process.
        seed: of sampling and augmentation.
        level: of a sample, `image` or `breast`.
        views: the images of a breast-level sample; None for the defaults.
        metadata: columns that the network is given; None for none.
        targets: auxiliary targets (`tables.metadata`).
        positives_per_batch: see `EpochSampler`.
        crops_in_memory: decode every crop of the two parts once and keep it: for folders that fit.
        left_out_folds: further folds that are neither trained on nor held out.
        training_share: of the training patients (`tables.folds.share_of_patients`).
        soft_targets: of the training samples; None for their labels.

    Attributes:
        training: readable training samples, one row per sample, with `prediction_id,
            patient_id, laterality, label, fold` and the other columns of the table, and `target`
            where there are soft ones; a batch's `index` is the row. By breast, columns that
            differ between its images (`image_id`, `view`, `path`) are those of the first one.
        held_out: readable held-out samples, likewise. Empty for fold "all".
        expected: all held-out samples, the unreadable ones included.
        training_images: the rows of images behind `training`.
        held_out_images: those behind `held_out`.
        prevalence: share of positive breasts in training.
    """

    training: pd.DataFrame
    held_out: pd.DataFrame
    expected: pd.DataFrame
    training_images: pd.DataFrame
    held_out_images: pd.DataFrame
    prevalence: float

    def __init__(
        self,
        folder: str | Path,
        folds: str | Path,
        fold: int | Literal["all"],
        augment: Augmentation,
        *,
        batch_size: int,
        negatives_per_positive: float | None,
        workers: int,
        seed: int,
        level: Level = "image",
        views: Views | None = None,
        metadata: Metadata | None = None,
        targets: Sequence[str] = (),
        positives_per_batch: int = 0,
        crops_in_memory: bool = False,
        left_out_folds: Sequence[int] = (),
        training_share: float = 1.0,
        soft_targets: SoftTargets | None = None,
    ) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._folds = Path(folds)
        self._fold = fold
        self._augment = augment
        self._batch_size = batch_size
        self._negatives_per_positive = negatives_per_positive
        self._workers = workers
        self._seed = seed
        self._level = level
        self._views = Views() if views is None else views
        self._metadata = metadata
        self._targets = tuple(targets)
        self._positives_per_batch = positives_per_batch
        self._crops_in_memory = crops_in_memory
        self._left_out_folds = tuple(left_out_folds)
        self._training_share = training_share
        self._soft_targets = soft_targets
        self._in_memory: Mapping[Path, Crop] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the tables and check them; the second call does nothing.

        Raises:
            InputError: a table or a crop is absent, a fold does not exist or is held out and left
                out, the training part has one class only or is smaller than a batch, the table
                lacks a column of `metadata` or `targets`, or a sample has no soft target.
        """
        if hasattr(self, "training"):
            return
        rows = self._rows()
        is_held_out = rows["fold"] == self._fold
        training, held_out = rows[~is_held_out], rows[is_held_out]
        if self._training_share < 1:
            key = (self._seed, 0 if self._fold == "all" else self._fold + 1)
            training = training[share_of_patients(training, self._training_share, key)]
        self.training_images, self.held_out_images = (
            part.dropna(subset="path").reset_index(drop=True) for part in (training, held_out)
        )
        check_targets(training, self._targets)
        self.training, self._training_annotations = self._samples(training)
        self.held_out, self._held_out_annotations = self._samples(held_out)
        self.expected = self._one_row_per_sample(held_out.reset_index(drop=True))
        self._check_training()
        if self._soft_targets is not None:
            self.training["target"] = self._soft_targets.blend(self.training)
        breasts = self.training.drop_duplicates("prediction_id")
        self.prevalence = float(breasts["label"].mean())
        if self._crops_in_memory:  # before workers are forked, which share the memory
            used = pd.concat([self.training_images["path"], self.held_out_images["path"]])
            self._in_memory = read_crops(self._folder / path for path in used)
        if self._workers:
            two = sum(tensor.nbytes for tensor in self.sample_batch().values())
            self._workers = workers_that_fit(self._workers, two * self._batch_size // 2)

    def sample_batch(self) -> dict[str, Tensor]:
        """Two training samples as a batch, read in this process."""
        data = self._dataset(training=True)
        samples = [data[0, row] for row in (0, len(data) - 1)]
        collate = collate_breasts if self._level == "breast" else default_collate
        batch: dict[str, Tensor] = collate(samples)
        return batch

    @property
    def batches_per_epoch(self) -> int:
        """Training batches of each rank; the last samples that fill no batch are left out."""
        _, world_size = self._rank_and_world_size()
        return len(self._train_sampler()) // (self._batch_size // world_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of an epoch, other ones each time."""
        # Lightning calls `set_epoch` only after it has opened the first iterator: without this, a
        # resumed run would begin with the samples of epoch 0.
        progress: Any = self.trainer.fit_loop.epoch_progress.current if self.trainer else None
        sampler = self._train_sampler(epoch=progress.processed if progress else 0)
        return self._loader(self._dataset(training=True), sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Held-out samples, each once over all ranks; no loader for fold "all"."""
        if self.held_out.empty:
            return []
        rank, world_size = self._rank_and_world_size()
        sampler = ShardSampler(len(self.held_out), rank=rank, world_size=world_size)
        return self._loader(self._dataset(training=False), sampler, drop_last=False)

    def _dataset(self, *, training: bool) -> CropDataset | BreastDataset:
        samples = self.training if training else self.held_out
        images = self.training_images if training else self.held_out_images
        annotations = self._training_annotations if training else self._held_out_annotations
        augment = self._augment if training else None
        crops = Crops(self._folder, augment, self._seed, self._in_memory)
        if self._level == "image":
            return CropDataset(samples, crops, annotations)
        return BreastDataset(samples, images, crops, self._views, annotations)

    def _samples(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, Annotations]:
        """The readable samples, with their metadata and targets."""
        by_breast = self._level == "breast"
        is_read = rows["path"].notna()
        if by_breast:  # the metadata of its unreadable images count too
            is_read = is_read.groupby(rows["prediction_id"]).transform("any")
        rows = rows[is_read].reset_index(drop=True)
        encoded = None
        if self._metadata is not None:
            encode = self._metadata.encode_breasts if by_breast else self._metadata.encode
            encoded = encode(rows)
        targets = (encode_breast_targets if by_breast else encode_targets)(rows, self._targets)
        return self._one_row_per_sample(rows), Annotations(encoded, self._metadata, targets)

    def _one_row_per_sample(self, rows: pd.DataFrame) -> pd.DataFrame:
        if self._level == "image":
            return rows
        return rows.drop_duplicates("prediction_id", ignore_index=True)

    def _train_sampler(self, epoch: int = 0) -> EpochSampler:
        rank, world_size = self._rank_and_world_size()
        return EpochSampler(
            self.training["label"].to_numpy(),
            self._negatives_per_positive,
            seed=self._seed,
            batch_size=self._batch_size,
            positives_per_batch=self._positives_per_batch,
            rank=rank,
            world_size=world_size,
            epoch=epoch,
        )

    def _loader(
        self, data: CropDataset | BreastDataset, sampler: Sampler[Key], *, drop_last: bool
    ) -> DataLoader[Any]:
        _, world_size = self._rank_and_world_size()
        return DataLoader(
            data,
            batch_size=split_batch(self._batch_size, world_size),
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=collate_breasts if self._level == "breast" else None,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=self.trainer is not None
            and self.trainer.strategy.root_device.type == "cuda",
            worker_init_fn=_begin_worker,
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _rows(self) -> pd.DataFrame:
        """The prepared table with `label` and `fold`."""
        csv = self._folder / "train.csv"
        images = read_images(csv, "train")
        if "path" not in images:
            raise InputError(f"{csv} has no column path: it was not written by prepare.")
        folds = read_folds(self._folds)
        check_folds(images, folds)
        existing = sorted(folds["fold"].unique())
        if self._fold != "all" and self._fold not in existing:
            raise InputError(
                f"fold={self._fold} does not exist: {self._folds} has the folds "
                f"{', '.join(map(str, existing))}. Choose one of them, or fold=all."
            )
        if unfit := set(self._left_out_folds) - (set(existing) - {self._fold}):
            raise InputError(
                f"left_out_folds={list(self._left_out_folds)} has {min(unfit)}, which is held out "
                f"by fold=, or does not exist: {self._folds} has the folds "
                f"{', '.join(map(str, existing))}."
            )
        absent = [p for p in images["path"].dropna() if not (self._folder / p).is_file()]
        if absent:
            raise InputError(
                f"{len(absent)} crop(s) named in {csv} are absent, {absent[0]} among them. Run "
                "prepare again: it makes them."
            )
        rows = images.merge(folds, on="patient_id", how="left", validate="many_to_one")
        if self._left_out_folds:
            rows = rows[~rows["fold"].isin(self._left_out_folds)]
        return rows.assign(label=rows["cancer"].astype("int64"))

    def _check_training(self) -> None:
        counts = self.training["label"].value_counts()
        if len(counts) < 2:
            larger = (
                "Set a larger training_share=."
                if self._training_share < 1
                else "Check the column cancer of the data set, or prepare fewer folds."
            )
            raise InputError(
                f"The training part of fold={self._fold} has {counts.get(1, 0)} positive and "
                f"{counts.get(0, 0)} negative {self._level}s that could be read; both are "
                f"needed. {larger}"
            )
        if self.batches_per_epoch == 0:
            raise InputError(
                f"An epoch has {len(self._train_sampler())} {self._level}s, fewer than "
                f"batch_size={self._batch_size}. Set a smaller batch_size."
            )
        shared = np.intersect1d(self.training["patient_id"], self.held_out["patient_id"])
        assert len(shared) == 0, f"patients in training and held out: {shared[:5]}"


def _begin_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    # SLURM sends it to all processes of a job before the time is up. The one that trains queues
    # the job again; this process has inherited its handler.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


_SHARED_MEMORY = Path("/dev/shm")  # where workers leave their batches
_LOADERS, _PREFETCHED = 2, 2  # training and validation; batches ahead of each worker
_SPARE = 0.9  # of the free space
_FAILURE = re.compile(r"shared memory|Bus error|/torch_\d+_|shm", re.IGNORECASE)
_REMEDY = (
    "Give it more (docker run --shm-size=8g, or --ipc=host), or set workers= and batch_size= "
    "smaller."
)

_log = logging.getLogger(__name__)


def workers_that_fit(wanted: int, batch_bytes: int, folder: Path = _SHARED_MEMORY) -> int:
    """Limit the number of workers to those whose batches fit into shared memory.

    The result of training does not depend on the number of workers. In a container /dev/shm often
    has 64 MB; a worker that fills it dies of a bus error.

    Args:
        wanted: workers of each loader.
        batch_bytes: of a batch, over all ranks of this machine.
        folder: the file system in memory.

    Returns:
        `wanted`, or fewer; 0 reads in the training process.
    """
    if not wanted or not folder.is_dir():
        return wanted
    free = shutil.disk_usage(folder).free
    each = batch_bytes * _PREFETCHED * _LOADERS
    fitting = min(wanted, int(free * _SPARE) // each)
    if fitting < wanted:
        rank_zero_only(_log.warning)(
            "%s has %.0f MB free, and %d workers need %.0f MB: training continues with workers=%d, "
            "slower and with the same result. %s",
            folder, free / 1e6, wanted, wanted * each / 1e6, fitting, _REMEDY,
        )  # fmt: skip
    return fitting


def shared_memory_failure(error: RuntimeError) -> str | None:
    """The remedy, if a data loader failed for want of shared memory; None for another error."""
    if "worker" not in str(error).lower() or not _FAILURE.search(str(error)):
        return None
    return f"A worker ran out of shared memory ({_SHARED_MEMORY}). {_REMEDY}"
