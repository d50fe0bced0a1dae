"""Settings through the command: refused in one line before anything is read or written."""

import dataclasses
import resource
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from stage_settings import composed

from rsna_bcd import settings
from rsna_bcd._stage import CONF, check, main, process_start
from rsna_bcd.settings import COMMANDS
from rsna_bcd.stages.search import _space

# Settings that a command needs besides its defaults.
NEEDED = {
    "ensemble": ["members=[a,b]"],
    "report": ["name=x"],
    "predict": ["name=x", "inputs=folder"],
    **{name: ["name=x"] for name in ("train", "submit", "evaluate", "export", "index", "search")},
    **{name: ["name=x"] for name in ("bundle", "rehearse")},
}
FLAGS = {
    name: flags for name, command in COMMANDS.items()
    if (flags := [one.name for one in dataclasses.fields(command) if one.type is bool])
}  # fmt: skip
Call = Callable[..., str]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command in this process and an empty folder; return its error, or nothing."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *overrides: str, needed: bool = True) -> str:
        more = NEEDED.get(name, []) if needed else []
        monkeypatch.setattr(sys, "argv", [name, *more, *overrides])
        GlobalHydra.instance().clear()
        try:
            main(name)
        except SystemExit as stop:
            return str(stop.code)
        return ""

    return run


@pytest.fixture
def refused(call: Call, tmp_path: Path) -> Call:
    """As `call`, where the error has to be one line, and nothing may be written."""

    def run(name: str, *overrides: str, needed: bool = True) -> str:
        error = call(name, *overrides, needed=needed)
        assert error.startswith("error: "), error
        assert "\n" not in error
        assert list(tmp_path.iterdir()) == []
        return error

    return run


def with_needed(name: str, *overrides: str) -> Any:
    return composed(name, *NEEDED.get(name, []), *overrides)


@pytest.mark.parametrize("name", COMMANDS)
def test_schema_has_the_keys_and_kinds_of_the_yaml(name: str) -> None:
    yaml = OmegaConf.load(Path(CONF) / f"{name}.yaml")
    keys = {str(key) for key in yaml} - {"defaults", "hydra"}
    groups = {str(key) for entry in yaml.defaults if OmegaConf.is_dict(entry) for key in entry}
    groups = {group for group in groups if " " not in group and group != "experiment"}
    assert {one.name for one in dataclasses.fields(COMMANDS[name])} == keys | groups
    cfg = with_needed(name)
    before = OmegaConf.to_yaml(cfg)
    check(name, cfg)
    assert OmegaConf.to_yaml(cfg) == before


def test_schema_has_the_choices_of_the_code() -> None:
    from rsna_bcd.imaging.codecs import DECODERS
    from rsna_bcd.inference.export import Engine
    from rsna_bcd.inference.predictor import Precision
    from rsna_bcd.inference.test_set import Unread
    from rsna_bcd.preparation.crop import Filter, Strategy
    from rsna_bcd.scoring.blend import BlendMethod
    from rsna_bcd.scoring.calibration import CalibrationMethod
    from rsna_bcd.scoring.ensemble import Networks, PolicyName
    from rsna_bcd.scoring.metrics import Aggregation

    for command, key, choices in (
        (settings.Train, "breast_rule", get_args(Aggregation)),
        (settings.Submit, "unread", get_args(Unread)),
        (settings.Submit, "precision", get_args(Precision)),
        (settings.Submit, "engine", get_args(Engine)),
        (settings.Ensemble, "blend", get_args(BlendMethod)),
        (settings.Ensemble, "threshold", get_args(PolicyName)),
        (settings.Ensemble, "networks", get_args(Networks)),
        (settings.Ensemble, "calibration", ("none", *get_args(CalibrationMethod))),
        (settings.Png, "strategy", get_args(Strategy)),
        (settings.Png, "filter", get_args(Filter)),
    ):
        assert set(get_args(typing.get_type_hints(command)[key])) == set(choices)
    assert set(get_args(settings.Decoder)) == set(DECODERS)


