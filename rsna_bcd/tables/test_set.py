"""Read the tables of a test set: every expected breast is kept, every fault becomes a failure.

`read_images` refuses a table with an invalid row, so that it can be corrected. Kaggle reruns the
notebook on tables that cannot be inspected: here an invalid row becomes a row of `failures.csv`.
"""

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.files import is_file
from rsna_bcd.tables.delimited import read_cells
from rsna_bcd.tables.images import (
    EXCEL,
    LATERALITIES,
    LEAVES_THE_FOLDER,
    PATTERN,
    SAFE_NAME,
    VIEWS,
    Rows,
    join_rows,
    keeps_lines,
    map_tables,
    read_table,
    table_files,
    typed,
)
from rsna_bcd.tables.metadata import standard_age

FailureKind = Literal[
    # Rows and cells of the tables
    "missing column",
    "damaged row",
    "unfit name",
    "repeated row",
    "two breasts",
    "unknown breast",
    "not asked for",
    "missing prediction_id",
    "missing patient_id",
    "unknown laterality",
    "contradiction",
    "unknown view",
    "missing view",
    "missing age",
    "missing machine",
    "unlisted",
    "unfit sample",
    # Outside the training domain
    "new machine",
    "many images",
    # Files and their predictions
    "absent",
    "empty",
    "flat",
    "unreadable",
    "nothing readable",
    # Networks and the time budget
    "no value",
    "out of time",
]
_Fault = tuple[FailureKind, str]

_DERIVABLE = ("patient_id", "laterality", "prediction_id")  # each follows from the two others
_KIND_OF_MISSING_CELL: dict[str, FailureKind] = {
    "patient_id": "missing patient_id",
    "laterality": "unknown laterality",
    "prediction_id": "missing prediction_id",
    "view": "unknown view",
}
_STANDARD_VIEWS = ("CC", "MLO")
_SHOWN = 60  # characters of a damaged line


@dataclass(frozen=True)
class Failure:
    """A row of `failures.csv`.

    Attributes:
        prediction_id: None where the whole table is concerned, or the breast is unknown.
        patient_id: likewise.
        image_id: None where the whole breast is concerned.
        kind: one of the kinds above.
        reason: the fault and its consequence, in a sentence.
    """

    prediction_id: str | None
    patient_id: str | None
    image_id: str | None
    kind: FailureKind
    reason: str


FAILURE_COLUMNS = tuple(field.name for field in fields(Failure))


@dataclass(frozen=True)
class TestTables:
    """The images and breasts to predict, and the faults of their tables.

    Attributes:
        images: one row per image, as from `read_images`; no image twice.
        breasts: `prediction_id, patient_id, laterality` of the expected breasts, in the order of
            the sample submission. Some may have no image. An unknown laterality is "".
        failures: in the order of the table.
    """

    images: pd.DataFrame
    breasts: pd.DataFrame
    failures: tuple[Failure, ...]


def failures_table(failures: Iterable[Failure]) -> pd.DataFrame:
    """Make the table of `failures.csv`: `FAILURE_COLUMNS` as strings, `""` for None."""
    frame = pd.DataFrame(map(astuple, failures), columns=list(FAILURE_COLUMNS), dtype="string")
    return frame.fillna("")


