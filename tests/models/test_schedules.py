"""The shape of the schedules."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rsna_bcd.models.optim import one_cycle, warmup_cosine

PEAK, STEPS = 0.01, 100


def rates(schedule: Callable[[Optimizer, int], LRScheduler], steps: int = STEPS) -> list[float]:
    """The rate at which each step is taken, and the one after the last."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = schedule(optimizer, steps)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("schedule", [warmup_cosine, one_cycle])
def test_it_rises_to_the_peak_and_falls_to_nothing(
    schedule: Callable[[Optimizer, int], LRScheduler],
) -> None:
    found = rates(schedule)
    top = max(range(STEPS), key=found.__getitem__)
    assert found[top] == pytest.approx(PEAK)
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert 0 < found[0] < 0.1 * PEAK
    assert found[-1] < 0.01 * PEAK


def test_half_way_down_the_cosine_is_half_the_peak() -> None:
    found = rates(lambda optimizer, steps: warmup_cosine(optimizer, steps, warmup=0.2))
    assert found[20] == pytest.approx(PEAK)
    assert found[60] == pytest.approx(PEAK / 2)
    assert found[40] == pytest.approx(PEAK * (1 + math.cos(math.pi / 4)) / 2)


def test_a_single_step_is_possible() -> None:
    assert rates(warmup_cosine, steps=1) == [PEAK]
