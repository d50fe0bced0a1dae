"""The training stage: what it leaves, what it refuses, and that resuming changes nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import wandb
from fabricated_crops import HEIGHT, WIDTH, blank_path, save_crops
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from sklearn.metrics import roc_auc_score

from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.models.classifier import Classifier
from rsna_bcd.stages.train import train
from rsna_bcd.tables.predictions import read_oof

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

TINY = (
    "name=tiny", "crop=demo", f"crop.height={HEIGHT}", f"crop.width={WIDTH}",
    "network.backbone=test_efficientnet", "network.pretrained=false",
    "epochs=3", "batch_size=4", "workers=0", "trainer=cpu", "~callbacks.progress",
    "+trainer.enable_progress_bar=false",
)  # fmt: skip


def configure(output: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", [f"paths.output={output}", *TINY, *overrides])


def run(output: Path, *overrides: str) -> Path:
    """Train, and return the run's folder."""
    cfg = configure(output, *overrides)
    train(cfg)
    return Path(cfg.run_dir)


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return state


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a finished run. Its own settings are what others vary."""
    output = tmp_path_factory.mktemp("trained")
    save_crops(output)
    run(output)
    return output


@pytest.fixture
def output(tmp_path: Path) -> Path:
    save_crops(tmp_path)
    return tmp_path


@pytest.fixture
def crash(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the next training stop in the middle of an epoch."""

    def at(epoch: int) -> None:
        def stop(self: Classifier, *_: Any) -> None:
            if self.current_epoch == epoch and self.trainer.global_step % 4 == 2:
                raise RuntimeError("pulled the plug")

        monkeypatch.setattr(Classifier, "on_train_batch_end", stop)

    return at


