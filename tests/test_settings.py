"""Settings through the command: refused in one line before anything is read or written."""

import dataclasses
import importlib
import resource
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, get_args

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from rsna_bcd import settings
from rsna_bcd._stage import CONF, check, process_start
from rsna_bcd.settings import COMMANDS
from rsna_bcd.stages.search import _space

# What each command needs besides its defaults.
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


def call(
    name: str, *overrides: str, cwd: Path, monkeypatch: pytest.MonkeyPatch, needed: bool = True
) -> str:
    """Run a command in this process; its error, or nothing."""
    more = NEEDED.get(name, []) if needed else []
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", [name, *more, *overrides])
    GlobalHydra.instance().clear()
    try:
        importlib.import_module(f"rsna_bcd.{name}").main()
    except SystemExit as stop:
        return str(stop.code)
    return ""


def refused(
    name: str, *overrides: str, cwd: Path, monkeypatch: pytest.MonkeyPatch, needed: bool = True
) -> str:
    """The same, where the error has to be one line, and nothing may be written."""
    said = call(name, *overrides, cwd=cwd, monkeypatch=monkeypatch, needed=needed)
    assert said.startswith("error: "), said
    assert "\n" not in said
    assert list(cwd.iterdir()) == []
    return said


def composed(name: str, *overrides: str) -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(name, [*NEEDED.get(name, []), *overrides])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_schema_has_the_keys_and_kinds_of_the_yaml(name: str) -> None:
    yaml = OmegaConf.load(Path(CONF) / f"{name}.yaml")
    keys = {str(key) for key in yaml} - {"defaults", "hydra"}
    groups = {str(key) for entry in yaml.defaults if OmegaConf.is_dict(entry) for key in entry}
    groups = {group for group in groups if " " not in group and group != "experiment"}
    assert {one.name for one in dataclasses.fields(COMMANDS[name])} == keys | groups
    cfg = composed(name)
    before = OmegaConf.to_yaml(cfg)
    check(name, cfg)
    assert OmegaConf.to_yaml(cfg) == before


def test_choices_are_those_of_the_code() -> None:
    from rsna_bcd.inference.export import Engine
    from rsna_bcd.inference.predictor import Precision
    from rsna_bcd.inference.test_set import Unread
    from rsna_bcd.models.prediction import TTA
    from rsna_bcd.preparation.crop import Filter, Strategy
    from rsna_bcd.scoring.blend import BlendMethod
    from rsna_bcd.scoring.calibration import CalibrationMethod
    from rsna_bcd.scoring.ensemble import PolicyName
    from rsna_bcd.scoring.metrics import Aggregation

    for command, key, choices in (
        (settings.Train, "tta", get_args(TTA)),
        (settings.Train, "breast_rule", get_args(Aggregation)),
        (settings.Submit, "unread", get_args(Unread)),
        (settings.Submit, "precision", get_args(Precision)),
        (settings.Submit, "engine", get_args(Engine)),
        (settings.Ensemble, "blend", get_args(BlendMethod)),
        (settings.Ensemble, "threshold", get_args(PolicyName)),
        (settings.Ensemble, "calibration", ("none", *get_args(CalibrationMethod))),
        (settings.Png, "strategy", get_args(Strategy)),
        (settings.Png, "filter", get_args(Filter)),
    ):
        assert set(get_args(typing.get_type_hints(command)[key])) == set(choices)


@pytest.mark.parametrize("name", FLAGS)
def test_words_for_yes_and_no_mean_what_they_say(name: str) -> None:
    for word, meaning in (("no", False), ("Off", False), ("yes", True), ("on", True)):
        cfg = composed(name, *(f"{flag}={word}" for flag in FLAGS[name]))
        check(name, cfg)
        assert [cfg[flag] for flag in FLAGS[name]] == [meaning] * len(FLAGS[name])


@pytest.mark.parametrize("name", FLAGS)
def test_other_values_of_a_flag_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in ("None", "2", "null"):
        overrides = [f"{flag}={word}" for flag in FLAGS[name]]
        said = call(name, *overrides, cwd=tmp_path, monkeypatch=monkeypatch)
        lines = said.removeprefix("error: ").splitlines()
        assert lines == [f"{override}: should be true or false." for override in overrides]
    assert list(tmp_path.iterdir()) == []


def test_flags_of_sections_mean_what_they_say() -> None:
    cfg = composed("train", "network.freeze_backbone=no", "trainer.sync_batchnorm=on")
    check("train", cfg)
    assert cfg.network.freeze_backbone is False
    assert cfg.trainer.sync_batchnorm is True


