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


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        *((["age", column], rf"{column} .*auxiliary target") for column in LABEL_ONLY_COLUMNS),
        *((columns, "one or more of age") for columns in ([], ["age", "age"], ["laterality"])),
    ],
)
def test_metadata_refuses_columns(columns: list[str], key: str) -> None:
    with pytest.raises(InputError, match=key):
        Metadata(columns)


def test_metadata_encodes_each_row_by_itself() -> None:
    metadata = Metadata(COLUMNS, machines=[29, 49])
    images = table(
        age=[68.5, None], implant=[1, 0], view=["MLO", "??"], site_id=[2, 7], machine_id=[49, 5]
    )
    encoded = metadata.encode(images)
    assert encoded.dtype == np.float32
    assert encoded.shape[1] == metadata.width
    known = [*(1, 0), *(1, 0), *(0, 1, 0, 0, 0, 0, 0), *(0, 1, 0), *(0, 1, 0)]
    unknown = [*(0, 1), *(0, 0), *(0, 0, 0, 0, 0, 0, 1), *(0, 0, 1), *(0, 0, 1)]
    assert encoded.tolist() == [known, unknown]
    assert metadata.encode(images.iloc[[1]]).tolist() == [unknown]  # nothing is fitted


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        # A machine is the same in every dtype.
        ("machine_id", [29, 30], [[1, 0, 0], [0, 0, 1]]),
        ("machine_id", [29.0, None], [[1, 0, 0], [0, 0, 1]]),
        ("machine_id", ["29", "??"], [[1, 0, 0], [0, 0, 1]]),
        ("machine_id", ["29", str(10**20)], [[1, 0, 0], [0, 0, 1]]),
        ("machine_id", ["29", 10**25], [[1, 0, 0], [0, 0, 1]]),
        ("machine_id", ["Senographe", None], [[0, 1, 0], [0, 0, 1]]),
        ("machine_id", ["1e400", "-1", ""], [[0, 0, 1]] * 3),
        ("age", ["48.5", "999", "unknown", None], [[-1, 0], [0, 1], [0, 1], [0, 1]]),
        ("age", ["-3", "inf", "nan"], [[0, 1]] * 3),
        ("implant", [True, False], [[1, 0], [0, 0]]),
        ("implant", [1.0, None], [[1, 0], [0, 1]]),
        ("implant", ["x", "2", "true", "-1", ""], [[0, 1], [0, 1], [1, 0], [0, 1], [0, 1]]),
        ("site_id", ["1", "9", "x", "1.0"], [[1, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0]]),
        ("view", ["XCCL", "7", "", "cc"], [[0, 0, 0, 0, 0, 0, 1]] * 4),
    ],
)
def test_metadata_encodes_values(column: str, values: Any, expected: Any) -> None:
    metadata = Metadata([column], machines=[29, "Senographe"])
    assert metadata.encode(table(**{column: values})).tolist() == expected
    with pytest.raises(InputError, match=f"lacks the column.* {column}"):
        metadata.encode(table(other=values))


def test_metadata_encode_breasts() -> None:
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
    images = table(age=[68.5], machine_id=[49])
    often, never = (
        Metadata(["age", "machine_id"], machines=[29, 49], forget=forget) for forget in (0.5, 0)
    )
    known = often.encode(images)[0]
    drawn = {tuple(often.forgetting(known, np.random.default_rng(i)).tolist()) for i in range(40)}
    assert drawn == {
        (*age, *machine) for age in ((1, 0), (0, 1)) for machine in ((0, 1, 0), (0, 0, 1))
    }
    assert np.array_equal(never.forgetting(known, np.random.default_rng(0)), known)
    assert known.tolist() == [1, 0, 0, 1, 0]  # not written to


@pytest.mark.parametrize(
    ("name", "width", "by_image", "by_breast"),
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
def test_targets_by_image_and_breasts(
    name: str, width: int, by_image: list[float], by_breast: list[float] | None
) -> None:
    assert TARGETS[name].width == width
    values = encode_targets(IMAGES, [name])[name]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, by_image)
    if by_breast is None:
        with pytest.raises(InputError, match="several views"):
            encode_breast_targets(IMAGES, [name])
    else:
        np.testing.assert_array_equal(encode_breast_targets(IMAGES, [name])[name], by_breast)


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
