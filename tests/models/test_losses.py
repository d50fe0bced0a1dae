"""Losses by formula and by identity."""

import pytest
import torch
from torch.nn import functional

from rsna_bcd.models.losses import BinaryCrossEntropy, Focal

LOGITS = torch.tensor([-3.0, -0.5, 0.0, 2.0, 40.0, -40.0])
TARGETS = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 1.0])


def test_cross_entropy_is_torchs() -> None:
    expected = functional.binary_cross_entropy_with_logits(LOGITS, TARGETS)
    assert torch.equal(BinaryCrossEntropy()(LOGITS, TARGETS), expected)


def test_a_softened_positive_is_learnt_best_at_its_target() -> None:
    loss = BinaryCrossEntropy(positive_target=0.8)
    at = {p: loss(torch.logit(torch.tensor([p])), torch.ones(1)).item() for p in (0.7, 0.8, 0.9)}
    assert min(at, key=lambda p: at[p]) == 0.8
    unchanged = BinaryCrossEntropy()(LOGITS, torch.zeros(6))
    assert torch.equal(loss(LOGITS, torch.zeros(6)), unchanged)  # negatives stay certain


def test_focal_without_gamma_is_cross_entropy() -> None:
    expected = BinaryCrossEntropy()(LOGITS, TARGETS)
    assert torch.allclose(Focal(gamma=0)(LOGITS, TARGETS), expected)


def test_focal_by_formula() -> None:
    p = torch.sigmoid(torch.tensor([0.3]))
    expected = -((1 - p) ** 2) * p.log()
    assert torch.allclose(Focal(gamma=2)(torch.tensor([0.3]), torch.ones(1)), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_stays_finite_at_the_extremes(gamma: float) -> None:
    logits = torch.tensor([200.0, -200.0, 200.0, -200.0], requires_grad=True)
    loss = Focal(gamma)(logits, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