def read_test_tables(
    csv: Path | str | Sequence[Path | str], sample_csv: Path, rows: Rows | None = None
) -> TestTables:
    """Read the tables of a test set; a fault costs at most its row.

    An image belongs to the breast of its `prediction_id` if that is expected, else to the breast of
    its patient and laterality. Rows without an expected breast are dropped, and so are repetitions
    of an image. Unknown views and ages stay: networks have an input for the unknown.

    Args:
        csv: as of `read_images`.
        sample_csv: the sample submission, which names the expected breasts. Without one, the table
            of images names them.
        rows: as of `read_images`.

    Raises:
        InputError: nothing can be predicted: a table is absent or empty, a column is missing that
            cannot be derived, or no row is left.
    """
    files = table_files(csv)
    name = " with ".join(map(str, files))
    failures: list[Failure] = []
    tables = [
        read_table(file) if file.suffix.lower() in EXCEL else _read_tolerant(file, failures)
        for file in files
    ]
    mapped = map_tables(tables, "test", rows or join_rows, name)
    frame, added = _with_missing_columns(typed(mapped), name, failures)
    expected = _read_expected(sample_csv, failures)
    cells = pd.DataFrame(
        {c: _text(frame[c]) for c in ("image_id", *_DERIVABLE, "view", "file") if c in frame}
    )
    side = cells["laterality"].str.upper()
    cells = cells.assign(view=cells["view"].str.upper(), side=side.where(side.isin(LATERALITIES)))
    in_file = keeps_lines(mapped, tables)
    cells["place"] = [f"line {i}" if in_file else "another row" for i in mapped.index]
    breasts, matched = match_breasts(cells, expected)
    cells["breast"] = matched
    ignored = {_KIND_OF_MISSING_CELL[column] for column in added}
    kept = _check_rows(cells, frame, breasts, expected is not None, ignored, failures)
    if not kept:
        whose = "" if expected is None else f" of a breast of {sample_csv}"
        raise InputError(f"{name} has no row with an image{whose}. Download both again.")
    images = frame.iloc[kept].reset_index(drop=True)
    images = images.drop(columns=[c for c in ("fold", "label") if c in images])  # of training
    breast = cells["breast"].iloc[kept].reset_index(drop=True).astype("string")
    view = cells["view"].iloc[kept].reset_index(drop=True).astype("str")  # missing is not NA
    images = images.assign(prediction_id=breast, view=view)
    for column in ("patient_id", "laterality"):
        images[column] = breast.map(breasts[column]).astype("string")
    failures += list(_incomplete_breasts(images, breasts, failures))
    return TestTables(images, breasts.reset_index(), tuple(failures))


def match_breasts(
    cells: pd.DataFrame, expected: Sequence[str] | None
) -> tuple[pd.DataFrame, pd.Series]:
    """Match rows to breasts: by `prediction_id`, else by patient and laterality.

    Args:
        cells: `prediction_id, patient_id, side` (L or R) as strings, NA where missing or invalid.
        expected: the ids of the sample submission; None: those of the table.

    Returns:
        The breasts, `patient_id` and `laterality` by `prediction_id`, in the order of `expected`;
        and the id of each row, NA where it has no breast.
    """
    named = cells["prediction_id"]
    matched = named if expected is None else named.where(named.isin(expected))
    ids = list(matched.dropna().unique()) if expected is None else list(expected)
    breasts = _describe_breasts(ids, cells, matched)
    key = cells["patient_id"] + "_" + cells["side"]
    by_key = breasts.index.to_series().set_axis(breasts["patient_id"] + "_" + breasts["laterality"])
    by_key = by_key[~by_key.index.duplicated(keep=False)]
    matched = matched.fillna(key.map(by_key).astype("string"))
    if expected is None:
        matched = matched.fillna(key)
        breasts = _describe_breasts(list(matched.dropna().unique()), cells, matched)
    return breasts, matched


def _describe_breasts(ids: list[str], cells: pd.DataFrame, matched: pd.Series) -> pd.DataFrame:
    """Find patient and laterality of each breast.

    They are those in an id of the competition's form, `<patient_id>_<laterality>`, if that patient
    occurs in the table or the breast has no row; else the most frequent ones of its rows.
    """
    index = pd.Index(pd.array(ids, dtype="string"), name="prediction_id")
    frequent = {}
    for column in ("patient_id", "side"):
        counts = cells.groupby([matched, cells[column]], sort=False).size()
        counts = counts.sort_values(ascending=False, kind="stable").reset_index(level=1)[column]
        frequent[column] = counts[~counts.index.duplicated()].reindex(index).astype("string")
    own = index.to_series()
    form = own.str.extract(r"^(.+)_([LR])$")
    is_form = form[0].isin(cells["patient_id"].dropna()) | frequent["patient_id"].isna()
    patient = form[0].where(is_form).fillna(frequent["patient_id"]).fillna(own)
    laterality = form[1].where(is_form).fillna(frequent["side"]).fillna("")
    return pd.DataFrame({"patient_id": patient, "laterality": laterality}, dtype="string")


