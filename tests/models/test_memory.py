"""Batches that do not fit into memory: split in prediction, refused with a remedy in training."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from rsna_bcd.models.losses import Criterion
from rsna_bcd.models.memory import (
    MemoryLimit,
    TrainingStep,
    is_out_of_memory,
    largest_that_fits,
)


class Linear(nn.Module):
    """A logit from the pixels; more than `most` images are too much for its memory."""

    unit = "image"
    inputs = ()

    def __init__(self, most: int = 99) -> None:
        super().__init__()
        self.head = nn.Linear(16, 1)
        self.most = most

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute `logit` (B,)."""
        if len(image) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"logit": self.head(image.flatten(1))[:, 0]}


def random_batch(n: int) -> dict[str, Tensor]:
    return {"image": torch.rand(n, 1, 4, 4), "label": torch.arange(n).remainder(2).float()}


def made_step(
    network: Linear, precision: str = "32-true", clip: float | None = None
) -> TrainingStep:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return TrainingStep(network, Criterion(nn.BCEWithLogitsLoss()), optimizer, precision, clip)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8])
def test_parts_are_in_order_and_together_the_batch(most: int) -> None:
    network, batch, limit = Linear(most), random_batch(8), MemoryLimit()
    parts = list(limit.split(lambda part: network(part["image"])["logit"], batch))
    assert [i for part, _ in parts for i in range(8)[part]] == list(range(8))
    together = torch.cat([logits for _, logits in parts if logits is not None])
    network.most = 8
    assert torch.allclose(together, network(batch["image"])["logit"], atol=1e-6)
    assert limit.samples is None if most == 8 else (limit.samples or 0) <= most


def test_a_sample_that_does_not_fit_is_none_and_the_others_are_tried() -> None:
    network = Linear(most=0)
    parts = list(MemoryLimit().split(lambda part: network(part["image"])["logit"], random_batch(3)))
    assert [logits for _, logits in parts] == [None] * 3


def test_a_step_is_that_of_the_textbook() -> None:
    torch.manual_seed(0)
    network, reference, batch = Linear(), Linear(), random_batch(6)
    reference.load_state_dict(network.state_dict())
    step = made_step(network, clip=0.01)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        loss = step(batch)
        optimizer.zero_grad()
        expected = nn.functional.binary_cross_entropy_with_logits(
            reference(batch["image"])["logit"], batch["label"]
        )
        expected.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.01)
        optimizer.step()
        assert loss == pytest.approx(float(expected.detach()))
    assert torch.allclose(network.head.weight, reference.head.weight, atol=1e-7)


def test_precision_decides_about_the_arithmetic_and_not_about_the_weights() -> None:
    torch.manual_seed(0)
    network, batch = Linear(), random_batch(6)
    single, half = (made_step(network, p) for p in ("32-true", "bf16-mixed"))
    difference = abs(float(single(batch)) - float(half(batch)))
    assert 0 < difference < 0.05
    assert network.head.weight.dtype == torch.float32


@pytest.mark.parametrize("most", range(9))
def test_the_largest_micro_batch_is_found_by_trial(most: int) -> None:
    network, batch = Linear(most), random_batch(9)
    step = made_step(network)

    def fits(n: int) -> bool:
        return step.fits({name: values[:n] for name, values in batch.items()})

    assert largest_that_fits(fits, 9) == most


def test_bisection_takes_few_trials() -> None:
    tried: list[int] = []

    def fits(n: int, most: int) -> bool:
        tried.append(n)
        return n <= most

    assert largest_that_fits(partial(fits, most=5), 64) == 5
    assert len(tried) == 6


def test_libraries_run_out_of_memory_too_and_other_errors_are_not_that() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    other = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not is_out_of_memory(other)

    def fail(part: dict[str, Tensor]) -> Tensor:
        raise other

    with pytest.raises(RuntimeError, match="mat1"):
        list(MemoryLimit().split(fail, random_batch(4)))
