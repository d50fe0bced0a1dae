"""`python -m rsna_bcd.prepare`: images and CSV to crops, one table per split, manifest, folds."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from rsna_bcd._records import check_same_config, select_settings, write_record
from rsna_bcd.errors import InputError
from rsna_bcd.files import is_file, write_file
from rsna_bcd.imaging.crops import Crop, read_crop
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.crop import CropSettings, CropTask, Png, make_crop
from rsna_bcd.preparation.folder import PreparedFolder
from rsna_bcd.preparation.source_files import expected_file, find_files
from rsna_bcd.processes import usable_cores
from rsna_bcd.reporting.console import ProgressBar, make_console
from rsna_bcd.reporting.contact_sheet import SampledImage, contact_sheet, sample_crops
from rsna_bcd.tables.delimited import absent_table
from rsna_bcd.tables.folds import check_folds, fold_summary, save_folds
from rsna_bcd.tables.images import SPLITS, Split, read_images, table_files

_SHOWN = 5  # failed files named in the summary; the manifest has all


def prepare(cfg: DictConfig) -> None:
    """Make the crops of the chosen splits, and the folds.

    Raises:
        InputError: the tables are invalid, files are absent, the folder was made with other
            settings, or more files failed than `max_failed_fraction` allows (the crops of the
            others are kept).
    """
    settings: CropSettings = instantiate(cfg.crop)
    settings.check_algorithm()
    images = {split: _read(cfg, split) for split in SPLITS if split in cfg.splits}
    roots = {split: Path(cfg.dataset[f"{split}_images"]) for split in images}
    files = {split: _find_files(cfg, split, roots[split], images[split]) for split in images}
    folder = PreparedFolder(Path(cfg.prepared_dir))
    console = make_console(stderr=True)
    with folder.held():
        _start_or_resume(cfg, folder)
        if "train" in images:
            _make_folds(cfg, images["train"], console)
        progress = {
            split: _Done(folder.finished(split, table, files[split], roots[split]), {})
            for split, table in images.items()
        }
        already = {split: len(done.finished) for split, done in progress.items()}
        shared = (settings, cfg.source, tuple(cfg.decoders), Png(**cfg.png))
        pending = {
            (split, image_id): CropTask(
                file, crops[image_id], *shared, str(file.relative_to(roots[split]))
            )
            for split, crops in ((s, folder.crop_files(s, images[s])) for s in images)
            for image_id, file in files[split].items()
            if image_id not in progress[split].finished
        }
        _make_crops(cfg, folder, pending, progress, console)
        folder.write_tables(
            {s: (images[s], done.finished, done.failures) for s, done in progress.items()}
        )
        for split, done in progress.items():
            title = f"{cfg.dataset.name} · {settings.name} · {split}"
            _draw_contact_sheet(folder, split, images[split], done, title)
            _summarise(console, folder, split, len(images[split]), done, already[split])
        folder.overwriting_file.unlink(missing_ok=True)
    for split, done in progress.items():
        _check_failures(split, done, cfg.max_failed_fraction, folder)


@dataclass(frozen=True)
class _Done:
    """The images of a split that are done.

    Records are in the journal, not here: memory does not grow with the work done.

    Attributes:
        finished: whether a breast was found, by `image_id` of the crops that were made.
        failures: reasons by `image_id`.
    """

    finished: dict[str, bool]
    failures: dict[str, str]


def _start_or_resume(cfg: DictConfig, folder: PreparedFolder) -> None:
    """Check that the folder was begun with the same settings; clear it if it is to be overwritten.

    Paths are not compared: others may lead to the same data, and replaced files are noticed singly.
    """
    rows = select_settings(cfg.dataset, "name", "rows")
    record = {"dataset": rows, **select_settings(cfg, "crop", "source", "png", "decoders")}
    same = check_same_config(
        folder.config_file,
        record,
        overwrite=cfg.overwrite,
        remedy="Choose another crop.name=... (or dataset.name=...)",
        root="prepare",
    )
    interrupted = same and folder.overwriting_file.exists()
    if cfg.overwrite and not interrupted:
        folder.clear()
        folder.overwriting_file.touch()
    write_record(folder.config_file, record)


def _read(cfg: DictConfig, split: Split) -> pd.DataFrame:
    """The split's table."""
    csv = cfg.dataset[f"{split}_csv"]
    others = ",".join(s for s in cfg.splits if s != split and cfg.dataset[f"{s}_csv"] is not None)
    if csv is None:
        raise InputError(
            f"dataset={cfg.dataset.name} has no {split} split. Leave it out with "
            f"splits=[{others or 'train'}]."
        )
    absent = [file for file in table_files(csv) if not is_file(file)]
    if absent and others:
        other_remedy = f", or leave the split out with splits=[{others}]"
        raise InputError(absent_table(absent[0], other_remedy))
    return read_images(csv, split, instantiate(cfg.dataset.rows))


