"""Groups of parameters, fused steps, schedules."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, NAdam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.models.optim import ParameterGroups, one_cycle, warmup_cosine


class Layered(nn.Module):
    """Three layers: convolution, norm and head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 1)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Stem first."""
        return [list(m.parameters()) for m in (self.stem, self.norm, self.head)]


def make(network: nn.Module, rates: ParameterGroups) -> Optimizer:
    sgd = partial(SGD, lr=1.0, weight_decay=0.1)
    return rates.make_optimizer(sgd, network, batch_size=64, fused=False)


def group_settings(optimizer: Optimizer, parameter: torch.Tensor) -> tuple[float, float]:
    """Learning rate and weight decay."""
    (group,) = (g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    return group["lr"], group["weight_decay"]


def test_each_layer_learns_slower_than_the_one_above() -> None:
    """By twelve steps in all, however many layers there are."""
    network = Layered()
    optimizer = make(network, ParameterGroups(0.5))
    assert group_settings(optimizer, network.head.weight) == (1.0, 0.1)
    assert group_settings(optimizer, network.head.bias) == (1.0, 0)
    assert group_settings(optimizer, network.norm.weight) == (0.5**6, 0)
    assert group_settings(optimizer, network.stem.weight) == (0.5**12, 0.1)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_convnext", "test_resnet"])
def test_layer_decay_of_the_stem_is_of_twelve_layers(backbone: str) -> None:
    network = ImageClassifier(backbone, pretrained=False)
    optimizer = make(network, ParameterGroups(0.8))
    name = network.backbone.pretrained_cfg["first_conv"]
    stem = network.backbone.get_parameter(f"{name}.weight")
    assert group_settings(optimizer, stem)[0] == pytest.approx(0.8**12)
    assert group_settings(optimizer, network.head.weight)[0] == 1.0


def test_one_rate_without_layer_groups_and_one_decay_with_decay_all() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert {g["lr"] for g in make(network, ParameterGroups(0.5)).param_groups} == {1.0}
    groups = make(Layered(), ParameterGroups(decay_all=True)).param_groups
    assert {g["weight_decay"] for g in groups} == {0.1}


def test_frozen_parameters_are_left_out() -> None:
    network = Layered()
    network.stem.requires_grad_(False)
    optimizer = make(network, ParameterGroups())
    found = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert found == {id(p) for layer in (network.norm, network.head) for p in layer.parameters()}


def test_the_rate_is_in_proportion_to_the_batch() -> None:
    network = Layered()
    for batch, rate in ((16, 4.0), (None, 1.0)):
        optimizer = make(network, ParameterGroups(reference_batch=batch))
        assert group_settings(optimizer, network.head.weight)[0] == rate


def test_a_parameter_that_no_layer_names_is_noticed() -> None:
    network = Layered()
    network.forgotten = nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match="each parameter once"):
        make(network, ParameterGroups())


@pytest.mark.parametrize(
    "kind", [partial(AdamW, lr=0.01), partial(SGD, lr=0.01, momentum=0.9, nesterov=True)]
)
def test_fused_steps_are_those_of_the_plain_loop_and_the_same_each_time(
    kind: partial[Optimizer],
) -> None:
    def weights(fused: bool) -> torch.Tensor:
        network = Layered()
        optimizer = ParameterGroups().make_optimizer(kind, network, batch_size=1, fused=fused)
        assert optimizer.defaults["fused"] is (True if fused else None)
        x = torch.linspace(-1, 1, 200).reshape(2, 1, 10, 10)
        for _ in range(5):
            optimizer.zero_grad()
            features = network.stem(x).square().mean(dim=(2, 3))
            network.head(features).sigmoid().sum().backward()
            optimizer.step()
        return nn.utils.parameters_to_vector(network.parameters())

    assert torch.equal(weights(True), weights(True))
    assert torch.allclose(weights(True), weights(False), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "foreach"),
    [(partial(AdamW, lr=0.1, fused=False), None), (partial(AdamW, lr=0.1, foreach=True), True)],
)
def test_an_implementation_that_was_chosen_is_taken(
    kind: partial[Optimizer], foreach: bool | None
) -> None:
    defaults = ParameterGroups().make_optimizer(kind, Layered(), batch_size=1, fused=True).defaults
    assert defaults["foreach"] is foreach
    assert not defaults["fused"]
    ParameterGroups().make_optimizer(partial(NAdam, lr=0.1), Layered(), batch_size=1, fused=True)


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
    assert rates(warmup_cosine, steps=1) == [PEAK]
