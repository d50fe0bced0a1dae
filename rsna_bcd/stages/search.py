"""`python -m rsna_bcd.search`: which settings score best, by trials that are runs like any other.

A proposal depends on the finished trials and the seed alone, and a trial is in the journal before
it is trained: killed at any moment and started again, a search ends as if nothing had happened.
"""

import glob
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.table import Table

from rsna_bcd._records import check_same_config, format_override, select_settings, write_record
from rsna_bcd._stage import CONF
from rsna_bcd._validation import to_plain
from rsna_bcd.errors import InputError
from rsna_bcd.files import locked, write_csv
from rsna_bcd.processes import die_with_parent
from rsna_bcd.reporting.console import make_console
from rsna_bcd.scoring.metrics import DECISION, RANKING

_RECORDED = ("name", "train", "fold", "metric", "direction", "seed", "space")
_OURS = ("name", "fold", "resume", "overwrite", "paths.data", "paths.output")  # of train's keys
_STOPPED = (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)
_RANGE_KEYS = {"low", "high", "log", "step"}
_METRICS = (*RANKING, *DECISION)  # that training writes
_SHOWN = 15  # trials in the table; the file has all


def search(cfg: DictConfig) -> pd.DataFrame:
    """Train trial after trial, and rank them.

    Writes `config.yaml`, `journal.jsonl` (Optuna's) and `trials.csv`. A trial that fails is marked
    so, and the search continues; but the first must succeed. Settings that were proposed again are
    not trained again.

    Returns:
        `trial, run, state, value` and one column per key of the space, in the order of the trials.
        Trials of equal settings have the run of the first.

    Raises:
        InputError: settings that are not fit for it, a first trial that failed, another process
            at work on the same search, or a folder that holds another search.
    """
    try:
        import optuna  # deferred: an extra
    except ImportError as error:
        raise InputError(
            "A search needs Optuna. Install the extra: pip install 'rsna_bcd[sweep]', or make env."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _check(cfg)
    specifications = _space(cfg)
    space = {key: _distribution(optuna, key, spec) for key, spec in specifications.items()}
    folder = Path(cfg.search_dir)
    record = {**select_settings(cfg, *_RECORDED), "space": specifications}
    check_same_config(folder / "config.yaml", record, overwrite=cfg.overwrite, root="search")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "choose another name="):
        if cfg.overwrite and ((folder / "journal.jsonl").exists() or _trial_runs(cfg)):
            _try_out(optuna, space, cfg)
            _forget(cfg)
        write_record(folder / "config.yaml", record)
        study = _open(optuna, folder / "journal.jsonl", cfg.direction)
        while True:
            trial = _next(optuna, study, space, cfg)
            if trial is None:
                break
            position = f"{trial.number + 1} of {cfg.trials}"
            print(f"Trial {trial.number} ({position}): {' '.join(_settings(trial))}", flush=True)
            twin = _twin(study.trials, trial)
            if twin is None:
                value = _train(cfg, trial)
            else:
                value = twin.value
                print(f"Not trained: trial {twin.number} had the same settings.", flush=True)
            if value is None and not any(t.state.name == "COMPLETE" for t in study.trials):
                raise InputError(
                    f"Trial {trial.number} failed, and none has succeeded before: see above. "
                    "Correct it and start the search again; it begins with the same trial, "
                    f"or begin with others: seed={cfg.seed + 1} overwrite=true."
                )
            failed = optuna.trial.TrialState.FAIL if value is None else None
            study.tell(trial.number, value, state=failed)
            write_csv(_frame(study, cfg), folder / "trials.csv")
    frame = _frame(study, cfg)
    _show(frame, study, cfg)
    return frame


def _check(cfg: DictConfig) -> None:
    if cfg.metric not in _METRICS:
        raise InputError(f"metric={cfg.metric}: choose {', '.join(_METRICS)}.")
    folds = _folds(cfg)
    if not folds or len(set(folds)) < len(folds):
        raise InputError(
            f"fold={cfg.fold}: give numbers from 0 on, each once, such as fold=0 or fold=[0,1]."
        )
    if not cfg.space:
        raise InputError("The space is empty. Name a setting to search: '+space.epochs=[5,10,20]'.")
    given = [override.lstrip("+~").split("=")[0] for override in shlex.split(cfg.train)]
    if taken := [key for key in given if key in _OURS or key.startswith("-")]:
        raise InputError(
            f"train={cfg.train}: {', '.join(taken)} is set by the search. Give it name=, fold= or "
            "paths.output= instead."
        )
    if both := [key for key in given if key in _space(cfg)]:
        raise InputError(f"{', '.join(both)} is both in train and in space: leave one out.")