def _find_files(cfg: DictConfig, split: Split, root: Path, images: pd.DataFrame) -> dict[str, Path]:
    """The file of each image that is on disk, by `image_id`.

    Raises:
        InputError: some are absent and not `allow_missing`, or all are, or they are where the crops
            go.
    """
    if root.resolve().is_relative_to(Path(cfg.prepared_dir).resolve()):
        raise InputError(
            f"The images in {root} are within {cfg.prepared_dir}, where crops are made and "
            "deleted. Choose another paths.output=..."
        )
    unlistable: dict[str, str] = {}
    found = find_files(root, images, cfg.source, unlistable)
    absent = images.loc[~images["image_id"].isin(found.keys())]
    if len(absent) and (not cfg.allow_missing or not found):
        first = absent.iloc[0]
        remedy = "Check paths.data= and source=, or download them"
        if unlistable:
            reason = next(iter(unlistable.values()))
            remedy = f"The folders of {len(unlistable)} cannot be listed ({reason}). {remedy}"
        if found:
            remedy += "; allow_missing=true leaves them out"
        raise InputError(
            f"{len(absent)} of {len(images)} files of the {split} split are absent, the first is "
            f"{expected_file(root, first, cfg.source)}. {remedy}."
        )
    return found


def _make_folds(cfg: DictConfig, images: pd.DataFrame, console: Console) -> None:
    """Assign every patient of the table to a fold, whether or not its files are here."""
    folds = instantiate(cfg.folds.assign)(images)
    check_folds(images, folds)
    save_folds(Path(cfg.folds_csv), folds, overwrite=cfg.overwrite_folds)
    console.print(f"Folds in {cfg.folds_csv}:")
    console.print(fold_summary(images, folds).to_string(index=False))


def _make_crops(
    cfg: DictConfig,
    folder: PreparedFolder,
    pending: dict[tuple[Split, str], CropTask],
    progress: dict[Split, _Done],
    console: Console,
) -> None:
    """Make crops, and note each in the journal and in `progress`."""
    if not pending:
        return
    workers = min(usable_cores() if cfg.workers is None else cfg.workers, len(pending))
    results = engine.run(make_crop, pending.items(), workers=workers, **cfg.cluster)
    with closing(results), ProgressBar(console, "Preparing", len(pending)) as bar:
        failed = 0
        for done, result in enumerate(results, 1):
            split, image_id = result.key
            if result.value is None:
                progress[split].failures[image_id] = result.reason or ""
                # The crop of an earlier version of the file:
                pending[split, image_id].crop_file.unlink(missing_ok=True)
                failed += 1
            else:
                folder.note(split, image_id, result.value, result.seconds)
                progress[split].finished[image_id] = bool(result.value["breast_found"])
            bar.update(done, remark=f"{failed} unreadable" if failed else "")


def _draw_contact_sheet(
    folder: PreparedFolder, split: Split, images: pd.DataFrame, done: _Done, title: str
) -> None:
    """Draw a sample of the crops by machine."""

    def read(image: SampledImage) -> Crop:
        path = folder.crop_path(split, image.patient_id, image.image_id)
        return read_crop(folder.folder / path)

    sample = sample_crops(images, done.finished, done.failures)
    sheet = contact_sheet(sample, read, title)
    write_file(folder.folder / f"{split}_contact_sheet.png", sheet)


def _summarise(
    console: Console, folder: PreparedFolder, split: Split, images: int, done: _Done, already: int
) -> None:
    """Print counts, the first failures and the quality flags."""
    made, failures = len(done.finished), done.failures
    whole = sum(not found for found in done.finished.values())
    before = "all there already" if already == made else f"{already} there already"
    parts = [f"{made} crops ({before})" if already else f"{made} crops"]
    if whole:
        parts.append(f"{whole} without a visible breast, taken whole")
    if failures:
        parts.append(f"{len(failures)} unreadable")
    if images > made + len(failures):
        parts.append(f"{images - made - len(failures)} missing on disk")
    console.print(f"{split}: {', '.join(parts)}. {folder.folder}")
    for key, reason in list(failures.items())[:_SHOWN]:
        console.print(f"  {key}: {reason}")
    if len(failures) > _SHOWN:
        console.print(f"  and {len(failures) - _SHOWN} more: see {folder.folder / 'manifest.csv'}")
    flags = "; ".join(f"{flag} {n:,}" for flag, n in folder.flag_counts(split).items())
    if flags:
        console.print(f"  quality flags: {flags}")
    console.print(f"  to look at: {folder.folder / f'{split}_contact_sheet.png'}")


def _check_failures(split: Split, done: _Done, allowed: float, folder: PreparedFolder) -> None:
    """Raise if more files could not be read than is allowed."""
    failed, present = len(done.failures), len(done.finished) + len(done.failures)
    if failed > allowed * present:
        raise InputError(
            f"{failed} of {present} files of the {split} split could not be read, more than "
            f"max_failed_fraction={allowed} allows; {folder.folder / 'manifest.csv'} has the "
            "reasons. Replace the files and run again (finished crops are kept, unless with "
            "overwrite=true), or raise the limit."
        )