def test_what_a_run_leaves(trained: Path) -> None:
    folder = trained / "runs" / "tiny" / "fold0"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert names == {
        "config.yaml", "metrics.csv", "timings.csv", "metrics.json", "oof.csv", "oof_images.csv",
        "lock", "seen.json", "curves.png", "checkpoints", "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    }  # fmt: skip
    history = pd.read_csv(folder / "metrics.csv")
    assert history["epoch"].tolist() == [0, 1, 2]
    assert history["step"].tolist() == [4, 8, 12]
    assert not history.isna().any(axis=None)


def test_out_of_fold_predictions_answer_for_the_fold(trained: Path) -> None:
    folder = trained / "runs" / "tiny" / "fold0"
    oof = read_oof(folder / "oof.csv")
    folds = pd.read_csv(trained / "folds" / "rsna-stratified.csv", dtype={"patient_id": str})
    assert set(oof["patient_id"]) == set(folds.loc[folds["fold"] == 0, "patient_id"])
    assert oof["unread"].sum() == 0
    images = pd.read_csv(folder / "oof_images.csv", dtype={"prediction_id": str})
    mean = images.groupby("prediction_id")["probability"].mean()
    assert oof["probability"].to_numpy() == pytest.approx(mean[oof["prediction_id"]].to_numpy())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["auroc"] == pytest.approx(roc_auc_score(oof["label"], oof["probability"]))
    assert metrics["optimistic"] is False
    last = pd.read_csv(folder / "metrics.csv").iloc[-1]  # the last weights, scored by validation
    assert metrics["auroc"] == pytest.approx(last["auroc"])


def test_the_record_is_in_the_checkpoint(trained: Path) -> None:
    folder = trained / "runs" / "tiny" / "fold0"
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["config"]["network"]["backbone"] == "test_efficientnet"
    assert checkpoint["config"]["crop"]["height"] == HEIGHT


def test_a_finished_run_is_left_alone(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", None)
    run(trained)
    assert "finished already" in capsys.readouterr().out


def test_other_settings_for_the_same_folder_are_refused(trained: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)seed: 42 -> 1.*overwrite=true"):
        run(trained, "seed=1")


def test_how_it_is_run_is_no_other_setting(trained: Path) -> None:
    run(trained, "workers=2", "trainer=auto", "resume=true")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_a_straight_one(
    workers: int,
    trained: Path,
    output: Path,
    crash: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = [f"workers={workers}"]
    with monkeypatch.context():
        crash(1)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            run(output, *overrides)
        monkeypatch.undo()
    folder = Path(configure(output).run_dir)
    assert not (folder / "metrics.json").exists()
    with pytest.raises(InputError, match="resume=false out"):
        run(output, *overrides, "resume=false")
    run(output, *overrides)
    straight = trained / "runs" / "tiny" / "fold0"
    expected, found = parameters(straight), parameters(folder)
    assert expected.keys() == found.keys()
    differ = {k: (expected[k] - found[k]).abs().max().item() for k in expected}
    assert not any(differ.values()), differ
    for table in ("oof.csv", "oof_images.csv", "metrics.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(straight / table), pd.read_csv(folder / table))


def test_overwrite_starts_afresh(output: Path) -> None:
    run(output, "epochs=1")
    folder = run(output, "epochs=1", "seed=1", "overwrite=true")
    assert len(pd.read_csv(folder / "metrics.csv")) == 1
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert "seed: 1" in (folder / "config.yaml").read_text()


def test_fold_all_leaves_weights_and_no_predictions(output: Path) -> None:
    folder = run(output, "fold=all", "epochs=1")
    assert folder.name == "foldall"
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert not (folder / "oof.csv").exists()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["training_images"] == 32


@pytest.mark.parametrize("choice", ["select=best", "patience=1"])
def test_fold_all_has_nothing_to_choose_by(choice: str, output: Path) -> None:
    with pytest.raises(InputError, match="holds out nothing"):
        run(output, "fold=all", choice)


def test_the_best_epoch_is_marked_as_optimistic(output: Path) -> None:
    folder = run(output, "select=best")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["optimistic"] is True
    history = pd.read_csv(folder / "metrics.csv")
    assert metrics["auroc"] == pytest.approx(history["auroc"].max())


def test_a_breast_without_a_readable_image_gets_the_prior(output: Path) -> None:
    folds = pd.read_csv(output / "folds" / "rsna-stratified.csv", dtype=str)
    patient = int(folds.loc[folds["fold"] == "0", "patient_id"].iloc[0])
    left = [4 * patient, 4 * patient + 1]
    blank_path(output / "prepared" / "rsna" / "demo", *left, 4 * patient + 2)
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


def test_a_fold_that_cannot_be_read_at_all_gets_the_prior(output: Path) -> None:
    folds = pd.read_csv(output / "folds" / "rsna-stratified.csv", dtype=str)
    patients = folds.loc[folds["fold"] == "0", "patient_id"].astype(int)
    blank_path(
        output / "prepared" / "rsna" / "demo", *(4 * p + i for p in patients for i in range(4))
    )
    oof = read_oof(run(output, "epochs=1") / "oof.csv")
    assert oof["unread"].all()
    assert oof["probability"].nunique() == 1


def test_a_damaged_crop_is_one_message_also_from_a_worker(output: Path) -> None:
    crop = output / "prepared" / "rsna" / "demo" / "train" / "1" / "4.png"
    crop.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"\A[^\n]*4\.png is absent or damaged[^\n]*\Z"):
        run(output, "fold=all", "workers=1")


def test_missing_crops_are_answered_with_the_command(output: Path) -> None:
    command = f"python -m rsna_bcd.prepare dataset.name=mine crop=h512 .*paths.output={output}"
    with pytest.raises(InputError, match=command):
        train(configure(output, "crop=h512", "dataset.name=mine"))


def test_weights_that_have_seen_the_held_out_patients_are_refused(output: Path) -> None:
    first = run(output, "name=first", "epochs=1")
    start = f"checkpoint_path={first / 'checkpoints' / 'last.ckpt'}"
    second = run(output, "name=second", "epochs=1", start)
    record = OmegaConf.load(second / "config.yaml")
    assert [(r.name, r.fold) for r in record.starts_from] == [("first", 0)]
    with pytest.raises(InputError, match="fold=1 holds out: it comes from first, fold 0"):
        run(output, "name=third", "epochs=1", "fold=1", start)
    # Also by way of another run, and from one that held out nothing.
    chain = f"checkpoint_path={second / 'checkpoints' / 'last.ckpt'}"
    with pytest.raises(InputError, match="it comes from"):
        run(output, "name=third", "epochs=1", "fold=1", chain)
    everything = run(output, "name=all", "epochs=1", "fold=all")
    with pytest.raises(InputError, match="it comes from all, fold all"):
        run(output, "name=third", f"checkpoint_path={everything / 'checkpoints' / 'last.ckpt'}")
    run(output, "name=third", "epochs=1", "fold=all", start)


def test_the_file_that_the_network_is_given_is_the_one_judged(trained: Path) -> None:
    start = trained / "runs" / "tiny" / "fold0" / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match="fold=1 holds out: it comes from tiny, fold 0"):
        run(trained, "name=detour", "epochs=1", "fold=1", f"network.checkpoint_path={start}")


def test_weights_chosen_on_the_held_out_patients_stay_optimistic(trained: Path) -> None:
    """Also when a later run adds none of its own choice, and when the first one is gone."""
    first = trained / "runs" / "tiny" / "fold0" / "checkpoints" / "best.ckpt"
    start = trained / "best.ckpt"
    start.write_bytes(first.read_bytes())
    second = run(trained, "name=second", "epochs=1", f"checkpoint_path={start}")
    assert json.loads((second / "metrics.json").read_text())["optimistic"] is True
    (entry,) = OmegaConf.load(second / "config.yaml").starts_from
    assert (entry.name, entry.select, entry.patience) == ("tiny", "best", None)
    last = second / "checkpoints" / "last.ckpt"
    third = run(trained, "name=third", "epochs=1", f"checkpoint_path={last}")
    assert json.loads((third / "metrics.json").read_text())["optimistic"] is True
    start.unlink()
    run(trained, "name=second", "epochs=1", f"checkpoint_path={start}")  # finished; not refused


@pytest.mark.skipif(torch.cuda.is_available(), reason="trainer=auto would not be the processor")
def test_synchronised_norms_leave_the_run_as_it_is(
    trained: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one rank; and Lightning's converter, which drops activations, has nothing to do."""
    fit = pl.Trainer.fit

    def noted(self: pl.Trainer, model: Classifier, **more: Any) -> None:
        assert self._accelerator_connector._layer_sync is None
        assert any(type(m).__name__ == "SyncBatchNormAct" for m in model.modules())
        fit(self, model, **more)

    monkeypatch.setattr(pl.Trainer, "fit", noted)
    folder = run(output, "trainer=auto", "trainer.sync_batchnorm=true")
    expected, found = parameters(trained / "runs" / "tiny" / "fold0"), parameters(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["+trainer.limit_train_batches=1"], "trainer.limit_train_batches: .absent. -> 1"),
        (["trainer.max_epochs=1"], "trainer.max_epochs: 3 -> 1"),
        (["compile=true"], "compile: False -> True"),
        (["data.negatives_per_positive=1"], "data.negatives_per_positive.*key at the root"),
        (["classifier.criterion.deep_weight=0.5"], "classifier.criterion.deep_weight.*the root"),
        (["callbacks.average.decay=0.9"], "callbacks.average.decay.*at the root"),
        (["~callbacks.average"], "callbacks.average: .* -> None"),
    ],
    ids=str,
)
def test_nothing_that_decides_about_the_result_goes_unrecorded(
    overrides: list[str], part: str, trained: Path
) -> None:
    with pytest.raises(InputError, match=part):
        run(trained, *overrides)


def test_crops_of_another_preparation_are_refused(output: Path) -> None:
    with pytest.raises(
        InputError, match="were made with other settings.*\n  crop.margin: 0.01 -> 0.5"
    ):
        run(output, "crop.margin=0.5")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("fold=9", "folds 0, 1"),
        ("fold=first", "fold=first: give a number"),
        ("select=median", "choose last or best"),
        ("tta=rot90", "choose none or hflip"),
        ("breast_rule=median", "choose mean or max"),
        ("network.backbone=no_such_net", "timm has no network 'no_such_net'"),
        ("checkpoint_path=nowhere.pth", "nowhere.pth does not exist"),
        ("batch_size=999", "smaller batch_size"),
        ("trainer.devices=2", "trainer.devices=2 needs trainer=ddp"),
        ("trainer.devices=auto", "trainer.devices=auto: give a number"),
        ("trainer.devices='0,1'", "trainer.devices=0,1: give a number"),
    ],
)
def test_bad_settings_are_one_message_and_leave_no_run(
    override: str, part: str, output: Path
) -> None:
    cfg = configure(output, override)
    # Hydra wraps what a constructor raises; `stage` unwraps it again.
    with pytest.raises((InputError, InstantiationException), match=part):
        train(cfg)
    assert not (Path(cfg.run_dir) / "config.yaml").exists()


