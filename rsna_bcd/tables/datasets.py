"""Map the tables of other datasets to our columns, files and labels.

Each function is the `rows` of a YAML in `conf/dataset/`: it takes the tables that the YAML names,
every cell a string, and returns one row per image with our columns, which `read_images` checks. All
images of a breast get its label.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.tables.images import (
    TEST_COLUMNS,
    TRAIN_COLUMNS,
    VIEWS,
    Split,
    join_rows,
    some,
    with_our_names,
)

_log = logging.getLogger(__name__)
_TAKEN = ("path", "fold", "label", "scale", "flipped", "rotated")  # columns that later stages add


def map_rsna(tables: Sequence[pd.DataFrame], split: Split) -> pd.DataFrame:
    """Map the competition's own CSV to our columns: they are the same."""
    return join_rows(tables, split)


def map_vindr(
    tables: Sequence[pd.DataFrame],
    split: Split,
    *,
    positive: Sequence[int],
    splits: Mapping[str, Sequence[str]],
    file: str,
) -> pd.DataFrame:
    """Map VinDr-Mammo (Nguyen et al., 2023, doi:10.1038/s41597-023-02100-7).

    There is no pathology: a breast counts as cancer by its BI-RADS category, the highest of its
    images. An examination is a patient.

    Args:
        tables: `breast-level_annotations.csv`, and `metadata.csv` for `age` and `machine_id`.
        split: ours.
        positive: BI-RADS categories, 1 to 5, that count as cancer.
        splits: for `train` and `test`, the published splits (`training`, `test`).
        file: path of an image, with `{study_id}` and `{image_id}`.

    Returns:
        Also `BIRADS` (0 to 6), `density` (A to D), and `series_id`, `height`, `width` as published.
    """
    frame = _table_with(tables, "breast_birads", "study_id", "image_id", "laterality",
                       "view_position", "breast_density", "split")  # fmt: skip
    birads = frame["breast_birads"].str.extract(r"^BI-RADS ([0-6])$", expand=False)
    _refuse_unknown(frame, "breast_birads", birads.notna(), "BI-RADS 0 to 6")
    rows = pd.DataFrame(
        {
            "patient_id": frame["study_id"],
            "image_id": frame["image_id"],
            "laterality": frame["laterality"],
            "view": frame["view_position"],
            "cancer": birads.astype(int).isin(positive),
            "BIRADS": birads,
            "density": frame["breast_density"].str.removeprefix("DENSITY "),
            "file": _filled(file, frame[["study_id", "image_id"]]),
        }
    )
    rows = rows.join(frame[[c for c in ("series_id", "height", "width") if c in frame]])
    if len(tables) > 1:
        metadata = _table_with(tables, "SOP Instance UID", "Patient's Age")
        metadata = metadata.drop_duplicates("SOP Instance UID").set_index("SOP Instance UID")
        rows["age"] = rows["image_id"].map(metadata["Patient's Age"].str.extract(r"(\d+)Y")[0])
        if "Manufacturer's Model Name" in metadata:
            rows["machine_id"] = rows["image_id"].map(metadata["Manufacturer's Model Name"])
    rows = _with_breast_labels(rows)
    return _with_breast_ids(_select_split(rows, frame["split"], split, splits))


