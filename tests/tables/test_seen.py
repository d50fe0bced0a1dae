"""What a run's training saw, in words that do not depend on how a table was written."""

from pathlib import Path

import pandas as pd

from rsna_bcd.tables.metadata import read_training_domain, training_domain, write_training_domain


def test_a_machine_is_the_same_however_it_is_written() -> None:
    for machines in ([29, 49, 29], [29.0, 49.0, None], ["29", "49", None]):
        images = pd.DataFrame({"machine_id": machines, "view": ["CC", None, "AT"]})
        assert training_domain(images) == {"machine_id": ("29", "49"), "view": ("AT", "CC")}


def test_of_a_column_without_values_nothing_is_known(tmp_path: Path) -> None:
    assert training_domain(pd.DataFrame({"machine_id": [None, None]})) == {}
    assert training_domain(pd.DataFrame({"view": ["CC"]})) == {"view": ("CC",)}
    assert read_training_domain(tmp_path / "absent.json") == {}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    seen = {"machine_id": ("29", "49"), "view": ("CC", "MLO")}
    write_training_domain(seen, tmp_path / "seen.json")
    assert read_training_domain(tmp_path / "seen.json") == seen
