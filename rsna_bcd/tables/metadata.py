"""Metadata of an image as network inputs, and columns of the training table as auxiliary targets.

Inputs are columns that the test set has too. Nothing is fitted: the encoding follows from the
settings alone, so that a run rebuilt from its record encodes as it did in training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_file
from rsna_bcd.tables.images import LABEL_ONLY_COLUMNS, VIEWS

COLUMNS = ("age", "implant", "view", "site_id", "machine_id")
# Those of the competition's train.csv, the most frequent first. Its test set has others.
MACHINES = (49, 48, 29, 21, 93, 216, 210, 170, 190, 197)
SITES = (1, 2)
# Of the images of train.csv, rounded.
AGE_MEAN, AGE_DEVIATION = 58.5, 10.0
_PLAUSIBLE_AGES = (1, 120)
_BOOLEANS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}  # as pandas may read them


class Metadata:
    """Encodes columns of a table of images.

    `age` becomes its standard score and a flag where it is missing (no number between 1 and 120);
    `implant` 0 or 1 and such a flag; `view`, `site_id` and `machine_id` one column per known value
    and one for all that is unknown or missing.

    Args:
        columns: names, in this order.
        machines: values of `machine_id` with a column of their own.
        forget: share of training samples in which a column counts as unknown, each column by
            itself. Without it, the weights of an unknown machine stay as initialised, for training
            has no such machine.

    Raises:
        InputError: a column is in the training table only, unknown or repeated, or `forget` is
            outside [0, 1].
    """

    def __init__(
        self,
        columns: Sequence[str],
        machines: Sequence[int | str] = MACHINES,
        forget: Annotated[float, Field(ge=0, le=1)] = 0.1,
    ) -> None:
        self.columns = tuple(columns)
        hindsight = [name for name in columns if name in LABEL_ONLY_COLUMNS]
        if hindsight:
            raise InputError(
                f"metadata.columns: {', '.join(hindsight)} is known in hindsight only, the test "
                "set lacks it, and as an input it gives the label away. It may be an auxiliary "
                f"target: +auxiliary.{hindsight[0]}=0.1."
            )
        if not set(columns) <= set(COLUMNS) or not len(set(columns)) == len(columns) > 0:
            raise InputError(
                f"metadata.columns={list(columns)}: name one or more of {', '.join(COLUMNS)}, each "
                "once; metadata=null trains without."
            )
        self.forget = forget
        self._known: dict[str, tuple[str, ...]] = {
            "view": VIEWS,
            "site_id": tuple(map(str, SITES)),
            "machine_id": tuple(map(str, machines)),
        }
        # A value and its flag, or one per known value and one for the rest.
        widths = [len(self._known[c]) + 1 if c in self._known else 2 for c in self.columns]
        self._ends = np.cumsum(widths)

    @property
    def width(self) -> int:
        """Number of inputs."""
        return int(self._ends[-1])

    def encode(self, images: pd.DataFrame) -> NDArray[np.float32]:
        """Encode each image by itself: (N, width), finite.

        Raises:
            InputError: a column is absent.
        """
        self._check_table(images)
        return np.concatenate([self._column(name, images[name]) for name in self.columns], axis=1)

    def encode_breasts(self, images: pd.DataFrame) -> NDArray[np.float32]:
        """Encode each breast from all rows of its images.

        The age is the mean of those known, an implant counts if any image has one, and of sites and
        machines each has its share of the images.

        Returns:
            (breasts, width), in the order in which breasts first appear.

        Raises:
            InputError: a column is absent, or is `view`: a breast has several.
        """
        if "view" in self.columns:
            raise InputError(
                "metadata.columns names view, of which a breast has several: networks that look at "
                "breasts know the view of each image. Leave it out."
            )
        self._check_table(images)
        breast = images["prediction_id"]
        parts = []
        for name in self.columns:
            if name in self._known:
                encoded = pd.DataFrame(self._column(name, images[name]), images.index)
                parts.append(encoded.groupby(breast, sort=False).mean().to_numpy(np.float32))
            else:
                numbers = _number(name, images[name]).groupby(breast, sort=False)
                parts.append(self._column(name, numbers.mean() if name == "age" else numbers.max()))
        return np.concatenate(parts, axis=1)

    def forgetting(
        self, encoded: NDArray[np.float32], generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """Make columns of one sample (width,) unknown by chance, for training."""
        result = encoded.copy()
        chances = generator.random(len(self.columns))
        for start, end, chance in zip([0, *self._ends], self._ends, chances, strict=False):
            if chance < self.forget:
                result[start:end] = 0
                result[end - 1] = 1  # the last one says unknown
        return result

    def _check_table(self, images: pd.DataFrame) -> None:
        absent = [name for name in self.columns if name not in images]
        if absent:
            raise InputError(
                f"The table of images lacks the column(s) {', '.join(absent)} that "
                "metadata.columns names. Add them to the table, or train without "
                "them (metadata=null: without any)."
            )

    def _column(self, name: str, values: pd.Series) -> NDArray[np.float32]:
        """One column of the table as two or more numbers, the last of which says unknown."""
        if name in self._known:
            known = self._known[name]
            # Unknown values are class -1: the last row.
            return np.eye(len(known) + 1, dtype=np.float32)[class_numbers(values, known)]
        numbers = _number(name, values)
        if name == "age":
            numbers = standard_age(numbers)
        result = np.stack([numbers.fillna(0), numbers.isna()], axis=1)
        return result.astype(np.float32)


def as_text(values: pd.Series) -> pd.Series:
    """Values of a category as strings: 29, 29.0 and "29" are one machine; missing stays missing."""
    numbers = pd.to_numeric(values, errors="coerce")
    whole = (numbers % 1 == 0) & (numbers.abs() < 2**53)  # beyond that float64 skips integers
    text = values.astype("string")
    return text.mask(whole, numbers.where(whole).astype("Int64").astype("string"))


def class_numbers(values: pd.Series, classes: Sequence[str]) -> NDArray[np.integer]:
    """The place of each value among the classes, -1 where it is missing or none of them."""
    return pd.Index(classes).get_indexer(pd.Index(as_text(values)))


def standard_age(values: pd.Series) -> pd.Series:
    """(age - 58.5) / 10, NaN where the age is missing or not in [1, 120]."""
    return (_number("age", values) - AGE_MEAN) / AGE_DEVIATION


def _number(name: str, values: pd.Series) -> pd.Series:
    """`age` or `implant` as float, NaN where it is missing or cannot be."""
    if name == "implant":
        values = as_text(values).str.lower().map(_BOOLEANS)
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    return numbers.where(numbers.between(*_PLAUSIBLE_AGES)) if name == "age" else numbers


@dataclass(frozen=True)
class Target:
    """The encoding of a column as auxiliary target.

    Attributes:
        kind: `binary` targets are 0 or 1, `categorical` ones the number of the class,
            `continuous` ones standard scores.
        classes: values of a categorical column, in the order of their numbers.
    """

    kind: Literal["binary", "categorical", "continuous"]
    classes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The number of outputs of a network for it."""
        return len(self.classes) or 1

    def encode(self, values: pd.Series) -> NDArray[np.float32]:
        """Turn a column into (N,), NaN where a value is missing or unknown."""
        if self.kind == "continuous":  # the age
            numbers = standard_age(values)
        elif self.kind == "binary":
            numbers = as_text(values).str.lower().map(_BOOLEANS)
        else:
            codes = class_numbers(values, self.classes)
            numbers = pd.Series(codes, values.index, "float64").where(codes >= 0)
        return numbers.to_numpy(np.float32, na_value=np.nan)


