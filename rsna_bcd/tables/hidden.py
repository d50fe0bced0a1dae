"""The tables of a hidden test: each breast that is asked for has an answer, whatever the rows hold.

`read_images` refuses a table with a bad row, so that it is mended. Nobody can mend a table that is
swapped in where nobody looks: here a bad row is a case of `failures.csv`, and the others count.
"""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.files import is_file
from rsna_bcd.tables.attribution import Attribution, Breast, Fault, Named
from rsna_bcd.tables.datasets import map_rsna
from rsna_bcd.tables.failures import Failure, Kind
from rsna_bcd.tables.images import (
    EXCEL,
    LEAVES_THE_FOLDER,
    PATTERN,
    SAFE_NAME,
    VIEWS,
    Rows,
    read_table,
    table_files,
    typed,
)
from rsna_bcd.tables.lenient import read_lenient
from rsna_bcd.tables.metadata import standard_age

_NOT_OF_A_TEST = ("fold", "label")  # of a breast, where they are; a test has none
_DERIVED = ("patient_id", "laterality", "prediction_id")  # each from the two others
_OF_COLUMN: dict[str, Kind] = {  # what its missing cells are
    "patient_id": "missing patient_id",
    "laterality": "unknown laterality",
    "prediction_id": "missing prediction_id",
    "view": "unknown view",
}
_STANDARD_VIEWS = ("CC", "MLO")
_KNOWN_VIEWS = ", ".join(VIEWS)


@dataclass(frozen=True)
class HiddenTest:
    """What is to be predicted, and what was amiss in the tables.

    Attributes:
        images: One row an image, as from `read_images`, and no image twice.
        breasts: `prediction_id, patient_id, laterality`: the breasts to be answered for, those of
            the sample submission in its order. There may be some without an image.
        failures: The rows and cells that were not as they should be, in the order of the table.
    """

    images: pd.DataFrame
    breasts: pd.DataFrame
    failures: tuple[Failure, ...]


def read_hidden(
    csv: Path | str | Sequence[Path | str], sample_csv: Path, rows: Rows | None = None
) -> HiddenTest:
    """Read the tables of a test set, and make the best of every row.

    `prediction_id` says which breast an image belongs to; where it is missing, or not in the
    sample, patient and laterality do. Rows that belong to no breast of the sample are left out, and
    of an image that occurs twice all rows but the first. Views and ages that are none stay: the
    networks have a place for the unknown.

    Args:
        csv: As of `read_images`.
        sample_csv: The sample submission. Data that is no competition's has none: its own table
            says which breasts there are.
        rows: As of `read_images`.

    Raises:
        InputError: There is no answer to be had: a table is absent or empty, a column is missing
            that nothing else tells, or no row is left.
    """
    files = table_files(csv)
    name = " with ".join(map(str, files))
    tables, failures = [], []
    for file in files:
        if file.suffix.lower() in EXCEL:
            tables.append(read_table(file))
        else:
            table, damaged = read_lenient(file)
            tables.append(table)
            failures += damaged
    try:
        mapped = (rows or map_rsna)(tables, "test")
    except InputError as error:
        raise InputError(f"{name}: {error}") from None  # stages show a cause in its place
    in_file = len(files) == 1 and mapped.index.isin(tables[0].index).all()
    places = [f"line {i}" if in_file else "another row" for i in mapped.index]
    frame, missing = _complete(typed(mapped), name)
    failures += [_of_table("missing column", reason) for reason in missing.values()]
    wanted, unfit = _wanted(sample_csv)
    failures += [_of_table("unfit sample", reason) for reason in unfit]
    reading = _Reading(frame, places, wanted, missing)
    if not reading.kept:
        whose = "" if wanted is None else f" of a breast of {sample_csv}"
        raise InputError(f"{name} has no row with an image{whose}. Download both anew.")
    breasts = pd.DataFrame(reading.breasts, columns=list(Breast._fields), dtype="string")
    return HiddenTest(
        reading.images(frame), breasts, (*failures, *reading.failures, *reading.of_breasts())
    )


def _of_table(kind: Kind, reason: str) -> Failure:
    return Failure(None, None, None, kind, reason)