@pytest.mark.parametrize("name", FLAGS)
def test_flag_is_yes_or_no_in_any_word(name: str, call: Call, tmp_path: Path) -> None:
    for word, meaning in {"no": False, "Off": False, "yes": True, "on": True}.items():
        cfg = with_needed(name, *(f"{flag}={word}" for flag in FLAGS[name]))
        check(name, cfg)
        assert [cfg[flag] for flag in FLAGS[name]] == [meaning] * len(FLAGS[name])
    if name == "train":  # also in a section
        cfg = with_needed(name, "network.freeze_backbone=no", "trainer.sync_batchnorm=on")
        check(name, cfg)
        assert (cfg.network.freeze_backbone, cfg.trainer.sync_batchnorm) == (False, True)
    overrides = [f"{flag}=2" for flag in FLAGS[name]]
    lines = call(name, *overrides).removeprefix("error: ").splitlines()
    assert lines == [f"{override}: should be true or false." for override in overrides]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_typo_is_refused_with_the_key_that_is_meant(name: str, refused: Call) -> None:
    key = next(one.name for one in dataclasses.fields(COMMANDS[name]) if len(one.name) > 3)
    typo = key[:2] + key[3:]
    assert f"{typo}: there is no such key. Did you mean {key}?" in refused(name, f"+{typo}=1")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("ensemble", ["blend=median", "weights=best", "rule=median", "threshold=0.5",
         "recall_rate=2", "by_site=0", "calibration=spline", "groups=1", "resamples=2.5",
         "seed=-1"]),
        ("ensemble", ["recall_rate=true", "by_site=abc", "groups=null"]),
        ("train", ["epochs=1.5", "learning_rate=abc", "seed=null", "batch_size=0", "patience=0",
         "fold=first", "select=worst", "tta=rot90", "scheduler=null", "ema.decay=2", "workers=-1",
         "deep_weight=high", "negatives_per_positive=0", "paths.output=null"]),
        ("train", ["epochs=0", "learning_rate=-1", "seed=true", "fold=-1", "optimizer=null",
         "breast_rule=median", "views=null", "ema=null", "positives_per_batch=0.5", "resume=null",
         "overwrite=None"]),
        ("train", ["network.dropout=abc", "network.pooling=median", "network.channels_last=7",
         "network.drop_path_rate=abc", "network.image_size=wide", "optimizer.weight_decay=abc",
         "loss.positive_target=x", "augment.transforms.0.p=often", "views.most=0.5",
         "trainer.gradient_clip_val=abc", "folds.assign.n_folds=abc", "crop.height=tall",
         "crop.bits=12", "crop.fit=shrink", "crop.box=half", "mix.kind=mixdown",
         "views.policy=some"]),
        ("train", ["mix.probability=2", "mix.alpha=0", "views.most=0"]),
        ("train", ["mix.probability=null"]),
        ("prepare", ["source=video", "png.level=10", "png.strategy=best",
         "png.filter=all", "max_failed_fraction=2"]),
        ("export", ["format=tflite"]),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused(
    name: str, overrides: list[str], call: Call, tmp_path: Path
) -> None:
    lines = call(name, *overrides).removeprefix("error: ").splitlines()
    assert {line.partition(": ")[0] for line in lines} == set(overrides)
    assert all(": should be " in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "override", "part"),
    [
        ("train", "+network.droput=0.1", "Did you mean network.dropout?"),
        ("train", "+network.poolin=max", "Did you mean network.pooling?"),
        ("train", "nme=x", "Did you mean name?"),
        ("train", "network.droput=0.1", "Did you mean network.dropout?"),
        ("train", "+trainer.max_tme=1", "Did you mean trainer.max_time?"),
        ("train", "trainer.max_time=1", "+trainer.max_time=..."),
        ("train", "accelerator=cpu", "Did you mean trainer.accelerator?"),
        ("train", "+max_time=1", "+trainer.max_time=..."),
        ("train", "logger=null", "logger=csv"),
        ("train", "~logger", "logger=csv"),
        ("train", "network=resnet18", "Any network of timm is network.backbone=<name>."),
        ("train", "network=5", "network=5: choose one: network="),
        ("train", "loss=[1]", "loss=[1]: choose one: loss="),
        ("train", "experiment=null", "leave it out"),
        ("train", "tta={a:1}", "tta={a:1}: tta is a list, tta=[...]."),
        ("train", "tta.a=2", "tta.a=2: tta is a list, tta=[...]."),
        ("train", "optimizer=[1]", "optimizer=[1]: optimizer is a section. Set its keys: "),
        ("train", "callbacks.last=[1]", "callbacks.last is a section. Set its keys: _target_, "),
        ("train", "trainer={max_epoch:3}", "error: trainer.max_epoch: there is no such key."),
        ("train", "~callbacks", "cannot be left out"),
        ("train", "crop=h9999", "h1024"),
        ("train", "network._target_=rsna_bcd.no.Net", "cannot be imported"),
        ("train", "epochs=${nothing}", "'nothing' not found"),
        ("prepare", "dataset=generic", "dataset.name is missing"),
        ("prepare", "splits=train", "splits=[...]"),
        ("prepare", "splits=[dev]", "should be train or test"),
        ("prepare", "splits=[]", "should not be empty"),
        ("prepare", "decoders=[gdmc]", "should be pydicom, dicomsdl, gdcm, openjpeg or pillow"),
        ("prepare", "paths=mars", "paths/mars"),
        ("submit", "budget.hours=0", "greater than 0"),
        ("predict", "inputs=/x/a (1)", "\"inputs='/x/a (1)'\""),
        ("predict", "inputs=it's", "\"inputs='it\\'s'\""),
        ("train", "effnet_b5", "'effnet_b5' is no setting"),
        ("train", "+ema.dekay=1", "Did you mean ema.decay?"),
        ("ensemble", "members=a", "members=[...]"),
        ("ensemble", "weights=[1,true]", "weights.1="),
        ("report", "cases=-1", "at least 0"),
        ("search", "fold=[0,a]", "fold.1=a"),
        *(("train", f"name={n}", "error: name=") for n in ("a/b", "..", "", "null", "true")),
        *(("train", f"name={n}", "error: name=") for n in ("'a\\b'", "x" * 256)),
        ("submit", "name=../x", "error: name="),
        ("ensemble", "name=.", "error: name="),
    ],
)
def test_fault_gets_one_line_with_the_remedy(
    name: str, override: str, part: str, refused: Call
) -> None:
    assert part in refused(name, override)


