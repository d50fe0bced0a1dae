"""`python -m rsna_bcd.predict`: any mammograms -> what a model says of them, with pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from rsna_bcd._records import check_same_config, write_record
from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv, write_file
from rsna_bcd.imaging.headers import Header
from rsna_bcd.inference.studies import model_notes, study_results
from rsna_bcd.preparation.source_files import find_unusable, list_files, read_headers
from rsna_bcd.processes import usable_cores
from rsna_bcd.reporting.console import ProgressBar, count_reasons, print_results
from rsna_bcd.reporting.contact_sheet import as_png
from rsna_bcd.reporting.study_picture import NO_DEVICE, study_picture
from rsna_bcd.scoring.ensemble import FILE_NAME, Ensemble, read_ensemble
from rsna_bcd.tables.answers import DOUBTS, BreastAnswer, breasts_table, images_table
from rsna_bcd.tables.from_headers import as_file_name, distinct, images_from_headers

# What needs torch is imported where it is used, in the main process alone: it would cost each of
# the processes that decode seconds and half a gigabyte.
if TYPE_CHECKING:
    from rsna_bcd.inference.run import Run
    from rsna_bcd.inference.studies import Study

_WANTED = "Mammograms are wanted as DICOM files of one image each."


def predict(cfg: DictConfig) -> list[BreastAnswer]:
    """Predict every mammogram among the inputs, and write tables and pictures.

    Returns:
        One answer a breast, as in `predictions.json`.

    Raises:
        InputError: there is no such model, an input does not exist, no mammogram is among them, or
            the folder holds answers to other inputs. Files that are no mammograms beside others
            that are, are in `failures.csv` with the reason.
    """
    from rsna_bcd.inference.run import check_crop_algorithm, check_current, load_run, resolve_device
    from rsna_bcd.inference.studies import predict_studies

    console = Console(stderr=True, markup=False)
    fitted = _ensemble(cfg)
    check_current(fitted, Path(cfg.paths.models))
    inputs = _inputs(cfg)
    files, skipped = _files(inputs)
    headers, failures = _mammograms(files, inputs, console, skipped)
    folder = Path(cfg.predictions_dir)
    record = {"name": cfg.name, "inputs": [str(one) for one in inputs]}
    remedy = f"Give these a place of their own, such as predictions_dir={folder}_2"
    check_same_config(folder / "config.yaml", record, overwrite=cfg.overwrite, remedy=remedy)
    images = images_from_headers(headers, {name: _folder_of(files[name]) for name in headers})
    device = resolve_device(cfg.device)
    models = Path(cfg.paths.models)
    members = [
        [load_run(models / "runs" / member.name / f"fold{k}", device) for k in member.folds]
        for member in fitted.members
    ]
    runs = [run for member in members for run in member]
    check_crop_algorithm(runs)
    made_up = (Path(cfg.paths.data) / "synthesize.yaml").is_file()
    notes = model_notes(fitted, runs)
    # A breast's answer does not depend on what else is in the folder.
    ensemble = replace(fitted, policy="pf1")
    leading = members[max(range(len(members)), key=lambda i: ensemble.members[i].weight)]
    _clear(folder)
    write_record(folder / "config.yaml", record)
    answers: list[BreastAnswer] = []
    pictures = _Pictures(folder, notes, leading) if cfg.pictures else None
    with ProgressBar(console, "Predicting", len(images)) as bar:
        bar.update(0, 0)
        done = 0
        for examination in predict_studies(
            images, {name: files[name] for name in headers}, runs, leading[0].crop,
            batch_size=cfg.batch_size, ahead=cfg.ahead,
            workers=usable_cores() if cfg.workers is None else cfg.workers,
        ):  # fmt: skip
            own = study_results(examination, headers, ensemble, members, made_up=made_up)
            answers += own
            if pictures is not None:
                pictures.draw(examination, own)
            done += len(examination.images)
            bar.update(done, 0)
    place = {name: number for number, name in enumerate(images["prediction_id"].unique())}
    answers.sort(key=lambda answer: place[answer.prediction_id])
    failures |= {i.file: i.reason for a in answers for i in a.images if i.reason is not None}
    drawn = {} if pictures is None else pictures.files
    _write(folder, ensemble, answers, drawn, failures, notes)
    print_results(Console(markup=False), folder, ensemble.name, answers, failures, notes)
    return answers


def _ensemble(cfg: DictConfig) -> Ensemble:
    """The model, or how to get one."""
    folder = Path(cfg.paths.models) / "ensembles"
    there = sorted(file.parent.name for file in folder.glob(f"*/{FILE_NAME}"))
    name = None if OmegaConf.is_missing(cfg, "name") else str(cfg.name)
    if name in there:
        return read_ensemble(folder / str(name) / FILE_NAME)
    if there:
        wanted = "Which model?" if name is None else f"There is no model {name} in {folder}."
        raise InputError(f"{wanted} Choose one: name={' or name='.join(there)}.")
    raise InputError(
        f"There is no model in {folder}. Two ways to one:\n"
        "  a small one to try things out, of synthetic mammograms, in minutes:\n"
        "    make demo\n"
        "    python -m rsna_bcd.predict paths=demo name=demo inputs=...\n"
        "  one of real mammograms (README: The competition, step by step):\n"
        "    python -m rsna_bcd.prepare crop=h1536\n"
        "    python -m rsna_bcd.train experiment=effnet_b5 -m fold=0,1,2,3\n"
        "    python -m rsna_bcd.ensemble name=best members=[effnet_b5]\n"
        "One that is elsewhere is found with paths.models=FOLDER, which has ensembles/ and runs/."
    )


def _inputs(cfg: DictConfig) -> list[Path]:
    """The files and folders that were asked for."""
    if OmegaConf.is_missing(cfg, "inputs") or not cfg.inputs:
        raise InputError("Say what to look at: inputs=FOLDER, or 'inputs=[one.dcm,FOLDER]'.")
    inputs = [Path(cfg.inputs)] if isinstance(cfg.inputs, str) else [Path(i) for i in cfg.inputs]
    absent = [str(one) for one in inputs if not one.exists()]
    if absent:
        raise InputError(f"There is no file or folder {', '.join(absent)}. Check inputs=.")
    return inputs


def _files(inputs: Sequence[Path]) -> tuple[dict[str, Path], dict[str, str]]:
    """All files of the inputs, each once, by name; and reasons of what cannot be read."""
    files: dict[Path, Path] = {}
    skipped: dict[str, str] = {}
    for one in inputs:
        names, reasons = ([""], {}) if one.is_file() else list_files(one)
        skipped |= {str(one / name): reason for name, reason in reasons.items()}
        for file in (one / name for name in names):
            files.setdefault(file.resolve(), file)
    return {str(file): file for file in files.values()}, skipped


def _folder_of(file: Path) -> str:
    return file.resolve().parent.name


def _mammograms(
    files: Mapping[str, Path],
    inputs: Sequence[Path],
    console: Console,
    skipped: Mapping[str, str],
) -> tuple[dict[str, Header], dict[str, str]]:
    """Headers of the mammograms, and what all else is."""
    headers, reasons = read_headers(
        files,
        0,
        lambda results: track(
            results, "Reading headers", total=len(files), console=console, transient=True
        ),
    )
    headers = {name: headers[name] for name in files if name in headers}
    others = find_unusable(headers, files)
    headers = {name: header for name, header in headers.items() if name not in others}
    reasons |= others
    reasons |= skipped
    if headers:
        return headers, reasons
    if [*files] == [str(one) for one in inputs] and len(files) == 1:
        raise InputError(f"{next(iter(files))}: {next(iter(reasons.values()))}. {_WANTED}")
    where = ", ".join(map(str, inputs))
    if not files and not skipped:
        raise InputError(f"There is no mammogram in {where}: no file at all.")
    found = "\n".join(f"  {line}" for line in count_reasons(reasons))
    raise InputError(f"There is no mammogram in {where}. What is there:\n{found}\n{_WANTED}")


def _clear(folder: Path) -> None:
    """Remove what an earlier run left: no answer must be taken for one of this run."""
    for file in [*folder.glob("pictures/*.png"), *folder.glob("*.csv"), *folder.glob("*.json")]:
        file.unlink()


class _Pictures:
    """Draws images as they are predicted.

    Attributes:
        files: by the image's file, its picture, relative to `folder`.
    """

    def __init__(self, folder: Path, notes: Sequence[str], runs: Sequence[Run]) -> None:
        self.files: dict[str, str] = {}
        self._folder, self._notes, self._runs = folder, notes, runs

    def draw(self, examination: Study, answers: Sequence[BreastAnswer]) -> None:
        """Write a picture of each image that could be read."""
        from rsna_bcd.inference.studies import saliency_of

        strengths = saliency_of(self._runs, examination)
        for breast in answers:
            for image in breast.images:
                prepared = examination.prepared.get(image.file)
                if prepared is None or breast.probability is None:
                    continue
                name = as_file_name(f"{breast.prediction_id}_{image.view or 'view-unknown'}")
                taken = [Path(file).stem for file in self.files.values()]
                file = f"pictures/{distinct([name], taken)[0]}.png"
                self.files[image.file] = file
                strength = strengths.get(image.file)
                figure = study_picture(breast, image, prepared.pixels, strength, self._notes)
                write_file(self._folder / file, as_png(figure))


def _write(
    folder: Path,
    ensemble: Ensemble,
    answers: Sequence[BreastAnswer],
    pictures: Mapping[str, str],
    failures: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    """Write the tables, and the same as JSON, last."""
    ordered = sorted(failures.items())
    write_csv(pd.DataFrame(ordered, columns=["file", "reason"]), folder / "failures.csv")
    write_csv(images_table(answers, pictures), folder / "images.csv")
    write_csv(breasts_table(answers), folder / "breasts.csv")
    found = {kind for answer in answers for kind in answer.doubts}
    breasts = [asdict(answer) for answer in answers]
    for breast in breasts:
        for image in breast["images"]:
            image["picture"] = pictures.get(image["file"])
    record = {
        "not_a_medical_device": NO_DEVICE,
        "model": {
            "name": ensemble.name,
            "members": [member.name for member in ensemble.members],
            "threshold": ensemble.threshold,
            "plateau": [ensemble.plateau.low, ensemble.plateau.high],
            "calibrated": ensemble.calibration is not None,
        },
        "notes": list(notes),
        "doubts": {kind: text for kind, text in DOUBTS.items() if kind in found},
        "breasts": breasts,
        "failures": dict(ordered),
    }
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_file(folder / "predictions.json", text.encode())
