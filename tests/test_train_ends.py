"""How a training ends: by a value that is not finite, a limit, a full disk, or its last epoch.

And how it resumes when a file was damaged or lost.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fabricated_crops import save_crops
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from tiny_training import check_equal, configure, interrupt, run, saved

from rsna_bcd.errors import InputError
from rsna_bcd.models.classifier import Classifier
from rsna_bcd.stages.train import train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without interruption."""
    output = tmp_path_factory.mktemp("straight")
    save_crops(output)
    return run(output)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that stopped in its second epoch; copy it."""
    output = tmp_path_factory.mktemp("unfinished")
    save_crops(output)
    interrupt(output)
    return output


@pytest.fixture
def output(tmp_path: Path) -> Path:
    save_crops(tmp_path)
    return tmp_path


def break_after(patch: pytest.MonkeyPatch, step: int, act: Callable[[Classifier], None]) -> None:
    """Change the module after an optimizer step."""

    def hook(self: Classifier, *_: Any) -> None:
        if self.global_step == step:
            with torch.no_grad():
                act(self)

    patch.setattr(Classifier, "on_train_batch_end", hook)


def break_weights(module: Classifier) -> None:
    module.network.head.weight.fill_(float("nan"))


def break_statistics(module: Classifier) -> None:
    """Of BatchNorm, which no loss in training depends on."""
    name = next(n for n, _ in module.network.named_buffers() if n.endswith("running_mean"))
    module.network.get_buffer(name).fill_(float("inf"))


def test_training_stops_at_the_first_loss_that_is_not_finite(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_after(monkeypatch, 5, break_weights)
    with pytest.raises(InputError, match=r"The loss is nan in epoch 2, step 6.*lower learning_rat"):
        run(output)
    folder = output / "runs" / "tiny" / "fold0"
    assert not (folder / "metrics.json").exists()
    assert saved(folder)["epoch"] == 0
    assert all(t.isfinite().all() for t in saved(folder)["state_dict"].values())


@pytest.mark.parametrize(("fold", "step"), [("0", 4), ("all", 8)])
def test_weights_that_are_not_finite_are_not_saved(
    fold: str, step: int, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_after(monkeypatch, step, break_statistics)
    with pytest.raises(InputError, match=r"Weights are not finite \(network.*in epoch 1, step"):
        run(output, f"fold={fold}")
    folder = output / "runs" / "tiny" / f"fold{fold}" / "checkpoints"
    assert not folder.exists() or not list(folder.iterdir())


def test_training_does_not_start_from_weights_that_are_not_finite(
    straight: Path, output: Path
) -> None:
    content = saved(straight)
    content["state_dict"]["network.head.weight"].fill_(float("nan"))
    torch.save(content, output / "nan.ckpt")
    with pytest.raises((InputError, InstantiationException), match=r"not finite \(head.weight"):
        run(output, f"checkpoint_path={output / 'nan.ckpt'}")


@pytest.mark.parametrize(
    ("limit", "epochs"), [("max_steps=6", 1), ("max_time={seconds: 0.02}", 0)], ids=str
)
def test_a_run_that_a_limit_cut_is_not_finished_and_resumes(
    limit: str, epochs: int, output: Path, straight: Path
) -> None:
    ended = rf"Not finished: trainer.{limit.split('{')[0].rstrip('=')}.* ended training"
    with pytest.raises(InputError, match=f"{ended} after {epochs} of 2 epochs.*to resume"):
        run(output, f"+trainer.{limit}", *(["+trainer.max_time={hours: 1}"] if epochs else []))
    folder = output / "runs" / "tiny" / "fold0"
    assert not (folder / "metrics.json").exists()
    assert not (folder / "oof.csv").exists()
    if epochs:
        assert saved(folder)["epoch"] == 0
        # Time is counted from the start of each process: else this command could never resume.
        assert "Timer" not in saved(folder)["callbacks"]
        assert len(pd.read_csv(folder / "metrics.csv")) == 1
        run(output, "resume=true")
        check_equal(folder, straight)


def test_patience_ends_a_run_and_says_so(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("patience=1", "epochs=20", "learning_rate=0.0")
    folder = run(output, *overrides)
    said = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert said.startswith("Finished after 2 of 20 epochs: no better AUROC for patience=1 epochs")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["epochs"] == len(pd.read_csv(folder / "metrics.csv")) == 2
    assert metrics["optimistic"] is True
    # The same when its predictions were lost.
    before = (folder / "oof.csv").read_bytes()
    (folder / "oof.csv").unlink()
    run(output, *overrides)
    assert "has lost oof.csv: it is predicted again" in capsys.readouterr().out
    assert (folder / "oof.csv").read_bytes() == before


def test_the_time_left_and_the_end_are_printed(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(output)
    said = capsys.readouterr().out.rstrip()
    first, second = (line for line in said.splitlines() if line.startswith("epoch "))
    assert first.endswith(" left")
    assert not second.endswith(" left")
    assert said.endswith("Finished: 2 of 2 epochs trained.")


def test_a_run_with_a_progress_bar(output: Path) -> None:
    cfg = configure(output, "epochs=1")
    cfg.trainer.enable_progress_bar = True
    bar = {"_target_": "rsna_bcd.models.callbacks.RunProgress"}
    OmegaConf.update(cfg, "callbacks.progress", bar, force_add=True)
    train(cfg)
    assert (Path(cfg.run_dir) / "metrics.json").exists()


def test_lost_predictions_are_made_again(straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight.parents[2], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "runs" / "tiny" / "fold0"
    for name in ("oof.csv", "oof_images.csv"):
        (folder / name).unlink()
    run(tmp_path)
    check_equal(folder, straight)
    (folder / "oof.csv").unlink()
    (folder / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(InputError, match="has lost oof.csv, and checkpoints/last.ckpt"):
        run(tmp_path)


def test_the_best_epoch_is_kept_in_a_folder_that_was_moved(
    output: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_dict = Classifier.log_dict

    def log(self: Classifier, values: dict[str, Any], **options: Any) -> None:
        """The AUROC falls from epoch to epoch."""
        if "auroc" in values:
            values = {**values, "auroc": 0.9 - 0.1 * self.current_epoch}
        log_dict(self, values, **options)

    monkeypatch.setattr(Classifier, "log_dict", log)
    folder = interrupt(output, "select=best")
    best = saved(folder, "best")["state_dict"]
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    output.rename(moved)
    file = moved / "runs" / "tiny" / "fold0" / "checkpoints" / "best.ckpt"
    file.rename(file.with_name("away"))
    with pytest.raises(InputError, match=r"best.ckpt is absent.*select=best"):
        run(moved, "select=best", "resume=true")
    file.with_name("away").rename(file)
    folder = run(moved, "select=best", "resume=true")
    assert saved(folder, "best")["epoch"] == 0
    assert all(torch.equal(saved(folder, "best")["state_dict"][k], best[k]) for k in best)
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 2


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], flip_a_bit, lambda _: b""],
    ids=["cut", "flip", "empty"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_not_resumed(
    damage: Callable[[bytes], bytes], unfinished: Path, tmp_path: Path
) -> None:
    shutil.copytree(unfinished, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "runs" / "tiny" / "fold0" / "checkpoints" / "last.ckpt"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=r"last.ckpt is damaged .*overwrite=true"):
        run(tmp_path, "resume=true")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_the_earlier_checkpoint(
    output: Path, small_disk: Path, straight: Path
) -> None:
    for part in ("prepared", "folds"):
        (small_disk / part).symlink_to(output / part)
    folder = interrupt(small_disk)
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    filling = small_disk / "filling"
    filling.write_bytes(bytes(shutil.disk_usage(small_disk).free - 64_000))
    with pytest.raises(InputError, match=r"ckpt cannot be written: .*is kept. Free some space"):
        run(small_disk, "resume=true")
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not list(folder.rglob("*.part"))
    filling.unlink()
    run(small_disk, "resume=true")
    check_equal(folder, straight)
