"""Auxiliary targets: their numbers, and that what is missing stays missing."""

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.tables.images import LABEL_ONLY_COLUMNS
from rsna_bcd.tables.metadata import TARGETS, check_targets, encode_breast_targets, encode_targets

IMAGES = pd.DataFrame(
    {
        "prediction_id": ["b", "b", "a", "a", "c"],
        "invasive": [0, 1, 0, 0, None],
        "difficult_negative_case": [True, True, False, False, False],
        "BIRADS": [None, 2.0, 0.0, 1.0, None],
        "density": ["A", "A", "D", "D", None],
        "age": [58.5, 68.5, None, 48.5, None],
        "view": ["CC", "MLO", "AT", "CC", "??"],
        "machine_id": [49, 49, 21, 21, 5],
    }
)
NAN = np.nan


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("invasive", [0, 1, 0, 0, NAN]),
        ("difficult_negative_case", [1, 1, 0, 0, 0]),
        ("BIRADS", [NAN, 2, 0, 1, NAN]),
        ("density", [0, 0, 3, 3, NAN]),
        ("age", [0, 1, NAN, -1, NAN]),
        ("view", [0, 1, 2, 0, NAN]),
        ("machine_id", [0, 0, 3, 3, NAN]),
    ],
)
def test_the_numbers_of_images(name: str, expected: list[float]) -> None:
    values = encode_targets(IMAGES, [name])[name]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("invasive", [1, 0, NAN]),
        ("BIRADS", [2, 0, NAN]),
        ("density", [0, 3, NAN]),
        ("age", [0.5, -1, NAN]),
    ],
)
def test_the_numbers_of_breasts_in_order_of_appearance(name: str, expected: list[float]) -> None:
    np.testing.assert_array_equal(encode_breast_targets(IMAGES, [name])[name], expected)


def test_widths_are_classes_or_one() -> None:
    assert {name: TARGETS[name].width for name in ("invasive", "age", "BIRADS", "density")} == {
        "invasive": 1,
        "age": 1,
        "BIRADS": 7,
        "density": 4,
    }


def test_all_that_the_test_set_lacks_may_be_taught_but_the_label() -> None:
    assert set(LABEL_ONLY_COLUMNS) - set(TARGETS) == {"cancer"}


def test_what_cannot_be_taught_is_refused() -> None:
    with pytest.raises(InputError, match=r"cancer is no auxiliary target.*biopsy"):
        check_targets(IMAGES, ["invasive", "cancer"])
    with pytest.raises(InputError, match="no values of biopsy"):
        check_targets(IMAGES, ["biopsy"])
    with pytest.raises(InputError, match="no values of implant"):
        check_targets(IMAGES.assign(implant=None), ["implant"])
    with pytest.raises(InputError, match="several views"):
        encode_breast_targets(IMAGES, ["view"])
    check_targets(IMAGES, ["invasive", "view", "age"])