def _check_rows(
    cells: pd.DataFrame,
    frame: pd.DataFrame,
    breasts: pd.DataFrame,
    has_sample: bool,
    ignored: Container[str],
    failures: list[Failure],
) -> list[int]:
    """Append the faults of each row; return the positions of the rows to predict."""
    kept: list[int] = []
    first: dict[tuple[str, str], Any] = {}  # the row where an image, or its file, counts
    no_age = standard_age(frame["age"]).isna() if "age" in frame else pd.Series(False, frame.index)
    machine = frame.get("machine_id", pd.Series("", frame.index))
    patients, sides = breasts["patient_id"].to_dict(), breasts["laterality"].to_dict()
    records = cells.astype(object).where(cells.notna(), None).itertuples(index=False)
    for i, row in enumerate(cast(Iterable[Any], records)):
        if row.breast is None:
            fault = _unmatched(row, has_sample)
            failures.append(Failure(row.prediction_id, row.patient_id, row.image_id, *fault))
            continue
        patient, side = patients[row.breast], sides[row.breast]
        file = getattr(row, "file", None)
        names = [("image_id", row.image_id)]
        if file is not None and not PATTERN.search(file):  # a pattern is resolved later
            names.append(("file", file))
        unfit = _unfit_name(patient, row, "file" in cells) or _repetition(row, names, first)
        if unfit is None:
            kept.append(i)
            first |= dict.fromkeys(names, row)
            faults = _cell_faults(row, patient, side)
            if no_age.iloc[i]:
                age = frame["age"].iloc[i]
                faults.append(("missing age", "none given" if pd.isna(age) else f"{age} is no age"))
            if pd.isna(machine.iloc[i]):
                faults.append(("missing machine", "none given"))
        else:
            faults = [unfit]
        failures += [
            Failure(row.breast, patient, row.image_id, *fault)
            for fault in faults
            if fault[0] not in ignored
        ]
    return kept


def _unmatched(row: Any, has_sample: bool) -> _Fault:
    named = row.prediction_id
    if named is None and has_sample and row.patient_id is not None and row.side is not None:
        named = f"{row.patient_id} {row.side}"
    if named is not None:
        return "not asked for", f"{named} is not in the sample; left out"
    return "unknown breast", "neither prediction_id nor patient and laterality; left out"


def _unfit_name(patient: str, row: Any, has_file: bool) -> _Fault | None:
    """The fault of an image that cannot be looked for."""
    if row.image_id is None:
        return "unfit name", "no image_id; left out"
    for column, value in (("patient_id", patient), ("image_id", row.image_id)):
        if not re.fullmatch(SAFE_NAME, value):
            return "unfit name", f"{column} {value} is unfit for a file name; left out"
    if has_file and row.file is None:
        return "unfit name", "no file; left out"
    if has_file and re.search(LEAVES_THE_FOLDER, row.file):
        return "unfit name", f"file {row.file} leads out of the folder of images; left out"
    return None


def _repetition(row: Any, names: list[tuple[str, str]], first: dict[Any, Any]) -> _Fault | None:
    for earlier in (first[name] for name in names if name in first):
        if earlier.breast == row.breast:
            return "repeated row", f"{row.place} repeats {earlier.place}; left out"
        where = f"in {earlier.place} it belongs to {earlier.breast}, where it counts"
        return "two breasts", f"{where}; left out here"
    return None


def _cell_faults(row: Any, patient: str, side: str) -> list[_Fault]:
    """Faults of identifiers, laterality and view that cost no image."""
    faults: list[_Fault] = []
    if row.prediction_id is None:
        faults.append(("missing prediction_id", f"none given; it is {row.breast}"))
    elif row.prediction_id != row.breast:
        reason = f"prediction_id {row.prediction_id} is not in the sample; it is {row.breast}"
        faults.append(("contradiction", reason))
    if row.patient_id is None:
        faults.append(("missing patient_id", f"none given; it is {patient}"))
    elif row.patient_id != patient:
        reason = f"patient_id {row.patient_id}, but {patient} by its prediction_id"
        faults.append(("contradiction", reason))
    if row.side is None:
        given = f"laterality {row.laterality}" if row.laterality else "none given"
        faults.append(("unknown laterality", f"{given}; it is {side or 'unknown'}"))
    elif row.side != side:
        reason = f"laterality {row.side}, but {side} by its prediction_id"
        faults.append(("contradiction", reason))
    if row.view not in VIEWS:
        given = "no view given" if row.view is None else f"view {row.view} is unknown"
        faults.append(("unknown view", f"{given}; known are {', '.join(VIEWS)}"))
    return faults


