"""Lookup tables of DICOM headers (PS3.3 C.11.1.1, C.11.2.1.1), also those that break the rules.

Tables in real files announce other bits, other counts or another sign than their data have. What
the data hold decides, as far as it is unambiguous.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from rsna_bcd.imaging.parsing import UNPARSABLE
from rsna_bcd.imaging.window import LookupTable

_WORD = 2**16


class UnusableError(Exception):
    """A transform of the header that cannot be applied; the message describes it."""


def read_lookup_table(item: Dataset, largest_input: float, *, signed: bool) -> LookupTable:
    """Read an item of a modality or VOI LUT sequence.

    Args:
        item: the item.
        largest_input: the largest value that is looked up. A table with fewer entries than
            announced is used if it reaches so far.
        signed: whether the inputs are signed; the first input of the table is, then, too.

    Returns:
        The table, its entries as stored.

    Raises:
        UnusableError: the descriptor or the data are absent, incomplete or contradictory.
    """
    descriptor = _integers(_element(item, "LUTDescriptor"))
    if len(descriptor) != 3:
        raise UnusableError(f"lookup table with a descriptor of {len(descriptor)} values")
    # The first value is unsigned, whatever VR the descriptor has; 0 stands for 65,536.
    count, first, bits = descriptor[0] % _WORD or _WORD, descriptor[1], descriptor[2]
    if signed and first >= _WORD // 2:
        first -= _WORD
    if not signed and first < 0 and first + _WORD <= largest_input:  # the descriptor's VR is SS
        first += _WORD
    entries = _entries(item, count, bits)
    if not entries.size or (entries.size < count and first + entries.size <= largest_input):
        raise UnusableError(f"lookup table of {entries.size} entries, {count} announced")
    return LookupTable(first, entries[:count].astype(np.float32))


def read_voi_lookup_table(item: Dataset, largest_input: float, *, signed: bool) -> LookupTable:
    """Read an item of a VOI LUT sequence; the entries are divided by their full scale.

    Full scale is 2**bits - 1, as announced: tables of GE end at 3905 of 4095. Only if an entry is
    beyond that, or all are below half of it, is the largest entry full scale.

    Raises:
        UnusableError: see `read_lookup_table`; or all entries are 0.
    """
    table = read_lookup_table(item, largest_input, signed=signed)
    largest = float(table.entries.max())
    if largest == 0:
        raise UnusableError(f"lookup table of {len(table.entries)} entries of 0")
    bits = _integers(item.LUTDescriptor)[2]
    announced = 2.0**bits - 1 if 1 <= bits <= 16 else largest
    full = announced if announced / 2 <= largest <= announced else largest
    return LookupTable(table.first, table.entries / np.float32(full))


def _entries(item: Dataset, count: int, bits: int) -> NDArray[np.unsignedinteger[Any]]:
    """The entries: unsigned words whatever the VR; or bytes, packed two to a word if in words."""
    data = _element(item, "LUTData")
    if isinstance(data, bytes):
        content = data  # little endian: `parse_dicom` swaps the words of other files
    else:
        content = np.array([value % _WORD for value in _integers(data)], "<u2").tobytes()
    if bits <= 8 and len(content) < 2 * count:
        return np.frombuffer(content, np.uint8)
    return np.frombuffer(content[: len(content) // 2 * 2], "<u2")


def _element(item: Dataset, keyword: str) -> Any:
    try:
        return item.get(keyword)
    except UNPARSABLE as error:
        raise UnusableError(f"lookup table: {error}") from error


def _integers(value: Any) -> list[int]:
    """The values of an element that may have none, one or several."""
    if value is None or isinstance(value, str | bytes):
        raise UnusableError("lookup table without a descriptor or data")
    try:
        return [int(v) for v in np.atleast_1d(value).tolist()]
    except (TypeError, ValueError) as error:
        raise UnusableError(f"lookup table: {error}") from error
