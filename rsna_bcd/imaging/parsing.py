"""Pydicom's parser and damaged files: what it raises becomes a reason, its remarks are dropped."""

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom.errors import BytesLengthException, InvalidDicomError

from rsna_bcd.imaging.mammogram import ImageError

# On bytes that are no header; anything else is a bug and stays visible.
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
        except UNPARSABLE as error:
            raise ImageError(f"damaged header: {error}") from error
