"""`python -m rsna_bcd.predict`: any mammograms -> probabilities, decisions and pictures."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from rsna_bcd._records import check_same_config, write_record
from rsna_bcd.errors import InputError
from rsna_bcd.files import locked, parts_sha256, write_csv, write_file
from rsna_bcd.imaging.headers import Header
from rsna_bcd.inference.progress import Fingerprint, inputs_fingerprint
from rsna_bcd.inference.run import Run, check_current, load_members, resolve_device
from rsna_bcd.inference.stream import InferenceSettings
from rsna_bcd.inference.studies import (
    Study,
    mean_saliency,
    model_notes,
    predict_studies,
    study_results,
)
from rsna_bcd.preparation.dicom_folder import find_unusable, list_files, read_headers
from rsna_bcd.processes import usable_cores
from rsna_bcd.reporting.console import ProgressBar, count_reasons, make_console, print_results
from rsna_bcd.reporting.study_picture import as_png, study_picture
from rsna_bcd.scoring.ensemble import FILE_NAME, Ensemble, read_ensemble
from rsna_bcd.tables.from_headers import as_file_name, distinct, images_from_headers
from rsna_bcd.tables.study_results import (
    NO_DEVICE,
    QUALITY_FLAGS,
    BreastResult,
    as_record,
    breasts_table,
    images_table,
)

_TABLES = ("breasts.csv", "failures.csv", "images.csv")
_RECORD = "predictions.json"
_EXPECTED = "Mammograms are expected as DICOM files of one image each."


def predict(cfg: DictConfig) -> None:
    """Predict every mammogram among the inputs, and write tables and pictures.

    Earlier ones are replaced when all of the new ones are complete; if nothing that they depend on
    has changed, nothing is done.

    Raises:
        InputError: there is no such model, an input does not exist, no mammogram is among them, or
            the folder holds predictions of other inputs. Other files beside mammograms are in
            `failures.csv` with the reason.
    """
    console = make_console(stderr=True)
    fitted = _ensemble(cfg)
    models, folder = Path(cfg.paths.models), Path(cfg.predictions_dir)
    check_current(fitted, models)
    inputs = _inputs(cfg)
    files, headers, failures = _find_mammograms(inputs, console)
    images = images_from_headers(
        headers, {name: file.resolve().parent.name for name, file in files.items()}
    )
    device = resolve_device(cfg.device)
    members = load_members(fitted, models, device)
    runs = [run for member in members for run in member]
    is_synthetic = (Path(cfg.paths.data) / "synthesize.yaml").is_file()
    notes = model_notes(fitted, runs)
    # The decision for a breast does not depend on the other files in the folder.
    ensemble = replace(fitted, policy="pf1")
    leading = members[max(range(len(members)), key=lambda i: ensemble.members[i].weight)]
    settings = _settings(cfg, leading[0])
    ensemble_json = models / "ensembles" / ensemble.name / FILE_NAME
    fingerprint = {
        **inputs_fingerprint(ensemble_json, runs, images, files),
        "failures": parts_sha256(json.dumps(failures, sort_keys=True).encode()),
        "device": device.type,
        "synthetic": str(is_synthetic),
    }
    record = {
        "name": cfg.name, "inputs": [str(one) for one in inputs], "pictures": cfg.pictures,
    }  # fmt: skip
    elsewhere = f"predictions_dir={folder}_2"
    with locked(folder, f"choose {elsewhere}"):
        is_same = check_same_config(
            folder / "config.yaml",
            record,
            overwrite=cfg.overwrite,
            remedy=f"Give these a place of their own, such as {elsewhere}",
            root="predict",
        )
        if is_same and not cfg.overwrite and _is_finished(folder, fingerprint):
            console.print(f"{folder} is finished already; overwrite=true predicts again.")
            return
        new = folder / "unfinished"
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        results: list[BreastResult] = []
        pictures: dict[str, str] = {}
        taken: set[str] = set()  # names of pictures
        with ProgressBar(console, "Predicting", len(images)) as bar:
            bar.update(0)
            done = 0
            for study in predict_studies(images, files, runs, settings):
                own = study_results(study, headers, ensemble, members, is_synthetic=is_synthetic)
                results += own
                if cfg.pictures:
                    pictures |= _draw(new, study, own, leading, notes, taken)
                done += len(study.images)
                bar.update(done)
        order = {name: number for number, name in enumerate(images["prediction_id"].unique())}
        results.sort(key=lambda result: order[result.prediction_id])
        failures |= {i.file: i.reason for r in results for i in r.images if i.reason is not None}
        _write(new, ensemble, results, pictures, failures, notes, fingerprint)
        write_record(new / "config.yaml", record)
        _replace(folder, new)
    print_results(make_console(), folder, ensemble.name, results, failures, notes)


def _is_finished(folder: Path, fingerprint: Fingerprint) -> bool:
    """Whether there are all tables and pictures of the same model and files."""
    if not (folder / _RECORD).is_file():
        return False
    record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    images = (image for breast in record["breasts"] for image in breast["images"])
    names = [*_TABLES, *(image["picture"] for image in images if image["picture"] is not None)]
    is_same = record.get("fingerprint") == fingerprint  # which older versions did not write
    return is_same and all((folder / name).is_file() for name in names)


def _replace(folder: Path, new: Path) -> None:
    """Put complete results in the place of earlier ones.

    `predictions.json` goes first and comes last: a mixture of both is not finished.
    """
    (folder / _RECORD).unlink(missing_ok=True)
    for picture in folder.glob("pictures/*.png"):
        if not (new / "pictures" / picture.name).is_file():
            picture.unlink()
    files = [file for file in new.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file.name == _RECORD):
        target = folder / file.relative_to(new)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
    shutil.rmtree(new)


def _ensemble(cfg: DictConfig) -> Ensemble:
    """Read an ensemble of folds' networks; the error says how to get one."""
    folder = Path(cfg.paths.models) / "ensembles"
    available = sorted(file.parent.name for file in folder.glob(f"*/{FILE_NAME}"))
    name = None if OmegaConf.is_missing(cfg, "name") else str(cfg.name)
    if name in available:
        ensemble = read_ensemble(folder / str(name) / FILE_NAME)
        if ensemble.networks == "all":
            raise InputError(
                f"name={ensemble.name}: its networks were trained on all patients, so nothing that "
                "they predict is out of fold, and there is neither a threshold for a single "
                "patient nor a calibration. submit decides a whole test set by them; here choose "
                "an ensemble of the folds' networks (networks=folds)."
            )
        return ensemble
    if available:
        problem = "Which model?" if name is None else f"There is no model {name} in {folder}."
        raise InputError(f"{problem} Choose one: name={' or name='.join(available)}.")
    raise InputError(
        f"There is no model in {folder}. Two ways to one:\n"
        "  a small one to try things out, of synthetic mammograms, in minutes:\n"
        "    make demo\n"
        "    python -m rsna_bcd.predict paths=demo name=demo inputs=...\n"
        "  one of real mammograms (README: The five commands):\n"
        "    python -m rsna_bcd.prepare crop=h1536\n"
        "    python -m rsna_bcd.train experiment=recommended trainer=gpu -m fold=0,1,2,3\n"
        "    python -m rsna_bcd.ensemble name=best members=[recommended]\n"
        "One that is elsewhere is found with paths.models=FOLDER, which has ensembles/ and runs/."
    )


