"""What an epoch consists of, for one rank and for several."""

import numpy as np
import pytest

from rsna_bcd.data.sampler import EpochSampler, ShardSampler

LABELS = np.array([1] * 5 + [0] * 95)


def rows(sampler: EpochSampler) -> list[int]:
    return [row for _, row in sampler]


def test_every_positive_and_so_many_negatives_each() -> None:
    sampler = EpochSampler(LABELS, 7, seed=0)
    drawn = rows(sampler)
    assert len(drawn) == len(set(drawn)) == len(sampler) == 5 + 35
    assert set(range(5)) <= set(drawn)


def test_without_a_ratio_every_row_once() -> None:
    assert sorted(rows(EpochSampler(LABELS, None, seed=0))) == list(range(100))


def test_no_negative_twice_where_there_are_too_few() -> None:
    assert sorted(rows(EpochSampler(LABELS, 50, seed=0))) == list(range(100))


def test_an_epoch_is_its_seed_and_number() -> None:
    sampler = EpochSampler(LABELS, 7, seed=0)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert {row for _, row in second} != {row for _, row in first}  # other negatives
    assert list(EpochSampler(LABELS, 7, seed=0, epoch=1)) == second
    assert rows(EpochSampler(LABELS, 7, seed=1)) != [row for _, row in first]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_the_batches_of_one(world_size: int) -> None:
    batch_size = 6
    whole = rows(EpochSampler(LABELS, None, seed=3))
    parts = [
        rows(EpochSampler(LABELS, None, seed=3, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1
    own = batch_size // world_size
    for batch in range(len(whole) // batch_size):
        of_one = whole[batch * batch_size : (batch + 1) * batch_size]
        of_all = [row for part in parts for row in part[batch * own : (batch + 1) * own]]
        assert set(of_all) == set(of_one)


@pytest.mark.parametrize(("n_rows", "world_size"), [(101, 2), (7, 3), (1, 2)])
def test_shards_are_a_partition(n_rows: int, world_size: int) -> None:
    shards = [ShardSampler(n_rows, rank=r, world_size=world_size) for r in range(world_size)]
    assert sum(len(shard) for shard in shards) == n_rows
    assert sorted(row for shard in shards for _, row in shard) == list(range(n_rows))
