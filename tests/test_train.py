"""The training stage: the files of a run, resuming, initial weights, W&B."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import wandb
from fabricated_crops import HEIGHT, blank_path, save_crops
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score
from tiny_training import check_equal, configure, interrupt, run, saved

from rsna_bcd.errors import InputError
from rsna_bcd.models.classifier import Classifier
from rsna_bcd.stages.train import train
from rsna_bcd.tables.predictions import read_oof

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. The other tests vary its settings."""
    output = tmp_path_factory.mktemp("straight")
    save_crops(output)
    return run(output)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    save_crops(tmp_path)
    return tmp_path


def test_train_writes_the_files_of_a_run(straight: Path) -> None:
    names = {path.relative_to(straight).as_posix() for path in straight.rglob("*")}
    assert names == {
        "config.yaml", "metrics.csv", "timings.csv", "metrics.json", "oof.csv", "oof_images.csv",
        "lock", "seen.json", "curves.png", "checkpoints", "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    }  # fmt: skip
    history = pd.read_csv(straight / "metrics.csv")
    assert history["epoch"].tolist() == [0, 1]
    assert history["step"].tolist() == [4, 8]
    assert not history.isna().any(axis=None)
    curves = (straight / "curves.png").read_bytes()
    assert curves.startswith(b"\x89PNG")
    assert len(curves) > 10_000


def test_train_predicts_the_breasts_of_its_fold(straight: Path) -> None:
    oof = read_oof(straight / "oof.csv")
    file = straight.parents[2] / "folds" / "rsna-stratified.csv"
    folds = pd.read_csv(file, dtype={"patient_id": str})
    assert set(oof["patient_id"]) == set(folds.loc[folds["fold"] == 0, "patient_id"])
    assert oof["unread"].sum() == 0
    images = pd.read_csv(straight / "oof_images.csv", dtype={"prediction_id": str})
    mean = images.groupby("prediction_id")["probability"].mean()
    assert oof["probability"].to_numpy() == pytest.approx(mean[oof["prediction_id"]].to_numpy())
    metrics = json.loads((straight / "metrics.json").read_text())
    assert metrics["auroc"] == pytest.approx(roc_auc_score(oof["label"], oof["probability"]))
    assert metrics["optimistic"] is False
    last = pd.read_csv(straight / "metrics.csv").iloc[-1]  # the last weights, scored by validation
    assert metrics["auroc"] == pytest.approx(last["auroc"])


def test_checkpoint_holds_the_record_and_states_under_the_names_of_lightning(
    straight: Path,
) -> None:
    """So that runs of earlier versions resume."""
    checkpoint = saved(straight)
    assert checkpoint["config"]["network"]["backbone"] == "test_efficientnet"
    assert checkpoint["config"]["crop"]["height"] == HEIGHT
    keys = [key for key in checkpoint["callbacks"] if key.startswith("ModelCheckpoint{")]
    assert len(keys) == 2
    assert pl.callbacks.ModelCheckpoint(monitor="auroc", mode="max").state_key in keys


def test_a_finished_run_is_left_alone_however_it_is_run(
    straight: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", None)
    run(straight.parents[2], "workers=2", "trainer=auto", "resume=true")
    assert "finished already" in capsys.readouterr().out


def test_a_resumed_run_equals_a_straight_one_in_a_folder_that_was_moved(
    straight: Path, output: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = interrupt(output, "workers=2")
    assert not (folder / "metrics.json").exists()
    with pytest.raises(InputError, match="resume=false out"):
        run(output, "resume=false")
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    output.rename(moved)
    check_equal(run(moved, "workers=2"), straight)


def test_overwrite_trains_again_with_another_seed(straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight.parents[2], tmp_path, dirs_exist_ok=True)
    folder = run(tmp_path, "seed=1", "overwrite=true")
    assert len(pd.read_csv(folder / "metrics.csv")) == 2
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert "seed: 1" in (folder / "config.yaml").read_text()
    weights, before = (saved(run_folder)["state_dict"] for run_folder in (folder, straight))
    names = [name for name in weights if name.endswith("conv_pw.weight")]
    assert names
    assert not any(torch.allclose(weights[name], before[name], atol=1e-3) for name in names)


def test_fold_all_leaves_weights_and_no_predictions(output: Path) -> None:
    folder = run(output, "fold=all", "epochs=1")
    assert folder.name == "foldall"
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert not (folder / "oof.csv").exists()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["training_images"] == 32


def test_select_best_is_marked_as_optimistic(output: Path) -> None:
    folder = run(output, "select=best")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["optimistic"] is True
    assert metrics["auroc"] == pytest.approx(pd.read_csv(folder / "metrics.csv")["auroc"].max())


def test_a_breast_without_a_readable_image_gets_the_prevalence(output: Path) -> None:
    folds = pd.read_csv(output / "folds" / "rsna-stratified.csv", dtype=str)
    patient = int(folds.loc[folds["fold"] == "0", "patient_id"].iloc[0])
    first = 4 * patient  # of the left breast, both images; of the right one, one
    blank_path(output / "prepared" / "rsna" / "demo", first, first + 1, first + 2)
    folder = run(output, "epochs=1")
    oof = read_oof(folder / "oof.csv").set_index("prediction_id")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert oof["unread"].sum() == metrics["unread_breasts"] == 1
    assert oof.loc[f"{patient}_L", "unread"] == 1
    assert oof.loc[f"{patient}_L", "probability"] == pytest.approx(metrics["prior"])
    images = pd.read_csv(folder / "oof_images.csv").set_index("prediction_id")
    assert oof.loc[f"{patient}_R", "probability"] == pytest.approx(
        images.loc[f"{patient}_R", "probability"]
    )


def test_a_fold_without_a_readable_image_gets_the_prevalence(output: Path) -> None:
    folds = pd.read_csv(output / "folds" / "rsna-stratified.csv", dtype=str)
    patients = folds.loc[folds["fold"] == "0", "patient_id"].astype(int)
    rows = [4 * patient + image for patient in patients for image in range(4)]
    blank_path(output / "prepared" / "rsna" / "demo", *rows)
    oof = read_oof(run(output, "epochs=1") / "oof.csv")
    assert oof["unread"].all()
    assert oof["probability"].nunique() == 1


def test_a_damaged_crop_is_one_message_also_from_a_worker(output: Path) -> None:
    crop = output / "prepared" / "rsna" / "demo" / "train" / "1" / "4.png"
    crop.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"\A[^\n]*4\.png is absent or damaged[^\n]*\Z"):
        run(output, "fold=all", "workers=1")


def test_absent_crops_are_reported_with_the_command_that_makes_them(output: Path) -> None:
    command = f"python -m rsna_bcd.prepare dataset.name=mine crop=h512 .*paths.output={output}"
    with pytest.raises(InputError, match=command):
        train(configure(output, "crop=h512", "dataset.name=mine"))


def test_a_second_stage_starts_from_the_average_and_inherits_its_held_out_patients(
    straight: Path,
) -> None:
    """Also when the first stage's epoch was chosen on them, and when its file is gone."""
    output = straight.parents[2]
    start = output / "best.ckpt"
    start.write_bytes((straight / "checkpoints" / "best.ckpt").read_bytes())
    breasts = (
        "name=second", "network=effnetv2_s_attention", "network.backbone=test_efficientnet",
        "network.drop_path_rate=null", "network.freeze_backbone=true", "rates.layer_decay=0.8",
        "epochs=1", f"checkpoint_path={start}",
    )  # fmt: skip
    second = run(output, *breasts)
    stem = "network.backbone.conv_stem.weight"
    first_weights = saved(straight, "best")["state_dict"][stem]
    assert torch.equal(saved(second)["state_dict"][stem], first_weights)
    assert json.loads((second / "metrics.json").read_text())["optimistic"] is True
    (entry,) = OmegaConf.load(second / "config.yaml").starts_from
    assert (entry.name, entry.fold, entry.select, entry.patience) == ("tiny", 0, "best", None)
    last = second / "checkpoints" / "last.ckpt"
    for override in (f"checkpoint_path={last}", f"network.checkpoint_path={start}"):
        with pytest.raises(InputError, match="in fold 1, which .* out: it comes from .*, fold 0"):
            run(output, "name=third", "epochs=1", "fold=1", override)
    start.unlink()
    run(output, *breasts)  # is finished, and not refused


@pytest.mark.skipif(torch.cuda.is_available(), reason="trainer=auto would use the GPU")
def test_sync_batchnorm_changes_nothing_on_one_rank(
    straight: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And Lightning's converter, which drops activations, has nothing to convert."""
    fit = pl.Trainer.fit

    def checked(self: pl.Trainer, model: Classifier, **more: Any) -> None:
        assert self._accelerator_connector._layer_sync is None
        assert any(type(m).__name__ == "SyncBatchNormAct" for m in model.modules())
        fit(self, model, **more)

    monkeypatch.setattr(pl.Trainer, "fit", checked)
    folder = run(output, "trainer=auto", "trainer.sync_batchnorm=true")
    check_equal(folder, straight)


@pytest.fixture
def logged_out(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(output / "no-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(output / "wandb-data"))


@pytest.mark.usefixtures("logged_out")
def test_wandb_records_a_failure_and_the_resumed_run_offline(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, codes, finish = os.environ.get("WANDB_MODE"), [], wandb.finish

    def noted(exit_code: int) -> None:
        codes.append(exit_code)
        finish(exit_code=exit_code)

    monkeypatch.setattr(wandb, "finish", noted)
    interrupt(output, "logger=wandb")
    assert wandb.run is None
    folder = run(output, "logger=wandb", "resume=true")
    assert codes == [1, 0]
    assert wandb.run is None
    assert os.environ.get("WANDB_MODE") == mode  # the next job of a sweep may be online
    assert pd.read_csv(folder / "timings.csv")["epoch"].tolist() == [0, 1]
    runs = {path.name.split("-")[3] for path in (folder / "wandb").glob("offline-run-*")}
    assert runs == {(folder / "wandb_id.txt").read_text().strip()}
    tables = {path.name.rsplit("_", 2)[0] for path in folder.rglob("media/table/*.json")}
    assert tables == {"roc_table", "precision_recall_table", "hardest"}
    assert len(list(folder.rglob("media/images/*.png"))) == 8  # the breasts of fold 0


@pytest.mark.usefixtures("logged_out")
def test_a_run_is_finished_though_wandb_cannot_show_it(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space for pictures")

    monkeypatch.setattr("rsna_bcd.reporting.wandb.log_results", fail)
    with pytest.raises(OSError, match="no space"):
        run(output, "logger=wandb", "epochs=1")
    assert (output / "runs" / "tiny" / "fold0" / "metrics.json").exists()
    assert wandb.run is None