def map_cbis_ddsm(
    tables: Sequence[pd.DataFrame],
    split: Split,
    *,
    splits: Mapping[str, Sequence[str]],
    file: str,
) -> pd.DataFrame:
    """Map CBIS-DDSM (Lee et al., 2017, doi:10.1038/sdata.2017.177), whose rows are abnormalities.

    A breast counts as cancer if the `pathology` of any of its abnormalities is MALIGNANT, in any of
    the tables; BENIGN and BENIGN_WITHOUT_CALLBACK are negative. There are no normal breasts.

    The published splits are by kind of abnormality, so some patients are in both (masses in one,
    calcifications in the other): these are left out of `train`, unless it has both splits.

    Args:
        tables: all four `{mass,calc}_case_description_{train,test}_set.csv`, for either split.
        split: ours.
        splits: for `train` and `test`, the published splits (`Training`, `Test`).
        file: path of an image. `{folder}` is the first part of `image file path`, such as
            `Mass-Training_P_00001_LEFT_CC`, `{series}` the third.

    Returns:
        `image_id` is the folder. Also `BIRADS`, the highest `assessment` of the image, and
        `density`, its first one, as A to D.
    """
    frame = pd.concat([t.rename(columns=lambda c: c.replace("_", " ")) for t in tables])
    frame = frame.reset_index(drop=True)
    _table_with([frame], "image file path", "patient id", "left or right breast", "image view",
               "pathology", "assessment", "breast density")  # fmt: skip
    # The paths are older than the present layout: their folders are identifiers here.
    path = frame["image file path"].str.split("/")
    folder = path.str[0].astype("string")
    published = folder.str.extract(r"^(?:Mass|Calc)-([A-Za-z]+)_P_\d+_", expand=False)
    example = "Mass-Training_P_00001_LEFT_CC/..."
    _refuse_unknown(frame, "image file path", published.notna(), example)
    known = ["MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK"]
    _refuse_unknown(frame, "pathology", frame["pathology"].isin(known), ", ".join(known))
    places = pd.DataFrame({"folder": folder, "series": path.str[2]})
    rows = pd.DataFrame(
        {
            "patient_id": frame["patient id"],
            "image_id": folder,
            "laterality": frame["left or right breast"].map({"LEFT": "L", "RIGHT": "R"}),
            "view": frame["image view"],
            "cancer": frame["pathology"] == "MALIGNANT",
            "BIRADS": pd.to_numeric(frame["assessment"]).groupby(folder).transform("max"),
            "density": frame["breast density"].map(dict(zip("1234", "ABCD", strict=True))),
            "file": _filled(file, places),
        }
    )
    rows["density"] = rows.groupby("image_id")["density"].transform("first")
    rows = _with_breast_labels(rows)
    mine = _select_split(rows, published, split, splits)
    if split == "train":
        held_out = published.isin(splits["test"]) & ~published.isin(splits["train"])
        mine = mine[~mine["patient_id"].isin(rows.loc[held_out, "patient_id"])]
    return _with_breast_ids(mine.drop_duplicates("image_id"))


def map_cmmd(
    tables: Sequence[pd.DataFrame], split: Split, *, other_breasts: Literal["drop", "negative"]
) -> pd.DataFrame:
    """Map CMMD (Cui et al., 2021, doi:10.7937/tcia.eqde-4b16), whose files only headers tell apart.

    A breast counts as cancer if one of its rows in the clinical table has `classification`
    Malignant. The other breast of most patients of the second part (D2) has images but no row: it
    is not known to be healthy.

    Args:
        tables: `index.csv`, which `python -m rsna_bcd.index` makes of the files, and
            `CMMD_clinicaldata_revision.xlsx`.
        split: `train`: no other one was published.
        other_breasts: breasts without a row are dropped (`drop`) or negative (`negative`).

    Returns:
        The images of the index in its order, with `age`, `abnormality` and `subtype` from the
        clinical table, `machine_id` from the headers.
    """
    if split != "train":
        raise InputError("CMMD has no published test split. Leave it out with splits=[train].")
    index = _table_with(tables, "image_id", "patient_id", "laterality", "view", "file", "machine")
    clinical = _table_with(tables, "LeftRight", "ID1", "Age", "classification")
    known = clinical["classification"].isin(["Benign", "Malignant"])
    _refuse_unknown(clinical, "classification", known, "Benign, Malignant")
    clinical = clinical.rename(columns={"ID1": "patient_id", "LeftRight": "laterality"})
    clinical = clinical.assign(cancer=clinical["classification"] == "Malignant")
    # Malignant first, so that it is the row that stays.
    clinical = clinical.sort_values("cancer", ascending=False, kind="stable")
    clinical = clinical.drop_duplicates(["patient_id", "laterality"])
    kept = [c for c in ("abnormality", "subtype") if c in clinical]
    findings = clinical[["patient_id", "laterality", "Age", "cancer", *kept]]
    rows = index.merge(findings, on=["patient_id", "laterality"], how="left")
    listed = rows["cancer"].notna()
    if not listed.any():
        raise InputError(
            f"no image of the index ({some(index['patient_id'])}) belongs to a breast of the "
            f"clinical table ({some(clinical['patient_id'])}). Make the index of CMMD's files."
        )
    if other_breasts == "negative":
        rows["cancer"] = rows["cancer"].fillna(False)
    else:  # rows without laterality stay, and are refused by name
        rows = _drop_unlabelled(rows, ~listed & rows["laterality"].notna())
    age = rows["Age"].fillna(rows["age"]) if "age" in rows else rows["Age"]
    columns = ["patient_id", "image_id", "laterality", "view", "cancer", *kept, "file"]
    return rows[columns].assign(
        age=age, machine_id=rows["machine"], cancer=rows["cancer"].astype("Int64")
    )


