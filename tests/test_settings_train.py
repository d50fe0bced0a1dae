"""Settings of `train`: which are refused, recorded, or only tried out."""

import fcntl
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fabricated_crops import save_crops
from omegaconf import OmegaConf
from tiny_training import run, run_command
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import load_run
from rsna_bcd.stages._earlier_results import put_aside
from rsna_bcd.stages.train import _RESULTS

pytestmark = pytest.mark.filterwarnings("ignore")

METADATA = "_target_:rsna_bcd.tables.metadata.Metadata"


class OutOfRange(nn.Module):
    """A loss that refuses its arguments."""

    def __init__(self, positive_target: float, positive_weight: float) -> None:
        raise ValueError(f"{positive_target=} is out of range")


class PerSample(nn.Module):
    """A loss that forgets the mean."""

    def __init__(self, positive_target: float, positive_weight: float) -> None:
        super().__init__()

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (B,)."""
        return (logits - targets).square()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a finished run."""
    output = tmp_path_factory.mktemp("trained")
    save_crops(output)
    assert run_command(output, "epochs=1") == ""
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
    overrides: list[str], parts: list[str], trained: Path
) -> None:
    said = run_command(trained, "name=refused", *overrides)
    assert said.startswith("error: ")
    assert "\n" not in said
    assert all(part in said for part in parts), said
    assert not list((trained / "runs" / "refused").glob("fold*/config.yaml"))


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("trainer.accelerator=gpu", "There is no GPU for trainer=gpu. On the processor: trainer="),
        ("+trainer.max_time=8h", "trainer: `Timer(duration='8h')` is not a valid duration."),
        ("+trainer.max_steps=-5", "trainer: `max_steps` must be a non-negative integer"),
        ("trainer.devices=0", "trainer: `Trainer(devices=0)` value is not a valid input"),
        ("+trainer.strategy=foo", "trainer: You selected an invalid strategy name"),
        ("optimizer.lr=-1", "optimizer or scheduler: Invalid learning rate: -1 (ValueError)."),
        ("optimizer.weight_decay=-1", "optimizer or scheduler: Invalid weight_decay value: -1"),
        ("scheduler._target_=torch.optim.lr_scheduler.MultiStepLR ~scheduler.warmup",
         "optimizer or scheduler: 'int' object is not iterable (TypeError)."),
        ("loss._target_=test_settings_train.PerSample",
         "loss PerSample returns a tensor (2,) for 2 logits. Return a scalar tensor"),
    ],
)  # fmt: skip
def test_refusals_of_libraries_are_one_line_and_come_before_a_run_is_overwritten(
    override: str, part: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained / "runs" / "tiny" / "fold0"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix != ".log"}
    for device in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(device, "is_available", lambda: False)
    said = run_command(trained, "epochs=1", "overwrite=true", *override.split())
    assert said.startswith(f"error: {part}")
    assert "\n" not in said
    kept = {path: path.stat().st_mtime_ns for path in before if path.exists()}
    for path, changed in before.items():
        assert ".hydra" in path.parts or path.name == "lock" or kept.get(path) == changed, path