def _space(cfg: DictConfig) -> dict[str, Any]:
    """The space by dotted key, whether given as one (recipe.yaml) or as sections.

    `+space.network.dropout.low=0.1` on the command line is a section in a section, and changes what
    the dotted key has.
    """
    found: dict[str, Any] = {}

    def collect(prefix: str, specification: Any) -> None:
        if not isinstance(specification, dict) or specification.keys() & _RANGE_KEYS:
            whole = isinstance(specification, dict) and isinstance(found.get(prefix), dict)
            found[prefix] = {**found[prefix], **specification} if whole else specification
            return
        for key, below in specification.items():
            collect(f"{prefix}.{key}".lstrip("."), below)

    collect("", OmegaConf.to_container(cfg.space, resolve=True))
    return found


def _distribution(optuna: Any, key: str, spec: Any) -> Any:
    """Optuna's distribution for an entry of the space.

    Raises:
        InputError: it is neither a list of plain values nor a range.
    """
    values: Any = OmegaConf.to_container(spec) if OmegaConf.is_config(spec) else spec
    try:
        if isinstance(values, list) and values:
            if all(isinstance(v, str | int | float | None) for v in values):
                return optuna.distributions.CategoricalDistribution(values)
        elif isinstance(values, dict) and {"low", "high"} <= values.keys() <= _RANGE_KEYS:
            whole = all(isinstance(values[bound], int) for bound in ("low", "high"))
            kind = "IntDistribution" if whole else "FloatDistribution"
            return getattr(optuna.distributions, kind)(**values)
    except (ValueError, TypeError) as error:
        raise InputError(f"space.{key}={values}: {error}") from error
    raise InputError(
        f"space.{key}={values}: give a list of plain values, or a range such as "
        "{low: 0.1, high: 1, log: true} or {low: 0, high: 1, step: 0.1}."
    )


def _try_out(optuna: Any, space: dict[str, Any], cfg: DictConfig) -> None:
    """Train the first trial on a batch, so that bad settings are refused before the deletion."""
    trial = _next(optuna, optuna.create_study(direction=cfg.direction), space, cfg)
    with tempfile.TemporaryDirectory() as folder:  # for Hydra's log
        own = ["++trainer.fast_dev_run=true", f"hydra.run.dir={format_override(folder)}"]
        if _run([*_command(cfg, trial, _folds(cfg)[0]), *own]) != 0:
            raise InputError("The first trial cannot be trained: see above. Nothing was deleted.")


def _trial_runs(cfg: DictConfig) -> list[Path]:
    """Folders of the trials' runs, without others that are called after one: s_t003_full."""
    runs = Path(cfg.paths.output) / "runs"
    trial = re.compile(re.escape(str(cfg.name)) + r"_t[0-9]{3,}")
    found = runs.glob(f"{glob.escape(str(cfg.name))}_t*")
    return [run for run in found if trial.fullmatch(str(run.relative_to(runs)))]


def _forget(cfg: DictConfig) -> None:
    """Delete the trials and their runs."""
    for run in _trial_runs(cfg):
        shutil.rmtree(run)
    for name in ("journal.jsonl", "trials.csv"):
        (Path(cfg.search_dir) / name).unlink(missing_ok=True)


