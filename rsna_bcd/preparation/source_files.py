"""Find the image files of a table."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.files import is_file, list_names
from rsna_bcd.imaging.raster import SUFFIXES
from rsna_bcd.preparation.crop import Source

# In order of preference, in whatever case; DICOM files of archives often have no suffix.
_SUFFIXES: dict[Source, tuple[str, ...]] = {"dicom": (".dcm", ".dicom", ""), "image": SUFFIXES}
_WILD = frozenset("*?[")


def find_files(
    root: Path,
    images: pd.DataFrame,
    source: Source,
    unlistable: dict[str, str] | None = None,
) -> dict[str, Path]:
    """The file of each image that is on disk, or in an archive (`files.read_bytes`).

    It is `<root>/<file>` where the table has a column `file`, whose parts may be patterns (`*`, `?`
    and `[...]` match within one name, not hidden files), else
    `<root>/<patient_id>/<image_id>.<suffix>`, or `<root>/<image_id>.<suffix>` in a flat folder; the
    suffix in whatever case.

    Args:
        root: `train_images` or `test_images`.
        images: table from `read_images`.
        source: `dicom` looks for `.dcm`, `.dicom` or no suffix, `image` for pictures; a `file` has
            its own suffix.
        unlistable: filled with the reasons of images whose folder cannot be listed, by `image_id`.

    Returns:
        Paths by `image_id`; images without a file are absent.

    Raises:
        InputError: a pattern matches several files, or two images have the same one.
    """
    # One listing per folder is cheaper than a question for each file and suffix.
    names = cache(_list_folder)
    found: dict[str, Path] = {}
    owners: dict[str, str] = {}
    suffixes = tuple(suffix for suffix in _SUFFIXES[source] if suffix)
    for image_id, candidates in zip(images["image_id"], _candidates(images, source), strict=True):
        for candidate in candidates:
            try:
                matches = _match(str(root), candidate.split("/"), names)
            except OSError as error:
                if unlistable is not None:
                    unlistable[image_id] = f"{error.filename}: {error.strerror}"
                continue
            if len(matches) > 1:
                raise InputError(
                    f"{root / candidate} is to be the one file of image {image_id}, but there are "
                    f"{len(matches)}: {matches[0]} and {matches[1]} among them. Narrow the pattern."
                )
            # Without a suffix, it may be a folder with the name of an image.
            if not matches or not (candidate.endswith(suffixes) or is_file(Path(matches[0]))):
                continue
            other = owners.setdefault(matches[0], image_id)
            if other != image_id:
                raise InputError(
                    f"{matches[0]} is the file of two images, {other} and {image_id}. Give each a "
                    "path or a pattern of its own."
                )
            found[image_id] = Path(matches[0])
            if unlistable is not None:
                unlistable.pop(image_id, None)
            break
    return found


def expected_file(root: Path, image: pd.Series, source: Source) -> str:
    """Name the file of a row that `find_files` looks for: a path, a pattern, or several."""
    if "file" in image:
        return str(root / image["file"])
    path = str(root / image["patient_id"] / image["image_id"])
    first, *others = _SUFFIXES[source]
    return f"{path}{first} (or {', '.join(suffix or 'no suffix' for suffix in others)})"


def _candidates(images: pd.DataFrame, source: Source) -> list[list[str]]:
    """Paths below the root at which each image may be, in order of preference."""
    if "file" in images:
        return [[file] for file in images["file"]]
    suffixes = _SUFFIXES[source]
    return [
        [f"{folder}{image_id}{s}" for folder in (f"{patient_id}/", "") for s in suffixes]
        for patient_id, image_id in zip(images["patient_id"], images["image_id"], strict=True)
    ]


_Listing = dict[str, str]  # names, and names with their suffix in lower case, to names


def _match(folder: str, parts: Sequence[str], names: Callable[[str], _Listing]) -> list[str]:
    """Paths below `folder` that match the parts of a pattern, sorted.

    Raises:
        OSError: a folder cannot be listed.
    """
    if not parts:
        return [folder]
    first, rest = parts[0], parts[1:]
    present = names(folder)
    if first in present:  # also if it holds a `[`
        matching = [present[first]]
    elif _WILD.isdisjoint(first):
        matching = []
    else:
        names_there = set(present.values())
        alike = {n for n in names_there if n.startswith(".") == first.startswith(".")}
        matching = sorted(n for n in alike if fnmatchcase(n, first))
    return [path for name in matching for path in _match(f"{folder}/{name}", rest, names)]


def _list_folder(folder: str) -> _Listing:
    """List a folder; nothing if there is no such folder."""
    listing: _Listing = {}
    names = list_names(Path(folder))
    for name in sorted(names, reverse=True):
        stem, dot, suffix = name.rpartition(".")
        listing[f"{stem}{dot}{suffix.lower()}" if stem else name] = name
    return listing | {name: name for name in names}
