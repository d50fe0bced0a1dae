"""Samplers: the rows of an epoch, and their distribution over ranks."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from rsna_bcd.errors import InputError

Key = tuple[int, int]  # (epoch, row)


class EpochSampler(Sampler[Key]):
    """All positives and some negatives, drawn and shuffled for each epoch.

    The order depends on (seed, epoch) alone. Ranks take turns in it, so that the k-th batches of
    all ranks are together the k-th batch of a single process.

    With `positives_per_batch`, each batch over all ranks gets so many positives first; the others
    are shuffled into the remaining places. If there are too few positives, each batch has exactly
    so many, and each positive is repeated equally often, or once more; the negatives that fill no
    batch are left out.

    Args:
        labels: (N,) of 0 and 1.
        negatives_per_positive: negatives drawn without replacement for each positive, all of them
            where there are fewer; None for every row once.
        seed: of the draws.
        batch_size: over all ranks; needed for `positives_per_batch` only.
        positives_per_batch: at least so many in each batch over all ranks.
        rank: of this process.
        world_size: number of processes.
        epoch: the first one; Lightning calls `set_epoch` for the others.

    Raises:
        InputError: `positives_per_batch` leaves no room for a negative, or is negative.
    """

    def __init__(
        self,
        labels: NDArray[np.integer],
        negatives_per_positive: float | None,
        *,
        seed: int,
        batch_size: int = 1,
        positives_per_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
    ) -> None:
        if not 0 <= positives_per_batch < batch_size:
            raise InputError(
                f"positives_per_batch={positives_per_batch} must be 0 or more, and less than "
                f"batch_size={batch_size}."
            )
        self._positives = np.flatnonzero(labels == 1)
        self._negatives = np.flatnonzero(labels == 0)
        self._n_negatives = len(self._negatives)
        if negatives_per_positive is not None:
            wanted = round(negatives_per_positive * len(self._positives))
            self._n_negatives = min(wanted, self._n_negatives)
        self._n_rows = len(self._positives) + self._n_negatives
        self._batch_size = batch_size
        self._per_batch = positives_per_batch
        self._repeats = positives_per_batch * (self._n_rows // batch_size) > len(self._positives)
        if self._repeats:
            batches = self._n_negatives // (batch_size - positives_per_batch)
            self._n_rows = batches * batch_size if len(self._positives) else 0
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self._epoch = epoch

    def __len__(self) -> int:
        # The same on every rank, so that none waits for another.
        return self._n_rows // self._world_size

    def __iter__(self) -> Iterator[Key]:
        generator = np.random.default_rng([self._seed, self._epoch])
        negatives = generator.permutation(self._negatives)[: self._n_negatives]
        if self._per_batch:
            rows = self._with_positives_per_batch(negatives, generator)
        else:
            rows = generator.permutation(np.concatenate([self._positives, negatives]))
        mine = rows[self._rank :: self._world_size][: len(self)]
        return iter([(self._epoch, int(row)) for row in mine])

    def _with_positives_per_batch(
        self, negatives: NDArray[np.integer], generator: np.random.Generator
    ) -> NDArray[np.integer]:
        """The rows of the epoch, batch after batch, each with enough positives."""
        n_batches = self._n_rows // self._batch_size
        needed = n_batches * self._per_batch
        positives = generator.permutation(self._positives)
        if self._repeats:
            rounds = -(-needed // len(positives))
            more = [generator.permutation(self._positives) for _ in range(rounds - 1)]
            positives = np.concatenate([positives, *more])[:needed]
        rest = np.concatenate([positives[needed:], negatives])
        rest = generator.permutation(rest)[: self._n_rows - needed]
        room = n_batches * (self._batch_size - self._per_batch)
        batches = np.concatenate(
            [
                positives[:needed].reshape(n_batches, self._per_batch),
                rest[:room].reshape(n_batches, self._batch_size - self._per_batch),
            ],
            axis=1,
        )
        # Else the same ranks would have the positives of every batch.
        batches = generator.permuted(batches, axis=1)
        return np.concatenate([batches.ravel(), rest[room:]])


class ShardSampler(Sampler[Key]):
    """Every row once over all ranks, in order, without padding.

    torch's DistributedSampler repeats rows until the shards are equal, which moves every metric.

    Args:
        n_rows: over all ranks.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, n_rows: int, *, rank: int = 0, world_size: int = 1) -> None:
        self._rows = range(rank, n_rows, world_size)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Key]:
        return iter([(0, row) for row in self._rows])