TARGETS = {
    "biopsy": Target("binary"),
    "invasive": Target("binary"),
    "difficult_negative_case": Target("binary"),
    "implant": Target("binary"),
    "BIRADS": Target("categorical", tuple("0123456")),
    "density": Target("categorical", ("A", "B", "C", "D")),
    "view": Target("categorical", VIEWS),
    "site_id": Target("categorical", tuple(map(str, SITES))),
    "machine_id": Target("categorical", tuple(map(str, MACHINES))),
    "age": Target("continuous"),
}


def check_targets(images: pd.DataFrame, names: Sequence[str]) -> None:
    """Refuse names that are no target, and columns that are absent or empty in `images`."""
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise InputError(
            f"auxiliary: {', '.join(unknown)} is no auxiliary target. There are "
            f"{', '.join(TARGETS)}."
        )
    empty = [
        name
        for name in names
        if name not in images or np.isnan(TARGETS[name].encode(images[name])).all()
    ]
    if empty:
        raise InputError(
            f"auxiliary: the training part of the table has no values of {', '.join(empty)}. "
            "Leave it out."
        )


def encode_targets(images: pd.DataFrame, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Encode columns of a table of images: by name, (N,), NaN where missing or unknown."""
    return {name: TARGETS[name].encode(images[name]) for name in names}


def encode_breast_targets(
    images: pd.DataFrame, names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Encode columns for each breast from all rows of its images.

    A binary target is 1 if any image's is, a continuous one the mean, a categorical one that of the
    first image that has one.

    Returns:
        By name, (breasts,), in the order in which breasts first appear.

    Raises:
        InputError: one of them is `view`: a breast has several.
    """
    if "view" in names:
        raise InputError("auxiliary.view: a breast has several views. Leave it out.")
    reductions = {"binary": "max", "continuous": "mean", "categorical": "first"}
    return {
        name: pd.Series(values, images.index)
        .groupby(images["prediction_id"], sort=False)
        .agg(reductions[TARGETS[name].kind])
        .to_numpy(np.float32)
        for name, values in encode_targets(images, names).items()
    }


TRAINING_DOMAIN_FILE = "seen.json"  # in a run's folder
_DOMAIN_COLUMNS = ("machine_id", "view")

TrainingDomain = Mapping[str, tuple[str, ...]]


def training_domain(images: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """The values of each of `_DOMAIN_COLUMNS` in a table of images: strings, sorted, by column.

    A column without a value is absent.
    """
    values = {c: as_text(images[c]).dropna().unique() for c in _DOMAIN_COLUMNS if c in images}
    return {column: tuple(sorted(map(str, own))) for column, own in values.items() if len(own)}


def write_training_domain(domain: TrainingDomain, file: Path) -> None:
    """Write `seen.json`; the file is either whole or absent."""
    write_file(file, json.dumps(domain, indent=2) + "\n")


def read_training_domain(file: Path) -> dict[str, tuple[str, ...]]:
    """Read `seen.json`; empty where it is absent, as in runs older than it.

    Raises:
        InputError: the file is damaged.
    """
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return {str(column): tuple(map(str, values)) for column, values in record.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} is damaged ({error}). Copy it again, or delete it: then the "
            "training domain of the run is unknown."
        ) from error
