"""How a training ends: by a value that is not finite, a limit, a full disk, or its last epoch.

And how it resumes where the folder was moved, or a file damaged or lost.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from fabricated_crops import HEIGHT, WIDTH, save_crops
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.models.classifier import Classifier
from rsna_bcd.stages.train import train

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = (
    "name=tiny", "crop=demo", f"crop.height={HEIGHT}", f"crop.width={WIDTH}",
    "network.backbone=test_efficientnet", "network.pretrained=false", "network.dropout=0.3",
    "ema.decay=0.8", "epochs=4", "batch_size=4", "workers=0", "trainer=cpu",
    "~callbacks.progress", "+trainer.enable_progress_bar=false",
)  # fmt: skip
TABLES = ("oof.csv", "oof_images.csv", "metrics.csv", "metrics.json")


def configure(output: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", [f"paths.output={output}", *TINY, *overrides])


def run(output: Path, *overrides: str) -> Path:
    cfg = configure(output, *overrides)
    train(cfg)
    return Path(cfg.run_dir)


def saved(folder: Path, name: str = "last") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content


def check_equal(found: Path, expected: Path) -> None:
    """Weights, tables and scores to the last bit."""
    for name in ("last", "best"):
        a, b = saved(found, name)["state_dict"], saved(expected, name)["state_dict"]
        assert a.keys() == b.keys()
        assert [k for k in b if not torch.equal(a[k], b[k])] == [], name
    for table in TABLES:
        assert (found / table).read_bytes() == (expected / table).read_bytes(), table


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("straight")
    save_crops(output)
    return run(output)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    save_crops(tmp_path)
    return tmp_path


Break = Callable[[Classifier], None]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Break], None]:
    """Do something to the module after an optimizer step."""

    def arrange(step: int, act: Break) -> None:
        def hook(self: Classifier, *_: Any) -> None:
            if self.global_step == step:
                act(self)

        monkeypatch.setattr(Classifier, "on_train_batch_end", hook)

    return arrange


def spoil(module: Classifier) -> None:
    with torch.no_grad():
        module.network.head.weight.fill_(float("nan"))


def spoil_statistics(module: Classifier) -> None:
    """Of BatchNorm, which no loss in training depends on."""
    name = next(n for n, _ in module.network.named_buffers() if n.endswith("running_mean"))
    module.network.get_buffer(name).fill_(float("inf"))


@pytest.mark.parametrize("fold", ["0", "all"])
def test_training_stops_at_the_first_loss_that_is_not_finite(
    fold: str, output: Path, at_step: Callable[[int, Break], None]
) -> None:
    """Also where nothing is validated; and what was saved before is finite."""
    steps = 4 if fold == "0" else 8
    at_step(steps + 1, spoil)
    with pytest.raises(InputError, match=rf"The loss is nan in epoch 2, step {steps + 2}.*lower "):
        run(output, f"fold={fold}")
    folder = output / "runs" / "tiny" / f"fold{fold}"
    assert not (folder / "metrics.json").exists()
    assert saved(folder)["epoch"] == 0
    assert all(t.isfinite().all() for t in saved(folder)["state_dict"].values())


@pytest.mark.parametrize("fold", ["0", "all"])
def test_weights_that_are_not_finite_are_not_saved(
    fold: str, output: Path, at_step: Callable[[int, Break], None]
) -> None:
    at_step(4 if fold == "0" else 8, spoil_statistics)
    with pytest.raises(InputError, match=r"Weights are not finite \(network.*in epoch 1, step"):
        run(output, f"fold={fold}")
    folder = output / "runs" / "tiny" / f"fold{fold}" / "checkpoints"
    assert not folder.exists() or not list(folder.iterdir())


def test_a_learning_rate_that_is_too_high_ends_in_one_message(output: Path) -> None:
    with pytest.raises(InputError, match="lower learning_rate= .it is 1e.38"):
        run(output, "learning_rate=1e38", "trainer.gradient_clip_val=null", "fold=all")


def test_training_does_not_start_from_weights_that_are_not_finite(
    straight: Path, output: Path
) -> None:
    content = saved(straight)
    content["state_dict"]["network.head.weight"].fill_(float("nan"))
    torch.save(content, output / "nan.ckpt")
    with pytest.raises((InputError, InstantiationException), match=r"not finite \(head.weight"):
        run(output, f"checkpoint_path={output / 'nan.ckpt'}")


@pytest.mark.parametrize(
    ("limit", "part", "epochs"),
    [
        ("+trainer.max_steps=8", r"trainer.max_steps=8 ended training after 2 of 4 epochs", 2),
        ("+trainer.max_steps=6", r"trainer.max_steps=6 ended training after 1 of 4 epochs", 1),
        ("+trainer.max_time={seconds: 0.05}", r"trainer.max_time ended training after 0 of 4", 0),
    ],
)
def test_a_run_that_was_cut_is_not_finished_and_resumes(
    limit: str, part: str, epochs: int, output: Path, straight: Path
) -> None:
    with pytest.raises(InputError, match=rf"Not finished: {part}.*to resume"):
        run(output, limit)
    folder = output / "runs" / "tiny" / "fold0"
    assert not (folder / "metrics.json").exists()
    assert not (folder / "oof.csv").exists()
    assert (saved(folder)["epoch"] + 1 if epochs else 0) == epochs
    assert (len(pd.read_csv(folder / "metrics.csv")) if epochs else 0) == epochs
    run(output, "resume=true")
    check_equal(folder, straight)


def test_time_is_counted_from_the_start_of_each_process(output: Path) -> None:
    """Else a run that was cut could never be resumed by the same command."""
    with pytest.raises(InputError, match="Not finished"):
        run(output, "+trainer.max_steps=4", "+trainer.max_time={hours: 1}")
    assert "Timer" not in saved(output / "runs" / "tiny" / "fold0")["callbacks"]


def test_the_last_line_says_why_training_ended(
    output: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(output, "name=whole", "epochs=1")
    assert capsys.readouterr().out.rstrip().endswith("Finished: all 1 epochs are trained.")
    early = run(output, "name=early", "patience=1", "epochs=20", "learning_rate=0.0")
    said = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert said.startswith("Finished after 2 of 20 epochs: no better AUROC for patience=1 epochs")
    # The same when its predictions were lost.
    before = (early / "oof.csv").read_bytes()
    (early / "oof.csv").unlink()
    run(output, "name=early", "patience=1", "epochs=20", "learning_rate=0.0")
    assert "has lost oof.csv: it is predicted again" in capsys.readouterr().out
    assert (early / "oof.csv").read_bytes() == before


def test_the_time_left_of_the_run_is_shown(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(output, "epochs=2")
    first, second = (x for x in capsys.readouterr().out.splitlines() if x.startswith("epoch "))
    assert first.endswith(" left")
    assert not second.endswith(" left")


def test_a_run_with_a_progress_bar(output: Path) -> None:
    cfg = configure(output, "epochs=1")
    cfg.trainer.enable_progress_bar = True
    OmegaConf.update(
        cfg, "callbacks.progress", {"_target_": "rsna_bcd.models.callbacks.RunProgress"},
        force_add=True,
    )  # fmt: skip
    train(cfg)
    assert (Path(cfg.run_dir) / "metrics.json").exists()


def test_lost_predictions_are_made_again(straight: Path, tmp_path: Path) -> None:
    output = tmp_path / "copy"
    shutil.copytree(straight.parents[2], output)
    folder = output / "runs" / "tiny" / "fold0"
    for name in ("oof.csv", "oof_images.csv"):
        (folder / name).unlink()
    run(output)
    check_equal(folder, straight)
    (folder / "oof.csv").unlink()
    (folder / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(InputError, match="has lost oof.csv, and checkpoints/last.ckpt"):
        run(output)


def interrupted(output: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Path:
    """A run that stopped in its third epoch."""

    def stop(self: Classifier, *_: Any) -> None:
        if self.current_epoch == 2:
            raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_end", stop)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            run(output, *overrides)
    return output / "runs" / "tiny" / "fold0"


def test_a_run_resumes_to_the_bit_where_the_folder_was_moved(
    output: Path, straight: Path, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    interrupted(output, monkeypatch)
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    output.rename(moved)
    check_equal(run(moved, "resume=true"), straight)


@pytest.fixture
def falling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The AUROC of an epoch is the better, the earlier it is."""
    log_dict = Classifier.log_dict

    def log(self: Classifier, values: dict[str, Any], **options: Any) -> None:
        if "auroc" in values:
            values = {**values, "auroc": 0.9 - 0.1 * self.current_epoch}
        log_dict(self, values, **options)

    monkeypatch.setattr(Classifier, "log_dict", log)


