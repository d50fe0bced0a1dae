"""Predictions on a GPU: half precision and its limits, memory, maps and exported files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import composed
from gpu_throughput import make_classifier, overrides, random_batch
from large_test_set import with_batch_statistics
from torch import Tensor, nn

from rsna_bcd.imaging.crops import read_crop
from rsna_bcd.inference.predictor import Precision, Predictor
from rsna_bcd.inference.run import Run
from rsna_bcd.models.exporting import capture, network_inputs, save_torch
from rsna_bcd.models.prediction import plain_float32
from rsna_bcd.tables.views import Views

pytestmark = pytest.mark.gpu
_COMPARED: tuple[Precision, ...] = ("float32", "fp16")
NETWORKS = ("lite0", "effnet_b5", "convnext_small")


def make_run(network: nn.Module) -> Run:
    crop: Any = None
    return Run(Path("runs/x/fold0"), {}, crop, "dicom", ["hflip"], network.eval(), Views(), None)


def made_network(name: str, device: torch.device, small: bool) -> tuple[Any, dict[str, Tensor]]:
    """An experiment's network with the statistics of a batch, and that batch, 256 x 128."""
    cfg = composed(*overrides(name, small), "crop.height=256", "crop.width=128")
    network, batch = make_classifier(cfg).network, random_batch(cfg, "image", 8)
    with_batch_statistics(network.to(device), batch["image"].to(device) / 255)
    return network.eval(), {"image": batch["image"]}


@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_agrees_with_float32(name: str, device: torch.device, small: bool) -> None:
    network, batch = made_network(name, device, small)
    single, reason = Predictor(make_run(network), "float32").predict(batch)
    half, _ = Predictor(make_run(network), "fp16").predict(batch)
    assert reason is None
    # Random weights of Lite0 amplify rounding; its trained ones are below.
    assert np.abs(half - single).max() < (5e-3 if name == "lite0" else 1e-3)


def test_half_precision_agrees_on_real_crops(cuda: torch.device) -> None:
    """With trained weights, where there is a pack (`make gpu PACK=...`)."""
    pack = Path(os.environ.get("RSNA_BCD_GPU_PACK", "/nonexistent"))
    weights = pack / "weights" / "tf_efficientnet_lite0.pth"
    tables = sorted(pack.glob("prepared/*/*/train.csv"))
    if not weights.is_file() or not tables:
        pytest.skip("no pack with crops and tf_efficientnet_lite0.pth")
    paths = pd.read_csv(tables[0])["path"].dropna()[:16]
    images = torch.from_numpy(np.stack([read_crop(tables[0].parent / path) for path in paths]))
    settings = overrides("lite0", small=False)
    cfg = composed(*(o for o in settings if "checkpoint" not in o), f"checkpoint_path={weights}")
    network = make_classifier(cfg).network.to(cuda)
    single, half = (
        Predictor(make_run(network), precision).predict({"image": images[:, None]})[0]
        for precision in _COMPARED
    )
    assert np.abs(half - single).max() < 1e-3


class Overflowing(nn.Module):
    """A logit of 0.5 whose way leads beyond the range of fp16."""

    unit = "image"
    inputs = ()

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 1, bias=False)
        nn.init.constant_(self.up.weight, 1e5 / 16)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute `logit` (B,)."""
        return {"logit": self.up(torch.ones_like(image).flatten(1))[:, 0] / 2e5}


def test_logits_beyond_fp16_are_computed_in_float32(device: torch.device) -> None:
    values, reason = Predictor(make_run(Overflowing().to(device)), "fp16").predict(
        {"image": torch.ones(3, 1, 4, 4)}
    )
    assert values == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-6)
    assert reason is None


def test_a_batch_beyond_the_memory_is_halved(cuda: torch.device) -> None:
    network, batch = made_network("convnext_small", cuda, small=False)
    batch = {"image": batch["image"].repeat(32, 1, 1, 1)}  # 256 images
    whole, _ = Predictor(make_run(network), "float32").predict(batch)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(cuda).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**29) / total)
    try:
        forward = Predictor(make_run(network), "float32")
        parts, reason = forward.predict(batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert reason is None
    assert forward.limit.samples is not None
    assert np.abs(parts - whole).max() < 1e-4


def test_maps_are_those_of_the_processor(device: torch.device, small: bool) -> None:
    pytest.importorskip("captum")
    from rsna_bcd.inference.saliency import saliency_maps

    network, batch = made_network("lite0", device, small)
    batch = {"image": batch["image"][:2]}
    maps = saliency_maps(network, {"image": batch["image"].to(device)}, ["hflip"])
    expected = saliency_maps(network.cpu(), batch, ["hflip"])
    assert maps.device.type == "cpu"
    torch.testing.assert_close(maps, expected, rtol=1e-2, atol=1e-3 * float(expected.max()))


def test_an_export_of_a_network_on_the_gpu(
    device: torch.device, small: bool, tmp_path: Path
) -> None:
    network, batch = made_network("lite0", device, small)
    inputs = network_inputs(network, 256, 128)
    file = tmp_path / "model.pt2"
    save_torch(capture(network, inputs), file, "{}")
    images = batch["image"].float() / 255
    exported = torch.export.load(file).module()(image=images)["probability"]
    with torch.no_grad(), plain_float32(device.type):  # by default cuDNN has TF32
        here = network(images.to(device))["logit"].sigmoid().cpu()
    np.testing.assert_allclose(exported.detach(), here, atol=1e-3)
    assert next(network.parameters()).device.type == device.type
