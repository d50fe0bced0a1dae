"""What a network may be taught besides cancer: columns of the training table as numbers.

The test set may lack these columns, and rows may lack a value: a target is never an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.tables.images import VIEWS
from rsna_bcd.tables.metadata import MACHINES, SITES, as_text, class_numbers, standard_age

Kind = Literal["binary", "categorical", "continuous"]

_BOOLEANS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}


@dataclass(frozen=True)
class Target:
    """How a column is taught.

    Attributes:
        kind: `binary` targets are 0 or 1, `categorical` ones the number of the class,
            `continuous` ones standard scores.
        classes: values of a categorical column, in the order of their numbers.
    """

    kind: Kind
    classes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers a network has to give for it."""
        return len(self.classes) or 1

    def encode(self, values: pd.Series) -> NDArray[np.float32]:
        """Turn a column into (N,), NaN where a value is missing or none of the known."""
        if self.kind == "continuous":  # of which there is one
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
    """Refuse targets that there is nothing to teach of.

    Args:
        images: the training part of the table.
        names: of the columns.

    Raises:
        InputError: a name that is no target, or a column that is absent or empty.
    """
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
    """Encode columns of a table of images.

    Args:
        images: a table with these columns.
        names: of the columns, those of `TARGETS`.

    Returns:
        For each name (N,), NaN where nothing is known.
    """
    return {name: TARGETS[name].encode(images[name]) for name in names}


def encode_breast_targets(
    images: pd.DataFrame, names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Encode columns for each breast, from all rows of the table that belong to it.

    A binary target is 1 if any image's is, a continuous one the mean, a categorical one that of the
    first image that has one.

    Args:
        images: a table with these columns and `prediction_id`.
        names: of the columns, those of `TARGETS`.

    Returns:
        For each name (breasts,), in the order in which breasts first appear.

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