@pytest.fixture
def logged_out(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(output / "no-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(output / "wandb-data"))


@pytest.mark.usefixtures("logged_out")
def test_wandb_records_offline_beside_the_history(output: Path) -> None:
    mode = os.environ.get("WANDB_MODE")
    folder = run(output, "logger=wandb", "epochs=1")
    assert len(pd.read_csv(folder / "metrics.csv")) == 1
    (offline,) = (folder / "wandb").glob("offline-run-*")
    tables = {path.name.rsplit("_", 2)[0] for path in offline.rglob("media/table/*.json")}
    assert {"roc_table", "precision_recall_table", "hardest"} == tables
    assert len(list(offline.rglob("media/images/*.png"))) == 8  # the breasts of fold 0
    assert wandb.run is None
    assert os.environ.get("WANDB_MODE") == mode  # the next job of a sweep may be online


def test_wandb_that_is_disabled_logs_nothing(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = run(output, "logger=wandb", "logger.wandb.entity=team", "epochs=1")
    assert (folder / "metrics.json").exists()
    assert not (folder / "wandb").exists()


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


def test_wandb_hears_of_a_failure_and_of_the_run_that_goes_on(
    output: Path, crash: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    finish = wandb.finish

    def noted(exit_code: int) -> None:
        codes.append(exit_code)
        finish(exit_code=exit_code)

    monkeypatch.setattr(wandb, "finish", noted)
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_end", None)
        crash(1)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            run(output, "logger=wandb", "epochs=2")
    assert wandb.run is None
    monkeypatch.setattr(Classifier, "on_train_batch_end", pl.LightningModule.on_train_batch_end)
    folder = run(output, "logger=wandb", "epochs=2", "resume=true")
    assert codes == [1, 0]
    assert pd.read_csv(folder / "timings.csv")["epoch"].tolist() == [0, 1]
    runs = {path.name.split("-")[3] for path in (folder / "wandb").glob("offline-run-*")}
    assert runs == {(folder / "wandb_id.txt").read_text().strip()}


def test_dropout_follows_the_seed(output: Path) -> None:
    """Equal seeds give equal weights bit for bit, another seed does not."""
    first = parameters(run(output, "name=a", "network.dropout=0.5", "epochs=1"))
    same = parameters(run(output, "name=b", "network.dropout=0.5", "epochs=1"))
    other = parameters(run(output, "name=c", "network.dropout=0.5", "epochs=1", "seed=1"))
    key = "network.head.weight"
    assert np.array_equal(first[key], same[key])
    assert not np.array_equal(first[key], other[key])