def _open(optuna: Any, journal: Path, direction: str) -> Any:
    """Open the journal, also one whose writer was killed: no other process is writing."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        # Cut off a line that is not whole. Rewritten, the journal could be lost at a kill.
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="search",
        direction=direction,
        load_if_exists=True,
    )


def _next(optuna: Any, study: Any, space: dict[str, Any], cfg: DictConfig) -> Any:
    """The trial that was interrupted, else a new one; None when there were enough."""
    trials = study.trials
    for trial in trials:
        if trial.state.name == "RUNNING":
            return trial
    number = len(trials)
    if number >= cfg.trials:
        return None
    # A study of its own, whose sampler has no past: the proposal depends on nothing else.
    seed = int(np.random.SeedSequence([cfg.seed, number]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed)
    past = optuna.create_study(direction=cfg.direction, sampler=sampler)
    past.add_trials(trials)
    params = past.ask(space).params
    running = optuna.trial.TrialState.RUNNING
    # One line of the journal: a trial is either there with all its settings, or not at all.
    study.add_trial(optuna.trial.create_trial(state=running, params=params, distributions=space))
    return study.trials[number]


def _twin(trials: Sequence[Any], trial: Any) -> Any:
    """The first finished trial before this one that has its settings; None if there is none."""
    settings = set(_settings(trial))
    for other in trials[: trial.number]:
        if other.state.name == "COMPLETE" and set(_settings(other)) == settings:
            return other
    return None


def _settings(trial: Any) -> list[str]:
    return [f"{key}={format_override(value)}" for key, value in trial.params.items()]


def _train(cfg: DictConfig, trial: Any) -> float | None:
    """Train the folds of a trial; its value, or None where one failed."""
    name = _run_name(cfg, trial.number)
    values = []
    for fold in _folds(cfg):
        if _run(_command(cfg, trial, fold)) != 0:
            print(f"Trial {trial.number} failed on fold {fold}.", flush=True)
            return None
        file = Path(cfg.paths.output) / "runs" / name / f"fold{fold}" / "metrics.json"
        metrics = json.loads(file.read_text(encoding="utf-8"))
        assert cfg.metric in metrics, file
        values.append(metrics[cfg.metric])
    if None in values:
        print(f"Trial {trial.number} failed: its {cfg.metric} is undefined.", flush=True)
        return None
    return statistics.fmean(values)


def _command(cfg: DictConfig, trial: Any, fold: int) -> list[str]:
    name = format_override(_run_name(cfg, trial.number))
    return [
        *(sys.executable, "-m", "rsna_bcd.train", *shlex.split(cfg.train), *_settings(trial)),
        *(f"name={name}", f"fold={fold}", "resume=true"),
        *(_place(cfg, key) for key in ("data", "output")),
    ]


def _run(command: list[str]) -> int:
    """Run a command that ends with this process, however that ends."""
    code = subprocess.run(command, preexec_fn=die_with_parent, check=False).returncode
    if code in _STOPPED:  # by the user or the cluster, who mean the search as well
        raise KeyboardInterrupt
    return code


def _folds(cfg: DictConfig) -> list[int]:
    return list(cfg.fold) if OmegaConf.is_list(cfg.fold) else [cfg.fold]


def _run_name(cfg: DictConfig, number: int) -> str:
    return f"{cfg.name}_t{number:03}"


def _place(cfg: DictConfig, key: str) -> str:
    return f"paths.{key}={format_override(str(cfg.paths[key]))}"


def _frame(study: Any, cfg: DictConfig) -> pd.DataFrame:
    """One row per trial."""
    states = {"COMPLETE": "finished", "FAIL": "failed", "RUNNING": "unfinished"}
    trials = study.trials
    return pd.DataFrame(
        [
            {
                "trial": trial.number,
                "run": _run_name(cfg, (_twin(trials, trial) or trial).number),
                "state": states[trial.state.name],
                "value": trial.value,
                **trial.params,
            }
            for trial in trials
        ]
    )


def _show(frame: pd.DataFrame, study: Any, cfg: DictConfig) -> None:
    """Print the best trials and the command of the best."""
    ranked = frame.sort_values("value", ascending=cfg.direction == "minimize", kind="stable")
    keys = list(frame.columns[4:])
    folds = ", ".join(map(str, _folds(cfg)))
    title = f"{cfg.metric} by trial, mean of fold {folds}"
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("trial", cfg.metric, *keys):
        table.add_column(str(heading), overflow="fold")
    for _, row in ranked.head(_SHOWN).iterrows():
        value = row["state"] if row["state"] != "finished" else f"{row['value']:.4f}"
        shown = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in row[keys]]
        table.add_row(str(row["trial"]), value, *shown)
    if len(ranked) > _SHOWN:
        table.caption = f"and {len(ranked) - _SHOWN} more in trials.csv"
    console = make_console()
    console.print(table, soft_wrap=False)
    best = study.best_trial
    usual: Any = OmegaConf.load(Path(CONF) / "paths" / "local.yaml")
    ours, theirs = (to_plain(paths, resolve=False) for paths in (cfg.paths, usual))
    places = [_place(cfg, key) for key, path in theirs.items() if ours[key] != path]
    command = shlex.join([*shlex.split(cfg.train), *_settings(best), *places])
    console.print(
        f"Best of {len(frame)}, so its value is optimistic: {frame['run'][best.number]}\n"
        f"  python -m rsna_bcd.train {command} name=...\n{Path(cfg.search_dir) / 'trials.csv'}"
    )
