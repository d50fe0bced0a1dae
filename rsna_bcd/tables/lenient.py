"""A CSV that somebody else swapped in: read whatever its lines hold."""

from pathlib import Path

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.files import is_file, read_bytes
from rsna_bcd.tables.delimited import check_is_text, decode_text, parse_lines
from rsna_bcd.tables.failures import Failure

_SHOWN = 60  # characters of a damaged line


def read_lenient(file: Path) -> tuple[pd.DataFrame, list[Failure]]:
    """Read a CSV with a header, whatever is wrong with the rows below it.

    Lines that are too short end in empty cells, lines that are too long are left out (unless what
    they have too much is empty). Bytes that are no UTF-8 become the replacement character. A
    quotation mark that is never closed is taken as it stands.

    Returns:
        The table, every cell a string without spaces around it, empty ones missing, indexed by line
        (the header is line 1); and the lines that were left out.

    Raises:
        InputError: the file is absent, empty or a spreadsheet.
    """
    if not is_file(file):
        raise InputError(f"{file} does not exist. Point paths.data= at the dataset's folder.")
    content = read_bytes(file)
    check_is_text(file, content)
    lines = parse_lines(decode_text(content, errors="replace"))
    if not lines:
        raise InputError(f"{file} is empty. Check that it was copied or downloaded whole.")
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
