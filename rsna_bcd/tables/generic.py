"""A table of one's own, or an index of files and tables of labels, mapped to our columns.

`map_generic` is the `rows` of `conf/dataset/generic.yaml`, as those of `datasets` are of theirs.
"""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.tables.datasets import columns_of, some, with_breast_ids, without
from rsna_bcd.tables.images import (
    TEST_COLUMNS,
    TRAIN_COLUMNS,
    VIEWS,
    Split,
    with_our_names,
)

_TAKEN = ("path", "fold", "label", "scale", "flipped", "rotated")  # columns that later stages add


def map_generic(
    tables: Sequence[pd.DataFrame],
    split: Split,
    *,
    columns: Mapping[str, str | None],
    values: Mapping[str, Mapping[object, object] | None],
    join: Sequence[str],
    unlabelled: str,
) -> pd.DataFrame:
    """Map a table of one's own, or an index of files and a table of labels.

    What counts as cancer is what `values.cancer` says. Labels that contradict each other within a
    breast are refused, not resolved: only you know which is right.

    Args:
        tables: the first has one row an image; what the others know is joined to it.
        split: which of ours. A test needs no `cancer`.
        columns: our names -> those of the tables. Null: the column has our name, or there is none.
            Columns that are neither named here nor called like one of ours are left out. One that
            is named is taken from the first table that has it, and from no other.
        values: our names -> {value of the table: our value}, whatever their case, `1.0` being `1`.
            Values that are neither in it nor ours are refused; views of a test stay as they are.
        join: our names of the columns by which further tables are joined; each has them by the name
            in `columns` or by ours. Where tables share another column, they must agree.
        unlabelled: what to do with training images without a label: `refuse` or `drop`.

    Raises:
        InputError: a column of `columns`, `values` or `join` is absent, a value is unknown, a
            further table has several rows for one key, tables contradict each other, or no image
            has a label.
    """
    if unlabelled not in ("refuse", "drop"):
        raise InputError(f"dataset.rows.unlabelled={unlabelled}: choose refuse or drop.")
    named = {ours: theirs for ours, theirs in columns.items() if theirs is not None}
    for ours, theirs in named.items():
        if ours in _TAKEN:
            raise InputError(f"dataset.rows.columns.{ours}: later stages add {', '.join(_TAKEN)}.")
        absent = not any(theirs in table for table in tables)
        if absent and not (split == "test" and ours == "cancer"):
            raise InputError(
                f"dataset.rows.columns.{ours}={theirs}: there is no such column, but "
                f"{' | '.join(columns_of(table) for table in tables)}."
            )
    renamed = _renamed(tables, named, join)
    for ours, theirs_to_ours in values.items():
        if theirs_to_ours is not None:
            _translate(renamed, ours, theirs_to_ours, split)
    rows = renamed[0]
    for further in renamed[1:]:
        rows = _joined(rows, further, join)
    if split == "train" and "cancer" in rows:
        unknown = rows["cancer"].isna()
        if unknown.all() and len(rows):
            raise InputError(_no_label(renamed, join))
        if unlabelled == "drop":
            rows = without(rows, unknown)
    if split == "test" and "prediction_id" not in rows and {"patient_id", "laterality"} <= {*rows}:
        rows = with_breast_ids(rows)
    return rows


def _renamed(
    tables: Sequence[pd.DataFrame], named: Mapping[str, str], join: Sequence[str]
) -> list[pd.DataFrame]:
    """The columns of ours in each table: those named, and those that are called like ours anyway.

    One that is named is in the first table that has it alone, unless tables are joined by it.
    """
    ours = {*TRAIN_COLUMNS, *TEST_COLUMNS, "file", *named}
    left = dict(named)
    renamed = []
    for table in tables:
        mapped = {o: table[theirs] for o, theirs in left.items() if theirs in table}
        left = {o: theirs for o, theirs in left.items() if o not in mapped or o in join}
        ours_by_name = with_our_names(table)
        same = {
            c: ours_by_name[c]
            for c in ours_by_name
            if c in ours and c not in mapped and (c not in named or c in join)
        }
        renamed.append(pd.DataFrame({**same, **mapped}, index=table.index))
    return renamed


