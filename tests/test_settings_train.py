"""What `train` does with settings: refuses them, records them, or tries them out."""

import fcntl
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fabricated_crops import HEIGHT, WIDTH, save_crops
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import rsna_bcd.train  # the command
from rsna_bcd.inference.run import load_run

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = (
    "name=tiny", "crop=demo", f"crop.height={HEIGHT}", f"crop.width={WIDTH}",
    "network.backbone=test_efficientnet", "network.pretrained=false", "epochs=1", "batch_size=4",
    "workers=0", "trainer=cpu", "~callbacks.progress", "+trainer.enable_progress_bar=false",
)  # fmt: skip


def call(output: Path, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the command in this process; its error, or nothing."""
    monkeypatch.setattr(sys, "argv", ["train", f"paths.output={output}", *TINY, *overrides])
    GlobalHydra.instance().clear()
    try:
        rsna_bcd.train.main()
    except SystemExit as stop:
        return str(stop.code)
    return ""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    save_crops(output)
    with pytest.MonkeyPatch.context() as patch:
        assert call(output, monkeypatch=patch) == ""
    return output


@pytest.fixture
def output(tmp_path: Path) -> Path:
    save_crops(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["~callbacks.last"], ["~callbacks.last", "resumed"]),
        (["callbacks.last.dirpath=elsewhere"], ["callbacks.last.dirpath", "resumed"]),
        (["~callbacks.best", "select=best"], ["~callbacks.best"]),
        (["+trainer.limit_val_batches=1"], ["limit_val_batches=1", "fast_dev_run"]),
        (["+trainer.overfit_batches=2"], ["overfit_batches=2", "fast_dev_run"]),
        (["+trainer.enable_checkpointing=no"], ["enable_checkpointing=False"]),
        (["+trainer.limit_train_batches=0"], ["limit_train_batches=0", "nothing"]),
        (["trainer.accumulate_grad_batches=0"], ["accumulate_grad_batches=0", "at least 1"]),
        (
            ["+callbacks.progress={_target_: rsna_bcd.models.callbacks.RunProgress}"],
            ["enable_progress_bar=false", "~callbacks.progress"],
        ),
        (["folds.assign.n_folds=5"], ["folds.assign.n_folds: 4 -> 5", "rsna_bcd.prepare"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_settings_that_no_run_can_have_are_refused(
    overrides: list[str], parts: list[str], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = call(trained, "name=refused", *overrides, monkeypatch=monkeypatch)
    assert said.startswith("error: ")
    assert "\n" not in said
    assert all(part in said for part in parts), said
    assert not list((trained / "runs" / "refused").glob("fold*/config.yaml"))


@pytest.mark.parametrize("setting", ["patience=1", "select=best"])
def test_an_epoch_cannot_be_chosen_where_no_breast_has_cancer(
    setting: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = output / "prepared" / "rsna" / "demo" / "train.csv"
    images = pd.read_csv(table, dtype=str)
    folds = pd.read_csv(output / "folds" / "rsna-stratified.csv", dtype=str)
    held_out = images["patient_id"].isin(folds.loc[folds["fold"] == "0", "patient_id"])
    images.loc[held_out, "cancer"] = "0"
    images.to_csv(table, index=False)
    said = call(output, setting, monkeypatch=monkeypatch)
    assert "fold=0 holds out no cancer" in said
    assert "\n" not in said


def test_a_smoke_run_trains_and_leaves_nothing(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(output, "+trainer.fast_dev_run=true", monkeypatch=monkeypatch) == ""
    assert "Nothing was kept" in capsys.readouterr().out
    left = {path.name for path in (output / "runs" / "tiny" / "fold0").iterdir()}
    assert left <= {".hydra", "train.log"}


def test_a_folder_is_locked_while_it_is_trained_into(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = output / "runs" / "tiny" / "fold0"
    run.mkdir(parents=True)
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = call(output, monkeypatch=monkeypatch)
    assert f"Another process is at work on {run}" in said
    assert not (run / "config.yaml").exists()


def test_a_corrected_command_is_not_refused_for_one_that_failed(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("pytorch_lightning.Trainer.fit", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            call(output, "batch_size=8", monkeypatch=monkeypatch)
    assert (output / "runs" / "tiny" / "fold0" / "config.yaml").is_file()
    assert call(output, monkeypatch=monkeypatch) == ""
    assert OmegaConf.load(output / "runs" / "tiny" / "fold0" / "config.yaml").batch_size == 4


def test_a_key_that_an_older_record_lacks_means_its_default(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = trained / "runs" / "tiny" / "fold0" / "config.yaml"
    whole = file.read_text()
    record: Any = OmegaConf.load(file)
    assert "rsna_bcd" in record
    for key in (
        "rsna_bcd", "tta", "compile", "penalties", "ema", "views", "mix.probability",
        "network.freeze_backbone", "network.pooling", "trainer.accumulate_grad_batches",
        "crop.bits", "loss.positive_weight", "negatives_per_positive",
    ):  # fmt: skip
        parent, _, name = key.rpartition(".")
        del (OmegaConf.select(record, parent) if parent else record)[name]
    file.write_text(OmegaConf.to_yaml(record))
    try:
        assert call(trained, monkeypatch=monkeypatch) == ""
        assert "finished already" in capsys.readouterr().out
        assert load_run(file.parent).tta == "none"
        for other in ("tta=hflip", "ema.decay=0.5", "network.pooling=max", "crop.bits=16"):
            assert "made with other settings" in call(trained, other, monkeypatch=monkeypatch)
    finally:
        file.write_text(whole)


def test_the_prepare_command_is_the_one_that_mends_it(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = output / "prepared" / "rsna" / "demo" / "config.yaml"
    made = OmegaConf.load(record)
    made.source = "image"
    record.write_text(OmegaConf.to_yaml(made))
    said = call(output, "crop.margin=0.3", "paths.data=/a b", monkeypatch=monkeypatch)
    assert f"crop.margin: {made.crop.margin} -> 0.3" in said
    command = said.splitlines()[-1].strip()
    for part in ("crop=demo", "crop.margin=0.3", "source=image", "overwrite=true", f"{output}"):
        assert part in command
    assert "\"paths.data='/a b'\"" in command or "'paths.data='" in command
    assert "h1024" not in command
    assert "splits" not in command
    said = call(output, "folds=holdout", "fold=1", monkeypatch=monkeypatch)
    assert said.splitlines()[-1].strip().startswith("python -m rsna_bcd.prepare")
    assert "folds=holdout" in said
