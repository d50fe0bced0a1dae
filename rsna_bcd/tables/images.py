"""The table of images: columns, dtypes, identifiers and validation."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.files import is_file, read_bytes
from rsna_bcd.tables.delimited import MISSING, read_cells, read_own_csv

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
# Maps a dataset's own tables, every cell a string, to one table with our columns.
Rows = Callable[[Sequence[pd.DataFrame], Split], pd.DataFrame]

TRAIN_COLUMNS = (
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy",
    "invasive", "BIRADS", "implant", "density", "machine_id", "difficult_negative_case",
)  # fmt: skip
TEST_COLUMNS = (
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id",
    "prediction_id",
)  # fmt: skip
# Known only in hindsight: legitimate as targets, a leak as inputs (all cancers were biopsied).
LABEL_ONLY_COLUMNS = tuple(c for c in TRAIN_COLUMNS if c not in TEST_COLUMNS)

LATERALITIES = ("L", "R")
VIEWS = ("CC", "MLO", "AT", "LM", "ML", "LMO")

# Columns that the pipeline itself uses; a user's own table may lack the others.
_REQUIRED: dict[Split, tuple[str, ...]] = {
    "train": ("patient_id", "image_id", "laterality", "view", "cancer"),
    "test": ("patient_id", "image_id", "laterality", "view", "prediction_id"),
}
_STRINGS = ("patient_id", "image_id", "prediction_id", "file")
# Names of columns that hold identifiers, in tables of any origin: NA may be initials.
_IDENTIFIER = re.compile(r"(?i)(id|patient|subject|case|image|file|name|number)s?$")
_YEARS = {"": 1.0, "y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}
_SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}
EXCEL = (".xlsx", ".xlsm")
SAFE_NAME = r"[\w-][\w.-]*"  # identifiers become folder and file names
# Absolute, through a parent folder, or of another operating system.
LEAVES_THE_FOLDER = r"^/|\\|(?:^|/)\.\.(?:/|$)"
PATTERN = re.compile(r"[*?\[]")
SHOWN = 5  # values or rows named in a message


def table_files(csv: Path | str | Sequence[Path | str]) -> list[Path]:
    """The files of a split's table, one or several, as a configuration names them."""
    return [Path(csv)] if isinstance(csv, str | Path) else [Path(file) for file in csv]


def read_images(
    csv: Path | str | Sequence[Path | str], split: Split, rows: Rows | None = None
) -> pd.DataFrame:
    """Read and check a table of images, one row per image.

    Args:
        csv: `train.csv` or `test.csv`, or the several files that a dataset spreads it over; also
            Excel sheets (`.xlsx`, the first one of each).
        split: which of the two; it decides which columns must be there.
        rows: maps a dataset's own tables to our columns (`tables.datasets`); None
            where they have them already, several files then being parts of one table.

    Returns:
        The columns and rows in their order. `patient_id`, `image_id` and `prediction_id` are
        strings, `cancer` is 0 or 1, `prediction_id` of a training row is
        `<patient_id>_<laterality>`. `view` of a test row may be one that we do not know, or
        missing. `file`, where there is one, is a path within the folder of images, or a pattern.

    Raises:
        InputError: file absent or empty, a column missing, an identifier missing, repeated or unfit
            for a file name, an unknown laterality or (in training) view, a label other than 0 or 1,
            labels that contradict each other within a breast, a `prediction_id` shared by two
            breasts, or a `file` outside the folder of images or shared by two of them.
    """
    files = table_files(csv)
    name = " with ".join(map(str, files))
    tables = [read_table(file) for file in files]
    mapped = map_tables(tables, split, rows or join_rows, name)
    missing = [c for c in _REQUIRED[split] if c not in mapped.columns]
    if missing:
        raise InputError(
            f"{name} lacks the column(s) {', '.join(missing)}; it has {', '.join(mapped.columns)}. "
            "Add them, or map your own names with dataset=generic."
        )
    if mapped.empty:
        raise InputError(f"{name} has a header but no rows. Check that the file is complete.")
    frame = typed(mapped)
    if split == "train":
        frame = frame.assign(
            prediction_id=(frame["patient_id"] + "_" + frame["laterality"].astype("string"))
        )
    positions = mapped.index if keeps_lines(mapped, tables) else None
    for bad, fault, remedy in _faults(frame, split):
        if bad.any():
            raise InputError(f"{name}: {fault} in {_lines(frame, bad, positions)}. {remedy}")
    if "cancer" in frame:  # may be TRUE and FALSE, or 1.0
        frame = frame.assign(cancer=pd.to_numeric(frame["cancer"]).astype("int64"))
    return frame


