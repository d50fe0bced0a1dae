"""`kill -9` of training at any moment, then the same command with `resume=true`.

With all that could differ on the default path: dropout, stochastic depth, augmentation, mixed
batches, a schedule by step, an average that begins late.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from fabricated_crops import save_crops
from tiny_training import SMALL, check_equal, fork, run, run_command

from rsna_bcd.models.classifier import Classifier
from rsna_bcd.stages import _training_results
from rsna_bcd.stages import train as stage

pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = (
    *SMALL, "name=x", "network.backbone=test_convnext", "network.pretrained=false", "epochs=2",
    "network.dropout=0.5", "network.drop_path_rate=0.3", "mix.probability=0.5",
    "ema.decay=0.8", "ema.start=3", "scheduler._target_=rsna_bcd.models.optim.one_cycle",
    "trainer.accumulate_grad_batches=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without interruption."""
    output = tmp_path_factory.mktemp("straight")
    save_crops(output)
    return run(output, settings=SETTINGS)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(step: int) -> Callable[[], None]:
    """Die when a batch has been stepped or added to the next step."""
    batches = 0

    def hook(self: Classifier, *_: Any) -> None:
        nonlocal batches
        batches += 1
        if self.global_step * 2 + batches % 2 >= step:
            die()

    def patch() -> None:
        setattr(Classifier, "on_train_batch_end", hook)  # noqa: B010

    return patch


def in_checkpoint(number: int) -> Callable[[], None]:
    """Die half-way through writing a checkpoint, the `number`-th of this process."""
    save, written = torch.save, 0

    def half(checkpoint: Any, file: Any) -> None:
        nonlocal written
        written += 1
        if written == number:
            file.write(b"half of a checkpoint")
            file.flush()
            die()
        save(checkpoint, file)

    def patch() -> None:
        setattr(torch, "save", half)  # noqa: B010

    return patch


def before(module: ModuleType, name: str) -> Callable[[], None]:
    """Die before a function that a module of the stage calls does its work."""

    def patch() -> None:
        setattr(module, name, lambda *_, **__: die())

    return patch


MOMENTS = {
    "in the first epoch": at_step(3),
    "between the best and the last checkpoint": in_checkpoint(2),
    "amid a step of the second epoch": at_step(7),
    "while the second checkpoint is written": in_checkpoint(1),
    "before the predictions are made": before(_training_results, "gather_logits"),
    "before the last file": before(stage, "finish"),
}


def test_a_run_killed_at_every_kind_of_moment_equals_a_straight_one(
    straight: Path, tmp_path: Path
) -> None:
    save_crops(tmp_path)

    def attempt(patch: Callable[[], None]) -> None:
        patch()
        run(tmp_path, "resume=true", settings=SETTINGS)

    for moment, patch in MOMENTS.items():
        process = fork(attempt, patch)
        process.join()
        assert process.exitcode == -signal.SIGKILL, moment
    folder = run(tmp_path, "resume=true", settings=SETTINGS)
    check_equal(folder, straight)
    assert {p.name for p in folder.rglob("*")} == {p.name for p in straight.rglob("*")}


def test_a_command_that_is_stopped_says_how_to_resume(straight: Path, tmp_path: Path) -> None:
    save_crops(tmp_path)
    folder, messages = tmp_path / "runs" / "x" / "fold0", tmp_path / "stderr"

    def command() -> None:
        # Processes in the background of a script ignore Ctrl-C, and so would their children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with messages.open("w") as sys.stderr:
            code = run_command(tmp_path, "resume=true", settings=SETTINGS)
        os._exit(int(code or 0))

    for how, file in ((signal.SIGTERM, "config.yaml"), (signal.SIGINT, "metrics.csv")):
        process = fork(command)
        while process.is_alive() and not (folder / file).exists():
            time.sleep(0.001)
        os.kill(process.pid, how)
        process.join(120)
        said = messages.read_text()
        assert process.exitcode == 128 + how, said
        assert said.endswith(
            f"Stopped by {how.name}. Finished epochs are kept: run the same command to resume.\n"
        )
        assert "Traceback" not in said
        assert not (folder / "metrics.json").exists()
    check_equal(run(tmp_path, "resume=true", settings=SETTINGS), straight)


@pytest.mark.slow
def test_a_command_killed_12_times_equals_a_straight_run(straight: Path, tmp_path: Path) -> None:
    save_crops(tmp_path)
    command = [
        *(sys.executable, "-m", "rsna_bcd.train", f"paths.output={tmp_path}"),
        *(*SETTINGS, "resume=true"),
    ]
    generator, killed, folder = random.Random(0), 0, tmp_path / "runs" / "x" / "fold0"
    history = folder / "metrics.csv"
    for number in range(12):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        while process.poll() is None and (
            (len(pd.read_csv(history)) if history.exists() else 0) < number // 6
        ):
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.4))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed >= 11
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    check_equal(folder, straight)