def test_a_run_that_ends_before_its_first_step_leaves_the_earlier_one(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was killed there: the next start puts the files back."""
    folder = trained / "runs" / "tiny" / "fold0"
    names = ("config.yaml", "oof.csv", "metrics.json", "seen.json", "checkpoints/last.ckpt")
    before = {name: (folder / name).read_bytes() for name in names}
    fails = ("epochs=1", "overwrite=true", "+trainer.val_check_interval=1000")
    with pytest.raises(ValueError, match="val_check_interval"):
        run_command(trained, *fails)
    assert {name: (folder / name).read_bytes() for name in names} == before
    with monkeypatch.context() as patch:
        patch.setattr("rsna_bcd.stages.train.restore", lambda *_: None)
        with pytest.raises(ValueError, match="val_check_interval"):
            run_command(trained, *fails)
    assert not (folder / "oof.csv").exists()
    assert (folder / "earlier" / "oof.csv").exists()
    assert run_command(trained, "epochs=1") == ""  # it is finished
    assert {name: (folder / name).read_bytes() for name in names} == before
    assert not (folder / "earlier").exists()

    def killed(*_: object) -> None:  # with its ranks
        put_aside(folder, [folder / name for name in _RESULTS if (folder / name).exists()])
        sys.exit(143)

    monkeypatch.setattr("rsna_bcd.stages.train.run_ranks", killed)
    ranks = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    said = run_command(trained, "epochs=1", "overwrite=true", "trainer.precision=32-true", *ranks)
    assert said == "143"
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_results_without_their_record_are_refused(trained: Path) -> None:
    folder = trained / "runs" / "tiny" / "fold0"
    record = (folder / "config.yaml").rename(folder / "renamed.yaml")
    said = run_command(trained, "epochs=1")
    record.rename(folder / "config.yaml")
    assert "has lost config.yaml" in said


def test_slurm_is_refused_off_a_cluster(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", "")
    said = run_command(trained, "name=refused", "-m", "fold=0", "hydra/launcher=slurm")
    assert "\n" not in said
    assert "hydra/launcher=slurm: there is no srun. Start it on the login node" in said


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("fold=9", "folds 0, 1"),
        ("fold=first", "fold=first: should be"),
        ("select=median", "should be last or best"),
        ("tta=rot90", "tta=rot90: should be a list of hflip"),
        ("tta=[hflip,vflip,hflip]", "should have hflip once"),
        ("tta=[scale_1.1,scale_1.10]", "should have scale_1.10 once"),
        ("tta=[scale_1]", "not scale_1"),
        ("tta=[shift_0.05_0.6]", "not shift_0.05_0.6"),
        ("tta=1.1", "should be a list"),
        ("breast_rule=median", "should be mean or max"),
        ("network.backbone=no_such_net", "timm has no network 'no_such_net'"),
        ("network.backbone=convit_tiny", "convit_tiny gives no feature map of images of 64 x 32"),
        ("network.image_size=[160,160]", "it is the size of the crops, [64, 32]. Leave it out."),
        ("network.backbone=resnet18.no_such_tag", "network.backbone=resnet18.no_such_tag: "),
        ("rates.layer_decay=2", "rates.layer_decay=2: should be at most 1"),
        (
            "rates.reference_batch=0",
            "rates.reference_batch=0: should be at least 1 or null",
        ),
        ("scheduler.warmup=5", "scheduler.warmup=5: should be less than 1"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1: should be at least 1"),
        ("loss.positive_target=2", "loss.positive_target=2: should be at most 1"),
        ("loss.positive_target=0", "loss.positive_target=0: should be greater than 0"),
        ("loss.positive_weight=-1", "loss.positive_weight=-1: should be greater than 0"),
        ("loss=focal loss.gamma=-1", "loss.gamma=-1: should be at least 0"),
        ("loss=focal loss.positive_weight=0", "loss.positive_weight=0: should be greater than 0"),
        ("loss=soft_f1 loss.entropy=-1", "loss.entropy=-1: should be at least 0"),
        ("loss=ranking loss.entropy=-1", "loss.entropy=-1: should be at least 0"),
        ("+auxiliary.age=-1", "auxiliary.age=-1: should be at least 0"),
        ("+auxiliary.cancer=1", "error: auxiliary.cancer: cancer is no auxiliary target"),
        ("metadata={columns:[age]}", "should have metadata._target_=rsna_bcd.tables.metadata"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0: should be at least 1"),
        ("network=global_local", "network.patch=256 is more than an image of 64 x 32 holds"),
        ("network.backbone=vgg11 network.drop_path_rate=0.1", "set network.drop_path_rate=null."),
        ("network=effnetv2_s_bilateral augment=flips", "choose augment=upright"),
        ("checkpoint_path=nowhere.pth", "nowhere.pth does not exist"),
        ("batch_size=999", "smaller batch_size"),
        ("left_out_folds=[0]", "left_out_folds=[0] has 0, which is held out"),
        ("training_share=0", "training_share=0: should be greater than 0"),
        ("distillation.weight=1.5", "distillation.weight=1.5: should be "),
        ("left_out_folds=[1,1]", "left_out_folds=[1, 1]: should be ascending"),
        ("left_out_folds=[2,1]", "left_out_folds=[2, 1]: should be ascending"),
        ("loss=ranking distillation.teachers=t", "Choose loss=bce or loss=focal"),
        ("loss=soft_f1 distillation.teachers=t", "takes_soft_targets = True"),
        ("loss.positive_target=0.9 distillation.teachers=t", "Set loss.positive_target=1."),
        ("loss=focal loss.positive_weight=2 distillation.teachers=t", "loss.positive_weight=1."),
        ("distillation.teachers=t", "distillation.teachers=t: fold 1 was not trained"),
        ("left_out_folds=[1] distillation.teachers=tiny", "leave no fold to train on"),
        ("fold=1 distillation.teachers=tiny", "has learnt from the patients of fold 1"),
        ("trainer.devices=2", "trainer.devices=2 needs trainer=ddp"),
        ("trainer.devices=auto", "trainer.devices=auto: give a number"),
        ("trainer.devices='0,1'", "trainer.devices=0,1: give a number"),
        ("fold=all select=best", "holds out nothing"),
        ("fold=all patience=1", "holds out nothing"),
        ("compile=true crop.margin=0.5", "crop.margin: 0.01 -> 0.5"),
        (f"metadata={{{METADATA},columns:[age,biopsy]}}", "biopsy is known in hindsight only"),
        ("+auxiliary.density=0.1", "no values of density"),
        ("views.policy=some", "views.policy=some: should be all, one_per_view"),
        (
            "loss._target_=test_settings_train.OutOfRange",
            "error: loss: positive_target=1.0 is out of range (ValueError of "
            "test_settings_train.OutOfRange). Change a key of loss.",
        ),
    ],
)
def test_bad_values_are_refused_and_leave_no_run(
    override: str, part: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_command(trained, "name=refused", *override.split())
    assert part in said
    assert "with overrides" not in capsys.readouterr().err  # Hydra's own text
    assert not list((trained / "runs" / "refused").glob("fold*/config.yaml"))


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed=1", "(?s)seed: 42 -> 1.*overwrite=true"),
        ("+trainer.limit_train_batches=1", "trainer.limit_train_batches: .absent. -> 1"),
        ("trainer.max_epochs=2", "trainer.max_epochs: 1 -> 2"),
        ("compile=true", "compile: False -> True"),
        ("data.negatives_per_positive=1", "data.negatives_per_positive.*key at the root"),
        ("classifier.criterion.deep_weight=0.5", "classifier.criterion.deep_weight.*the root"),
        ("callbacks.average.decay=0.9", "callbacks.average.decay.*at the root"),
        ("~callbacks.average", "callbacks.average: .* -> None"),
    ],
)
def test_settings_that_decide_about_the_result_cannot_differ_from_the_record(
    override: str, part: str, trained: Path
) -> None:
    with pytest.raises(InputError, match=part):
        run(trained, "epochs=1", override)


@pytest.mark.parametrize("setting", ["patience=1", "select=best"])
def test_an_epoch_cannot_be_chosen_where_no_breast_has_cancer(setting: str, output: Path) -> None:
    table = output / "prepared" / "rsna" / "demo" / "train.csv"
    images = pd.read_csv(table, dtype=str)
    folds = pd.read_csv(output / "folds" / "rsna-stratified.csv", dtype=str)
    held_out = images["patient_id"].isin(folds.loc[folds["fold"] == "0", "patient_id"])
    images.loc[held_out, "cancer"] = "0"
    images.to_csv(table, index=False)
    said = run_command(output, setting)
    assert "fold=0 holds out no cancer" in said
    assert "\n" not in said


def test_a_smoke_run_trains_and_leaves_nothing(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(output, "+trainer.fast_dev_run=true") == ""
    assert "Nothing was kept" in capsys.readouterr().out
    assert list((output / "runs").iterdir()) == []
    folder = output / "mine" / "log"
    assert run_command(output, "+trainer.fast_dev_run=true", f"hydra.run.dir={folder}") == ""
    assert list((output / "mine").iterdir()) == []


def test_a_folder_is_locked_while_it_is_trained_into(output: Path) -> None:
    run = output / "runs" / "tiny" / "fold0"
    run.mkdir(parents=True)
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = run_command(output)
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
            run_command(output, "epochs=1", "batch_size=8")
    assert (output / "runs" / "tiny" / "fold0" / "config.yaml").is_file()
    assert run_command(output, "epochs=1") == ""
    assert OmegaConf.load(output / "runs" / "tiny" / "fold0" / "config.yaml").batch_size == 4


def test_a_key_that_an_older_record_lacks_means_its_default(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = trained / "runs" / "tiny" / "fold0" / "config.yaml"
    whole = file.read_text()
    record: Any = OmegaConf.load(file)
    assert "rsna_bcd" in record
    for key in (
        "rsna_bcd", "tta", "compile", "penalties", "views", "mix.probability",
        "network.freeze_backbone", "network.pooling", "crop.bits",
        "trainer.accumulate_grad_batches", "loss.positive_weight", "negatives_per_positive",
    ):  # fmt: skip
        parent, _, name = key.rpartition(".")
        del (OmegaConf.select(record, parent) if parent else record)[name]
    file.write_text(OmegaConf.to_yaml(record))
    try:
        assert run_command(trained, "epochs=1") == ""
        assert "finished already" in capsys.readouterr().out
        assert load_run(file.parent).tta == []
        file.write_text(f"{OmegaConf.to_yaml(record)}tta: none\n")  # of an earlier version
        for same in ("tta=none", "tta=null"):
            assert run_command(trained, "epochs=1", same) == ""
        for other in ("tta=hflip", "ema.decay=0.5", "network.pooling=max", "crop.bits=16"):
            assert "made with other settings" in run_command(trained, "epochs=1", other)
    finally:
        file.write_text(whole)


def test_a_network_built_for_one_size_gets_that_of_the_crops(trained: Path) -> None:
    assert run_command(trained, "epochs=1", "name=sized", "network.backbone=test_maxvit") == ""
    folder = trained / "runs" / "sized" / "fold0"
    assert "image_size" not in OmegaConf.load(folder / "config.yaml").network
    load_run(folder)  # by weights whose shapes depend on it


def test_the_prepare_command_in_an_error_is_complete(output: Path) -> None:
    record = output / "prepared" / "rsna" / "demo" / "config.yaml"
    made = OmegaConf.load(record)
    made.source = "image"
    record.write_text(OmegaConf.to_yaml(made))
    said = run_command(output, "crop.margin=0.3", "paths.data=/a b")
    assert f"crop.margin: {made.crop.margin} -> 0.3" in said
    command = said.splitlines()[-1].strip()
    for part in ("crop=demo", "crop.margin=0.3", "source=image", "overwrite=true", f"{output}"):
        assert part in command
    assert "\"paths.data='/a b'\"" in command or "'paths.data='" in command
    assert "h1024" not in command
    assert "splits" not in command
    said = run_command(output, "folds=holdout", "fold=1")
    assert said.splitlines()[-1].strip().startswith("python -m rsna_bcd.prepare")
    assert "folds=holdout" in said
