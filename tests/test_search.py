"""The search over settings: its trials, and that killing it changes nothing."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fabricated_crops import save_crops
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from stage_settings import composed
from tiny_training import SMALL, fork, run_command

from rsna_bcd._records import format_override
from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.stages import search as stage
from rsna_bcd.stages.search import search

optuna = pytest.importorskip("optuna")

Search = Callable[..., pd.DataFrame]
Fail = Callable[[int, int], bool]  # (trial, fold) -> whether training fails


class _Training:
    """In the place of training: scores by a formula, and notes the requested settings."""

    def __init__(self) -> None:
        self.commands: list[dict[str, str]] = []
        self.fails: Fail = lambda trial, fold: False
        self.stop_at = -1  # the command at which the process dies

    def __call__(self, command: list[str]) -> int:
        if len(self.commands) == self.stop_at:
            raise KeyboardInterrupt
        settings = dict(word.split("=", 1) for word in command[3:])
        self.commands.append(settings)
        trial, fold = int(settings["name"][-3:]), int(settings["fold"])
        if self.fails(trial, fold):
            return 1
        rate = float(settings["learning_rate"])
        score = 1 - abs(rate - 0.001) * 100 + 0.1 * (settings["augment"] == "light") + 0.01 * fold
        folder = Path(settings["paths.output"]) / "runs" / settings["name"] / f"fold{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps({"auroc": score, "pf1": None}))
        return 0


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> _Training:
    training = _Training()
    monkeypatch.setattr(stage, "_run", training)
    return training


@pytest.fixture
def searched(tmp_path: Path) -> Search:
    def run(*overrides: str, output: Path = tmp_path) -> pd.DataFrame:
        defaults = [f"paths.output={output}", "name=s", "metric=auroc", "trials=6"]
        return search(composed("search", *defaults, *overrides))

    return run


def test_every_trial_trains_its_folds_under_its_name(searched: Search, training: _Training) -> None:
    frame = searched("fold=[0,2]", 'train="experiment=lite0"')
    assert [c["name"] for c in training.commands] == [f"s_t{i:03}" for i in range(6) for _ in "02"]
    assert [c["fold"] for c in training.commands] == ["0", "2"] * 6
    assert {(c["experiment"], c["resume"]) for c in training.commands} == {("lite0", "true")}
    first = training.commands[0]
    assert 1e-4 <= float(first["learning_rate"]) <= 3e-3
    assert float(first["learning_rate"]) == frame["learning_rate"][0]
    assert first["augment"] == frame["augment"][0] in ("flips", "light", "heavy")
    # Mean over the folds: by the formula, .01 above a fold 0.
    rate, light = frame["learning_rate"], 0.1 * (frame["augment"] == "light")
    expected = 1 - (rate - 0.001).abs() * 100 + light + 0.01
    assert frame["value"].to_numpy() == pytest.approx(expected.to_numpy())


def test_more_trials_find_better_ones(searched: Search, training: _Training) -> None:
    values = searched("trials=40")["value"]
    assert values[20:].median() > values[:10].median() + 0.02


def test_it_ends_with_a_table_and_the_best_command(
    searched: Search, training: _Training, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    frame = searched('train="experiment=lite0"')
    printed = capsys.readouterr().out
    best = frame["run"][frame["value"].argmax()]
    assert "Trial 0 (1 of 6): " in printed
    assert "Trial 5 (6 of 6): " in printed
    assert f"{best}\n  python -m rsna_bcd.train experiment=lite0 " in printed
    assert f" paths.output={tmp_path} name=...\n" in printed
    assert "paths.data=" not in printed  # it is where it is by default
    written = pd.read_csv(tmp_path / "searches" / "s" / "trials.csv")
    pd.testing.assert_frame_equal(written, frame)


@pytest.mark.parametrize("stop_at", [0, 5, 9])
def test_stopped_and_started_again_it_ends_as_if_nothing_had_happened(
    searched: Search, training: _Training, tmp_path: Path, stop_at: int
) -> None:
    straight = searched("fold=[0,1]", output=tmp_path / "straight")
    training.commands.clear()
    training.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        searched("fold=[0,1]", output=tmp_path / "stopped")
    journal = tmp_path / "stopped" / "searches" / "s" / "journal.jsonl"
    with journal.open("a") as file:
        file.write('{"op_code": 4, "work')  # killed while writing
    journal.with_name("journal.jsonl.lock").symlink_to(journal)
    training.stop_at = -1
    again = searched("fold=[0,1]", output=tmp_path / "stopped")
    pd.testing.assert_frame_equal(again, straight)
    # Only the trial that was interrupted was begun again.
    assert len(training.commands) == 12 + stop_at % 2


FEW = (
    'train="learning_rate=0.001"', "space=none", "+space.augment=[flips,light]",
)  # fmt: skip


def test_equal_settings_are_trained_once(
    searched: Search, training: _Training, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = searched(*FEW, "fold=[0,1]")
    trained = {c["augment"]: c["name"] for c in training.commands}
    assert trained.keys() == {"flips", "light"}
    assert len(training.commands) == 4
    assert len(frame) == 6
    assert frame["run"].tolist() == frame["augment"].map(trained).tolist()
    assert frame["value"].tolist() == [1.105 if a == "light" else 1.005 for a in frame["augment"]]
    printed = capsys.readouterr().out
    assert printed.count("Not trained: trial ") == 4
    assert f"{trained['light']}\n  python -m rsna_bcd.train" in printed


def test_equal_settings_that_failed_are_tried_again(searched: Search, training: _Training) -> None:
    training.fails = lambda trial, fold: trial == 1
    frame = searched(*FEW)
    assert frame["augment"][0] != frame["augment"][1]
    assert frame["state"].tolist() == ["finished", "failed"] + ["finished"] * 4
    failed, again, *others = frame["run"][frame["augment"] == frame["augment"][1]]
    assert failed == "s_t001"
    assert {again, *others} == {training.commands[2]["name"]}
    assert len(training.commands) == 3


@pytest.mark.parametrize("stop_at", [0, 2, 5])
def test_stopped_at_equal_settings_it_ends_as_if_nothing_had_happened(
    searched: Search,
    training: _Training,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
) -> None:
    straight = searched(*FEW, output=tmp_path / "straight")
    twin = stage._twin

    def stopped(trials: Any, trial: Any) -> Any:
        if trial.number == stop_at:
            raise KeyboardInterrupt
        return twin(trials, trial)

    monkeypatch.setattr(stage, "_twin", stopped)
    with pytest.raises(KeyboardInterrupt):
        searched(*FEW, output=tmp_path / "stopped")
    monkeypatch.setattr(stage, "_twin", twin)
    again = searched(*FEW, output=tmp_path / "stopped")
    pd.testing.assert_frame_equal(again, straight)


def test_search_truncates_the_journal_and_never_rewrites_it(
    searched: Search, training: _Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between emptying the file and filling it again, the search would be lost."""
    first = searched()
    journal = tmp_path / "searches" / "s" / "journal.jsonl"
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "work')

    write_bytes = Path.write_bytes

    def write_all_but_the_journal(path: Path, content: bytes) -> int:
        assert not path.name.startswith(journal.name)
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_all_but_the_journal)
    pd.testing.assert_frame_equal(searched(), first)
    assert journal.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_more_trials_resume_from_the_last(searched: Search, training: _Training) -> None:
    first = searched("trials=3")
    second = searched("trials=5")
    assert len(training.commands) == 5
    pd.testing.assert_frame_equal(second.head(3), first)