@pytest.mark.usefixtures("falling")
def test_the_best_epoch_stays_the_best_where_the_folder_was_moved(
    output: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(output, monkeypatch, "select=best")
    best = saved(folder, "best")["state_dict"]
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    output.rename(moved)
    folder = run(moved, "select=best", "resume=true")
    assert saved(folder, "best")["epoch"] == 0
    assert all(torch.equal(saved(folder, "best")["state_dict"][k], best[k]) for k in best)
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 4


@pytest.mark.usefixtures("falling")
def test_a_best_epoch_that_is_gone_is_missed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(output, monkeypatch, "select=best")
    (folder / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(InputError, match=r"best.ckpt is absent.*select=best"):
        run(output, "select=best", "resume=true")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """One bit of a weight."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_checkpoint_is_not_resumed(
    damage: Callable[[Path], None], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(output, monkeypatch)
    damage(folder / "checkpoints" / "last.ckpt")
    with pytest.raises(InputError, match=r"last.ckpt is damaged .*overwrite=true"):
        run(output, "resume=true")


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
    output: Path, small_disk: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("prepared", "folds"):
        (small_disk / part).symlink_to(output / part)
    folder = interrupted(small_disk, monkeypatch)
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


def test_a_full_disk_in_the_middle_of_any_file(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no file system can be mounted: the operating system refuses to flush."""
    fsync = os.fsync

    def refuse(handle: int) -> None:
        raise OSError(28, "No space left on device")

    folder = interrupted(output, monkeypatch)
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            run(output, "resume=true")
    assert os.fsync is fsync
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not list(folder.rglob("*.part"))


def test_the_curves_are_drawn(straight: Path) -> None:
    content = (straight / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def test_callbacks_keep_their_state_under_the_name_of_lightning(straight: Path) -> None:
    """So that runs of before resume."""
    keys = [key for key in saved(straight)["callbacks"] if key.startswith("ModelCheckpoint{")]
    assert len(keys) == 2
    assert pl.callbacks.ModelCheckpoint(monitor="auroc", mode="max").state_key in keys
