"""Where the files of a table are."""

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.picture import SUFFIXES
from rsna_bcd.preparation.crop import Source

_SUFFIXES: dict[Source, tuple[str, ...]] = {"dicom": (".dcm",), "image": SUFFIXES}
_WILD = frozenset("*?[")


def find_files(root: Path, images: pd.DataFrame, source: Source) -> dict[str, Path]:
    """The file of each image that is on disk.

    It is `<root>/<file>` where the table has a column `file`, whose parts may be patterns (`*`, `?`
    and `[...]` match within one name, not hidden files), else
    `<root>/<patient_id>/<image_id>.<suffix>`.

    Args:
        root: `train_images` or `test_images`.
        images: table from `read_images`.
        source: `dicom` looks for `.dcm`, `image` for pictures; a `file` has its own suffix.

    Returns:
        Paths by `image_id`; images without a file are absent.

    Raises:
        InputError: a pattern matches several files, or two images have the same one.
    """
    # One listing a folder is cheaper than a question for each file and suffix.
    names = cache(_names)
    found: dict[str, Path] = {}
    owners: dict[str, str] = {}
    for image_id, candidates in zip(images["image_id"], _candidates(images, source), strict=True):
        for candidate in candidates:
            matches = _match(str(root), candidate.split("/"), names)
            if len(matches) > 1:
                raise InputError(
                    f"{root / candidate} is to be the one file of image {image_id}, but there are "
                    f"{len(matches)}: {matches[0]} and {matches[1]} among them. Narrow the pattern."
                )
            if matches:
                other = owners.setdefault(matches[0], image_id)
                if other != image_id:
                    raise InputError(
                        f"{matches[0]} is the file of two images, {other} and {image_id}. Give "
                        "each a path or a pattern of its own."
                    )
                found[image_id] = Path(matches[0])
                break
    return found


def expected_file(root: Path, image: pd.Series, source: Source) -> str:
    """Name the file that `find_files` looks for, for a message: a path, a pattern, or several.

    Args:
        root: `train_images` or `test_images`.
        image: a row of the table from `read_images`.
        source: as for `find_files`.
    """
    if "file" in image:
        return str(root / image["file"])
    path = str(root / image["patient_id"] / image["image_id"])
    first, *others = _SUFFIXES[source]
    return f"{path}{first}" + (f" (or {', '.join(others)})" if others else "")


def _candidates(images: pd.DataFrame, source: Source) -> list[list[str]]:
    """Paths below the root at which each image may be, in order of preference."""
    if "file" in images:
        return [[file] for file in images["file"]]
    return [
        [f"{patient_id}/{image_id}{suffix}" for suffix in _SUFFIXES[source]]
        for patient_id, image_id in zip(images["patient_id"], images["image_id"], strict=True)
    ]


def _match(folder: str, parts: Sequence[str], names: Callable[[str], frozenset[str]]) -> list[str]:
    """Paths below `folder` that match the parts of a pattern, sorted."""
    if not parts:
        return [folder]
    first, rest = parts[0], parts[1:]
    present = names(folder)
    if first in present:  # also if it holds a `[`
        matching = [first]
    elif _WILD.isdisjoint(first):
        matching = []
    else:
        hidden = first.startswith(".")
        matching = sorted(
            n for n in present if fnmatchcase(n, first) and n.startswith(".") == hidden
        )
    return [path for name in matching for path in _match(f"{folder}/{name}", rest, names)]


def _names(folder: str) -> frozenset[str]:
    """What is in a folder; nothing if there is no such folder."""
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - names are all that is needed
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