def _complete(frame: pd.DataFrame, name: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Add columns that others tell, or that may be unknown; say of each where it is taken from."""
    missing = [c for c in (*_DERIVED, "view") if c not in frame]
    derived = [c for c in missing if c in _DERIVED]
    told = len(derived) <= 1 or derived == ["patient_id", "laterality"]
    if "image_id" not in frame or not told:
        lacks = [*([] if "image_id" in frame else ["image_id"]), *([] if told else derived)]
        raise InputError(
            f"{name} lacks the column(s) {', '.join(lacks)}; it has "
            f"{', '.join(map(str, frame.columns))}. Add them, or map your own names with "
            "dataset=generic."
        )
    for column in missing:
        frame[column] = pd.Series([None] * len(frame), dtype="string")
    others = " and ".join(c for c in _DERIVED if c not in missing)
    return frame, {
        c: f"{name} has no column {c}: "
        + ("no view is known" if c == "view" else f"taken from {others}")
        for c in missing
    }


def _wanted(csv: Path) -> tuple[list[str] | None, list[str]]:
    """The breasts of the sample submission, in its order; None, and why, where it tells none."""
    if not is_file(csv):
        return None, []
    try:
        table, _ = read_lenient(csv)
    except InputError:
        table = pd.DataFrame()
    if "prediction_id" in table and table["prediction_id"].notna().any():
        return list(map(str, table["prediction_id"].dropna().unique())), []
    return None, [f"{csv} names no prediction_id; the breasts of the table of images are answered"]


class _Reading:
    """The rows of a table, one after the other.

    Args:
        frame: The table.
        places: Where each row is, for reasons.
        wanted: The breasts that are asked for.
        missing: Columns that are not the table's own: nothing is amiss in their cells.

    Attributes:
        kept: Positions of the rows that are images to predict, and the breast of each.
        breasts: To be answered for.
        failures: What was amiss in the rows, in their order.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        places: Sequence[str],
        wanted: list[str] | None,
        missing: Container[str],
    ) -> None:
        self.kept: dict[int, Breast] = {}
        self.failures: list[Failure] = []
        self._places = places
        self._views = [(_text(view) or "").upper() or None for view in frame["view"]]
        self._first: dict[str, int] = {}  # by image, or its file: the row where it counts
        self._lost: set[str] = set()  # breasts of rows that are left out
        named = [
            Named(*map(_text, cells))
            for cells in zip(*(frame[column] for column in Named._fields), strict=True)
        ]
        files = list(map(_text, frame["file"])) if "file" in frame else None
        attribution = Attribution(named, wanted)
        self.breasts = list(attribution.breasts.values())
        of_cells = _faults_of_cells(frame, self._views)
        quiet = {kind for column, kind in _OF_COLUMN.items() if column in missing}
        for row, image_id in enumerate(map(_text, frame["image_id"])):
            breast, faults = attribution.of(named[row])
            if breast is not None:
                names = [image_id] if files is None else [image_id, files[row]]
                unfit = self._keep(row, breast, names)
                faults = faults + of_cells.get(row, []) if unfit is None else [unfit]
            ids = named[row][:2] if breast is None else breast[:2]
            self.failures += [Failure(*ids, image_id, *f) for f in faults if f[0] not in quiet]

    def images(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of images to predict, each with its breast."""
        own = pd.DataFrame(self.kept.values(), columns=list(Breast._fields), dtype="string")
        views = pd.Series([self._views[row] for row in self.kept])
        kept = frame.iloc[list(self.kept)].reset_index(drop=True)
        kept = kept.drop(columns=[column for column in _NOT_OF_A_TEST if column in kept])
        return kept.assign(**{str(column): own[column] for column in own}, view=views)

    def of_breasts(self) -> Iterator[Failure]:
        """Breasts without a row, or without an image of a standard view that others have."""
        views: dict[Breast, list[str | None]] = {breast: [] for breast in self.breasts}
        for row, breast in self.kept.items():
            views[breast].append(self._views[row])
        usual = [view for view in _STANDARD_VIEWS if view in self._views]
        for breast, own in views.items():
            lacks = [view for view in usual if view not in own]
            if breast.prediction_id in self._lost:
                continue  # what it lacks may be there
            if not own:
                yield Failure(*breast[:2], None, "unlisted", "no row in the table of images")
            elif lacks and all(view in VIEWS for view in own):
                yield Failure(*breast[:2], None, "missing view", f"no {' and no '.join(lacks)}")

    def _keep(self, row: int, breast: Breast, names: Sequence[str | None]) -> Fault | None:
        """Keep a row as an image of its breast, or say why it is left out."""
        fault = _unfit(breast.patient_id, names) or self._seen_before(row, breast, names)
        if fault is None:
            self.kept[row] = breast
            # A pattern is no file: what it finds is seen later.
            own = [n for n in names[1:] if n and not PATTERN.search(n)]
            self._first |= dict.fromkeys([str(names[0]), *(f"file {n}" for n in own)], row)
        elif fault[0] != "repeated row":
            self._lost.add(breast.prediction_id)
        return fault

    def _seen_before(self, row: int, breast: Breast, names: Sequence[str | None]) -> Fault | None:
        for name in (names[0], *(f"file {n}" for n in names[1:])):
            first = self._first.get(str(name))
            if first is None:
                continue
            there, where = self._places[first], self.kept[first]
            if where == breast:
                return "repeated row", f"{self._places[row]} repeats {there}; left out"
            reason = (
                f"in {there} it is one of {where.prediction_id}, where it counts; left out here"
            )
            return "two breasts", reason
        return None


def _unfit(patient_id: str, names: Sequence[str | None]) -> Fault | None:
    """Why an image of these names, `image_id` and maybe `file`, cannot be looked for."""
    image_id, *files = names
    if image_id is None:
        return "unfit name", "no image_id; left out"
    for column, value in (("patient_id", patient_id), ("image_id", image_id)):
        if not re.fullmatch(SAFE_NAME, value):
            return "unfit name", f"{column} {value} is unfit for a file name; left out"
    for file in files:
        if file is None:
            return "unfit name", "no file; left out"
        if re.search(LEAVES_THE_FOLDER, file):
            return "unfit name", f"file {file} leads out of the folder of images; left out"
    return None


def _faults_of_cells(frame: pd.DataFrame, views: Sequence[str | None]) -> dict[int, list[Fault]]:
    """What is amiss with views, ages and machines, by row."""
    faults: dict[int, list[Fault]] = {}
    for row, view in enumerate(views):
        if view not in VIEWS:
            reason = "no view given" if view is None else f"view {view} is none of {_KNOWN_VIEWS}"
            faults.setdefault(row, []).append(("unknown view", reason))
    if "age" in frame:
        for row in np.flatnonzero(standard_age(frame["age"]).isna()).tolist():
            age = _text(frame["age"].iloc[row])
            reason = "none given" if age is None else f"{age} is no age"
            faults.setdefault(row, []).append(("missing age", reason))
    if "machine_id" in frame:
        for row in np.flatnonzero(frame["machine_id"].isna()).tolist():
            faults.setdefault(row, []).append(("missing machine", "none given"))
    return faults


def _text(value: object) -> str | None:
    """A cell as text, None where it is missing or blank."""
    return None if pd.isna(value) else str(value).strip() or None  # type: ignore[call-overload]
