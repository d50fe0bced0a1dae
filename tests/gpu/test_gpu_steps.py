"""A training step of every experiment, and that gradient checkpointing changes no result."""

from typing import Any

import pytest
import torch
from commands import composed
from gpu_throughput import (
    experiments,
    make_classifier,
    make_step,
    overrides,
    random_batch,
    step_memory,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", [*experiments(), "demo"])
def test_a_step_in_bf16(name: str, device: torch.device, small: bool) -> None:
    cfg = composed(*overrides(name, small))
    classifier = make_classifier(cfg)
    step = make_step(cfg, classifier, device, compiled=False)
    before = {n: p.detach().clone() for n, p in classifier.network.named_parameters()}
    for _ in range(2):  # a warm-up may begin at a rate of 0
        loss = step(random_batch(cfg, classifier.level, 2))
    assert loss.isfinite()
    learnt = [(n, p) for n, p in classifier.network.named_parameters() if p.requires_grad]
    without = [n for n, p in learnt if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    # Not all need move by more than rounding: ConvNeXts begin with branches scaled by 1e-6.
    assert any(not torch.equal(p, before[n]) for n, p in learnt)


@pytest.mark.parametrize("name", ["effnet_b5", "convnext_small"])
def test_gradient_checkpointing_gives_the_same_gradients_in_less_memory(
    name: str, device: torch.device, small: bool
) -> None:
    found: dict[bool, tuple[float, dict[str, Any]]] = {}
    for again in (False, True):
        cfg = composed(
            *overrides(name, small), f"network.grad_checkpointing={str(again).lower()}",
            "trainer.precision=32-true", "network.dropout=0", "network.drop_path_rate=0",
            "crop.height=256", "crop.width=128", "trainer.gradient_clip_val=null",
        )  # fmt: skip
        classifier = make_classifier(cfg)
        step = make_step(cfg, classifier, device, compiled=False)
        step.optimizer.param_groups[0]["lr"] = 0.0
        batch = random_batch(cfg, classifier.level, 4 if small else 16)
        step(batch)
        gradients = {
            n: p.grad.cpu() for n, p in classifier.network.named_parameters() if p.grad is not None
        }
        found[again] = step_memory(step, batch, device), gradients
    if device.type == "cuda":
        assert found[True][0] < 0.8 * found[False][0]
    largest = max(g.abs().max() for g in found[False][1].values())
    for parameter, gradient in found[False][1].items():
        # cuDNN sums in float32 in any order, and convolves in TF32.
        torch.testing.assert_close(
            found[True][1][parameter], gradient, rtol=1e-2, atol=1e-3 * float(largest)
        )
