"""Datasets: what they call our columns, where their files are, and what counts as cancer there.

Each function is the `rows` of a YAML in `conf/dataset/`: it takes the tables that the YAML names,
every cell a string, and returns one row an image with our columns. `read_images` checks the result.
The label belongs to the breast, so every image of a breast gets the same.
"""

import logging
from collections.abc import Mapping, Sequence

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.tables.images import Split, join_rows

_SHOWN = 5  # unknown values named in a message

_log = logging.getLogger(__name__)


def map_rsna(tables: Sequence[pd.DataFrame], split: Split) -> pd.DataFrame:
    """Map the competition's own CSV to our columns: they are the same."""
    return join_rows(tables)


def map_vindr(
    tables: Sequence[pd.DataFrame],
    split: Split,
    *,
    positive: Sequence[int],
    splits: Mapping[str, Sequence[str]],
    file: str,
) -> pd.DataFrame:
    """Map VinDr-Mammo (Nguyen et al., 2023, doi:10.1038/s41597-023-02100-7).

    There is no pathology: a breast counts as cancer by its BI-RADS category. Should the images of a
    breast differ, the breast is positive if one of them is.

    Args:
        tables: `breast-level_annotations.csv`, and `metadata.csv` for `age` and `machine_id`.
        split: which of ours.
        positive: BI-RADS categories, 1 to 5, that count as cancer.
        splits: for `train` and `test`, which of the published splits (`training`, `test`).
        file: where an image is, with `{study_id}` and `{image_id}`.

    Returns:
        An examination is a patient. `BIRADS` is 1 to 5 and `density` A to D; `series_id`, `height`
        and `width` are kept.
    """
    frame = _the_table(tables, "breast_birads", "study_id", "image_id", "laterality",
                       "view_position", "breast_density", "split")  # fmt: skip
    birads = frame["breast_birads"].str.extract(r"^BI-RADS ([0-6])$", expand=False)
    _refuse_unknown(frame["breast_birads"], birads.notna(), "breast_birads", "BI-RADS 1 to 5")
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
    kept = [c for c in ("series_id", "height", "width") if c in frame]
    rows = rows.join(frame[kept])
    if len(tables) > 1:
        metadata = _the_table(tables, "SOP Instance UID", "Patient's Age")
        metadata = metadata.drop_duplicates("SOP Instance UID").set_index("SOP Instance UID")
        rows["age"] = rows["image_id"].map(metadata["Patient's Age"].str.extract(r"(\d+)Y")[0])
        if "Manufacturer's Model Name" in metadata:
            rows["machine_id"] = rows["image_id"].map(metadata["Manufacturer's Model Name"])
    rows = _label_of_the_breast(rows)
    return with_breast_ids(_of_split(rows, frame["split"], split, splits))


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
        tables: all four `{mass,calc}_case_description_{train,test}_set.csv`, for either split of
            ours.
        split: which of ours.
        splits: for `train` and `test`, which of the published splits (`Training`, `Test`).
        file: where an image is. `{folder}` is the first part of `image file path`, such as
            `Mass-Training_P_00001_LEFT_CC`, `{series}` the third.

    Returns:
        `image_id` is the folder. `BIRADS` is the highest `assessment` of the image, `density` the
        first one given, as A to D.
    """
    frame = pd.concat([t.rename(columns=lambda c: c.replace("_", " ")) for t in tables])
    frame = frame.reset_index(drop=True)
    _the_table([frame], "image file path", "patient id", "left or right breast", "image view",
               "pathology", "assessment", "breast density")  # fmt: skip
    # The paths are older than the present layout: their folders are identifiers here.
    path = frame["image file path"].str.split("/")
    folder = path.str[0].astype("string")
    published = folder.str.extract(r"^(?:Mass|Calc)-([A-Za-z]+)_P_\d+_", expand=False)
    _refuse_unknown(
        frame["image file path"],
        published.notna(),
        "image file path",
        "Mass-Training_P_00001_LEFT_CC/...",
    )
    _refuse_unknown(
        frame["pathology"],
        frame["pathology"].isin(["MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK"]),
        "pathology",
        "MALIGNANT, BENIGN, BENIGN_WITHOUT_CALLBACK",
    )
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
    rows = _label_of_the_breast(rows)
    mine = _of_split(rows, published, split, splits)
    if split == "train":
        held_out = published.isin(splits["test"]) & ~published.isin(splits["train"])
        mine = mine[~mine["patient_id"].isin(rows.loc[held_out, "patient_id"])]
    return with_breast_ids(mine.drop_duplicates("image_id"))


def map_cmmd(tables: Sequence[pd.DataFrame], split: Split, *, other_breasts: str) -> pd.DataFrame:
    """Map CMMD (Cui et al., 2021, doi:10.7937/tcia.eqde-4b16), whose files only headers tell apart.

    A breast counts as cancer if its `classification` in the clinical table is Malignant (should it
    have two rows, one is enough). The other breast of most patients of the second part (D2) has
    images but no row; nobody says that it is healthy.

    Args:
        tables: `index.csv`, which `python -m rsna_bcd.index` makes of the files, and
            `CMMD_clinicaldata_revision.xlsx`.
        split: `train`: no other one was published.
        other_breasts: what to do with breasts that have no row: `drop` or `negative`.

    Returns:
        The images of the index in its order, with `age`, `abnormality` and `subtype` from the
        clinical table, `machine_id` from the headers.
    """
    if split != "train":
        raise InputError("CMMD has no published test split. Leave it out with splits=[train].")
    if other_breasts not in ("drop", "negative"):
        raise InputError(f"dataset.rows.other_breasts={other_breasts}: choose drop or negative.")
    index = _the_table(tables, "image_id", "patient_id", "laterality", "view", "file", "machine")
    clinical = _the_table(tables, "LeftRight", "ID1", "Age", "classification")
    _refuse_unknown(
        clinical["classification"],
        clinical["classification"].isin(["Benign", "Malignant"]),
        "classification",
        "Benign, Malignant",
    )
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
    else:  # what has no laterality stays, and is refused by name
        rows = without(rows, ~listed & rows["laterality"].notna())
    age = rows["Age"].fillna(rows["age"]) if "age" in rows else rows["Age"]
    columns = ["patient_id", "image_id", "laterality", "view", "cancer", *kept, "file"]
    return rows[columns].assign(
        age=age, machine_id=rows["machine"], cancer=rows["cancer"].astype("Int64")
    )


def without(rows: pd.DataFrame, unlabelled: pd.Series) -> pd.DataFrame:
    """The rows that have a label; says how many have none."""
    if unlabelled.any():
        _log.warning(
            "%d of %d images have no label and are dropped, the first is %s.",
            unlabelled.sum(),
            len(rows),
            rows.loc[unlabelled, "image_id"].iloc[0] if "image_id" in rows else "(no image_id)",
        )
    return rows[~unlabelled]


def _the_table(tables: Sequence[pd.DataFrame], mark: str, *needed: str) -> pd.DataFrame:
    """The table that has the column `mark`; it must have the other columns too.

    Raises:
        InputError: there is no such table, or it lacks columns.
    """
    having = [table for table in tables if mark in table]
    if not having:
        raise InputError(
            f"no table has the column {mark!r}. The columns are "
            f"{' | '.join(columns_of(table) for table in tables)}. Download the tables anew."
        )
    missing = [c for c in needed if c not in having[0]]
    if missing:
        raise InputError(
            f"the table with {mark!r} lacks {', '.join(missing)}; it has {columns_of(having[0])}."
        )
    return having[0]


def columns_of(table: pd.DataFrame) -> str:
    """The names of the columns, for a message."""
    return ", ".join(map(str, table.columns))


def _of_split(
    rows: pd.DataFrame, published: pd.Series, split: Split, splits: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """The rows of the published splits that ours is made of."""
    unknown = set(splits[split]) - set(published)
    if unknown:
        raise InputError(
            f"dataset.rows.splits.{split}={list(splits[split])}: the tables have no split "
            f"{', '.join(sorted(unknown))}, but {some(published)}."
        )
    return rows[published.isin(splits[split])]


def _label_of_the_breast(rows: pd.DataFrame) -> pd.DataFrame:
    """Give every row the label of its breast: 1 if any row of the breast is positive."""
    breast = rows.groupby(["patient_id", "laterality"], dropna=False)["cancer"]
    return rows.assign(cancer=breast.transform("max").astype(int))


def with_breast_ids(rows: pd.DataFrame) -> pd.DataFrame:
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


def _refuse_unknown(column: pd.Series, known: pd.Series, name: str, expected: str) -> None:
    if not known.all():
        raise InputError(f"{name} is {some(column[~known])}; expected {expected}.")


def some(values: pd.Series) -> str:
    """The first few of different values, for a message."""
    different = list(values.astype("string").fillna("(missing)").drop_duplicates())
    return ", ".join(different[:_SHOWN]) + (", ..." if len(different) > _SHOWN else "")
