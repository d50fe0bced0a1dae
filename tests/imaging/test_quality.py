"""Quality flags as text."""

import pytest

from rsna_bcd.imaging.quality import QualityFlag, count_flags, join_flags, split_flags
from rsna_bcd.tables.study_results import QUALITY_FLAGS


def test_join_flags_orders_and_split_flags_reads_them_back() -> None:
    flags = [QualityFlag.SPECIMEN, QualityFlag.NO_WINDOW, QualityFlag.SPECIMEN]
    assert join_flags(flags) == "no window; specimen"
    assert split_flags("no window; specimen") == [QualityFlag.NO_WINDOW, QualityFlag.SPECIMEN]
    assert join_flags([]) == ""
    assert split_flags("") == []


def test_split_flags_refuses_other_text() -> None:
    with pytest.raises(ValueError, match="no such flag"):
        split_flags("no window; no such flag")


def test_count_flags() -> None:
    cells = ["no window; specimen", "", "no window"]
    assert count_flags(cells) == {QualityFlag.NO_WINDOW: 2, QualityFlag.SPECIMEN: 1}
    assert count_flags([]) == {}


def test_every_flag_is_explained() -> None:
    assert {str(flag) for flag in QualityFlag} <= set(QUALITY_FLAGS)
