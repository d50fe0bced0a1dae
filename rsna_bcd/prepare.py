"""`python -m rsna_bcd.prepare`: images and CSV to crops, one table per split, manifest, folds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rsna_bcd._stage import record_of, settle, stage, write_record
from rsna_bcd.errors import InputError
from rsna_bcd.imaging.picture import SUFFIXES
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.crop import CropSettings
from rsna_bcd.preparation.files import find_files
from rsna_bcd.preparation.manifest import CropTask, Outcome, PreparedFolder, make_crop
from rsna_bcd.tables.folds import check_folds, fold_summary, save_folds
from rsna_bcd.tables.images import Split, read_images

_SHOWN = 5  # failed files named in the summary; the manifest has all


def prepare(cfg: DictConfig) -> None:
    """Make the crops of the splits asked for, and the folds.

    Raises:
        InputError: the tables are unfit, files are absent, the folder was made with other
            settings, or more files failed than `max_failed_fraction` allows (what succeeded is
            kept).
    """
    settings: CropSettings = instantiate(cfg.crop)
    images = {split: _read(cfg, split) for split in _splits(cfg)}
    files = {split: _find_files(cfg, split, images[split]) for split in images}
    folder = PreparedFolder(Path(cfg.prepared_dir))
    # Not the paths: the same data may be reached by others, and replaced files are noticed singly.
    rows = record_of(cfg.dataset, "name", "rows")
    record = {"dataset": rows, **record_of(cfg, "crop", "source")}
    settle(folder.config_file, record, overwrite=cfg.overwrite)
    if cfg.overwrite:
        folder.clear()
    write_record(folder.config_file, record)
    console = Console(stderr=True)
    if "train" in images:
        _make_folds(cfg, images["train"], console)
    outcomes = {split: folder.finished(split, images[split], files[split]) for split in images}
    already = {split: len(done) for split, done in outcomes.items()}
    tasks = [
        ((split, image_id), CropTask(files[split][image_id], crop_file, settings, cfg.source))
        for split, table in images.items()
        for image_id, crop_file in folder.crop_files(split, table).items()
        if image_id in files[split] and image_id not in outcomes[split]
    ]
    for split, image_id, outcome in _work(tasks, folder, cfg.workers, console):
        outcomes[split][image_id] = outcome
    for split, table in images.items():
        folder.write_tables(split, table, outcomes[split])
        _summarise(console, folder, split, len(table), outcomes[split], already[split])
    for split in images:
        _check_failures(split, outcomes[split], cfg.max_failed_fraction, folder)


def _splits(cfg: DictConfig) -> list[Split]:
    """The splits asked for."""
    known: tuple[Split, ...] = ("train", "test")
    if not cfg.splits or not set(cfg.splits) <= set(known):
        raise InputError(f"splits={list(cfg.splits)}: choose one or both of train, test.")
    if cfg.source not in ("dicom", "image"):
        raise InputError(f"source={cfg.source}: choose dicom or image.")
    return [split for split in known if split in cfg.splits]


def _read(cfg: DictConfig, split: Split) -> pd.DataFrame:
    """The split's table."""
    csv = Path(cfg.dataset[f"{split}_csv"])
    if not csv.is_file() and len(cfg.splits) > 1:
        others = ",".join(s for s in cfg.splits if s != split)
        raise InputError(
            f"{csv} does not exist. Point paths.data= at the competition folder, or leave the "
            f"split out with splits=[{others}]."
        )
    return read_images(csv, split, instantiate(cfg.dataset.rows))


def _find_files(cfg: DictConfig, split: Split, images: pd.DataFrame) -> dict[str, Path]:
    """The file of each image that is on disk, by `image_id`.

    Raises:
        InputError: some are absent and not `allow_missing`, or all are.
    """
    root = Path(cfg.dataset[f"{split}_images"])
    found = find_files(root, images, cfg.source)
    absent = images.loc[~images["image_id"].isin(found.keys())]
    if len(absent) and (not cfg.allow_missing or not found):
        first = absent.iloc[0]
        kinds = ".dcm" if cfg.source == "dicom" else ", ".join(SUFFIXES)
        remedy = "Check paths.data= and source=, or download them"
        if found:
            remedy += "; allow_missing=true goes on without them"
        raise InputError(
            f"{len(absent)} of {len(images)} files of the {split} split are absent, the first is "
            f"{root / first.patient_id / first.image_id} ({kinds}). {remedy}."
        )
    return found


def _make_folds(cfg: DictConfig, images: pd.DataFrame, console: Console) -> None:
    """Assign every patient of the table to a fold, whether or not its files are here."""
    folds = instantiate(cfg.folds.assign)(images)
    check_folds(images, folds)
    save_folds(Path(cfg.folds_csv), folds, overwrite=cfg.overwrite_folds)
    console.print(f"Folds in {cfg.folds_csv}:", highlight=False, soft_wrap=True)
    console.print(fold_summary(images, folds).to_string(index=False), highlight=False)


def _work(
    tasks: list[tuple[tuple[Split, str], CropTask]],
    folder: PreparedFolder,
    workers: int | None,
    console: Console,
) -> Iterator[tuple[Split, str, Outcome]]:
    """Do the tasks, note each result as it comes, and show how far it is."""
    if not tasks:
        return
    workers = engine.usable_cores() if workers is None else workers
    columns: list[Any] = [
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    ]  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("Preparing", total=len(tasks))
        for result in engine.run(make_crop, tasks, workers=min(workers, len(tasks))):
            split, image_id = result.key
            outcome = Outcome(result.value, result.reason, result.seconds)
            if outcome.record is not None:
                folder.note(split, image_id, outcome)
            progress.advance(bar)
            yield split, image_id, outcome


def _summarise(
    console: Console,
    folder: PreparedFolder,
    split: Split,
    images: int,
    outcomes: dict[str, Outcome],
    already: int,
) -> None:
    """Say what came out, and name what did not."""
    failed = {key: outcome.reason for key, outcome in outcomes.items() if outcome.record is None}
    made = len(outcomes) - len(failed)
    whole = sum(not o.record["breast_found"] for o in outcomes.values() if o.record is not None)
    before = "all there already" if already == made else f"{already} there already"
    parts = [f"{made} crops ({before})" if already else f"{made} crops"]
    if whole:
        parts.append(f"{whole} without a visible breast, taken whole")
    if failed:
        parts.append(f"{len(failed)} unreadable")
    if images > len(outcomes):
        parts.append(f"{images - len(outcomes)} missing on disk")
    console.print(f"{split}: {', '.join(parts)}. {folder.folder}", highlight=False, soft_wrap=True)
    for key, reason in list(failed.items())[:_SHOWN]:
        console.print(f"  {key}: {reason}", highlight=False, soft_wrap=True)
    if len(failed) > _SHOWN:
        console.print(f"  and {len(failed) - _SHOWN} more: see {folder.folder / 'manifest.csv'}")


def _check_failures(
    split: Split, outcomes: dict[str, Outcome], allowed: float, folder: PreparedFolder
) -> None:
    """Raise if too many files could not be read."""
    failed = sum(outcome.record is None for outcome in outcomes.values())
    if failed > allowed * len(outcomes):
        raise InputError(
            f"{failed} of {len(outcomes)} files of the {split} split could not be read, more than "
            f"max_failed_fraction={allowed} allows; {folder.folder / 'manifest.csv'} has the "
            "reasons. Replace the files and run again (what is done is kept), or raise the limit."
        )


@stage("prepare")
def main(cfg: DictConfig) -> None:
    """Run the stage."""
    prepare(cfg)


if __name__ == "__main__":
    main()
