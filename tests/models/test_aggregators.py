"""Aggregators: by formula, and independent of order, padding and other breasts."""

from collections.abc import Callable
from functools import partial

import pandas as pd
import pytest
import torch
from torch import Tensor

from rsna_bcd.errors import InputError
from rsna_bcd.models.aggregators import (
    Aggregator,
    Attention,
    GatedAttention,
    Max,
    MaxProbability,
    Mean,
    MeanProbability,
    Transformer,
    masked_mean,
)
from rsna_bcd.scoring.metrics import Aggregation
from rsna_bcd.tables.predictions import to_breasts

C = 8
Maker = Callable[[int], Aggregator]
TRANSFORMER = partial(Transformer, width=16, depth=2, heads=2)
FEATURES: list[Maker] = [Mean, Max, partial(Attention, hidden=4), TRANSFORMER]
LATE: list[Maker] = [MeanProbability, MaxProbability]


def make(maker: Maker) -> Aggregator:
    """An aggregator in which everything that can make a difference does."""
    torch.manual_seed(1)
    aggregator = maker(C).eval()
    for parameter in aggregator.parameters():
        torch.nn.init.normal_(parameter)
    return aggregator


def breasts(aggregator: Aggregator) -> dict[str, Tensor]:
    """Two breasts of three and two images; the third place of the second is empty."""
    torch.manual_seed(2)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    values = torch.randn(2, 3) if aggregator.late else torch.randn(2, 3, C)
    return {
        "values": values * mask.reshape(2, 3, *[1] * (values.ndim - 2)),
        "mask": mask,
        "view": torch.tensor([[0, 1, 2], [1, 0, 2]]),
        "other": torch.tensor([[False, False, True], [False, False, False]]),
    }


def apply(aggregator: Aggregator, batch: dict[str, Tensor]) -> Tensor:
    reduced: Tensor = aggregator(*batch.values())
    return reduced


@pytest.mark.parametrize("maker", FEATURES + LATE)
def test_aggregators_ignore_order_padding_and_other_breasts(maker: Maker) -> None:
    aggregator = make(maker)
    batch = breasts(aggregator)
    expected = apply(aggregator, batch)
    permuted = {name: entry[:, [2, 0, 1]] for name, entry in batch.items()}
    assert torch.allclose(apply(aggregator, permuted), expected, atol=1e-5)
    padded = {name: torch.cat([x, x.roll(1, 0)[:, :2]], dim=1) for name, x in batch.items()}
    padded["mask"][:, 3:] = False
    assert torch.allclose(apply(aggregator, padded), expected, atol=1e-5)
    alone = {name: entry[1:, :2] for name, entry in batch.items()}
    assert torch.allclose(apply(aggregator, alone)[0], expected[1], atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(apply(aggregator, batch), expected)


@pytest.mark.parametrize("maker", FEATURES)
def test_only_aggregators_with_context_use_view_and_side(maker: Maker) -> None:
    aggregator = make(maker)
    batch = breasts(aggregator)
    expected = apply(aggregator, batch)
    for changed in ({"view": batch["view"].flip(1)}, {"other": ~batch["other"]}):
        same = torch.allclose(apply(aggregator, batch | changed), expected, atol=1e-5)
        assert same != aggregator.context


@pytest.mark.parametrize("maker", FEATURES)
def test_aggregators_have_gradients_for_images_and_none_for_padding(maker: Maker) -> None:
    aggregator = make(maker).train()
    batch = breasts(aggregator)
    batch["values"].requires_grad_()
    reduced = apply(aggregator, batch)
    assert reduced.shape == (2, aggregator.width)
    (reduced * torch.randn_like(reduced)).sum().backward()
    assert batch["values"].grad is not None
    touched = batch["values"].grad.abs().sum(-1) > 0
    assert torch.equal(touched, batch["mask"])


@pytest.mark.parametrize(("late", "rule"), [(MeanProbability, "mean"), (MaxProbability, "max")])
def test_late_aggregators_equal_the_aggregation_of_tables(
    late: type[Aggregator], rule: Aggregation
) -> None:
    aggregator = late(C)
    batch = breasts(aggregator)
    rows = batch["mask"].nonzero()[:, 0].tolist()
    images = pd.DataFrame({"prediction_id": rows, "patient_id": rows, "laterality": "L"})
    images["probability"] = batch["values"].sigmoid()[batch["mask"]].double().numpy()
    expected = to_breasts(images, rule)["logit"].to_numpy()
    assert apply(aggregator, batch).tolist() == pytest.approx(expected, abs=1e-5)


def test_mean_probability_is_finite_at_the_extremes() -> None:
    logits = torch.tensor([[200.0, 200.0], [-200.0, -200.0]], requires_grad=True)
    mask = torch.ones(2, 2, dtype=torch.bool)
    reduced = MeanProbability(C)(logits, mask, mask, mask)
    assert reduced.tolist() == pytest.approx([200, -200])
    reduced.sum().backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_gated_attention_by_the_formula_of_the_paper() -> None:
    attention = GatedAttention(C, 4)
    h = torch.randn(1, 3, C)
    v, u, w = attention.value, attention.gate, attention.score.weight[0]
    scores = [w @ (torch.tanh(v(x)) * torch.sigmoid(u(x))) for x in h[0]]
    expected = torch.stack(scores).exp()
    weights = attention(h, torch.ones(1, 3, dtype=torch.bool))[0]
    assert torch.allclose(weights, expected / expected.sum(), atol=1e-6)


def test_attention_weights_are_those_of_images_and_at_first_ignore_view_and_side() -> None:
    aggregator = Attention(C)
    batch = breasts(aggregator)
    weights = aggregator.weights(*batch.values())
    assert weights.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert torch.equal(weights > 0, batch["mask"])
    others = batch | {"view": torch.zeros_like(batch["view"]), "other": ~batch["mask"]}
    assert torch.equal(apply(aggregator, others), apply(aggregator, batch))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"aggregator\.heads=3 must divide aggregator\.width=16"):
        Transformer(C, width=16, heads=3)


def test_masked_mean_is_that_of_the_images() -> None:
    values = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    expected = torch.stack([values[0, [0, 2]].mean(0), values[1, 1]])
    assert torch.allclose(masked_mean(values, mask), expected)