def _settings(cfg: DictConfig, leading: Run) -> InferenceSettings:
    """How images are predicted; crops of `leading` are kept for the pictures."""
    return InferenceSettings(
        source="dicom",
        batch_size=cfg.batch_size,
        workers=usable_cores() if cfg.workers is None else cfg.workers,
        ahead=cfg.ahead,
        precision="float32",
        kept_crop=leading.crop,
    )


def _inputs(cfg: DictConfig) -> list[Path]:
    """The files and folders of `inputs`."""
    if OmegaConf.is_missing(cfg, "inputs") or not cfg.inputs:
        raise InputError("Name the mammograms: inputs=FOLDER, or 'inputs=[one.dcm,FOLDER]'.")
    inputs = [Path(cfg.inputs)] if isinstance(cfg.inputs, str) else [Path(i) for i in cfg.inputs]
    absent = [str(one) for one in inputs if not one.exists()]
    if absent:
        raise InputError(f"There is no file or folder {', '.join(absent)}. Check inputs=.")
    return inputs


def _find_mammograms(
    inputs: Sequence[Path], console: Console
) -> tuple[dict[str, Path], dict[str, Header], dict[str, str]]:
    """Find the mammograms among all files of the inputs, each file once.

    Returns:
        Their files and headers by name, and the reasons by name of other files.
    """
    found: dict[Path, Path] = {}
    unlistable: dict[str, str] = {}
    for one in inputs:
        names, reasons = ([""], {}) if one.is_file() else list_files(one)
        unlistable |= {str(one / name): reason for name, reason in reasons.items()}
        for file in (one / name for name in names):
            found.setdefault(file.resolve(), file)
    files = {str(file): file for file in found.values()}
    headers, reasons = read_headers(
        files,
        0,
        lambda results: track(
            results, "Reading headers", total=len(files), console=console, transient=True
        ),
    )
    headers = {name: headers[name] for name in files if name in headers}
    reasons |= (others := find_unusable(headers, files)) | unlistable
    headers = {name: header for name, header in headers.items() if name not in others}
    if headers:
        return {name: files[name] for name in headers}, headers, reasons
    if [*files] == [str(one) for one in inputs] and len(files) == 1:
        raise InputError(f"{next(iter(files))}: {next(iter(reasons.values()))}. {_EXPECTED}")
    where = ", ".join(map(str, inputs))
    if not files and not unlistable:
        raise InputError(f"There is no mammogram in {where}: no file at all.")
    counts = "\n".join(f"  {line}" for line in count_reasons(reasons))
    raise InputError(f"There is no mammogram in {where}. Found:\n{counts}\n{_EXPECTED}")


