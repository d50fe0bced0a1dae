"""Which parameters learn how fast, and which decay."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

MakeOptimizer = Callable[..., Optimizer]  # of parameter groups; knows its `lr` and all else
_STEPS = 12  # of the learning rate, from the last layer down to the stem


class Rates:
    """The learning rate and the weight decay of single parameters.

    Args:
        layer_decay: the last layer has the learning rate itself, the stem this to the power of 12,
            those between them in even steps: over the whole depth as if there were 12 layers, for
            which such decays are published. (Networks have up to 60, and .8 to that power is
            nothing.) A network says in `layer_groups()` what its layers are, a list of lists of
            parameters, stem first; without it, all its parameters are one layer.
        decay_all: weight decay also for biases and the scales of norms, which are no more than
            vectors.
        reference_batch: the learning rate is meant for this many samples a step, and grows and
            shrinks in proportion; None takes it as it is.
    """

    def __init__(
        self,
        layer_decay: float = 1.0,
        *,
        decay_all: bool = False,
        reference_batch: int | None = None,
    ) -> None:
        self._layer_decay = layer_decay
        self._decay_all = decay_all
        self._reference_batch = reference_batch

    def optimizer(
        self, make: MakeOptimizer, network: nn.Module, *, batch_size: int, fused: bool
    ) -> Optimizer:
        """Make the optimizer of a network's parameters; frozen ones are left out.

        Args:
            make: of the groups.
            network: already on its device.
            batch_size: samples a step, over all ranks and accumulated batches.
            fused: use the implementation that takes all parameters in one kernel, where torch has
                one, and unless `make` says itself which to use (`fused`, `foreach`). It rounds
                differently, but the same each time.
        """
        is_chosen = {"fused", "foreach"} & set(getattr(make, "keywords", {}))
        options = {"fused": True} if fused and not is_chosen and _has_fused(make) else {}
        optimizer = make(self._groups(network), **options)
        scale = batch_size / self._reference_batch if self._reference_batch else 1.0
        for group in optimizer.param_groups:
            group["lr"] *= scale * group.pop("rate")
        return optimizer

    def _groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Groups with a `rate` of their own, in the order of the layers."""
        layers = layers_of(network)
        last = len(layers) - 1
        groups = []
        for depth, layer in enumerate(layers):
            rate = self._layer_decay ** (_STEPS * (last - depth) / max(1, last))
            learnt = [p for p in layer if p.requires_grad]
            decayed = [p for p in learnt if p.ndim > 1 or self._decay_all]
            others = [p for p in learnt if not (p.ndim > 1 or self._decay_all)]
            if decayed:
                groups.append({"params": decayed, "rate": rate})
            if others:
                groups.append({"params": others, "rate": rate, "weight_decay": 0.0})
        return groups


def layers_of(network: Any) -> Sequence[Sequence[nn.Parameter]]:
    """A network's layers, stem first: its own account, or one layer of all parameters."""
    everything = list(network.parameters())
    if not hasattr(network, "layer_groups"):
        return [everything]
    layers: list[list[nn.Parameter]] = network.layer_groups()
    named = [id(p) for layer in layers for p in layer]
    assert sorted(named) == sorted(map(id, everything)), "layer_groups() names each parameter once"
    return layers


def _has_fused(make: MakeOptimizer) -> bool:
    return "fused" in inspect.signature(make).parameters
