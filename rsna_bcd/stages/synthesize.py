"""`python -m rsna_bcd.synthesize`: a competition made here, in the layout of Kaggle's folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from rsna_bcd._records import check_same_config, select_settings, write_record
from rsna_bcd.errors import InputError
from rsna_bcd.phantom.competition import Size, plan, tables
from rsna_bcd.phantom.examination import LESION_COLUMNS, Appearance, Examination, examine
from rsna_bcd.preparation import engine
from rsna_bcd.processes import usable_cores


def synthesize(cfg: DictConfig) -> None:
    """Make the competition that `cfg` asks for, or say that it is there already.

    Raises:
        InputError: settings that make no competition, or a folder that holds other data or a
            competition made with other settings.
    """
    data = Path(cfg.paths.data)
    console = Console(stderr=True, markup=False)
    size, appearance = Size(**cfg.size), Appearance(**cfg.appearance)
    record_file = data / "synthesize.yaml"
    record = select_settings(cfg, "seed", "size", "appearance")
    if not record_file.exists() and (data / "train.csv").exists():
        raise InputError(f"{data} holds data that was not made here. Choose another paths.data=.")
    same = check_same_config(record_file, record, overwrite=cfg.overwrite, root="synthesize")
    if same and not cfg.overwrite and (data / "lesions.csv").exists():
        console.print(f"{data} is there already, made with these settings.", highlight=False)
        return
    if record_file.exists():
        _clear(data)
    write_record(record_file, record)

    images = plan(size, cfg.seed)
    lesions = _examine_all(images, data, appearance, cfg)
    for name, table in tables(images).items():
        table.to_csv(data / name, index=False)
    # Last, and in the order of the plan: its presence marks the competition as complete.
    lesions.to_csv(data / "lesions.csv", index=False)
    console.print(_summary(images, lesions, data), highlight=False, soft_wrap=True)


def _examine_all(
    images: pd.DataFrame, data: Path, appearance: Appearance, cfg: DictConfig
) -> pd.DataFrame:
    """Make the files of all patients and return the table of lesions."""
    patients = images.groupby(["split", "patient_id"], sort=False)

    def tasks() -> Iterator[tuple[str, Examination]]:
        for (split, patient), rows in patients:
            yield str(patient), Examination(rows, data / f"{split}_images", appearance, cfg.seed)

    workers = usable_cores() if cfg.workers is None else cfg.workers
    lesions: list[dict[str, Any]] = []
    results = engine.run(examine, tasks(), workers=workers)
    for result in track(
        results, "patients", patients.ngroups, console=Console(stderr=True, markup=False)
    ):
        if result.value is None:
            raise InputError(f"Patient {result.key}: {result.reason}. Mend it and run again.")
        lesions += result.value
    order = dict(zip(images["image_id"], range(len(images)), strict=True))
    lesions.sort(key=lambda lesion: order[lesion["image_id"]])
    return pd.DataFrame(lesions, columns=list(LESION_COLUMNS))


def _summary(images: pd.DataFrame, lesions: pd.DataFrame, data: Path) -> str:
    """Say what was made."""
    breasts = images.drop_duplicates("prediction_id")
    parts = [
        f"{split}: {rows['patient_id'].nunique()} patients, {len(rows)} breasts, "
        f"{rows['cancer'].sum()} with cancer"
        for split, rows in breasts.groupby("split", sort=False)
    ]
    return f"{len(images)} images ({'; '.join(parts)}), {len(lesions)} lesions drawn. {data}"


def _clear(data: Path) -> None:
    """Delete a competition that was made here."""
    (data / "lesions.csv").unlink(missing_ok=True)  # first: no longer complete
    for split in ("train", "test"):
        shutil.rmtree(data / f"{split}_images", ignore_errors=True)