def _draw(
    folder: Path,
    study: Study,
    results: Sequence[BreastResult],
    runs: Sequence[Run],
    notes: Sequence[str],
    taken: set[str],
) -> dict[str, str]:
    """Write a picture of each readable image of a study; its path in `folder` by image file.

    `taken` has the names of pictures, and gets the new ones.
    """
    saliency, crops = mean_saliency(runs, study), study.prepared
    pictures: dict[str, str] = {}
    for breast in results:
        for image in breast.images:
            if image.file not in crops or breast.probability is None:
                continue
            name = as_file_name(f"{breast.prediction_id}_{image.view or 'view-unknown'}")
            pictures[image.file] = file = f"pictures/{distinct([name], taken)[0]}.png"
            pixels, own = crops[image.file].pixels, saliency.get(image.file)
            write_file(folder / file, as_png(study_picture(breast, image, pixels, own, notes)))
    return pictures


def _write(
    folder: Path,
    ensemble: Ensemble,
    results: Sequence[BreastResult],
    pictures: Mapping[str, str],
    failures: Mapping[str, str],
    notes: Sequence[str],
    fingerprint: Fingerprint,
) -> None:
    """Write the tables, then the same as JSON."""
    ordered = sorted(failures.items())
    write_csv(pd.DataFrame(ordered, columns=["file", "reason"]), folder / "failures.csv")
    write_csv(images_table(results, pictures), folder / "images.csv")
    write_csv(breasts_table(results), folder / "breasts.csv")
    found = {kind for result in results for kind in result.flags}
    breasts = [as_record(result) for result in results]
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
        "doubts": {kind: text for kind, text in QUALITY_FLAGS.items() if kind in found},
        "breasts": breasts,
        "failures": dict(ordered),
        "fingerprint": fingerprint,
    }
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_file(folder / _RECORD, text)