@pytest.mark.parametrize("name", COMMANDS)
def test_a_typo_is_refused_with_the_key_that_is_meant(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = next(one.name for one in dataclasses.fields(COMMANDS[name]) if len(one.name) > 3)
    typo = key[:2] + key[3:]
    said = refused(name, f"+{typo}=1", cwd=tmp_path, monkeypatch=monkeypatch)
    assert f"{typo}: there is no such key. Did you mean {key}?" in said


@pytest.mark.parametrize(
    "overrides",
    [
        ["epochs=1.5", "learning_rate=abc", "seed=null", "batch_size=0", "patience=0",
         "fold=first", "select=worst", "tta=vflip", "scheduler=null", "ema.decay=2", "workers=-1",
         "deep_weight=high", "negatives_per_positive=0", "paths.output=null"],
        ["epochs=0", "learning_rate=-1", "seed=true", "fold=-1", "optimizer=null", "views=null",
         "ema=null", "positives_per_batch=0.5"],
        ["network.dropout=abc", "network.pooling=median", "optimizer.weight_decay=abc",
         "loss.positive_target=x", "augment.transforms.0.p=often", "views.most=0.5",
         "trainer.gradient_clip_val=abc", "folds.assign.n_folds=abc", "crop.height=tall",
         "crop.bits=12", "mix.probability=null"],
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = call("train", *overrides, cwd=tmp_path, monkeypatch=monkeypatch)
    lines = said.removeprefix("error: ").splitlines()
    assert {line.partition(": ")[0] for line in lines} == set(overrides)
    assert all(": should be " in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "override", "part"),
    [
        ("train", "+network.droput=0.1", "Did you mean network.dropout?"),
        ("train", "nme=x", "Did you mean name?"),
        ("train", "seed=null", "should be a whole number"),
        ("train", "network.droput=0.1", "Did you mean network.dropout?"),
        ("train", "+trainer.max_tme=1", "Did you mean trainer.max_time?"),
        ("train", "trainer.max_time=1", "+trainer.max_time=..."),
        ("train", "accelerator=cpu", "Did you mean trainer.accelerator?"),
        ("train", "+max_time=1", "+trainer.max_time=..."),
        ("train", "logger=null", "logger=csv"),
        ("train", "loss=null", "loss=bce"),
        ("train", "~logger", "logger=csv"),
        ("train", "experiment=null", "leave it out"),
        ("train", "~callbacks", "cannot be left out"),
        ("train", "crop=h9999", "h1024"),
        ("train", "network._target_=rsna_bcd.no.Net", "cannot be imported"),
        ("train", "epochs=${nothing}", "'nothing' not found"),
        ("prepare", "dataset=generic", "dataset.name is missing"),
        ("prepare", "splits=train", "splits=[...]"),
        ("prepare", "splits=[dev]", "should be train or test"),
        ("submit", "budget.hours=0", "greater than 0"),
        ("predict", "inputs=/x/a (1)", "\"inputs='/x/a (1)'\""),
        ("predict", "inputs=it's", "\"inputs='it\\'s'\""),
        ("train", "effnet_b5", "'effnet_b5' is no setting"),
        ("train", "+ema.dekay=1", "Did you mean ema.decay?"),
        ("ensemble", "members=a", "members=[...]"),
        ("report", "cases=-1", "at least 0"),
        ("search", "fold=[0,a]", "fold.1=a"),
    ],
)
def test_faults_get_one_line_with_the_remedy(
    name: str, override: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert part in refused(name, override, cwd=tmp_path, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("train", name) for name in ("a/b", "..", "", "null", "true", "'a\\b'", "x" * 256)),
        ("submit", "../x"),
        ("search", "a/b"),
        ("ensemble", "."),
    ],
)
def test_bad_names_are_refused(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused(name, f"name={value}", cwd=tmp_path, monkeypatch=monkeypatch)
    assert said.startswith("error: name=")


@pytest.mark.parametrize(
    "name", [n for n, needs in NEEDED.items() if n not in ("report", "predict")]
)
def test_a_missing_name_says_what_to_type(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused(name, cwd=tmp_path, monkeypatch=monkeypatch, needed=False)
    key = NEEDED[name][0].partition("=")[0]
    assert said.startswith(f"error: {key} is missing: give {key}=")


def test_predict_without_a_name_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = call("predict", "inputs=x", cwd=tmp_path, monkeypatch=monkeypatch, needed=False)
    assert "There is no model in" in said


def test_missing_members_list_the_runs_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "output" / "runs" / "b5" / "fold0").mkdir(parents=True)
    settings = ["paths.models=elsewhere"]
    said = call("ensemble", *settings, cwd=tmp_path, monkeypatch=monkeypatch, needed=False)
    assert "there are b5" in said


def test_a_missing_name_lists_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ensemble in ("best", "second"):
        file = tmp_path / "output" / "ensembles" / ensemble / "ensemble.json"
        file.parent.mkdir(parents=True)
        file.touch()
    said = call("submit", cwd=tmp_path, monkeypatch=monkeypatch, needed=False)
    assert "there are best, second" in said


def test_a_typo_in_a_file_of_ones_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiment").mkdir()
    own = tmp_path / "experiment" / "mine.yaml"
    settings = ["--config-dir", str(tmp_path), "experiment=mine", f"paths.output={tmp_path}/out"]
    for text, part in (
        ("epoch: 3", "epoch: there is no such key. Did you mean epochs?"),
        ("ema: {decya: 0.9}", "ema.decya: there is no such key. Did you mean ema.decay?"),
        ("network: {droput: 0.1}", "Did you mean network.dropout?"),
        ("trainer: {max_tme: 1}", "Did you mean trainer.max_time?"),
        ("overwrite: 2", "overwrite=2: should be true or false"),
    ):
        own.write_text(f"# @package _global_\nname: mine\n{text}\n")
        said = call("train", *settings, cwd=tmp_path, monkeypatch=monkeypatch)
        assert part in said
    own.write_text("# @package _global_\nname: mine\ntrainer: {limit_train_batches: 0.5}\n")
    said = call("train", *settings, cwd=tmp_path, monkeypatch=monkeypatch)
    assert "Make the crops first" in said


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("train", ["overwrite=true", "seed=1,2"]),
        ("train", ["name=x_${seed}", "seed=1,2", "learning_rate=1e-3,1e-4"]),
        ("submit", ["batch_size=8,16"]),
        ("export", ["seed=0,1"]),
        ("synthesize", ["seed=1,2"]),
    ],
)
def test_a_sweep_that_would_overwrite_itself_is_refused(
    name: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused(name, *overrides, "-m", cwd=tmp_path, monkeypatch=monkeypatch)
    assert "write the same" in said


@pytest.mark.parametrize(
    ("name", "overrides", "part"),
    [
        ("train", ["learning_rate=1e-3,abc", "fold=0,1"], "learning_rate=abc"),
        ("train", ["name=a_${seed}", "seed=1,2"], "Make the crops first"),
        ("export", ["format=onnx,torch"], "There is no run"),
    ],
)
def test_jobs_of_a_sweep_are_checked_before_the_first(
    name: str, overrides: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert part in call(name, *overrides, "-m", cwd=tmp_path, monkeypatch=monkeypatch)


def test_a_job_that_a_sweep_has_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused("train", "fold=0,0", "-m", cwd=tmp_path, monkeypatch=monkeypatch)
    assert "twice (name=x fold=0)" in said


@pytest.mark.parametrize("how", [[], ["-m"]])
def test_a_check_that_fails_by_a_bug_stops_the_command(
    how: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra itself would warn of the callback, and run the job."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("rsna_bcd._stage.check", fail)
    with pytest.raises(UserWarning, match="ZeroDivisionError"):
        call("submit", *how, cwd=tmp_path, monkeypatch=monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_a_search_takes_dotted_keys_on_the_command_line() -> None:
    recipe = _space(composed("search", "+space.network.dropout.low=0.2"))
    assert recipe["network.dropout"] == {"low": 0.2, "high": 0.6, "step": 0.1}
    overrides = ["space=none", "+space.network.dropout={low: 0, high: 0.5}", "+space.epochs=[1,2]"]
    assert _space(composed("search", *overrides)) == {
        "network.dropout": {"low": 0, "high": 0.5},
        "epochs": [1, 2],
    }


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["rsna_bcd.train", "--help"], "epochs: 10"),
        (["rsna_bcd.train", "nme=x"], "Did you mean name?"),
        (["rsna_bcd.train", "name=x", "--cfg", "job"], "epochs: 10"),
        (["rsna_bcd.submit"], "name is missing"),
        (["rsna_bcd"], "python -m rsna_bcd.rehearse"),
    ],
)
def test_answers_take_at_most_two_seconds_of_a_core(
    arguments: list[str], part: str, tmp_path: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert part in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent <= 2


def test_the_clock_of_a_command_starts_with_its_process() -> None:
    code = (
        "import time; begun = time.monotonic(); time.sleep(0.3)\n"
        "from rsna_bcd._stage import process_start\n"
        "print(begun - process_start())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert -0.02 <= float(done.stdout) < 5
    assert process_start() == pytest.approx(process_start(), abs=0.05)


def test_no_console_takes_names_for_markup() -> None:
    for file in Path(settings.__file__).parent.rglob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if "Console(" in line and "import" not in line:
                assert "markup=False" in line, f"{file}: {line}"