def read_table(file: Path) -> pd.DataFrame:
    """Read a CSV or Excel file as strings.

    Text may be UTF-8, UTF-16 or Windows-1252, delimited by commas, semicolons, tabs or bars. The
    usual marks of a missing value (`nan`, `N/A`, `NULL`, ...) are missing; `NA` is a value in
    columns whose name says that they hold identifiers.

    Returns:
        The rows; the index is the line, as the header is line 1.

    Raises:
        InputError: the file is absent, empty or no table, or a row has more cells than the header.
    """
    if file.suffix.lower() in EXCEL and is_file(file):
        try:
            table = pd.read_excel(io.BytesIO(read_bytes(file)), dtype="string")
            return table.set_axis(range(2, len(table) + 2))
        except (ValueError, KeyError, BadZipFile) as error:
            raise InputError(
                f"{file} is not an Excel table: {error}. Save it as .xlsx or .csv."
            ) from error
    header, rows = read_cells(file)
    width = len(header)
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InputError(
            f"{file} has the column(s) {', '.join(repeated)} more than once. Rename or drop them."
        )
    long = [line for line, cells in rows if any(cells[width:])]
    if long:
        shown = ", ".join(map(str, long[:SHOWN]))
        raise InputError(
            f"{file} is not a CSV table: line(s) {shown} have more cells than the header's "
            f"{width}. Quote cells that contain the delimiter, or export the table again."
        )
    cells = [row[:width] + [""] * (width - len(row)) for _, row in rows]
    index = [line for line, _ in rows]
    table = pd.DataFrame(cells, index=index, columns=header, dtype="string")
    for name in header:
        absent = MISSING if _IDENTIFIER.search(name) else (*MISSING, "NA")
        table[name] = table[name].mask(table[name].isin(absent))
    return table


def map_tables(tables: Sequence[pd.DataFrame], split: Split, rows: Rows, name: str) -> pd.DataFrame:
    """Apply `rows`; a refusal names the files."""
    try:
        return rows(tables, split)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None  # stages show a cause in its place


def keeps_lines(mapped: pd.DataFrame, tables: Sequence[pd.DataFrame]) -> bool:
    """Whether the index of mapped rows, of which some may be dropped, is that of their file."""
    return len(tables) == 1 and bool(mapped.index.isin(tables[0].index).all())


def join_rows(tables: Sequence[pd.DataFrame], split: Split) -> pd.DataFrame:
    """Join tables that have our columns; case and punctuation of their names are ignored."""
    return pd.concat([with_our_names(table) for table in tables], ignore_index=len(tables) > 1)


def with_our_names(table: pd.DataFrame) -> pd.DataFrame:
    """Rename columns such as `PatientID` or `BI-RADS` to ours, where they leave no choice."""
    ours = {_letters(name): name for name in (*TRAIN_COLUMNS, *TEST_COLUMNS, "file")}
    candidates: dict[str, list[str]] = {}
    for column in map(str, table.columns):
        name = ours.get(_letters(column))
        if name is not None and name not in table:
            candidates.setdefault(name, []).append(column)
    return table.rename(columns={c[0]: name for name, c in candidates.items() if len(c) == 1})


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def typed(mapped: pd.DataFrame) -> pd.DataFrame:
    """Give the columns the types that pandas reads from a table of ours, as the prepared one is.

    Spellings with one meaning are unified: identifiers that a spreadsheet took for numbers
    (`12.0`), `left`, lower-case views, ages such as `50,0`, `90+` or `050Y`.
    """
    unified = mapped.copy()
    for column in (c for c in _STRINGS if c in unified):
        known = unified[column].dropna().astype("string")
        if len(known) and known.str.fullmatch(r"\d+\.0").all():
            unified[column] = unified[column].astype("string").str.removesuffix(".0")
    if "laterality" in unified:
        text = unified["laterality"].astype("string")
        unified["laterality"] = text.str.lower().map(_SIDES).fillna(text)
    if "view" in unified:
        text = unified["view"].astype("string").str.strip()
        unified["view"] = text.where(~text.str.upper().isin(VIEWS), text.str.upper())
    if "age" in unified:
        unified["age"] = unified["age"].map(_age_in_years, na_action="ignore")
    return read_own_csv(unified.to_csv(index=False), _STRINGS)


def _age_in_years(age: object) -> object:
    """An age as a number of years; other values stay as they are."""
    match = re.fullmatch(
        r"[>≥]?=?\s*(\d{1,3}(?:[.,]\d+)?)\s*\+?\s*(?:([ymwd])|years?|yrs?)?",
        str(age).strip().lower(),
    )
    if match is None:
        return age
    years = float(match[1].replace(",", ".")) * _YEARS[match[2] or ""]
    return int(years) if years.is_integer() else round(years, 2)


