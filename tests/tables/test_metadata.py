"""Metadata: what may be an input, and that each value has its place, also the unknown ones."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.tables.images import LABEL_ONLY_COLUMNS
from rsna_bcd.tables.metadata import COLUMNS, Metadata


def table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


@pytest.mark.parametrize("column", LABEL_ONLY_COLUMNS)
def test_what_the_test_set_lacks_is_refused_by_name(column: str) -> None:
    with pytest.raises(InputError, match=rf"{column} is known in hindsight.*auxiliary target"):
        Metadata(["age", column])


@pytest.mark.parametrize("columns", [[], ["age", "age"], ["laterality"]])
def test_other_columns_are_refused(columns: list[str]) -> None:
    with pytest.raises(InputError, match=r"one or more of age, implant, view"):
        Metadata(columns)


def test_every_column_at_once() -> None:
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


def test_a_machine_is_the_same_however_pandas_read_it() -> None:
    metadata = Metadata(["machine_id"], machines=[29, "Senographe"])
    for values in ([29, 30], [29.0, None], ["29", "??"]):
        assert metadata.encode(table(machine_id=values)).tolist() == [[1, 0, 0], [0, 0, 1]]
    for serial in (str(10**20), "1e30", 10**25):
        encoded = metadata.encode(table(machine_id=["29", serial]))
        assert encoded.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert metadata.encode(table(machine_id=["Senographe", None])).tolist() == [
        [0, 1, 0],
        [0, 0, 1],
    ]


def test_an_age_that_is_none_counts_as_missing() -> None:
    encoded = Metadata(["age"]).encode(table(age=["48.5", "999", "unknown", None]))
    assert encoded.tolist() == [[-1, 0], [0, 1], [0, 1], [0, 1]]


def test_booleans_and_missing_implants() -> None:
    metadata = Metadata(["implant"])
    assert metadata.encode(table(implant=[True, False])).tolist() == [[1, 0], [0, 0]]
    assert metadata.encode(table(implant=[1.0, None])).tolist() == [[1, 0], [0, 1]]


def test_a_row_is_encoded_by_itself() -> None:
    """Nothing is fitted to the table: rows alone are what they are together."""
    metadata = Metadata(COLUMNS)
    images = table(
        age=[40, 71], implant=[0, 1], view=["CC", "AT"], site_id=[1, 2], machine_id=[49, 21]
    )
    together = metadata.encode(images)
    alone = np.concatenate([metadata.encode(images.iloc[[i]]) for i in range(2)])
    assert np.array_equal(together, alone)


def test_a_breast_has_the_mean_age_any_implant_and_shares_of_machines() -> None:
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


def test_view_is_no_column_of_a_breast() -> None:
    with pytest.raises(InputError, match="view, of which a breast has several"):
        Metadata(["view"]).encode_breasts(table(prediction_id=["a"], view=["CC"]))


def test_an_absent_column_is_named() -> None:
    with pytest.raises(InputError, match="lacks the column.* implant"):
        Metadata(["age", "implant"]).encode(table(age=[50]))


def test_forgetting_turns_whole_columns_into_the_unknown() -> None:
    metadata = Metadata(["age", "machine_id"], machines=[29, 49], forget=0.5)
    known = metadata.encode(table(age=[68.5], machine_id=[49]))[0]
    seen = {
        tuple(metadata.forgetting(known, np.random.default_rng(seed)).tolist())
        for seed in range(40)
    }
    assert seen == {
        (*age, *machine) for age in ((1, 0), (0, 1)) for machine in ((0, 1, 0), (0, 0, 1))
    }
    never = Metadata(["age", "machine_id"], machines=[29, 49], forget=0)
    assert np.array_equal(never.forgetting(known, np.random.default_rng(0)), known)
    assert known.tolist() == [1, 0, 0, 1, 0]  # untouched
