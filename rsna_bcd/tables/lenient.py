"""A CSV that somebody else swapped in: read whatever its lines hold."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.tables.failures import Failure

_SHOWN = 60  # characters of a damaged line


Line = tuple[int, list[str]]  # its number and its cells


def read_lenient(file: Path) -> tuple[pd.DataFrame, list[Failure]]:
    """Read a CSV with a header, whatever is wrong with the rows below it.

    Lines that are too short end in empty cells, lines that are too long are left out (unless what
    they have too much is empty). Bytes that are no UTF-8 become the replacement character. A
    quotation mark that is never closed is taken as it stands.

    Returns:
        The table, every cell a string without spaces around it, empty ones missing, indexed by line
        (the header is line 1); and the lines that were left out.

    Raises:
        InputError: the file is absent or empty.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist. Point paths.data= at the dataset's folder.")
    text = file.read_bytes().decode("utf-8-sig", errors="replace").replace("\0", "")
    lines = _lines(text)
    if not lines:
        raise InputError(f"{file} is empty. Download it anew.")
    (_, header), *rows = lines
    table: dict[int, list[str | None]] = {}
    failures = []
    for line, cells in rows:
        if any(cells[len(header) :]):
            shown = ",".join(cells)[:_SHOWN]
            reason = f"line {line} has {len(cells)} cells instead of {len(header)}: {shown}"
            failures.append(Failure(None, None, None, "damaged row", f"{reason}; left out"))
        else:
            missing = [None] * (len(header) - len(cells))
            table[line] = [*(cell or None for cell in cells[: len(header)]), *missing]
    frame = pd.DataFrame.from_dict(table, orient="index", columns=header, dtype="string")
    # Of columns with the same name the first one counts.
    return frame.loc[:, ~frame.columns.duplicated()], failures


def _lines(text: str) -> list[Line]:
    """The lines that are not blank; quotation marks are read in the way that more lines allow."""
    quoted = _parsed(text, csv.QUOTE_MINIMAL)
    if not any("\n" in cell for _, cells in quoted for cell in cells):
        return quoted
    plain = _parsed(text, csv.QUOTE_NONE)
    return max(quoted, plain, key=_whole)  # the first, if they are equal


def _parsed(text: str, quoting: Literal[0, 3]) -> list[Line]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a quotation without end is long
    reader = csv.reader(io.StringIO(text, newline=None), quoting=quoting)
    lines = ((reader.line_num, [c.strip().strip('"').strip() for c in cells]) for cells in reader)
    return [(line, cells) for line, cells in lines if any(cells)]


def _whole(lines: Sequence[Line]) -> int:
    """How many lines have as many cells as the header."""
    return sum(len(cells) == len(lines[0][1]) for _, cells in lines) if lines else 0
