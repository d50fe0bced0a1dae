"""`python -m rsna_bcd.index`: the headers of a folder of DICOM files as a table."""

from collections import Counter
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv
from rsna_bcd.imaging.quality import count_flags
from rsna_bcd.preparation.dicom_folder import find_copies, list_files, read_headers
from rsna_bcd.reporting.console import make_console
from rsna_bcd.tables.from_headers import distinct
from rsna_bcd.tables.study_results import QUALITY_FLAGS

_SHOWN = 5  # of each kind in the summary; the tables have all


def index(cfg: DictConfig) -> pd.DataFrame:
    """Read the headers of all files below `images`, and write `index.csv` and `failures.csv`.

    Returns:
        The index, one row per image, ordered by `file` (relative to `images`), with the columns of
        `read_header`.

    Raises:
        InputError: no such folder, or no DICOM image in it. Single files that cannot be read, and
            copies of an image, byte for byte, are in `failures.csv` with the reason.
    """
    root = Path(cfg.images)
    if not root.is_dir():
        raise InputError(f"images={root} is no folder. Point it at the DICOM files.")
    console = make_console(stderr=True)
    names, skipped = list_files(root)
    files = {name: root / name for name in names}
    headers, reasons = read_headers(
        files,
        cfg.workers,
        lambda results: track(results, "Reading headers", total=len(files), console=console),
    )
    reasons |= skipped
    if not headers:
        kinds = ", ".join(f"{n} {reason}" for reason, n in Counter(reasons.values()).most_common(3))
        raise InputError(f"There is no DICOM image in {root}: {kinds or 'it is empty'}.")
    for file, original in find_copies(headers, files).items():
        reasons[file] = f"a copy of {original}"
        del headers[file]
    # Two images with one identifier are both kept, the second as `<identifier>_2`.
    identifiers = distinct(str(header["image_id"] or file) for file, header in headers.items())
    for header, identifier in zip(headers.values(), identifiers, strict=True):
        if header["image_id"] is not None:
            header["image_id"] = identifier
    table = pd.DataFrame([{"file": file, **header} for file, header in headers.items()])
    failures = pd.DataFrame(sorted(reasons.items()), columns=["file", "reason"])
    folder = Path(cfg.index_dir)
    write_csv(failures, folder / "failures.csv")
    write_csv(table, folder / "index.csv")
    _summarise(console, folder, table, failures)
    return table


def _summarise(console: Console, folder: Path, table: pd.DataFrame, failures: pd.DataFrame) -> None:
    """Print counts of images, unknown values, quality flags and failures."""
    patients = table["patient_id"].nunique()
    lines = [f"{len(table)} images of {patients} patients. {folder / 'index.csv'}"]
    for column in ("patient_id", "laterality", "view"):
        unknown = table[table[column].isna()]
        if len(unknown):
            said = ""
            if column == "view":
                said = f" (the headers say {_counted(unknown['view_header'].fillna('nothing'))})"
            first = f", the first is {unknown.iloc[0].file}"
            lines.append(f"  {column} unknown for {len(unknown)}{said}{first}")
    for flag, count in count_flags(table["quality_flags"]).items():
        lines.append(f"  {flag}: {count} ({QUALITY_FLAGS[flag]})")
    if n := int(table["supplemental"].sum()):
        lines.append(f"  {n} supplemental: predict leaves them out of breasts with standard views")
    if len(failures):
        counts = _counted(failures["reason"])
        lines.append(f"{len(failures)} files left out: {counts}. See failures.csv")
    console.print(*lines, sep="\n")


def _counted(values: pd.Series) -> str:
    """The most frequent values with their counts."""
    counts = values.value_counts()
    more = f", {len(counts) - _SHOWN} more kinds" if len(counts) > _SHOWN else ""
    return ", ".join(f"{value}: {n}" for value, n in counts.head(_SHOWN).items()) + more
