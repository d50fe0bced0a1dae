"""What is known of an image besides its pixels, as numbers for a network.

Only what the test set has too. Nothing is fitted: the encoding follows from the settings alone, so
that a run rebuilt from its record encodes as it did in training.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.tables.images import LABEL_ONLY_COLUMNS, VIEWS

COLUMNS = ("age", "implant", "view", "site_id", "machine_id")
# Those of the competition's train.csv, the most frequent first. Its hidden test has others.
MACHINES = (49, 48, 29, 21, 93, 216, 210, 170, 190, 197)
SITES = (1, 2)
# Of the images of train.csv, rounded.
AGE_MEAN, AGE_DEVIATION = 58.5, 10.0
_PLAUSIBLE_AGES = (1, 120)


class Metadata:
    """Encodes columns of a table of images.

    `age` becomes its standard score and a flag where it is missing (no number between 1 and 120);
    `implant` 0 or 1 and such a flag; `view`, `site_id` and `machine_id` one column a known value
    and one for all that is unknown or missing.

    Args:
        columns: which, in this order.
        machines: values of `machine_id` with a column of their own.
        forget: share of training samples in which a column counts as unknown, each column by
            itself. Without it, what a network does about an unknown machine is what its weights
            happened to be at the start, for training has none.

    Raises:
        InputError: a column that the test set lacks, an unknown one or one named twice, or settings
            out of range.
    """

    def __init__(
        self,
        columns: Sequence[str],
        machines: Sequence[int | str] = MACHINES,
        forget: float = 0.1,
    ) -> None:
        self.columns = tuple(columns)
        _check(self.columns)
        if not 0 <= forget <= 1:
            raise InputError(f"metadata.forget={forget} is a share: give a number in [0, 1].")
        self.forget = forget
        self._known: dict[str, tuple[str, ...]] = {
            "view": VIEWS,
            "site_id": tuple(map(str, SITES)),
            "machine_id": tuple(map(str, machines)),
        }
        # All ten of the value and its flag, or of one column a value and the rest.
        widths = [len(self._known[c]) + 1 if c in self._known else 2 for c in self.columns]
        self._ends = np.cumsum(widths)

    @property
    def width(self) -> int:
        """How many numbers an image has."""
        return int(self._ends[-1])

    def encode(self, images: pd.DataFrame) -> NDArray[np.float32]:
        """Encode each image by itself.

        Args:
            images: a table of images with `columns`.

        Returns:
            (N, width), finite.

        Raises:
            InputError: a column is absent.
        """
        self._check_table(images)
        return np.concatenate([self._column(name, images[name]) for name in self.columns], axis=1)

    def encode_breasts(self, images: pd.DataFrame) -> NDArray[np.float32]:
        """Encode each breast, from all rows of the table that belong to it.

        The age is the mean of those known, an implant counts if any image has one, and of sites and
        machines each has its share of the images.

        Args:
            images: a table of images with `prediction_id` and `columns`.

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
        breasts = images.groupby("prediction_id", sort=False)
        parts = []
        for name in self.columns:
            if name in self._known:
                of_image = pd.DataFrame(self._column(name, images[name]), index=images.index)
                shares = of_image.groupby(images["prediction_id"], sort=False).mean()
                parts.append(shares.to_numpy(np.float32))
            else:
                plain = _number(name, images[name]).groupby(images["prediction_id"], sort=False)
                parts.append(self._column(name, plain.mean() if name == "age" else plain.max()))
        assert len(parts[0]) == breasts.ngroups
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
                "metadata.columns names. Add them to the table, or train without them."
            )

    def _column(self, name: str, values: pd.Series) -> NDArray[np.float32]:
        """One column of the table as two or more numbers, the last of which says unknown."""
        if name in self._known:
            known = self._known[name]
            # Of what is not known, -1, the last row.
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
    """(age - 58.5) / 10, NaN where the age is missing or no age."""
    return (_number("age", values) - AGE_MEAN) / AGE_DEVIATION


def _number(name: str, values: pd.Series) -> pd.Series:
    """`age` or `implant` as float, NaN where it is missing or cannot be."""
    if name == "implant":  # 0 and 1, or False and True as pandas may read them
        values = as_text(values).str.lower().map({"0": 0, "1": 1, "false": 0, "true": 1})
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    return numbers.where(numbers.between(*_PLAUSIBLE_AGES)) if name == "age" else numbers


def _check(columns: tuple[str, ...]) -> None:
    """Refuse columns that are no input."""
    hindsight = [name for name in columns if name in LABEL_ONLY_COLUMNS]
    if hindsight:
        raise InputError(
            f"metadata.columns: {', '.join(hindsight)} is known in hindsight only, the test set "
            f"lacks it, and as an input it gives the label away. It may be an auxiliary target: "
            f"+auxiliary.{hindsight[0]}=0.1."
        )
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown or not columns or len(set(columns)) < len(columns):
        raise InputError(
            f"metadata.columns={list(columns)}: name one or more of {', '.join(COLUMNS)}, each "
            "once; metadata=null trains without."
        )
