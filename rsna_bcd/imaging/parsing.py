"""Parse DICOM files that deviate from the standard or are damaged, and read their elements."""

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import VR

from rsna_bcd.imaging.mammogram import MOST_PIXELS, ImageError

_PREAMBLE = 128
_PREFIX = b"DICM"
# The first element of a file: of group 2, 8, 10, 18, 20 or 28 (hexadecimal), with an explicit VR in
# either byte order, or with the length of an implicit one, below 1024.
_GROUP, _VRS = rb"[\x02\x08\x10\x18\x20\x28]", "|".join(VR).encode()
_FIRST_ELEMENT = re.compile(
    rb"(%s\0..|\0%s..)(%s)|%s\0..[\0-\xff][\0-\x03]\0\0" % (_GROUP, _GROUP, _VRS, _GROUP), re.DOTALL
)
_META_BYTES = 4096  # within which the meta information names the transfer syntax
_MOST_INFLATED = 2 * MOST_PIXELS + 2**24
_DELIMITER = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)

# Exceptions of pydicom on bytes that are no header; anything else is a bug and stays visible.
UNPARSABLE = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    ValueError,
    KeyError,
    NotImplementedError,
    struct.error,
    AttributeError,  # an element that another one announces is absent
    TypeError,  # several values where one belongs
    RecursionError,  # thousands of nested sequences
    OSError,  # a length that leads beyond the end
    zlib.error,
)

# pydicom logs once per file faults that it also raises or that our checks report.
logging.getLogger("pydicom").setLevel(logging.ERROR)


@contextmanager
def header_errors() -> Iterator[None]:
    """Turn exceptions of pydicom, which parses elements on first access, into an `ImageError`.

    Raises:
        ImageError: the header is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd values of elements that are not used
        try:
            yield
        except ImageError:
            raise
        except UNPARSABLE as error:
            raise ImageError(f"damaged header: {error}") from error


def parse_dicom(file: BinaryIO, **options: Any) -> Dataset:
    """Parse a DICOM file.

    Also one without preamble or meta information, if its first element is plausible (the meta
    information is empty then); one whose pixel data lack the sequence delimiter; deflated and big
    endian ones: words (VR OW) of big endian files are swapped to little endian.

    Args:
        file: positioned at its start.
        options: of `pydicom.dcmread`.

    Raises:
        ImageError: not a DICOM file, or one that inflates to more than the largest image.
        Exception: one of UNPARSABLE; see `header_errors`.
    """
    head = file.read(_META_BYTES)
    start = _first_element(head)
    file.seek(0)
    if start not in (0, _PREAMBLE + len(_PREFIX)):  # those that pydicom finds
        file = io.BytesIO(file.read()[start:])
        start = 0
    if DeflatedExplicitVRLittleEndian.encode() in head:
        return _parse_deflated(file, start, options)
    dataset = pydicom.dcmread(file, force=True, **options)
    if "PixelData" not in dataset and not options.get("stop_before_pixels"):
        file.seek(0)
        closed = io.BytesIO(file.read() + _DELIMITER)
        dataset = pydicom.dcmread(closed, force=True, **options)
    if not dataset.original_encoding[1]:  # big endian
        for element in dataset.iterall():
            if element.VR == "OW" and isinstance(element.value, bytes):
                words = np.frombuffer(element.value[: len(element.value) // 2 * 2], np.uint16)
                element.value = words.byteswap().tobytes()
    return dataset


def _first_element(head: bytes) -> int:
    """Where the first element is: after preamble and prefix, or without one of them or both."""
    standard = _PREAMBLE + len(_PREFIX)
    if head[_PREAMBLE:standard] == _PREFIX:
        return standard
    starts = [0, _PREAMBLE] if head[:4] != _PREFIX else [len(_PREFIX)]
    for start in starts:
        if _FIRST_ELEMENT.match(head, start):
            return start
    raise ImageError("not a DICOM file")


def _parse_deflated(file: BinaryIO, start: int, options: dict[str, Any]) -> Dataset:
    """Parse a file whose data set is deflated (PS3.5 A.5), with a limit to its size."""
    file.seek(start)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    packed = file.read()
    wrapped = packed[:1] == b"\x78" and int.from_bytes(packed[:2]) % 31 == 0  # a header of zlib
    inflater = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
    content = inflater.decompress(packed, _MOST_INFLATED)
    if not inflater.eof:
        raise ImageError(
            f"the deflated data were cut short, or hold more than {_MOST_INFLATED >> 20} MB"
        )
    dataset = pydicom.dcmread(io.BytesIO(content), force=True, **options)
    dataset.file_meta = FileMetaDataset(meta)
    return dataset


def element_text(dataset: Dataset, keyword: str) -> str:
    """The value of an element as stripped text, several values joined by backslashes.

    Returns:
        An empty string where the element is absent, empty or damaged.
    """
    value = _value(dataset, keyword)
    if value is None:
        return ""
    if isinstance(value, list | tuple | MultiValue):
        return "\\".join(str(one).strip(" \0") for one in value)
    return str(value).strip(" \t\r\n\0")


def sequence_items(dataset: Dataset, *keywords: str) -> list[Dataset]:
    """The items of a sequence, or of nested sequences; none where one is absent."""
    items = [dataset]
    for keyword in keywords:
        nested = [_value(item, keyword) for item in items]
        items = [
            item
            for sequence in nested
            if isinstance(sequence, Sequence)
            for item in sequence
            if isinstance(item, Dataset)
        ]
    return items


def _value(dataset: Dataset, keyword: str) -> Any:
    """The value of an element; None where it is absent or cannot be parsed."""
    tag = _tag(keyword)
    if tag not in dataset:
        return None
    try:
        return dataset[tag].value
    except UNPARSABLE:
        return None


@cache
def _tag(keyword: str) -> BaseTag:
    """The tag of a keyword; pydicom needs longer to find it than to read most elements."""
    return Tag(keyword)


def first_integer(value: Any) -> int | None:
    """The first value of an element, if it is a whole number."""
    if isinstance(value, MultiValue | list):
        value = value[0] if len(value) else None
    return int(value) if isinstance(value, int) else None
