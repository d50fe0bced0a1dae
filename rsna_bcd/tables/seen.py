"""`seen.json`: which machines and views the images of a run's training had.

What a network says of a machine that it has never seen is worth less; so a run keeps what it saw.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_file
from rsna_bcd.tables.metadata import as_text

SEEN_FILE = "seen.json"  # in a run's folder
SEEN_COLUMNS = ("machine_id", "view")

Seen = Mapping[str, tuple[str, ...]]


def seen_values(images: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """The values of each of `SEEN_COLUMNS` that a table of images has.

    Returns:
        Strings, sorted, by column; 29, 29.0 and "29" are one machine. A column that the table lacks
        is absent, and so is one without a value: nothing can be said of it.
    """
    values = {c: as_text(images[c]).dropna().unique() for c in SEEN_COLUMNS if c in images}
    return {column: tuple(sorted(map(str, own))) for column, own in values.items() if len(own)}


def write_seen(seen: Seen, file: Path) -> None:
    """Write `seen.json`; the file is either whole or absent."""
    write_file(file, json.dumps(seen, indent=2) + "\n")


def read_seen(file: Path) -> dict[str, tuple[str, ...]]:
    """Read `seen.json`.

    Returns:
        As `seen_values`; nothing where the file is absent: runs of before it existed left none.

    Raises:
        InputError: the file is no such table.
    """
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return {str(column): tuple(map(str, values)) for column, values in record.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} is damaged ({error}). Copy it again, or delete it: then it is not known what "
            "the run has seen."
        ) from error
