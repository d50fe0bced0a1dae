"""`kill -9` of training at any moment, then the same command with `resume=true`.

With all that could differ on the default path: dropout, stochastic depth, augmentation, blended
batches, a schedule by step, an average that begins late.
"""

import multiprocessing
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
from fabricated_crops import HEIGHT, WIDTH, save_crops
from hydra import compose, initialize_config_dir

from rsna_bcd._stage import CONF
from rsna_bcd.models.classifier import Classifier
from rsna_bcd.stages import _training_results
from rsna_bcd.stages import train as stage

pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = [
    "name=x", "crop=demo", f"crop.height={HEIGHT}", f"crop.width={WIDTH}", "trainer=cpu",
    "network.backbone=test_convnext", "network.pretrained=false", "epochs=3", "batch_size=4",
    "network.dropout=0.5", "network.drop_path_rate=0.3", "mix.probability=0.5",
    "ema.decay=0.8", "ema.start=5", "scheduler._target_=rsna_bcd.models.optim.one_cycle",
    "trainer.accumulate_grad_batches=2", "workers=0", "~callbacks.progress",
    "+trainer.enable_progress_bar=false",
]  # fmt: skip


def train(output: Path, *overrides: str) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", [f"paths.output={output}", *SETTINGS, *overrides])
    stage.train(cfg)


def run_of(output: Path) -> Path:
    return output / "runs" / "x" / "fold0"


def check_equal(broken: Path, straight: Path) -> None:
    """The same weights, averaged and not, the same predictions and the same history."""
    found, expected = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (broken, straight)
    )
    for state in ("state_dict", "current_model_state"):
        assert found[state].keys() == expected[state].keys()
        differ = [
            k for k in expected[state] if not torch.equal(found[state][k], expected[state][k])
        ]
        assert not differ, f"{state}: {differ}"
    for table in ("oof.csv", "oof_images.csv", "metrics.csv"):
        assert (broken / table).read_bytes() == (straight / table).read_bytes(), table
    assert (broken / "metrics.json").read_text() == (straight / "metrics.json").read_text()
    names = {path.name for path in broken.rglob("*")} - {".hydra", "config.yaml", "train.log"}
    wanted = {path.name for path in straight.rglob("*")} | {"hydra.yaml", "overrides.yaml"}
    assert names <= wanted


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("straight")
    save_crops(output)
    train(output)
    return output


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
    "while the first checkpoint is written": in_checkpoint(1),
    "between the best and the last checkpoint": in_checkpoint(2),
    "after the first epoch": at_step(5),
    "amid a step of the second epoch": at_step(7),
    "while the second checkpoint is written": in_checkpoint(2),
    "at the end of the third epoch": at_step(12),
    "before the predictions are made": before(_training_results, "gather_logits"),
    "before they are written": before(_training_results, "write_csv"),
    "before the last file": before(stage, "finish"),
}


def test_a_run_killed_at_every_kind_of_moment_ends_as_if_it_had_not_been(
    straight: Path, tmp_path: Path
) -> None:
    save_crops(tmp_path)
    fork = multiprocessing.get_context("fork")
    for moment, patch in MOMENTS.items():

        def attempt(patch: Callable[[], None] = patch) -> None:
            patch()
            train(tmp_path, "resume=true")

        process = fork.Process(target=attempt)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, moment
    train(tmp_path, "resume=true")
    check_equal(run_of(tmp_path), run_of(straight))


def command(output: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "rsna_bcd.train", f"paths.output={output}"),
        *(*SETTINGS, "resume=true"),
    ]


def kill_after(arguments: list[str], file: Path, rows: int, pause: float) -> bool:
    """Run until a table has so many rows, wait, kill; whether it was alive."""
    run = subprocess.Popen(
        arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while run.poll() is None and (len(pd.read_csv(file)) if file.exists() else 0) < rows:
        time.sleep(0.001)
    time.sleep(pause)
    alive = run.poll() is None
    if alive:
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return alive


def check_commands(straight: Path, broken: Path, kills: int) -> None:
    save_crops(broken)
    generator = random.Random(0)
    killed = 0
    for number in range(kills):
        rows = number * 3 // kills
        pause = generator.uniform(0, 0.4)
        killed += kill_after(command(broken), run_of(broken) / "metrics.csv", rows, pause)
    assert killed >= kills - 1
    subprocess.run(command(broken), check=True, stdout=subprocess.PIPE)
    check_equal(run_of(broken), run_of(straight))


def test_the_command_killed_from_outside_goes_on(straight: Path, tmp_path: Path) -> None:
    check_commands(straight, tmp_path, 2)


def stopped(arguments: list[str], ready: Callable[[], bool], how: signal.Signals) -> Any:
    """Run until something is so, and ask the process to stop."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # Processes in the background of a script ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )  # fmt: skip
    while process.poll() is None and not ready():
        time.sleep(0.001)
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def test_the_command_that_is_asked_to_stop_says_how_to_resume(
    straight: Path, tmp_path: Path
) -> None:
    save_crops(tmp_path)
    folder = run_of(tmp_path)
    for how, file in (
        (signal.SIGTERM, folder / "config.yaml"),
        (signal.SIGINT, folder / "metrics.csv"),
    ):
        code, said = stopped(command(tmp_path), file.exists, how)
        assert code == 128 + how, said
        assert said.endswith(
            f"Stopped by {how.name}. Finished epochs are kept: run the same command to resume.\n"
        )
        assert "Traceback" not in said
        assert not (folder / "metrics.json").exists()
    subprocess.run(command(tmp_path), check=True, stdout=subprocess.PIPE)
    check_equal(folder, run_of(straight))


@pytest.mark.slow
def test_the_command_killed_12_times_goes_on(straight: Path, tmp_path: Path) -> None:
    check_commands(straight, tmp_path, 12)