@pytest.mark.parametrize("networks", ["test_resnet,effnetv2_s", "choice(test_resnet,'effnetv2_s')"])
def test_sweep_of_options_is_not_taken_for_the_fault(networks: str, refused: Call) -> None:
    sweep = f"network={networks}"
    assert "error: logger=null: choose one" in refused("train", "-m", sweep, "logger=null")
    assert "error: loss=bce,null: choose" in refused("train", "-m", sweep, "loss=bce,null")
    assert "error: tta.a=2: tta is a" in refused("train", "-m", sweep, "tta.a=2")


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_typo_in_a_deleted_key_is_compared_with_the_chosen_option(
    sweep: tuple[str, ...], refused: Call
) -> None:
    said = refused("train", *sweep, "network=effnetv2_s_attention", "~network.agregator")
    assert "network.agregator: there is no such key. Did you mean network.aggregator?" in said


def test_typo_is_compared_with_the_keys_of_the_chosen_option(refused: Call) -> None:
    for group, override, key in (
        ("loss=focal", "loss.gama=2", "loss.gamma"),
        ("network=global_local", "network.global_backbones=x", "network.global_backbone"),
        ("loss=focal", "gamma=2", "loss.gamma"),
    ):
        assert refused("train", group, override).endswith(f"Did you mean {key}?")
        assert refused("train", "-m", group, override, "fold=0,1").endswith(f"mean {key}?")


@pytest.mark.parametrize(
    "name", [n for n, needs in NEEDED.items() if n not in ("report", "predict")]
)
def test_missing_name_says_what_to_type(name: str, refused: Call) -> None:
    key = NEEDED[name][0].partition("=")[0]
    assert refused(name, needed=False).startswith(f"error: {key} is missing: give {key}=")


def test_missing_name_lists_what_there_is(call: Call, tmp_path: Path) -> None:
    assert "There is no model in" in call("predict", "inputs=x", needed=False)
    (tmp_path / "output" / "runs" / "b5" / "fold0").mkdir(parents=True)
    assert "there are b5" in call("ensemble", "paths.models=elsewhere", needed=False)
    for ensemble in ("best", "second"):
        (tmp_path / "output" / "ensembles" / ensemble).mkdir(parents=True)
        (tmp_path / "output" / "ensembles" / ensemble / "ensemble.json").touch()
    assert "there are best, second" in call("submit", needed=False)


