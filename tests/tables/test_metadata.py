"""Metadata and auxiliary targets: permitted columns, and a place for each value, also unknown."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.tables.images import LABEL_ONLY_COLUMNS
from rsna_bcd.tables.metadata import (
    COLUMNS,
    TARGETS,
    Metadata,
    check_targets,
    encode_breast_targets,
    encode_targets,
    read_training_domain,
    training_domain,
    write_training_domain,
)

NAN = np.nan
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


def table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


@pytest.mark.parametrize("column", LABEL_ONLY_COLUMNS)
def test_metadata_refuses_columns_that_the_test_set_lacks(column: str) -> None:
    with pytest.raises(InputError, match=rf"{column} .*auxiliary target"):
        Metadata(["age", column])


@pytest.mark.parametrize("columns", [[], ["age", "age"], ["laterality"]])
def test_metadata_refuses_other_columns(columns: list[str]) -> None:
    with pytest.raises(InputError, match=r"one or more of age, implant, view"):
        Metadata(columns)


def test_metadata_encodes_each_row_by_itself() -> None:
    metadata = Metadata(COLUMNS, machines=[29, 49])
    images = table(
        age=[68.5, None], implant=[1, 0], view=["MLO", "??"], site_id=[2, 7], machine_id=[49, 5]
    )
    encoded = metadata.encode(images)
    assert encoded.dtype == np.float32
    assert encoded.shape == (2, metadata.width) == (2, 2 + 2 + 7 + 3 + 3)
    assert encoded[0].tolist() == [
        *(1, 0), *(1, 0), *(0, 1, 0, 0, 0, 0, 0), *(0, 1, 0), *(0, 1, 0)
    ]  # fmt: skip
    assert encoded[1].tolist() == [
        *(0, 1), *(0, 0), *(0, 0, 0, 0, 0, 0, 1), *(0, 0, 1), *(0, 0, 1)
    ]  # fmt: skip
    alone = np.concatenate([metadata.encode(images.iloc[[i]]) for i in range(2)])
    assert np.array_equal(alone, encoded)  # nothing is fitted to the table


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([29, 30], [[1, 0, 0], [0, 0, 1]]),
        ([29.0, None], [[1, 0, 0], [0, 0, 1]]),
        (["29", "??"], [[1, 0, 0], [0, 0, 1]]),
        (["29", str(10**20)], [[1, 0, 0], [0, 0, 1]]),
        (["29", 10**25], [[1, 0, 0], [0, 0, 1]]),
        (["Senographe", None], [[0, 1, 0], [0, 0, 1]]),
    ],
)
def test_metadata_machine_is_the_same_in_every_dtype(values: Any, expected: Any) -> None:
    metadata = Metadata(["machine_id"], machines=[29, "Senographe"])
    assert metadata.encode(table(machine_id=values)).tolist() == expected


def test_metadata_marks_missing_ages_and_implants() -> None:
    ages = Metadata(["age"]).encode(table(age=["48.5", "999", "unknown", None]))
    assert ages.tolist() == [[-1, 0], [0, 1], [0, 1], [0, 1]]
    implants = Metadata(["implant"])
    assert implants.encode(table(implant=[True, False])).tolist() == [[1, 0], [0, 0]]
    assert implants.encode(table(implant=[1.0, None])).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(InputError, match="lacks the column.* implant"):
        Metadata(["age", "implant"]).encode(table(age=[50]))


def test_metadata_of_a_breast_is_mean_age_any_implant_and_shares_of_machines() -> None:
    metadata = Metadata(["age", "implant", "machine_id"], machines=[29, 49])
    images = table(
        prediction_id=["b", "a", "b", "c"],
        age=[48.5, None, 68.5, 78.5],
        implant=[0, 0, 1, None],
        machine_id=[29, 49, 49, None],
    )
    assert metadata.encode_breasts(images).tolist() == [
        [0, 0, 1, 0, 0.5, 0.5, 0],
        [0, 1, 0, 0, 0, 1, 0],
        [2, 0, 0, 1, 0, 0, 1],
    ]
    with pytest.raises(InputError, match="view, of which a breast has several"):
        Metadata(["view"]).encode_breasts(table(prediction_id=["a"], view=["CC"]))


def test_metadata_forgetting_makes_whole_columns_unknown() -> None:
    metadata = Metadata(["age", "machine_id"], machines=[29, 49], forget=0.5)
    known = metadata.encode(table(age=[68.5], machine_id=[49]))[0]
    drawn = {
        tuple(metadata.forgetting(known, np.random.default_rng(seed)).tolist())
        for seed in range(40)
    }
    assert drawn == {
        (*age, *machine) for age in ((1, 0), (0, 1)) for machine in ((0, 1, 0), (0, 0, 1))
    }
    never = Metadata(["age", "machine_id"], machines=[29, 49], forget=0)
    assert np.array_equal(never.forgetting(known, np.random.default_rng(0)), known)
    assert known.tolist() == [1, 0, 0, 1, 0]  # untouched


@pytest.mark.parametrize(
    ("name", "width", "of_images", "of_breasts"),
    [
        ("invasive", 1, [0, 1, 0, 0, NAN], [1, 0, NAN]),
        ("difficult_negative_case", 1, [1, 1, 0, 0, 0], [1, 0, 0]),
        ("BIRADS", 7, [NAN, 2, 0, 1, NAN], [2, 0, NAN]),
        ("density", 4, [0, 0, 3, 3, NAN], [0, 3, NAN]),
        ("age", 1, [0, 1, NAN, -1, NAN], [0.5, -1, NAN]),
        ("machine_id", 10, [0, 0, 3, 3, NAN], [0, 3, NAN]),
        ("view", 6, [0, 1, 2, 0, NAN], None),
    ],
)
def test_targets_of_images_and_breasts(
    name: str, width: int, of_images: list[float], of_breasts: list[float] | None
) -> None:
    assert TARGETS[name].width == width
    values = encode_targets(IMAGES, [name])[name]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, of_images)
    if of_breasts is None:
        with pytest.raises(InputError, match="several views"):
            encode_breast_targets(IMAGES, [name])
    else:
        np.testing.assert_array_equal(encode_breast_targets(IMAGES, [name])[name], of_breasts)


def test_check_targets() -> None:
    assert set(LABEL_ONLY_COLUMNS) - set(TARGETS) == {"cancer"}
    check_targets(IMAGES, ["invasive", "view", "age"])
    for name, key in (("cancer", "cancer is no auxiliary target"), ("biopsy", "biopsy")):
        with pytest.raises(InputError, match=key):
            check_targets(IMAGES, ["invasive", name])
    with pytest.raises(InputError, match="implant"):
        check_targets(IMAGES.assign(implant=None), ["implant"])


def test_training_domain_is_kept_in_a_file(tmp_path: Path) -> None:
    domain = training_domain(table(machine_id=[49.0, 29, None, 49], view=[None] * 4, age=[50] * 4))
    assert domain == {"machine_id": ("29", "49")}
    assert read_training_domain(tmp_path / "seen.json") == {}
    write_training_domain(domain, tmp_path / "seen.json")
    assert read_training_domain(tmp_path / "seen.json") == domain
    (tmp_path / "seen.json").write_text("[1]")
    with pytest.raises(InputError, match="damaged"):
        read_training_domain(tmp_path / "seen.json")
