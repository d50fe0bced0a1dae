"""Elements of a DICOM header, read leniently: padded, empty, multi-valued and damaged ones too."""

from functools import cache
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from rsna_bcd.imaging.parsing import UNPARSABLE


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
    except UNPARSABLE:
        return None


@cache
def _tag(keyword: str) -> BaseTag:
    """The tag of a keyword, which takes longer to find than most elements to read."""
    return Tag(keyword)
