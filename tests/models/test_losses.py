"""Losses by formula and by identity."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from rsna_bcd.models.losses import BinaryCrossEntropy, Focal, PairwiseRanking, SoftF1
from rsna_bcd.scoring.metrics import pf1

LOGITS = torch.tensor([-3.0, -0.5, 0.0, 2.0, 40.0, -40.0])
TARGETS = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
LOSSES = [BinaryCrossEntropy(0.8, 3.0), Focal(2.0, 3.0), SoftF1(), PairwiseRanking()]


def test_cross_entropy_equals_torch() -> None:
    expected = functional.binary_cross_entropy_with_logits(LOGITS, TARGETS)
    assert torch.equal(BinaryCrossEntropy()(LOGITS, TARGETS), expected)


def test_a_softened_positive_is_learnt_best_at_its_target() -> None:
    loss = BinaryCrossEntropy(positive_target=0.8, positive_weight=5)
    at = {p: loss(torch.logit(torch.tensor([p])), torch.ones(1)).item() for p in (0.7, 0.8, 0.9)}
    assert min(at, key=lambda p: at[p]) == 0.8
    unchanged = BinaryCrossEntropy()(LOGITS, torch.zeros(6))
    assert torch.equal(loss(LOGITS, torch.zeros(6)), unchanged)  # negatives stay certain


def test_positive_weight_equals_torch() -> None:
    expected = functional.binary_cross_entropy_with_logits(
        LOGITS, TARGETS, pos_weight=torch.tensor(3.0)
    )
    assert torch.allclose(BinaryCrossEntropy(positive_weight=3)(LOGITS, TARGETS), expected)
    assert torch.allclose(Focal(gamma=0, positive_weight=3)(LOGITS, TARGETS), expected)


def test_focal_by_formula() -> None:
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
    with_entropy = PairwiseRanking(entropy=0.5)(LOGITS, TARGETS)
    expected = found + 0.5 * BinaryCrossEntropy()(LOGITS, TARGETS)
    assert with_entropy.item() == pytest.approx(expected.item())


def test_ranking_of_shares_is_that_of_all_pairs() -> None:
    shares = torch.tensor([0.0, 0.3, 1.0, 0.7, 0.0, 1.0])
    pairs = shares[:, None] * (1 - shares)[None]
    below = functional.softplus(LOGITS[None] - LOGITS[:, None])
    expected = (pairs * below).sum() / pairs.sum()
    assert torch.allclose(PairwiseRanking(entropy=0)(LOGITS, shares), expected)


def test_ranking_alone_is_invariant_to_the_level() -> None:
    loss = PairwiseRanking(entropy=0)
    assert torch.allclose(loss(LOGITS, TARGETS), loss(LOGITS + 5, TARGETS))


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("loss", [SoftF1(), PairwiseRanking(entropy=0)], ids=["f1", "ranking"])
def test_losses_of_one_class_have_finite_gradients(loss: nn.Module, label: float) -> None:
    logits = torch.zeros(4, requires_grad=True)
    found = loss(logits, torch.full((4,), label))
    found.backward()
    if isinstance(loss, PairwiseRanking):
        assert found.item() == 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(), Focal()], ids=["bce", "focal"])
def test_losses_are_linear_in_a_mixed_label(loss: nn.Module) -> None:
    """What mixing samples asks of a loss."""
    shared = loss(LOGITS, torch.full((6,), 0.3))
    parts = 0.3 * loss(LOGITS, torch.ones(6)) + 0.7 * loss(LOGITS, torch.zeros(6))
    assert torch.allclose(shared, parts)


@pytest.mark.parametrize("loss", [*LOSSES, Focal(0.5)], ids=lambda loss: type(loss).__name__)
def test_losses_are_finite_at_the_extremes(loss: nn.Module) -> None:
    logits = torch.tensor([200.0, -200.0, 200.0, -200.0], requires_grad=True)
    found = loss(logits, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    found.backward()
    assert torch.isfinite(found)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