def _faults(frame: pd.DataFrame, split: Split) -> Iterator[tuple[pd.Series, str, str]]:
    """The affected rows of each kind of fault, which may be none, the fault and its remedy."""
    for column in ("patient_id", "image_id"):
        yield frame[column].isna(), f"{column} is missing", "Fill it in or drop the rows."
        unsafe = ~frame[column].str.fullmatch(SAFE_NAME)
        yield unsafe, f"{column} is unfit for a file name", "Use letters, digits, '_', '-', '.'."
    bad = ~frame["laterality"].isin(LATERALITIES)
    yield bad, f"unknown laterality {_quoted(frame['laterality'][bad])}", "It must be L or R."
    if split == "train":  # a test set may have unknown views
        bad = ~frame["view"].isin(VIEWS)
        remedy = f"Known are {', '.join(VIEWS)}; rename or drop the rows."
        yield bad, f"unknown view {_quoted(frame['view'][bad])}", remedy
    bad = frame["image_id"].duplicated(keep=False)
    yield bad, "image_id occurs more than once", "Keep one row per image."
    if "age" in frame:
        bad = frame["age"].notna() & pd.to_numeric(frame["age"], errors="coerce").isna()
        remedy = "Write years, or leave the cell empty where the age is unknown."
        yield bad, f"age is no number but {_quoted(frame['age'][bad])}", remedy
    if "file" in frame:
        file = frame["file"]
        yield file.isna(), "file is missing", "Fill it in or drop the rows."
        remedy = "Write it relative to that folder, with '/' and without '..'."
        outside = file.str.contains(LEAVES_THE_FOLDER)
        yield outside, "file leads out of the folder of images", remedy
        bad = file.duplicated(keep=False) & ~file.str.contains(PATTERN)  # resolved later
        yield bad, "file occurs more than once", "Each image has a file of its own."
    breast = frame.groupby(["patient_id", "laterality"], sort=False)
    if "cancer" in frame:
        remedy = "Fill it in, or drop them: dataset=generic dataset.rows.unlabelled=drop."
        yield frame["cancer"].isna(), "cancer is missing", remedy
        # One `unknown` makes all of a column text.
        bad = ~pd.to_numeric(frame["cancer"], errors="coerce").isin([0, 1])
        fault = f"cancer is neither 0 nor 1 but {_quoted(frame['cancer'][bad])}"
        yield bad, fault, "Correct the labels."
        bad = breast["cancer"].transform("nunique") > 1
        remedy = "The label belongs to the breast: make them equal."
        yield bad, "images of one breast have different labels", remedy
    several = breast["prediction_id"].transform("nunique") > 1
    owners = frame["patient_id"] + "_" + frame["laterality"].astype("string")
    shared = owners.groupby(frame["prediction_id"]).transform("nunique") > 1
    bad = several | shared | frame["prediction_id"].isna()
    remedy = "Give each patient and laterality one id of its own."
    yield bad, "prediction_id does not stand for exactly one breast", remedy


def _lines(frame: pd.DataFrame, bad: pd.Series, positions: pd.Index | None) -> str:
    """Name the affected rows, NA included, by line (the header is line 1) or else by image.

    `positions` are those of the rows in their file, 0-based; None where several were joined.
    """
    rows = bad.fillna(True).to_numpy(dtype=bool).nonzero()[0]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    images = frame["image_id"].iloc[rows[:SHOWN]].fillna("(missing)")
    if positions is None:
        return f"image(s) {', '.join(images)}{more}"
    lines = ", ".join(str(positions[i]) for i in rows[:SHOWN])
    return f"line(s) {lines}{more} (first: image {images.iloc[0]})"


def _quoted(values: pd.Series) -> str:
    """The first few distinct values, quoted."""
    distinct = values.astype("string").drop_duplicates().head(SHOWN)
    return ", ".join(repr(None if pd.isna(value) else value) for value in distinct)


def some(values: pd.Series | pd.Index) -> str:
    """The first few distinct values, for a message."""
    distinct = list(pd.Series(values).astype("string").fillna("(missing)").drop_duplicates())
    more = f" and {len(distinct) - SHOWN} more" if len(distinct) > SHOWN else ""
    return ", ".join(distinct[:SHOWN]) + more


def breast_sites(images: pd.DataFrame) -> pd.Series:
    """The site of each breast of a table of images.

    Args:
        images: one row per image: `prediction_id`, and `site_id` where it is known.

    Returns:
        Strings indexed by `prediction_id`, in order of first appearance; `""` where no image of the
        breast has a site, or its images have several. Numbers are written as integers, also where
        a missing one beside them has turned their column into floats: `1`, not `1.0`.
    """
    if "site_id" not in images:
        return pd.Series("", index=images["prediction_id"].drop_duplicates(), dtype="string")
    site = images["site_id"].astype("string").str.replace(r"\.0+$", "", regex=True)
    by_breast = site.groupby(images["prediction_id"], sort=False)
    return by_breast.first().where(by_breast.nunique() == 1, "")
