"""Losses by formula and by identity; their sum, with one rank and with two."""

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rsna_bcd.errors import InputError
from rsna_bcd.models.losses import (
    BinaryCrossEntropy,
    Criterion,
    Focal,
    PairwiseRanking,
    SoftF1,
    auxiliary_loss,
)
from rsna_bcd.scoring.metrics import pf1

LOGITS = torch.tensor([-3.0, -0.5, 0.0, 2.0, 40.0, -40.0])
TARGETS = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
LOSSES = [BinaryCrossEntropy(0.8, 3.0), Focal(2.0, 3.0), SoftF1(), PairwiseRanking()]


def test_a_softened_positive_is_learnt_best_at_its_target() -> None:
    loss = BinaryCrossEntropy(positive_target=0.8, positive_weight=5)
    at = {p: loss(torch.logit(torch.tensor([p])), torch.ones(1)).item() for p in (0.7, 0.8, 0.9)}
    assert min(at, key=lambda p: at[p]) == 0.8
    unchanged = BinaryCrossEntropy()(LOGITS, torch.zeros(6))
    assert torch.equal(loss(LOGITS, torch.zeros(6)), unchanged)  # negatives stay certain


def test_cross_entropy_and_focal_loss_equal_torch_and_the_formula() -> None:
    entropy = functional.binary_cross_entropy_with_logits
    assert torch.equal(BinaryCrossEntropy()(LOGITS, TARGETS), entropy(LOGITS, TARGETS))
    expected = entropy(LOGITS, TARGETS, pos_weight=torch.tensor(3.0))
    assert torch.allclose(BinaryCrossEntropy(positive_weight=3)(LOGITS, TARGETS), expected)
    assert torch.allclose(Focal(gamma=0, positive_weight=3)(LOGITS, TARGETS), expected)
    p = torch.sigmoid(torch.tensor([0.3]))
    expected = -((1 - p) ** 2) * p.log()
    assert torch.allclose(Focal(gamma=2)(torch.tensor([0.3]), torch.ones(1)), expected)


def test_soft_f1_of_probabilities_is_that_of_the_metric() -> None:
    expected = 1 - pf1(TARGETS.numpy(), LOGITS.sigmoid().numpy())
    assert SoftF1()(LOGITS, TARGETS).item() == pytest.approx(expected)
    nothing = SoftF1()(torch.full((3,), -400.0), torch.zeros(3))
    assert nothing.item() == 1 - pf1(np.zeros(3), np.zeros(3)) == 1


def test_ranking_by_brute_force() -> None:
    positives, negatives = LOGITS[TARGETS == 1].tolist(), LOGITS[TARGETS == 0].tolist()
    pairs = [math.log1p(math.exp(n - p)) for p, n in product(positives, negatives)]
    found = PairwiseRanking(entropy=0)(LOGITS, TARGETS)
    assert found.item() == pytest.approx(sum(pairs) / len(pairs))
    assert PairwiseRanking(entropy=0)(LOGITS, torch.ones(6)) == 0  # there is no pair
    with_entropy = PairwiseRanking(entropy=0.5)(LOGITS, TARGETS)
    expected = found + 0.5 * BinaryCrossEntropy()(LOGITS, TARGETS)
    assert with_entropy.item() == pytest.approx(expected.item())


def test_ranking_of_shares_is_that_of_all_pairs_at_any_level() -> None:
    shares = torch.tensor([0.0, 0.3, 1.0, 0.7, 0.0, 1.0])
    pairs = shares[:, None] * (1 - shares)[None]
    below = functional.softplus(LOGITS[None] - LOGITS[:, None])
    expected = (pairs * below).sum() / pairs.sum()
    assert torch.allclose(PairwiseRanking(entropy=0)(LOGITS, shares), expected)
    assert torch.allclose(PairwiseRanking(entropy=0)(LOGITS + 5, shares), expected)


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(), Focal()], ids=["bce", "focal"])
def test_losses_are_linear_in_a_mixed_label(loss: nn.Module) -> None:
    """The loss of mixed samples."""
    shared = loss(LOGITS, torch.full((6,), 0.3))
    parts = 0.3 * loss(LOGITS, torch.ones(6)) + 0.7 * loss(LOGITS, torch.zeros(6))
    assert torch.allclose(shared, parts)


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("scale", [0, 200])
@pytest.mark.parametrize("loss", [*LOSSES, Focal(0.5)], ids=lambda loss: type(loss).__name__)
def test_losses_and_gradients_are_finite_at_the_extremes_and_for_one_class(
    loss: nn.Module, scale: float, labels: list[float]
) -> None:
    logits = torch.tensor([1.0, -1, 1, -1]).mul(scale).requires_grad_()
    found = loss(logits, torch.tensor(labels).float())
    found.backward()
    assert torch.isfinite(found)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


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
    logits = {name: torch.randn(4) for name in ("logit", "logit_local", "invasive", "age")}
    return {**logits, "density": torch.randn(4, 4), "penalty_area": torch.rand(())}


def test_criterion_is_the_weighted_sum_and_of_one_logit_the_plain_loss() -> None:
    given, entropy = outputs(), functional.binary_cross_entropy_with_logits
    alone = Criterion(BinaryCrossEntropy())({"logit": given["logit"]}, BATCH)
    assert torch.equal(alone["loss"], entropy(given["logit"], BATCH["label"]))
    assert alone.keys() == {"loss", "total", "label"}
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
    with_penalty = Criterion(BinaryCrossEntropy())(given, BATCH)["loss"]
    without = Criterion(BinaryCrossEntropy(), penalties={"area": 0})(given, BATCH)["loss"]
    assert (with_penalty - without).item() == pytest.approx(given["penalty_area"].item())


@pytest.mark.parametrize("column", list(AUXILIARY))
def test_auxiliary_loss_of_unknown_targets_is_zero_with_a_gradient(column: str) -> None:
    output = outputs()[column].requires_grad_()
    loss = auxiliary_loss(column, output, torch.full((4,), NAN))
    loss.backward()
    assert loss.item() == 0
    assert output.grad is not None
    assert not output.grad.any()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda loss: loss.expand(2), r"a tensor \(2,\) for 2 logits. Return a scalar"),
        (Tensor.detach, "loss BinaryCrossEntropy has no gradient"),
        (Tensor.item, "returns 0.69"),
    ],
)
def test_a_loss_that_is_no_scalar_with_a_gradient_is_refused(
    found: Callable[[Tensor], Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loss in LOSSES:
        Criterion(loss).check()
    forward = BinaryCrossEntropy.forward
    monkeypatch.setattr(BinaryCrossEntropy, "forward", lambda *given: found(forward(*given)))
    with pytest.raises(InputError, match=said):
        Criterion(BinaryCrossEntropy()).check()


def test_a_network_without_the_head_of_a_column_is_refused() -> None:
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