def _drop_unlabelled(rows: pd.DataFrame, unlabelled: pd.Series) -> pd.DataFrame:
    """Drop the unlabelled rows, and log how many."""
    if unlabelled.any():
        _log.warning(
            "%d of %d images have no label and are dropped, the first is %s.",
            unlabelled.sum(),
            len(rows),
            rows.loc[unlabelled, "image_id"].iloc[0] if "image_id" in rows else "(no image_id)",
        )
    return rows[~unlabelled]


def _table_with(tables: Sequence[pd.DataFrame], mark: str, *needed: str) -> pd.DataFrame:
    """The table that has the column `mark`; it must have those `needed` too."""
    having = next((table for table in tables if mark in table), None)
    if having is None:
        raise InputError(
            f"no table has the column {mark!r}. The columns are {_column_names(*tables)}. Download "
            "the tables again."
        )
    missing = [c for c in needed if c not in having]
    if missing:
        raise InputError(
            f"the table with {mark!r} lacks {', '.join(missing)}; it has {_column_names(having)}."
        )
    return having


def _column_names(*tables: pd.DataFrame) -> str:
    return " | ".join(", ".join(map(str, table.columns)) for table in tables)


def _select_split(
    rows: pd.DataFrame, published: pd.Series, split: Split, splits: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """The rows of the published splits that are in ours."""
    unknown = set(splits[split]) - set(published)
    if unknown:
        raise InputError(
            f"dataset.rows.splits.{split}={list(splits[split])}: the tables have no split "
            f"{', '.join(sorted(unknown))}, but {some(published)}."
        )
    return rows[published.isin(splits[split])]


def _with_breast_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """Give every row the label of its breast: 1 if any row of the breast is positive."""
    breast = rows.groupby(["patient_id", "laterality"], dropna=False)["cancer"]
    return rows.assign(cancer=breast.transform("max").astype(int))


def _with_breast_ids(rows: pd.DataFrame) -> pd.DataFrame:
    """Add `prediction_id` as the competition makes it."""
    return rows.assign(prediction_id=rows["patient_id"] + "_" + rows["laterality"])


def _filled(template: str, places: pd.DataFrame) -> list[str]:
    """Fill the fields of `template` with the columns of `places`, row by row."""
    try:
        return [template.format_map(place) for place in places.to_dict("records")]
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"dataset.rows.file={template}: the fields may be "
            f"{', '.join(f'{{{c}}}' for c in places)}."
        ) from error


def _refuse_unknown(table: pd.DataFrame, column: str, known: pd.Series, expected: str) -> None:
    if not known.all():
        raise InputError(f"{column} is {some(table[column][~known])}; expected {expected}.")


