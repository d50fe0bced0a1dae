"""Pydicom's parser and damaged files: what it raises becomes a reason, its remarks are dropped.

Elements are read leniently: padded, empty and multi-valued ones as well.
"""

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from rsna_bcd.imaging.mammogram import ImageError

# On bytes that are no header; anything else is a bug and stays visible.
_UNPARSABLE = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    ValueError,
    KeyError,
    NotImplementedError,
    struct.error,
    AttributeError,  # an element that another one announces is absent
    TypeError,  # several values where one belongs
    RecursionError,  # thousands of sequences within each other
    OSError,  # a length that leads beyond the end
)

# It logs what it also raises or what our guards report, once a file.
logging.getLogger("pydicom").setLevel(logging.ERROR)


@contextmanager
def refusing_damaged_headers() -> Iterator[None]:
    """Turn what pydicom raises into a reason; it parses an element when that is first looked at.

    Raises:
        ImageError: the header is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd values of elements that are not used
        try:
            yield
        except ImageError:
            raise
        except _UNPARSABLE as error:
            raise ImageError(f"damaged header: {error}") from error


def element_text(dataset: Dataset, keyword: str) -> str:
    """The value of an element as text, stripped; several values are joined by backslashes.

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
    """The items of a sequence, or of sequences within each other; none where one is absent."""
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
    """The value of an element; None where it cannot be parsed, for then it says nothing."""
    tag = _tag(keyword)
    if tag not in dataset:
        return None
    try:
        return dataset[tag].value
    except _UNPARSABLE:
        return None


@cache
def _tag(keyword: str) -> BaseTag:
    """The tag of a keyword, which takes longer to find than most elements to read."""
    return Tag(keyword)