def test_a_failed_trial_is_marked_and_the_others_continue(
    searched: Search, training: _Training
) -> None:
    training.fails = lambda trial, fold: trial == 2
    frame = searched()
    assert frame["state"].tolist() == ["finished"] * 2 + ["failed"] + ["finished"] * 3
    assert frame["value"].isna().tolist() == [False] * 2 + [True] + [False] * 3


def test_where_the_first_fails_the_search_stops_and_begins_with_it_again(
    searched: Search, training: _Training
) -> None:
    training.fails = lambda trial, fold: True
    remedy = r"Trial 0 failed, and none has succeeded.*begin with others: seed=1 overwrite=true"
    with pytest.raises(InputError, match=remedy):
        searched()
    training.fails = lambda trial, fold: False
    assert searched()["state"].tolist() == ["finished"] * 6


def test_other_settings_are_refused_and_overwrite_forgets(
    searched: Search, training: _Training, tmp_path: Path
) -> None:
    searched()
    with pytest.raises(InputError, match=r"(?s)seed: 0 -> 1.*overwrite=true"):
        searched("seed=1")
    (tmp_path / "runs" / "s_t000" / "old").mkdir()
    others = [tmp_path / "runs" / name for name in ("s_text", "s_t003_full", "s_t001_t000")]
    for other in others:
        other.mkdir()
    training.fails = lambda trial, fold: True
    with pytest.raises(InputError, match=r"cannot be trained: see above. Nothing was deleted"):
        searched("seed=1", "overwrite=true", "trials=2")
    assert "++trainer.fast_dev_run" in training.commands.pop()
    assert (tmp_path / "runs" / "s_t000" / "old").exists()
    assert len(searched()) == 6
    training.fails = lambda trial, fold: False
    assert len(searched("seed=1", "overwrite=true", "trials=2")) == 2
    assert not (tmp_path / "runs" / "s_t000" / "old").exists()
    assert not (tmp_path / "runs" / "s_t005").exists()
    shutil.rmtree(tmp_path / "searches")
    (tmp_path / "runs" / "s_t004").mkdir()
    assert len(searched("seed=1", "overwrite=true", "trials=1")) == 1
    assert not (tmp_path / "runs" / "s_t004").exists()
    assert all(other.exists() for other in others)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (['train="fold=1"'], "fold is set by the search"),
        (['train="epochs=1 learning_rate=1"'], "both in train and in space"),
        (["space=none"], "The space is empty"),
        (["space.learning_rate=1"], "give a list of plain values, or a range"),
        (["++space.learning_rate={up: 1}"], "give a list of plain values, or a range"),
        (["space.learning_rate={low: 0.0, high: 1.0, log: true}"], "space.learning_rate="),
        (["metric=f1"], "metric=f1: choose auroc, average_precision, pf1"),
        (["fold=[1,1]"], "fold=.*give numbers from 0 on, each once"),
        (["fold=[]"], "fold=.*give numbers from 0 on, each once"),
    ],
)
def test_bad_settings(
    searched: Search, training: _Training, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        searched(*overrides)
    assert training.commands == []


def test_an_undefined_score_is_a_failure(searched: Search, training: _Training) -> None:
    with pytest.raises(InputError, match="Trial 0 failed"):
        searched("metric=pf1")


@pytest.mark.parametrize("file", sorted((Path(CONF) / "space").glob("*.yaml")), ids=str)
def test_every_space_names_keys_of_train(file: Path) -> None:
    for key, spec in ((str(key), spec) for key, spec in OmegaConf.load(file).items()):
        stage._distribution(optuna, key, spec)
        values = spec if OmegaConf.is_list(spec) else [spec.low, spec.high]
        for value in values:
            cfg = composed("train", "name=x", f"{key}={format_override(value)}")
            assert (Path(CONF) / key).is_dir() or OmegaConf.select(cfg, key) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (0.1, "0.1"), (3, "3"), ("light", "light"),
     ("a b", "'a b'"), ("it's", r"'it\'s'"), ("null", "'null'"), ("True", "'True'"),
     ("1e-3", "'1e-3'"), ("10", "'10'"), ("nan", "'nan'"), ("", "''"), (1e-5, "1e-05"),
     ("/home/jos\u00e9/out", "'/home/jos\u00e9/out'"), ("/tmp/x-1.0", "/tmp/x-1.0"),
     ("-inf", "'-inf'"), ("\u0663", "'\u0663'"), ("a=b,[c]", "'a=b,[c]'"), (r"a\b", r"'a\b'"),
     ("a\\", r"'a\\'"), (r"a\'b", r"'a\\\'b'"), ("null/1", "null/1"), ("off", "off")],
)  # fmt: skip
def test_values_are_written_as_hydra_reads_them(value: Any, text: str) -> None:
    assert format_override(value) == text
    read = OverridesParser.create().parse_override(f"key={text}").value()
    assert (read, type(read)) == (value, type(value))


def test_a_killed_search_ends_its_training_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search alone is killed: its training must end with it. Then it trains in this process."""
    save_crops(tmp_path)
    train = " ".join((*SMALL, "network=test_resnet", "epochs=1"))
    overrides = [
        "name=s", "trials=1", "metric=auroc", f"paths.output={tmp_path}", f'train="{train}"',
        "space=none", "+space={learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}",
    ]  # fmt: skip

    def run() -> pd.DataFrame:
        return search(composed("search", *overrides))

    process, folder = fork(run), tmp_path / "runs" / "s_t000" / "fold0"
    while process.is_alive() and not (folder / "config.yaml").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    time.sleep(0.2)
    mark = f"paths.output={tmp_path}".encode()
    assert [pid for pid in Path("/proc").iterdir() if mark in _command_line(pid)] == []
    assert not (folder / "metrics.json").exists()
    here = lambda command: len(run_command(tmp_path, *command[3:], settings=()))  # noqa: E731
    monkeypatch.setattr(stage, "_run", here)
    frame = run()
    assert frame["state"].tolist() == ["finished"]
    assert frame["value"][0] == json.loads((folder / "metrics.json").read_text())["auroc"]


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""
