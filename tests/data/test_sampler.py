"""The rows of an epoch, for one rank and for several."""

from typing import Any

import numpy as np
import pytest

from rsna_bcd.data.sampler import EpochSampler, ShardSampler
from rsna_bcd.errors import InputError

LABELS = np.array([1] * 5 + [0] * 95)


def rows(sampler: EpochSampler) -> list[int]:
    return [row for _, row in sampler]


@pytest.mark.parametrize("ratio", [None, 50, 7])  # 50: more negatives than there are
def test_epoch_sampler_takes_every_positive_and_negatives_by_the_ratio(ratio: float | None) -> None:
    sampler = EpochSampler(LABELS, ratio, seed=0)
    drawn = rows(sampler)
    assert len(drawn) == len(set(drawn)) == len(sampler) == (5 + 35 if ratio == 7 else 100)
    assert set(range(5)) <= set(drawn)


@pytest.mark.parametrize("settings", [{}, {"batch_size": 8, "positives_per_batch": 2}])
def test_epoch_sampler_depends_on_seed_and_epoch(settings: dict[str, Any]) -> None:
    sampler = EpochSampler(LABELS, 7, seed=0, **settings)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert {row for _, row in second} != {row for _, row in first}  # other negatives
    assert list(EpochSampler(LABELS, 7, seed=0, epoch=1, **settings)) == second
    assert rows(EpochSampler(LABELS, 7, seed=1, **settings)) != [row for _, row in first]


def batches(sampler: EpochSampler, size: int) -> list[list[int]]:
    drawn = rows(sampler)
    return [drawn[i : i + size] for i in range(0, len(drawn) - size + 1, size)]


@pytest.mark.parametrize(("ratio", "per_batch"), [(7, 1), (3, 1), (1, 2), (2, 2), (None, 1)])
def test_positives_per_batch_holds_in_every_batch(ratio: float | None, per_batch: int) -> None:
    labels = np.array([0] * 190 + [1] * 27)
    for epoch in range(10):
        sampler = EpochSampler(
            labels, ratio, seed=1, batch_size=8, positives_per_batch=per_batch, epoch=epoch
        )
        drawn = rows(sampler)
        assert len(drawn) == len(sampler) == len(set(drawn))
        assert all(labels[batch].sum() >= per_batch for batch in batches(sampler, 8))
        assert set(drawn) == set(range(217)) if ratio is None else len(drawn) == 27 + 27 * ratio
        assert set(range(190, 217)) <= set(drawn)


def test_positives_per_batch_repeats_evenly() -> None:
    sampler = EpochSampler(LABELS, None, seed=0, batch_size=8, positives_per_batch=3)
    drawn = rows(sampler)
    assert len(drawn) == len(sampler) == 95 // 5 * 8
    assert all(LABELS[batch].sum() == 3 for batch in batches(sampler, 8))
    times = np.bincount(drawn, minlength=100)
    assert set(times[5:]) == {1}  # 95 negatives make 19 batches of 5
    assert times[:5].sum() == 19 * 3
    assert times[:5].max() - times[:5].min() <= 1


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(("ratio", "per_batch"), [(None, 0), (7, 1), (None, 4)])
def test_epoch_sampler_ranks_share_the_batches_of_one(
    world_size: int, ratio: float | None, per_batch: int
) -> None:
    settings: dict[str, Any] = {"seed": 3, "batch_size": 6, "positives_per_batch": per_batch}
    whole = batches(EpochSampler(LABELS, ratio, **settings), 6)
    samplers = [
        EpochSampler(LABELS, ratio, rank=rank, world_size=world_size, **settings)
        for rank in range(world_size)
    ]
    assert len({len(sampler) for sampler in samplers}) == 1
    parts = [batches(sampler, 6 // world_size) for sampler in samplers]
    for single, *shares in zip(whole, *(part[: len(whole)] for part in parts), strict=True):
        assert sorted(single) == sorted(row for share in shares for row in share)
    # No rank has all positives.
    assert min(sum(LABELS[batch].sum() for batch in part) for part in parts) > 0


@pytest.mark.parametrize("per_batch", [-1, 6, 9])
def test_positives_per_batch_refuses(per_batch: int) -> None:
    with pytest.raises(InputError, match=f"positives_per_batch={per_batch} .*batch_size=6"):
        EpochSampler(LABELS, 7, seed=0, batch_size=6, positives_per_batch=per_batch)


@pytest.mark.parametrize(("n_rows", "world_size"), [(101, 2), (7, 3), (1, 2)])
def test_shard_sampler_is_a_partition(n_rows: int, world_size: int) -> None:
    shards = [ShardSampler(n_rows, rank=r, world_size=world_size) for r in range(world_size)]
    assert sum(len(shard) for shard in shards) == n_rows
    assert sorted(row for shard in shards for _, row in shard) == list(range(n_rows))
