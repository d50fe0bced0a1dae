"""The sum of a network's losses, with one rank and with two."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rsna_bcd.errors import InputError
from rsna_bcd.models.losses import BinaryCrossEntropy, Criterion, PairwiseRanking, auxiliary_loss

NAN = math.nan
BATCH = {
    "label": torch.tensor([0.0, 1.0, 1.0, 0.0]),
    "target_invasive": torch.tensor([NAN, 1.0, 0.0, NAN]),
    "target_density": torch.tensor([2.0, NAN, NAN, 0.0]),
    "target_age": torch.tensor([NAN, NAN, NAN, 1.5]),
}
AUXILIARY = {"invasive": 0.1, "density": 0.2, "age": 0.3}


def outputs(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "logit": torch.randn(4),
        "logit_local": torch.randn(4),
        "invasive": torch.randn(4),
        "density": torch.randn(4, 4),
        "age": torch.randn(4),
        "penalty_area": torch.rand(()),
    }


def test_one_logit_is_the_plain_loss() -> None:
    logit = outputs()["logit"]
    found = Criterion(BinaryCrossEntropy())({"logit": logit}, BATCH)
    expected = functional.binary_cross_entropy_with_logits(logit, BATCH["label"])
    assert torch.equal(found["loss"], expected)
    assert found.keys() == {"loss", "total", "label"}


def test_the_sum_by_formula() -> None:
    given = outputs()
    entropy = functional.binary_cross_entropy_with_logits
    expected = (
        entropy(given["logit"], BATCH["label"])
        + 0.5 * entropy(given["logit_local"], BATCH["label"])
        + 0.1 * entropy(given["invasive"][1:3], torch.tensor([1.0, 0.0]))
        + 0.2 * functional.cross_entropy(given["density"][[0, 3]], torch.tensor([2, 0]))
        + 0.3 * functional.smooth_l1_loss(given["age"][3], torch.tensor(1.5))
        + 0.4 * given["penalty_area"]
    )
    criterion = Criterion(
        BinaryCrossEntropy(), deep_weight=0.5, penalties={"area": 0.4}, auxiliary=AUXILIARY
    )
    found = criterion(given, BATCH)
    assert found["loss"].item() == pytest.approx(expected.item())
    assert found["total"].item() == pytest.approx(expected.item())
    assert found["logit_local"].item() == entropy(given["logit_local"], BATCH["label"]).item()
    assert {"label", "invasive", "density", "age", "penalty_area"} < found.keys()


def test_a_penalty_counts_fully_unless_it_is_named() -> None:
    with_penalty = Criterion(BinaryCrossEntropy())(outputs(), BATCH)["loss"]
    without = Criterion(BinaryCrossEntropy(), penalties={"area": 0})(outputs(), BATCH)["loss"]
    assert (with_penalty - without).item() == pytest.approx(outputs()["penalty_area"].item())


@pytest.mark.parametrize("column", list(AUXILIARY))
def test_auxiliary_loss_of_unknown_targets_is_zero_with_a_gradient(column: str) -> None:
    output = outputs()[column].requires_grad_()
    loss = auxiliary_loss(column, output, torch.full((4,), NAN))
    loss.backward()
    assert loss.item() == 0
    assert output.grad is not None
    assert not output.grad.any()


def test_an_unknown_column_and_a_network_without_its_head_are_refused() -> None:
    with pytest.raises(InputError, match="cancer is no auxiliary target"):
        Criterion(BinaryCrossEntropy(), auxiliary={"cancer": 1})
    with pytest.raises(InputError, match="auxiliary.age: the network has no output for it"):
        Criterion(BinaryCrossEntropy(), auxiliary={"age": 1})({"logit": torch.zeros(4)}, BATCH)


class Toy(nn.Module):
    """A network of one layer for every output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Cut the layer's outputs apart."""
        y = self.layer(x)
        return {
            **{"logit": y[:, 0], "logit_local": y[:, 1], "invasive": y[:, 2]},
            **{"age": y[:, 3], "density": y[:, 4:], "penalty_area": y.square().mean()},
        }


def gradient(network: nn.Module, rows: slice) -> tuple[dict[str, Tensor], Tensor]:
    """The losses of some rows, and the gradient."""
    torch.manual_seed(1)
    x = torch.randn(4, 3)[rows]
    criterion = Criterion(PairwiseRanking(), auxiliary=AUXILIARY)
    losses = criterion(network(x), {name: value[rows] for name, value in BATCH.items()})
    losses["loss"].backward()
    weight: Any = next(network.parameters())
    return {n: v.detach() for n, v in losses.items()}, weight.grad


def run_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    network = nn.parallel.DistributedDataParallel(Toy())
    losses, grad = gradient(network, slice(rank, 4, 2))
    torch.save({"losses": losses, "grad": grad}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_have_the_loss_and_the_gradient_of_one(tmp_path: Path) -> None:
    """Although pairs lie across the ranks, and each knows other targets."""
    losses, grad = gradient(Toy(), slice(0, 4))
    torch.multiprocessing.start_processes(run_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.allclose(found["grad"], grad, atol=1e-7)
        for name in losses.keys() - {"loss"}:
            assert torch.allclose(found["losses"][name], losses[name]), name
