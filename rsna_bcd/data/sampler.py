"""Which rows an epoch consists of, and which rank sees which of them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Key = tuple[int, int]  # (epoch, row)


class EpochSampler(Sampler[Key]):
    """All positives and some negatives, drawn and shuffled anew for each epoch.

    The order depends on (seed, epoch) alone. Ranks take turns in it, so that the k-th batches of
    all ranks are together the k-th batch of a single process.

    Args:
        labels: (N,) of 0 and 1.
        negatives_per_positive: negatives drawn without replacement for each positive, all of them
            where there are fewer; None for every row once.
        seed: of the draws.
        rank: of this process.
        world_size: number of processes.
        epoch: the first one; Lightning calls `set_epoch` for the others.
    """

    def __init__(
        self,
        labels: NDArray[np.integer],
        negatives_per_positive: float | None,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
    ) -> None:
        self._positives = np.flatnonzero(labels == 1)
        self._negatives = np.flatnonzero(labels == 0)
        self._n_negatives = len(self._negatives)
        if negatives_per_positive is not None:
            wanted = round(negatives_per_positive * len(self._positives))
            self._n_negatives = min(wanted, self._n_negatives)
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self._epoch = epoch

    def __len__(self) -> int:
        # The same on every rank, so that none waits for another.
        return (len(self._positives) + self._n_negatives) // self._world_size

    def __iter__(self) -> Iterator[Key]:
        generator = np.random.default_rng([self._seed, self._epoch])
        negatives = generator.permutation(self._negatives)[: self._n_negatives]
        rows = generator.permutation(np.concatenate([self._positives, negatives]))
        mine = rows[self._rank :: self._world_size][: len(self)]
        return iter([(self._epoch, int(row)) for row in mine])


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