def _incomplete_breasts(
    images: pd.DataFrame, breasts: pd.DataFrame, failures: Sequence[Failure]
) -> Iterator[Failure]:
    """Breasts without a row, or without a standard view that others have."""
    usual = [view for view in _STANDARD_VIEWS if view in set(images["view"])]
    views = images.groupby("prediction_id")["view"].agg(list).to_dict()
    # The views that these lack may be those of the rows that were left out.
    reduced = {f.prediction_id for f in failures if f.kind in ("unfit name", "two breasts")}
    for breast, patient in breasts["patient_id"].items():
        if breast in reduced:
            continue
        own = views.get(breast, [])
        lacks = [view for view in usual if view not in own]
        if not own:
            yield Failure(str(breast), patient, None, "unlisted", "no row in the table of images")
        elif lacks and all(view in VIEWS for view in own):
            reason = f"no {' and no '.join(lacks)}"
            yield Failure(str(breast), patient, None, "missing view", reason)


def _read_tolerant(file: Path, failures: list[Failure]) -> pd.DataFrame:
    """Read a CSV as strings; a fault below its header costs at most its line.

    Lines that are too long are dropped (unless the surplus is empty), short ones end in missing
    cells. Bytes that are not UTF-8 become the replacement character.

    Returns:
        The table, indexed by line (the header is line 1). Of columns with one name the first.
    """
    header, lines = read_cells(file, errors="replace")
    table: dict[int, list[str | None]] = {}
    for line, cells in lines:
        if any(cells[len(header) :]):
            shown = ",".join(cells)[:_SHOWN]
            reason = f"line {line} has {len(cells)} cells instead of {len(header)}: {shown}"
            failures.append(Failure(None, None, None, "damaged row", f"{reason}; left out"))
        else:
            missing = [None] * (len(header) - len(cells))
            table[line] = [*(cell or None for cell in cells[: len(header)]), *missing]
    frame = pd.DataFrame.from_dict(table, orient="index", columns=header, dtype="string")
    return frame.loc[:, ~frame.columns.duplicated()]


def _with_missing_columns(
    frame: pd.DataFrame, name: str, failures: list[Failure]
) -> tuple[pd.DataFrame, list[str]]:
    """Add the columns that can be derived or may be unknown; return their names too."""
    added = [c for c in (*_DERIVABLE, "view") if c not in frame]
    derived = [c for c in added if c in _DERIVABLE]
    derivable = len(derived) <= 1 or derived == ["patient_id", "laterality"]
    if "image_id" not in frame or not derivable:
        lacks = ([] if "image_id" in frame else ["image_id"]) + ([] if derivable else derived)
        raise InputError(
            f"{name} lacks the column(s) {', '.join(lacks)}; it has "
            f"{', '.join(map(str, frame.columns))}. Add them, or map your own names with "
            "dataset=generic."
        )
    source = " and ".join(c for c in _DERIVABLE if c not in added)
    for column in added:
        how = "no view is known" if column == "view" else f"taken from {source}"
        reason = f"{name} has no column {column}: {how}"
        failures.append(Failure(None, None, None, "missing column", reason))
    empty = {column: pd.Series(pd.NA, frame.index, dtype="string") for column in added}
    return frame.assign(**empty), added


def _read_expected(csv: Path, failures: list[Failure]) -> list[str] | None:
    """Read the breasts of the sample submission, in its order; None where it names none."""
    if not is_file(csv):
        return None
    try:
        table = _read_tolerant(csv, [])
    except InputError:
        table = pd.DataFrame()
    if "prediction_id" in table and table["prediction_id"].notna().any():
        return [str(breast) for breast in table["prediction_id"].dropna().unique()]
    reason = f"{csv} names no prediction_id; the breasts of the table of images are predicted"
    failures.append(Failure(None, None, None, "unfit sample", reason))
    return None


def _text(column: pd.Series) -> pd.Series:
    """Cells as strings without blanks around them, empty ones missing."""
    text = column.astype("string").str.strip()
    return text.mask(text == "")
