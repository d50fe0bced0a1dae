"""Groups of parameters: rates by layer, decay, what is left out; the fused implementations."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, NAdam, Optimizer

from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.models.optim import ParameterGroups


class Layered(nn.Module):
    """Three layers: convolution, norm and head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 1)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Stem first."""
        return [list(m.parameters()) for m in (self.stem, self.norm, self.head)]


def make(network: nn.Module, rates: ParameterGroups, fused: bool = False) -> Optimizer:
    return rates.make_optimizer(
        partial(SGD, lr=1.0, weight_decay=0.1), network, batch_size=64, fused=fused
    )


def group_settings(optimizer: Optimizer, parameter: torch.Tensor) -> tuple[float, float]:
    """Learning rate and weight decay."""
    groups = [g for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
    (group,) = groups
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


def test_a_network_without_layer_groups_has_one_rate() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    rates = {group["lr"] for group in make(network, ParameterGroups(0.5)).param_groups}
    assert rates == {1.0}


def test_decay_all_decays_biases_too() -> None:
    network = Layered()
    optimizer = make(network, ParameterGroups(decay_all=True))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}


def test_frozen_parameters_are_left_out() -> None:
    network = Layered()
    network.stem.requires_grad_(False)
    optimizer = make(network, ParameterGroups())
    found = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert found == {id(p) for p in (*network.norm.parameters(), *network.head.parameters())}


def test_the_rate_is_in_proportion_to_the_batch() -> None:
    network = Layered()
    assert (
        group_settings(make(network, ParameterGroups(reference_batch=16)), network.head.weight)[0]
        == 4.0
    )
    assert (
        group_settings(make(network, ParameterGroups(reference_batch=None)), network.head.weight)[0]
        == 1.0
    )


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
