"""Sites by breast, as one string however a table wrote them."""

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.tables.images import breast_sites


@pytest.mark.parametrize(
    ("site_id", "expected"),
    [
        ([1, 1, 2, 2], ["1", "2"]),
        ([1.0, np.nan, 2.0, 2.0], ["1", "2"]),
        (["north", "north", "1.0", "1.0"], ["north", "1"]),
        ([np.nan, np.nan, 2.0, 2.0], ["", "2"]),
        ([1, 2, 2, 2], ["", "2"]),  # of two sites at once: unknown
    ],
)
def test_one_string_a_breast(site_id: list, expected: list[str]) -> None:
    images = pd.DataFrame({"prediction_id": ["b_L", "b_L", "a_R", "a_R"], "site_id": site_id})
    sites = breast_sites(images)
    assert sites.index.tolist() == ["b_L", "a_R"]
    assert sites.tolist() == expected


def test_a_table_without_sites_knows_none() -> None:
    assert breast_sites(pd.DataFrame({"prediction_id": ["b_L", "b_L", "a_R"]})).tolist() == ["", ""]