def map_generic(
    tables: Sequence[pd.DataFrame],
    split: Split,
    *,
    columns: Mapping[str, str | None],
    values: Mapping[str, Mapping[object, object] | None],
    join: Sequence[str],
    unlabelled: Literal["refuse", "drop"],
) -> pd.DataFrame:
    """Map the user's own table, or an index of files and a table of labels.

    `values.cancer` defines cancer. Labels that contradict each other within a breast are refused:
    only you know the right one.

    Args:
        tables: the first has one row per image; the others are joined to it.
        split: ours. A test needs no `cancer`.
        columns: our names -> those of the tables. Null: the column has our name, or there is none.
            Columns that are neither named here nor called like one of ours are left out. One that
            is named is taken from the first table that has it, and from no other.
        values: our names -> {value of the table: our value}, case-insensitive, `1.0` being `1`;
            null for a missing one, such as no label. Values that are neither in it nor ours are
            refused; views of a test stay as they are.
        join: our names of the columns by which further tables are joined; each has them by the name
            in `columns` or by ours. Where tables share another column, they must agree.
        unlabelled: training images without a label are refused (`refuse`) or dropped (`drop`).

    Raises:
        InputError: a column of `columns`, `values` or `join` is absent, a value is unknown, a
            further table has several rows for one key, tables contradict each other, or no image
            has a label.
    """
    named = {ours: theirs for ours, theirs in columns.items() if theirs is not None}
    for ours, theirs in named.items():
        if ours in _TAKEN:
            raise InputError(f"dataset.rows.columns.{ours}: later stages add {', '.join(_TAKEN)}.")
        absent = not any(theirs in table for table in tables)
        if absent and not (split == "test" and ours == "cancer"):
            raise InputError(
                f"dataset.rows.columns.{ours}={theirs}: there is no such column, but "
                f"{_column_names(*tables)}."
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
            raise InputError(f"no image has a label: {_no_label(renamed, join)}")
        if unlabelled == "drop":
            rows = _drop_unlabelled(rows, unknown)
    if split == "test" and "prediction_id" not in rows and {"patient_id", "laterality"} <= {*rows}:
        rows = _with_breast_ids(rows)
    return rows


def _no_label(tables: Sequence[pd.DataFrame], join: Sequence[str]) -> str:
    """The reason why no image has a label."""
    if len(tables) == 1:
        return "the column cancer is empty. Fill it in, or name another one."
    return (
        f"dataset.rows.join={list(join)} matched nothing. The tables begin with "
        f"{' and '.join(_keys(table, join) for table in tables)}. Write these alike, or join by "
        "other columns."
    )


def _renamed(
    tables: Sequence[pd.DataFrame], named: Mapping[str, str], join: Sequence[str]
) -> list[pd.DataFrame]:
    """Our columns in each table: those named, and those that are called like ours anyway."""
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
    """Replace the values of a column in place, in all tables that have it."""
    known = {
        _spelling(theirs): None if ours is None else str(ours)
        for theirs, ours in theirs_to_ours.items()
    }
    ours = {*known.values(), *(VIEWS if column == "view" else ())} - {None}
    if all(known.get(_spelling(value)) in (None, value) for value in ours):
        known |= {_spelling(value): value for value in ours if _spelling(value) not in known}
    # Else the table uses our values with another meaning, {1: 0, 2: 1}: that of a 0 is unknown.
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
                f"dataset.rows.values.{column} has no entry for "
                f"{some(table.loc[unknown, column])}; it has {', '.join(known)}. Add it (and quote "
                "yes and no: YAML takes them for true and false)."
            )
        table[column] = spelled.map(known).where(~unknown, table[column])


def _spelling(value: object) -> str:
    """A value as it is compared: case-insensitive, a whole number without the `.0`.

    Programs write 1 as 1.0 once a value of the column is missing.
    """
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", str(value).strip().casefold())


def _joined(rows: pd.DataFrame, further: pd.DataFrame, join: Sequence[str]) -> pd.DataFrame:
    """Add the columns of a further table; values that both have must agree."""
    absent = [c for c in join if c not in rows or c not in further]
    if absent or not join:
        raise InputError(
            f"dataset.rows.join={list(join)}: {', '.join(absent) or 'no column'} is not in all of "
            f"the tables, which have {_column_names(rows)} and {_column_names(further)}."
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


def _keys(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """The keys of the first row of a table."""
    first = table.iloc[0] if len(table) else None
    return " ".join(f"{c}={'(none)' if first is None else first[c]}" for c in columns)
