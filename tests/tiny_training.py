"""Trainings of seconds: the stage in this process, the command in a forked one, and its files."""

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fabricated_crops import HEIGHT, WIDTH
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from stage_settings import composed

from rsna_bcd._stage import main
from rsna_bcd.models.classifier import Classifier
from rsna_bcd.stages.train import train

SMALL = (
    "crop=demo", f"crop.height={HEIGHT}", f"crop.width={WIDTH}", "batch_size=4", "workers=0",
    "trainer=cpu", "~callbacks.progress", "+trainer.enable_progress_bar=false",
)  # fmt: skip
TINY = (
    *SMALL, "name=tiny", "network.backbone=test_efficientnet", "network.pretrained=false",
    "network.dropout=0.3", "ema.decay=0.8", "epochs=2",
)  # fmt: skip
TABLES = ("oof.csv", "oof_images.csv", "metrics.csv", "metrics.json")


def configure(output: Path, *overrides: str, settings: tuple[str, ...] = TINY) -> DictConfig:
    return composed("train", f"paths.output={output}", *settings, *overrides)


def run(output: Path, *overrides: str, settings: tuple[str, ...] = TINY) -> Path:
    """Train, and return the run's folder."""
    cfg = configure(output, *overrides, settings=settings)
    train(cfg)
    return Path(cfg.run_dir)


def run_command(output: Path, *overrides: str, settings: tuple[str, ...] = TINY) -> str:
    """Run the command in this process, and return its error."""
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", f"paths.output={output}", *settings, *overrides])
        try:
            main("train")
        except SystemExit as stop:
            return str(stop.code)
    return ""


def fork(target: Callable[..., object], *arguments: Any) -> Any:
    """Start a process that need not import torch and Lightning again."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def crash(patch: pytest.MonkeyPatch, epoch: int) -> None:
    """Make training stop in the middle of an epoch of 4 steps."""

    def stop(self: Classifier, *_: Any) -> None:
        if self.current_epoch == epoch and self.global_step % 4 == 2:
            raise RuntimeError("pulled the plug")

    patch.setattr(Classifier, "on_train_batch_end", stop)


def interrupt(output: Path, *overrides: str, epoch: int = 1) -> Path:
    """Train until the middle of an epoch; the folder of the unfinished run."""
    with pytest.MonkeyPatch.context() as patch:
        crash(patch, epoch)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            run(output, *overrides)
    return output / "runs" / "tiny" / "fold0"


def saved(folder: Path, name: str = "last") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content


def check_equal(found: Path, expected: Path) -> None:
    """Weights (averaged and not), tables and scores to the last bit."""
    for name in ("last", "best"):
        a, b = saved(found, name), saved(expected, name)
        for state in ("state_dict", "current_model_state"):
            assert a[state].keys() == b[state].keys()
            differing = [k for k in b[state] if not torch.equal(a[state][k], b[state][k])]
            assert not differing, f"{name}, {state}: {differing}"
    for table in TABLES:
        assert (found / table).read_bytes() == (expected / table).read_bytes(), table
