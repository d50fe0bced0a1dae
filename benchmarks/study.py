"""A study: named variants of a recipe, each compared with a reference over the same breasts.

    python benchmarks/study.py benchmarks/studies/small.yaml data=output/small/data \
        output=output/small
    python benchmarks/study.py benchmarks/studies/gpu.yaml data=<crops> output=... minutes=8
    OMP_NUM_THREADS=1 nice python benchmarks/study.py benchmarks/studies/processor.yaml data=... \
        output=... jobs=1

The YAML file names variants, folds, seeds and crops. `data` has crops (`prepared/` and `folds/`),
or images, of which crops are made in `output`. Runs are trained by `rsna_bcd.train` in `jobs`
processes side by side, which import it once; each run's folder is the one that the command leaves.
Stopped at any moment, or by `minutes`, the same command resumes. See docs/study.md.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from pool import run_tasks
from rich.console import Console
from study_config import Place, Study, compose_run, needed_runs, read_study
from study_crops import make_crops
from study_figure import study_figure
from study_runs import Task, do_run, is_done
from study_table import as_markdown, study_table

from rsna_bcd.errors import InputError
from rsna_bcd.tables.folds import read_folds

T = TypeVar("T", int, float)
_ARGUMENTS = {"data", "output", "device", "jobs", "minutes", "weights", "only"}


def run_study(
    config: Path,
    data: Path,
    output: Path,
    *,
    device: str = "cpu",
    deadline: float | None = None,
    jobs: int | None = None,
    weights: Path | None = None,
    only: Sequence[str] = (),
) -> pd.DataFrame:
    """Train and predict missing runs, write the table of complete rows, and draw it.

    Args:
        config: the study's YAML file.
        data: folder of crops or of a data set, see `study_crops.make_crops`.
        output: folder of runs; gets the table as `<name of the study>.csv`, `.md` and `.png`.
        device: cpu, cuda (in bf16-mixed) or cuda:<n>.
        deadline: in seconds of `time.monotonic()`; None: until all is done.
        jobs: processes that train side by side; None: 1 on the processor, half as many as cores on
            a GPU, at most 8; 0: this process, which cannot stop within a run.
        weights: folder of the files that overrides name as {weights}; None: `weights/` in `data`,
            or beside it.
        only: names of variants, besides the reference; empty: all. The table of a part is
            `<name of the study>_only`: its p-values are corrected for fewer rows.

    Returns:
        The table (`study_table.COLUMNS`); `attrs["failed"]` has the reasons of runs that failed,
        `attrs["text"]` the table in Markdown.

    Raises:
        InputError: the study, the data or an override is invalid, or a finished run was trained by
            other overrides.
    """
    study = _only(read_study(config), only)
    if jobs is None:
        jobs = 1 if device == "cpu" else max(1, min(8, _cores() // 2))
    data, output = data.resolve(), output.resolve()
    if not data.is_dir() and (data.exists() or not study.synthesize):
        raise InputError(f"There is no folder {data}. Point data= at crops or at a data set.")
    place = Place(data, output, _weights(weights, data), device != "cpu", _how(device, jobs))
    runs = needed_runs(study, "cpu" if device == "cpu" else "gpu")
    first = {run.variant: run for run in reversed(runs)}
    configurations = {name: compose_run(run, study, place) for name, run in first.items()}
    absent = make_crops(study, data, output, configurations)
    _check_heads(config, study, configurations)
    _check_teachers(config, study, {n: c for n, c in configurations.items() if n not in absent})
    tasks = [Task(run, study, place) for run in runs if run.variant not in absent]
    ahead = [task for task in tasks if not is_done(task)]
    console = Console(stderr=True, highlight=False)
    console.print(
        f"{len(tasks)} runs, {len(tasks) - len(ahead)} done; {jobs} at a time on {device}"
    )
    failed = [f"{variant}: {' '.join(reason.split())}" for variant, reason in absent.items()]
    begin, done = time.monotonic(), 0
    outcomes = run_tasks(
        do_run,
        ahead,
        jobs=jobs,
        deadline=deadline,
        log_folder=output / "logs",
        threads=max(1, _cores() // max(jobs, 1)),
    )
    for outcome in outcomes:
        run, done = outcome.task.run, done + 1
        state = f"{outcome.value:.1f} s" if outcome.error is None else f"failed: {outcome.error}"
        if outcome.error is not None:
            failed.append(f"{run.name}, fold {run.fold}: {' '.join(outcome.error.split())}")
        passed = time.monotonic() - begin
        console.print(f"{done}/{len(ahead)}  {passed:6.0f} s  {run.name} fold {run.fold}  {state}")
    prepared = {
        name: Path(cfg.prepared_dir) for name, cfg in configurations.items() if name not in absent
    }
    see_other = [name for name, cfg in configurations.items() if cfg.views.other_breast]
    table = study_table(study, tasks, output, prepared, see_other)
    remarks = [f"Failed: {reason}" for reason in failed]
    output.mkdir(parents=True, exist_ok=True)
    name = f"{config.stem}_only" if only else config.stem
    table.to_csv(output / f"{name}.csv", index=False)
    text = as_markdown(study, table, remarks)
    (output / f"{name}.md").write_text(text, encoding="utf-8")
    study_figure(table).savefig(output / f"{name}.png", dpi=120)
    table.attrs.update(failed=failed, text=text)
    return table


def _only(study: Study, names: Sequence[str]) -> Study:
    """The study with fewer variants: those named, all that they need, and the reference."""
    if not names:
        return study
    unknown = set(names) - study.variants.keys()
    if unknown:
        raise InputError(f"only={','.join(sorted(unknown))}: the study has no such variant.")
    kept = {study.reference, *names}
    for name, variant in reversed(list(study.variants.items())):  # each needs others above it
        if name in kept:
            kept |= {*variant.sources, *variant.choose}
    variants = {name: v for name, v in study.variants.items() if name in kept}
    return replace(study, variants=variants)


def _check_heads(config: Path, study: Study, configurations: Mapping[str, DictConfig]) -> None:
    """Refuse a head on a network that does not see images alone before any is trained."""
    for name, variant in study.variants.items():
        if not variant.head:
            continue
        of = configurations[str(variant.of)]
        if of.metadata is not None or not of.network._target_.endswith(".ImageClassifier"):
            raise InputError(
                f"{config}: {name} starts from {variant.of}, which must see single images alone, "
                "without metadata."
            )


def _check_teachers(config: Path, study: Study, configurations: Mapping[str, DictConfig]) -> None:
    """Refuse a distilled variant without a teacher for each fold before any is trained."""
    for name, cfg in configurations.items():
        if not study.variants[name].distilled:
            continue
        folds = sorted(read_folds(Path(cfg.folds_csv))["fold"].unique())
        if folds != sorted(study.folds):
            raise InputError(
                f"{config}: folds must name all folds of the data for {name}, which is distilled: "
                f"{cfg.folds_csv} has {', '.join(map(str, folds))}."
            )


def _how(device: str, jobs: int) -> tuple[str, ...]:
    """Overrides that say how to train here, and decide nothing about the result."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise InputError(f"device={device}: choose cpu, cuda or cuda:<number>.")
    # A process that trains on a processor reads by itself: the step takes the time, not reading.
    workers = 0 if kind == "cpu" else max(0, min(4, _cores() // max(jobs, 1) - 1))
    return (
        *([f"trainer.devices=[{number}]"] if number else []),
        "+trainer.enable_progress_bar=false",
        "~callbacks.progress",
        "resume=true",
        "crops_in_memory=true",
        f"workers={workers}",
    )


def _weights(folder: Path | None, data: Path) -> Path | None:
    """The folder of weights: as given, or in the data's folder or beside it."""
    if folder is not None and not folder.is_dir():
        raise InputError(f"weights={folder} is not a folder.")
    candidates = [data / "weights", data.parent / "weights"] if folder is None else [folder]
    return next((path.resolve() for path in candidates if path.is_dir()), None)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _number(cfg: DictConfig, key: str, kind: type[T]) -> T | None:
    """A number of the command line; None where it is absent."""
    try:
        number = None if cfg.get(key) is None else kind(cfg[key])
    except ValueError:
        raise InputError(f"{key}={cfg[key]}: give a number.") from None
    if number is not None and not number >= 0:
        raise InputError(f"{key}={number}: give 0 or more.")
    return number


def main(arguments: Sequence[str]) -> int:
    """Run the study of the command line; the exit code is 1 where a run failed."""
    if not arguments or "=" in arguments[0]:
        sys.exit(f"error: name a study first.\n{__doc__}")
    cfg = OmegaConf.from_dotlist(list(arguments[1:]))
    unknown = set(map(str, cfg)) - _ARGUMENTS
    if unknown or not {"data", "output"} <= set(cfg):
        known = ", ".join(f"{name}=" for name in sorted(_ARGUMENTS))
        fault = f"{sorted(unknown)[0]}= is unknown" if unknown else "give data= and output="
        sys.exit(f"error: {fault}; there are {known}")
    only = [name for name in str(cfg.get("only") or "").split(",") if name]
    try:
        minutes, jobs = _number(cfg, "minutes", float), _number(cfg, "jobs", int)
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        table = run_study(
            Path(arguments[0]),
            Path(str(cfg.data)),
            Path(str(cfg.output)),
            device=str(cfg.get("device", "cpu")),
            deadline=deadline,
            jobs=jobs,
            weights=None if "weights" not in cfg else Path(str(cfg.weights)),
            only=only,
        )
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(table.attrs["text"])
    return 1 if table.attrs["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
