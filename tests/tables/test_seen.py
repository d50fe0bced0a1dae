"""What a run's training saw, in words that do not depend on how a table was written."""

from pathlib import Path

import pandas as pd

from rsna_bcd.tables.seen import read_seen, seen_values, write_seen


def test_a_machine_is_the_same_however_it_is_written() -> None:
    for machines in ([29, 49, 29], [29.0, 49.0, None], ["29", "49", None]):
        images = pd.DataFrame({"machine_id": machines, "view": ["CC", None, "AT"]})
        assert seen_values(images) == {"machine_id": ("29", "49"), "view": ("AT", "CC")}


def test_of_a_column_without_values_nothing_is_known(tmp_path: Path) -> None:
    assert seen_values(pd.DataFrame({"machine_id": [None, None]})) == {}
    assert seen_values(pd.DataFrame({"view": ["CC"]})) == {"view": ("CC",)}
    assert read_seen(tmp_path / "absent.json") == {}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    seen = {"machine_id": ("29", "49"), "view": ("CC", "MLO")}
    write_seen(seen, tmp_path / "seen.json")
    assert read_seen(tmp_path / "seen.json") == seen
