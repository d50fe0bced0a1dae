"""Records of settings beside results."""

from pathlib import Path

import pytest

from rsna_bcd._records import check_same_config, write_record
from rsna_bcd.errors import InputError

RECORD = {"crop": {"height": 1024, "margin": 0.02}, "splits": ["train", "test"], "name": "a"}


def test_check_same_config_of_no_record_and_of_an_equal_one(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "config.yaml"
    assert not check_same_config(file, RECORD, overwrite=False)
    write_record(file, RECORD)
    assert check_same_config(file, RECORD, overwrite=False)
    assert [path.name for path in file.parent.iterdir()] == ["config.yaml"]


def test_check_same_config_refuses_other_settings_and_shows_the_difference(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    write_record(file, RECORD)
    other = {**RECORD, "crop": {"height": 512, "margin": 0.02}, "seed": 1}
    with pytest.raises(InputError) as error:
        check_same_config(file, other, overwrite=False)
    for part in ("crop.height: 1024 -> 512", "seed: (absent) -> 1", "overwrite=true"):
        assert part in str(error.value)
    assert "margin" not in str(error.value)
    assert not check_same_config(file, other, overwrite=True)