def test_folder_that_is_absent_or_cannot_be_made_is_named(call: Call, tmp_path: Path) -> None:
    error = call("prepare", "paths.data=nowhere")
    assert error.startswith("error: ")
    assert "nowhere" in error
    (tmp_path / "file").touch()
    assert "paths.output" in call("prepare", "paths.output=file/below")


def test_typo_in_an_experiment_of_the_user_is_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for text, part in (
        ("epoch: 3", "epoch: there is no such key. Did you mean epochs?"),
        ("ema: {decya: 0.9}", "ema.decya: there is no such key. Did you mean ema.decay?"),
        ("network: {droput: 0.1}", "Did you mean network.dropout?"),
        ("trainer: {max_tme: 1}", "Did you mean trainer.max_time?"),
        ("overwrite: 2", "overwrite=2: should be true or false"),
        ("trainer: {limit_train_batches: 0.5}", "Make the crops first"),
    ):
        own = tmp_path / "experiment" / "mine.yaml"
        own.write_text(f"# @package _global_\nname: mine\n{text}\n")
        assert part in call("train", "--config-dir", str(tmp_path), "experiment=mine")


@pytest.mark.parametrize(
    ("name", "overrides", "part"),
    [
        ("train", ["overwrite=true", "seed=1,2"], "write the same"),
        ("train", ["name=x_${seed}", "seed=1,2", "learning_rate=1e-3,1e-4"], "write the same"),
        ("export", ["seed=0,1"], "write the same"),
        ("synthesize", ["seed=1,2"], "write the same"),
        ("train", ["fold=0,0"], "twice (name=x fold=0)"),
        ("train", ["learning_rate=1e-3,abc", "fold=0,1"], "learning_rate=abc"),
    ],
)
def test_sweep_that_cannot_work_is_refused_before_the_first_job(
    name: str, overrides: list[str], part: str, call: Call, tmp_path: Path
) -> None:
    assert part in call(name, *overrides, "-m")
    assert list(tmp_path.iterdir()) == []


def test_sweep_whose_jobs_write_apart_is_accepted(call: Call) -> None:
    assert "Make the crops first" in call("train", "name=a_${seed}", "seed=1,2", "-m")
    assert "There is no run" in call("export", "format=onnx,torch", "-m")


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_check_that_fails_by_a_bug_stops_the_command(
    flags: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra itself would warn of the callback, and run the job."""
    monkeypatch.setattr("rsna_bcd._stage.check", lambda *_: 1 / 0)
    with pytest.raises(UserWarning, match="ZeroDivisionError"):
        call("submit", *flags)
    assert list(tmp_path.iterdir()) == []


def test_search_takes_dotted_keys_on_the_command_line() -> None:
    space = _space(with_needed("search", "+space.network.dropout.low=0.2"))
    assert space["network.dropout"] == {"low": 0.2, "high": 0.6, "step": 0.1}
    overrides = ["space=none", "+space.network.dropout={low: 0, high: 0.5}", "+space.epochs=[1,2]"]
    assert _space(with_needed("search", *overrides)) == {
        "network.dropout": {"low": 0, "high": 0.5},
        "epochs": [1, 2],
    }


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["rsna_bcd.train", "--help"], 0, "epochs: 10"),
        (["rsna_bcd.train", "nme=x"], 1, "error: nme: there is no such key. Did you mean name?"),
        (["rsna_bcd.train", "name=x", "--cfg", "job"], 0, "epochs: 10"),
        (["rsna_bcd"], 0, "python -m rsna_bcd.rehearse"),
    ],
)
def test_command_line_replies_within_two_seconds_of_a_core(
    arguments: list[str], code: int, part: str, tmp_path: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code
    assert part in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 2


def test_process_start_is_before_python() -> None:
    code = (
        "import time; begun = time.monotonic(); time.sleep(0.3)\n"
        "from rsna_bcd._stage import process_start\n"
        "print(begun - process_start())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert -0.02 <= float(done.stdout) < 5
    assert process_start() == pytest.approx(process_start(), abs=0.05)
