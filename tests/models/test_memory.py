"""Batches that do not fit into memory: split in prediction, refused with a remedy in training."""

import pytest
import torch
from torch import Tensor, nn

from rsna_bcd.models.losses import Criterion
from rsna_bcd.models.memory import MemoryLimit, TrainingStep, is_out_of_memory, largest_that_fits


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


@pytest.mark.parametrize("most", [0, 1, 3, 8])
def test_memory_limit_splits_a_batch_in_order_and_gives_none_for_a_sample_that_does_not_fit(
    most: int,
) -> None:
    network, batch, limit = Linear(most), random_batch(8), MemoryLimit()
    parts = list(limit.split(lambda part: network(part["image"])["logit"], batch))
    assert [i for part, _ in parts for i in range(8)[part]] == list(range(8))
    if most == 0:
        assert [logits for _, logits in parts] == [None] * 8
        return
    together = torch.cat([logits for _, logits in parts if logits is not None])
    network.most = 8
    assert torch.allclose(together, network(batch["image"])["logit"], atol=1e-6)
    assert limit.samples is None if most == 8 else (limit.samples or 0) <= most


def test_training_step_equals_torch() -> None:
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


@pytest.mark.parametrize("most", [0, 5, 8])
def test_largest_that_fits_by_bisection(most: int) -> None:
    network, batch = Linear(most), random_batch(9)
    step = made_step(network)
    tried: list[int] = []

    def fits(n: int) -> bool:
        tried.append(n)
        return step.fits({name: values[:n] for name, values in batch.items()})

    assert largest_that_fits(fits, 9) == most
    assert len(tried) <= 4


def test_libraries_run_out_of_memory_too_and_other_errors_are_not_that() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    other = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not is_out_of_memory(other)

    def fail(part: dict[str, Tensor]) -> Tensor:
        raise other

    with pytest.raises(RuntimeError, match="mat1"):
        list(MemoryLimit().split(fail, random_batch(4)))
