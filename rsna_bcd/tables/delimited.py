"""Text tables as programs write them: encodings, delimiters, quotation marks, surplus commas."""

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.files import is_file, read_bytes

Line = tuple[int, list[str]]  # number of the line in the file, from 1, and its cells

# The longer marks first: that of UTF-16 LE begins that of UTF-32 LE.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DELIMITERS = ",;\t|"
# Spellings of a missing value, without `NA`: that may be a patient's initials.
MISSING = ("", "#N/A", "#NA", "<NA>", "N/A", "NULL", "NaN", "None", "n/a", "nan", "null", "-nan")


def decode_text(content: bytes, errors: Literal["fallback", "replace"] = "fallback") -> str:
    """Decode a text file: UTF-8, UTF-16 and UTF-32 by their marks, UTF-16 by its zero bytes.

    Bytes that are no UTF-8 are read as Windows-1252 (`fallback`) or as the replacement character.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    # Latin letters in UTF-16 are zero in every other byte; text of one byte per letter has none.
    start = content[:1000]
    if start[1::2].count(0) > 0.9 * len(start[1::2]) > 0:
        return content.decode("utf-16-le", errors="replace")
    if start[::2].count(0) > 0.9 * len(start[::2]) > 0:
        return content.decode("utf-16-be", errors="replace")
    if errors == "replace":
        return content.decode("utf-8", errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def read_cells(
    file: Path, errors: Literal["fallback", "replace"] = "fallback"
) -> tuple[list[str], list[Line]]:
    """Read the header of a text table, and its further lines that are not blank.

    Raises:
        InputError: the file is absent, empty or a spreadsheet.
    """
    if not is_file(file):
        raise InputError(absent_table(file))
    content = read_bytes(file)
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):  # ZIP, and so .xlsx; .xls
        raise InputError(f"{file} is not a CSV table but a spreadsheet or archive. Save it as CSV.")
    lines = parse_lines(decode_text(content, errors))
    if not lines:
        raise InputError(f"{file} is empty. Check that it was copied or downloaded whole.")
    (_, header), *rows = lines
    return header, rows


def absent_table(file: Path, other_remedy: str = "") -> str:
    """The message that a table does not exist, with the remedies."""
    made = " `python -m rsna_bcd.index` makes it." if file.name == "index.csv" else ""
    for parent in file.parents:
        if parent.suffix.lower() == ".zip" and not parent.exists():
            return f"{parent} does not exist. Point paths.data= at the archive, or at its folder."
    archive = Path(f"{file.parent}.zip")
    remedy = (
        f"Read the archive without unpacking: paths.data={archive}"
        if archive.is_file()
        else "Point paths.data= at the dataset's folder"
    )
    return f"{file} does not exist.{made} {remedy}{other_remedy}."


def parse_lines(text: str) -> list[Line]:
    """Split a table into cells.

    The delimiter is the one of comma, semicolon, tab and bar that the header has most of. A
    quotation mark that is never closed is taken as it stands. Zero bytes, blanks around cells,
    blank lines and empty columns without a name at the right are left out.

    Returns:
        The lines that are not blank, the header first.
    """
    text = text.replace("\0", "")
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(_DELIMITERS, key=header.count)  # the first, a comma, if there is none
    lines = _parse(text, delimiter, csv.QUOTE_MINIMAL)
    if any("\n" in cell for _, cells in lines for cell in cells):
        plain = _parse(text, delimiter, csv.QUOTE_NONE)
        lines = max(lines, plain, key=_count_whole)  # the first, if they are equal
    if lines:
        header_cells = lines[0][1]
        while header_cells and not header_cells[-1]:
            column = len(header_cells) - 1
            if any(any(cells[column:]) for _, cells in lines[1:]):
                break
            header_cells.pop()
    return lines


def read_own_csv(csv: Path | str, identifiers: Sequence[str]) -> pd.DataFrame:
    """Read a CSV, or its text, of this package: identifiers are strings, a patient may be NA.

    Some of the columns `identifiers` may be absent.

    Raises:
        pandas.errors.EmptyDataError: there is not even a header.
    """
    header = pd.read_csv(io.StringIO(csv) if isinstance(csv, str) else csv, nrows=0).columns
    present = [column for column in identifiers if column in header]
    return pd.read_csv(
        io.StringIO(csv) if isinstance(csv, str) else csv,
        dtype=dict.fromkeys(present, "string"),
        keep_default_na=False,
        na_values={c: [""] if c in present else [*MISSING, "NA"] for c in header},
    )


def _parse(text: str, delimiter: str, quoting: Literal[0, 3]) -> list[Line]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a quotation without end is long
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, quoting=quoting)
    lines = ((reader.line_num, [c.strip().strip('"').strip() for c in cells]) for cells in reader)
    return [(line, cells) for line, cells in lines if any(cells)]


def _count_whole(lines: Sequence[Line]) -> int:
    """How many lines have as many cells as the header."""
    return sum(len(cells) == len(lines[0][1]) for _, cells in lines) if lines else 0
