"""The table of images: columns, dtypes, identifiers, and what makes a table unfit for use."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pandas as pd

from rsna_bcd.errors import InputError

Split = Literal["train", "test"]

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

# What the pipeline itself uses; the other columns may be absent from a table of one's own.
_REQUIRED: dict[Split, tuple[str, ...]] = {
    "train": ("patient_id", "image_id", "laterality", "view", "cancer"),
    "test": ("patient_id", "image_id", "laterality", "view", "prediction_id"),
}
_IDENTIFIERS = ("patient_id", "image_id", "prediction_id")
_SHOWN = 5  # offending rows named in a message


def map_rsna(frame: pd.DataFrame, split: Split) -> pd.DataFrame:
    """Map the competition's own CSV to our columns: they are the same."""
    return frame


def read_images(
    csv: Path,
    split: Split,
    rows: Callable[[pd.DataFrame, Split], pd.DataFrame] = map_rsna,
) -> pd.DataFrame:
    """Read and check a table of images, one row an image.

    Args:
        csv: `train.csv` or `test.csv`.
        split: which of the two; it decides which columns must be there.
        rows: maps a dataset's own table to our columns.

    Returns:
        The file's columns and rows in their order. `patient_id`, `image_id` and `prediction_id` are
        strings, `cancer` is 0 or 1, `prediction_id` of a training row is
        `<patient_id>_<laterality>`.

    Raises:
        InputError: file absent or empty, a column missing, an identifier missing, repeated or unfit
            for a file name, an unknown laterality or view, a label other than 0 or 1, labels that
            contradict each other within a breast, or a `prediction_id` shared by two breasts.
    """
    if not csv.is_file():
        raise InputError(f"{csv} does not exist. Point paths.data= at the competition folder.")
    try:
        raw = pd.read_csv(csv, dtype=dict.fromkeys(_IDENTIFIERS, "string"))
    except pd.errors.EmptyDataError:
        raise InputError(f"{csv} is empty. Download it anew.") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{csv} is not a CSV table: {error}. Download it anew.") from error
    frame = rows(raw, split)
    missing = [c for c in _REQUIRED[split] if c not in frame.columns]
    if missing:
        raise InputError(
            f"{csv} lacks the column(s) {', '.join(missing)}; it has {', '.join(frame.columns)}. "
            "Add them, or map your own names with a dataset of your own (conf/dataset/)."
        )
    if frame.empty:
        raise InputError(f"{csv} has a header but no rows. Download it anew.")
    if split == "train":
        frame = frame.assign(
            prediction_id=(frame["patient_id"] + "_" + frame["laterality"].astype("string"))
        )
    _check_rows(frame, csv)
    _check_breasts(frame, csv)
    return frame


def _check_rows(frame: pd.DataFrame, csv: Path) -> None:
    """Each row by itself: identifiers, laterality, view, label."""

    def refuse(bad: pd.Series, what: str, remedy: str) -> None:
        if bad.any():
            raise InputError(f"{csv}: {what} in {_lines(frame, bad)}. {remedy}")

    for column in ("patient_id", "image_id"):
        refuse(frame[column].isna(), f"{column} is missing", "Fill it in or drop the rows.")
        # Identifiers become folder and file names.
        unsafe = ~frame[column].str.fullmatch(r"[\w-][\w.-]*")
        refuse(unsafe, f"{column} is unfit for a file name", "Use letters, digits, '_', '-', '.'.")
    laterality, view = frame["laterality"], frame["view"]
    refuse(
        ~laterality.isin(LATERALITIES),
        f"unknown laterality {_values(laterality, LATERALITIES)}",
        "It must be L or R.",
    )
    refuse(
        ~view.isin(VIEWS),
        f"unknown view {_values(view, VIEWS)}",
        f"Known are {', '.join(VIEWS)}; rename or drop the rows.",
    )
    refuse(
        frame["image_id"].duplicated(keep=False),
        "image_id occurs more than once",
        "Keep one row an image.",
    )
    if "cancer" in frame:
        refuse(~frame["cancer"].isin([0, 1]), "cancer is neither 0 nor 1", "Correct the labels.")


def _check_breasts(frame: pd.DataFrame, csv: Path) -> None:
    """Rows of one breast against each other."""
    breast = frame.groupby(["patient_id", "laterality"], sort=False)
    if "cancer" in frame:
        conflict = breast["cancer"].transform("nunique") > 1
        if conflict.any():
            raise InputError(
                f"{csv}: images of one breast have different labels in "
                f"{_lines(frame, conflict)}. The label belongs to the breast: make them equal."
            )
    several = breast["prediction_id"].transform("nunique") > 1
    owners = frame["patient_id"] + "_" + frame["laterality"].astype("string")
    shared = owners.groupby(frame["prediction_id"]).transform("nunique") > 1
    bad = several | shared | frame["prediction_id"].isna()
    if bad.any():
        raise InputError(
            f"{csv}: prediction_id does not stand for exactly one breast in {_lines(frame, bad)}. "
            "Give each patient and laterality one id of its own."
        )


def _lines(frame: pd.DataFrame, bad: pd.Series) -> str:
    """Name the offending rows as an editor numbers them (the header is line 1)."""
    positions = [i + 2 for i, is_bad in enumerate(bad.fillna(True)) if is_bad]
    images = frame["image_id"].iloc[positions[0] - 2]
    more = f" and {len(positions) - _SHOWN} more" if len(positions) > _SHOWN else ""
    lines = ", ".join(map(str, positions[:_SHOWN]))
    return f"line(s) {lines}{more} (first: image {images})"


def _values(column: pd.Series, known: tuple[str, ...]) -> str:
    """The unknown values of a column, quoted."""
    unknown = column[~column.isin(known)].drop_duplicates().head(_SHOWN)
    return ", ".join(repr(None if pd.isna(value) else value) for value in unknown)
