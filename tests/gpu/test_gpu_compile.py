"""A compiled training step gives the results of the network itself."""

from functools import partial
from statistics import mean, stdev

import pytest
import torch
from commands import composed
from gpu import EXPERIMENTS
from gpu_throughput import (
    make_classifier,
    make_step,
    overrides,
    random_batch,
)

from rsna_bcd.models.prediction import network_outputs

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_compiled_step(
    name: str, device: torch.device, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the size of the throughput step, which then finds the kernels compiled."""
    if small:  # a C++ compiler takes minutes
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    cfg = composed(*overrides(name, small), "compile=true")
    classifier = make_classifier(cfg)
    batch = random_batch(cfg, classifier.level, cfg.batch_size)
    step = make_step(cfg, classifier, device, compiled=True)
    there = {key: value.to(device) for key, value in batch.items()}
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        eager = [
            float(classifier.criterion(network_outputs(classifier.network, there), there)["loss"])
            for _ in range(16)
        ]
    # Dropout and stochastic depth draw differently.
    assert abs(float(step(batch)) - mean(eager)) < 6 * stdev(eager) + 0.01
    assert step(batch).isfinite()
