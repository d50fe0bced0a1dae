"""`python -m rsna_bcd.synthesize`: a synthetic competition, in the layout of Kaggle's folder."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from rsna_bcd._records import check_same_config, select_settings, write_record
from rsna_bcd.errors import InputError
from rsna_bcd.files import list_names
from rsna_bcd.phantom.competition import competition_tables, sample_images
from rsna_bcd.phantom.examination import LESION_COLUMNS, Appearance, Examination, examine
from rsna_bcd.preparation import engine
from rsna_bcd.processes import usable_cores
from rsna_bcd.reporting.console import make_console


def synthesize(cfg: DictConfig) -> None:
    """Make the synthetic competition of `cfg`, unless it exists already.

    `synthesize.yaml` is written first: its presence marks the folder as made here. `lesions.csv` is
    written last: its presence marks the competition as complete.

    Raises:
        InputError: a folder that holds other files, or a competition made with other settings.
    """
    data = Path(cfg.paths.data)
    console = make_console(stderr=True)
    record_file = data / "synthesize.yaml"
    record = select_settings(cfg, "seed", "size", "appearance")
    # Hidden files do no harm, nor does an unfinished record, which has this name and more.
    others = [n for n in list_names(data) if not n.startswith((".", record_file.name))]
    if others and not record_file.exists():
        raise InputError(
            f"{data} holds {min(others)}, which was not made here: there is no {record_file.name}. "
            "Choose another paths.data=."
        )
    same = check_same_config(record_file, record, overwrite=cfg.overwrite, root="synthesize")
    if same and not cfg.overwrite and (data / "lesions.csv").exists():
        console.print(f"{data} exists already, made with these settings.")
        return
    images = sample_images(**cfg.size, seed=cfg.seed)
    if record_file.exists():
        (data / "lesions.csv").unlink(missing_ok=True)  # first: no longer complete
        _delete_images(data, OmegaConf.merge(record, OmegaConf.load(record_file)))
    write_record(record_file, record)

    lesions = _examine_all(images, data, cfg, console)
    for name, table in competition_tables(images).items():
        table.to_csv(data / name, index=False)
    lesions.to_csv(data / "lesions.csv", index=False)
    breasts = images.drop_duplicates("prediction_id")
    parts = [
        f"{split}: {rows['patient_id'].nunique()} patients, {len(rows)} breasts, "
        f"{rows['cancer'].sum()} with cancer"
        for split, rows in breasts.groupby("split", sort=False)
    ]
    console.print(
        f"{len(images)} images ({'; '.join(parts)}), {len(lesions)} lesions drawn. {data}"
    )


def _delete_images(data: Path, record: Any) -> None:
    """Delete the images of the competition that `record` describes, and no other files."""
    images = sample_images(**record.size, seed=record.seed)
    for (split, patient), rows in images.groupby(["split", "patient_id"]):
        folder = data / f"{split}_images" / str(patient)
        unfinished = list(folder.glob(".????????/*.dcm"))  # `write_dicom` was killed
        for file in [*unfinished, *(folder / f"{image_id}.dcm" for image_id in rows["image_id"])]:
            file.unlink(missing_ok=True)
        for emptied in (*{file.parent for file in unfinished}, folder, folder.parent):
            with suppress(OSError):  # absent, or it holds other files
                emptied.rmdir()


def _examine_all(
    images: pd.DataFrame, data: Path, cfg: DictConfig, console: Console
) -> pd.DataFrame:
    """Write all DICOM files; returns the table of lesions, in the order of the images."""
    patients = images.groupby(["split", "patient_id"], sort=False)
    appearance = Appearance(**cfg.appearance)
    tasks = (
        (patient, Examination(rows, data / f"{split}_images", appearance, cfg.seed))
        for (split, patient), rows in patients
    )
    workers = usable_cores() if cfg.workers is None else cfg.workers
    lesions: list[dict[str, Any]] = []
    results = engine.run(examine, tasks, workers=workers)
    for result in track(results, "patients", patients.ngroups, console=console):
        if result.value is None:
            raise InputError(f"Patient {result.key}: {result.reason}. Correct it and run again.")
        lesions += result.value
    order = {image_id: number for number, image_id in enumerate(images["image_id"])}
    lesions.sort(key=lambda lesion: order[lesion["image_id"]])
    return pd.DataFrame(lesions, columns=list(LESION_COLUMNS))
