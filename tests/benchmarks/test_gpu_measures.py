"""Figures that the benchmarks of a GPU compute from their measurements."""

from pathlib import Path

import pytest
import torch
from commands import composed
from crops import crop_settings, synthetic_crops
from gpu_inference import slope
from gpu_throughput import (
    experiments,
    fitted_line,
    make_classifier,
    make_step,
    overrides,
    peak_tflops,
    random_batch,
    samples_within,
    step_flops,
    step_memory,
)

from rsna_bcd.data.augment import Augmentation
from rsna_bcd.data.datamodule import CropDataModule
from rsna_bcd.models.prediction import network_outputs


def test_operations_are_those_of_the_textbook() -> None:
    """Of a convolution, 2 * outputs * inputs per output; backward twice that, but for the image."""
    cfg = composed(*overrides("lite0", small=True))
    classifier = make_classifier(cfg)

    class Network(torch.nn.Module):
        unit, inputs = "image", ()

        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(1, 3, 3, padding=1, bias=False)
            self.second = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logit": self.second(self.first(image)).mean((1, 2, 3))}

    classifier.network = Network()
    pixels = cfg.crop.height * cfg.crop.width
    first, second = 2 * 9 * 3 * pixels, 2 * 9 * 3 * 5 * pixels
    assert step_flops(cfg, classifier) == (first + second) + (first + 2 * second)


@pytest.mark.parametrize("name", experiments())
def test_each_experiment_takes_the_random_batch(name: str) -> None:
    cfg = composed(*overrides(name, small=True))
    classifier = make_classifier(cfg)
    outputs = network_outputs(classifier.network, random_batch(cfg, classifier.level, 2))
    assert outputs["logit"].shape == (2,)


def test_memory_is_a_line_in_the_batch_size() -> None:
    cfg = composed(*overrides("lite0", small=True))
    classifier = make_classifier(cfg)
    step = make_step(cfg, classifier, torch.device("cpu"), compiled=False)
    used = {
        n: float(step_memory(step, random_batch(cfg, "image", n), torch.device("cpu")))
        for n in (2, 4, 8)
    }
    line = fitted_line({2: used[2], 4: used[4]})
    assert abs(line[0] + 8 * line[1] - used[8]) < 0.02 * used[8]
    # AdamW keeps two numbers besides each weight and its gradient.
    weights = sum(4 * p.numel() for p in classifier.network.parameters())
    assert line[0] > 0.99 * 4 * weights


def test_the_most_samples_of_a_line() -> None:
    line = (1.0, 2.0)
    assert samples_within(15.25, line) == 6  # 1 + 2 * 6 <= .96 * 15.25 < 1 + 2 * 7
    assert samples_within(0.5, line) == 0


@pytest.mark.parametrize(
    ("card", "tflops"),
    [("H100 80GB HBM3", 989), ("H100 PCIe", 756), ("A100-SXM4-80GB", 312), ("A10G", 70),
     ("RTX A1000", None), ("L40", None), ("H100 80GB HBM3 MIG 1g.10gb", None)],
)  # fmt: skip
def test_peaks_are_found_by_the_name_of_the_card(card: str, tflops: float | None) -> None:
    assert peak_tflops(f"NVIDIA {card}") == tflops


def test_a_slope_leaves_out_the_start() -> None:
    moments = [0.0, 9.0, *(10 + 0.5 * n for n in range(10))]
    assert slope(moments) == 0.5


def test_synthetic_crops_can_be_trained_on(tmp_path: Path) -> None:
    crop = crop_settings("h512_wide", height=64, width=32)
    folder = synthetic_crops(tmp_path, "rsna", crop, patients=16, distinct=4)
    data = CropDataModule(
        folder, tmp_path / "folds" / "rsna-stratified.csv", 0, Augmentation([]), batch_size=4,
        negatives_per_positive=None, workers=0, seed=0,
    )  # fmt: skip
    data.setup()
    assert data.training["label"].nunique() == 2
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 1, 64, 32)
