"""Optimizers: parameter groups by layer, and learning-rate schedules by optimizer step."""

import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

MakeOptimizer = Callable[..., Optimizer]  # of parameter groups; knows its `lr` and all else
MakeScheduler = Callable[[Optimizer, int], LRScheduler]  # the int: total optimizer steps
Warmup = Annotated[float, Field(ge=0, lt=1)]  # share of the steps
_DEPTH = 12  # layers of the networks for which layer decays are published


class ParameterGroups:
    """Learning rate and weight decay by parameter.

    timm's `param_groups_layer_decay` orders groups and parameters differently, so that the
    optimizer state of existing checkpoints would go to other parameters.

    Args:
        layer_decay: learning rate of the stem, relative to that of the last layer, is this to the
            power of 12, with even steps between them, however deep the network is. (Networks have
            up to 60 layers, and .8 ** 60 is nothing.) `network.layer_groups()` lists the parameters
            of each layer, stem first; without it, all parameters are one layer.
        decay_all: weight decay also for biases and for the scales of norms.
        reference_batch: the learning rate is for this many samples per step, and proportional to
            the batch size; None takes it as it is.
    """

    def __init__(
        self,
        layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0,
        *,
        decay_all: bool = False,
        reference_batch: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        self._layer_decay = layer_decay
        self._decay_all = decay_all
        self._reference_batch = reference_batch

    def make_optimizer(
        self, make: MakeOptimizer, network: nn.Module, *, batch_size: int, fused: bool
    ) -> Optimizer:
        """Make the optimizer of a network's parameters, without the frozen ones.

        Args:
            make: of the groups.
            network: on its device, if the optimizer is to step.
            batch_size: samples per step, over all ranks and accumulated batches.
            fused: use torch's fused implementation, if there is one and `make` does not set `fused`
                or `foreach` itself. It rounds differently, but the same each time.
        """
        is_chosen = {"fused", "foreach"} & set(getattr(make, "keywords", {}))
        has_fused = "fused" in inspect.signature(make).parameters
        options = {"fused": True} if fused and has_fused and not is_chosen else {}
        optimizer = make(self._groups(network), **options)
        scale = batch_size / self._reference_batch if self._reference_batch else 1.0
        for group in optimizer.param_groups:
            group["lr"] *= scale * group.pop("rate")
        return optimizer

    def _groups(self, network: Any) -> list[dict[str, Any]]:
        """Groups, each with its relative learning rate as `rate`, stem first."""
        everything = list(network.parameters())
        layers = [everything]
        if hasattr(network, "layer_groups"):
            layers = network.layer_groups()
            ids = sorted(id(p) for layer in layers for p in layer)
            assert ids == sorted(map(id, everything)), "layer_groups() has each parameter once"
        last = len(layers) - 1
        groups: list[dict[str, Any]] = []
        for depth, layer in enumerate(layers):
            rate = self._layer_decay ** (_DEPTH * (last - depth) / max(1, last))
            trained = [p for p in layer if p.requires_grad]
            decayed = [p for p in trained if p.ndim > 1 or self._decay_all]
            others = [p for p in trained if not (p.ndim > 1 or self._decay_all)]
            if decayed:
                groups.append({"params": decayed, "rate": rate})
            if others:
                groups.append({"params": others, "rate": rate, "weight_decay": 0.0})
        return groups


def warmup_cosine(optimizer: Optimizer, total_steps: int, *, warmup: Warmup = 0.1) -> LRScheduler:
    """Rise linearly to the peak, then fall to zero along half a cosine.

    Args:
        optimizer: its `lr` is the peak.
        total_steps: of the whole training.
        warmup: share of the steps that rise.
    """
    rising = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        falling = (step - rising) / max(1, total_steps - rising)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, falling)))

    return LambdaLR(optimizer, factor)


def one_cycle(optimizer: Optimizer, total_steps: int, *, warmup: Warmup = 0.3) -> LRScheduler:
    """Smith's one-cycle policy as torch has it: momentum moves against the learning rate.

    Args:
        optimizer: its `lr` is the peak.
        total_steps: of the whole training.
        warmup: share of the steps that rise.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=peaks, total_steps=total_steps, pct_start=warmup)