def _translate(
    tables: Sequence[pd.DataFrame],
    column: str,
    theirs_to_ours: Mapping[object, object],
    split: Split,
) -> None:
    """Replace values of a column, in place, wherever it occurs."""
    known = {_spelling(theirs): str(ours) for theirs, ours in theirs_to_ours.items()}
    ours = {*known.values(), *(VIEWS if column == "view" else ())}
    if all(known.get(_spelling(value), value) == value for value in ours):
        known |= {_spelling(value): value for value in ours}
    # Else the table uses our values with another meaning, {1: 0, 2: 1}: of those not named, such as
    # a 0, nobody knows what they mean.
    having = [table for table in tables if column in table]
    if not having and (split == "train" or column != "cancer"):
        raise InputError(
            f"dataset.rows.values.{column}: there is no column {column}; name yours with "
            f"dataset.rows.columns.{column}=..."
        )
    for table in having:
        spelled = table[column].map(_spelling, na_action="ignore")
        unknown = spelled.notna() & ~spelled.isin(known.keys())
        if unknown.any() and not (split == "test" and column == "view"):
            raise InputError(
                f"dataset.rows.values.{column} does not say what "
                f"{some(table.loc[unknown, column])} is in our terms; it knows "
                f"{', '.join(known)}. Add it (and quote yes and no: YAML takes them for true and "
                "false)."
            )
        table[column] = spelled.map(known).where(~unknown, table[column])


def _spelling(value: object) -> str:
    """A value as it is compared: in whatever case; a whole number without the `.0`.

    Programs write 1 as 1.0 once a value of the column is missing.
    """
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", str(value).strip().casefold())


def _joined(rows: pd.DataFrame, further: pd.DataFrame, join: Sequence[str]) -> pd.DataFrame:
    """Add the columns of a further table; what both have must agree where both know it."""
    absent = [c for c in join if c not in rows or c not in further]
    if absent or not join:
        raise InputError(
            f"dataset.rows.join={list(join)}: {', '.join(absent) or 'no column'} is not in all of "
            f"the tables, which have {columns_of(rows)} and {columns_of(further)}."
        )
    further = further.drop_duplicates()
    twice = further.duplicated(list(join))
    if twice.any():
        key = ", ".join(str(further.loc[twice, c].iloc[0]) for c in join)
        raise InputError(
            f"{int(twice.sum())} key(s) of dataset.rows.join={list(join)} have several rows that "
            f"differ, {key} among them. Keep one row each."
        )
    both = [str(c) for c in further if c in rows and c not in join]
    theirs = "of the further table "  # no column of ours begins so
    further = further.rename(columns={c: theirs + c for c in both})
    merged = rows.merge(further, on=list(join), how="left")
    for column in both:
        mine, other = merged[column], merged.pop(theirs + column)
        differ = mine.notna() & other.notna() & (mine.map(_spelling) != other.map(_spelling))
        if differ.any():
            first = merged[differ].iloc[0]
            image = first["image_id"] if "image_id" in rows else _keys(merged[differ], join)
            raise InputError(
                f"both tables have {column}, and they differ for {int(differ.sum())} image(s), the "
                f"first is {image} ({first[column]}, {other[differ].iloc[0]}). Say which one is "
                f"meant with dataset.rows.columns.{column}=... (of two with one name the first "
                "table's is taken), or drop one of them."
            )
        merged[column] = mine.fillna(other)
    return merged


def _no_label(tables: Sequence[pd.DataFrame], join: Sequence[str]) -> str:
    """Why no image has a label."""
    if len(tables) == 1:
        return "no image has a label: the column cancer is empty. Fill it in, or name another one."
    return (
        f"no image has a label: dataset.rows.join={list(join)} matched nothing. The tables begin "
        f"with {' and '.join(_keys(table, join) for table in tables)}. Write these alike, or join "
        "by other columns."
    )


def _keys(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """The keys of the first row of a table, for a message."""
    first = table.iloc[0] if len(table) else None
    return " ".join(f"{c}={'(none)' if first is None else first[c]}" for c in columns)
