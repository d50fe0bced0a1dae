"""Find the image files of a table or below a folder, and read their headers."""

import filecmp
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.files import is_file, list_names
from rsna_bcd.imaging.headers import Header, read_header
from rsna_bcd.imaging.raster import SUFFIXES
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.crop import Source
from rsna_bcd.preparation.engine import Result

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
        unlistable: where to note the images whose folder cannot be listed, by `image_id`, with the
            reason.

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
            if matches and not candidate.endswith(suffixes) and not is_file(Path(matches[0])):
                continue  # a folder with the name of an image
            if matches:
                if unlistable is not None:
                    unlistable.pop(image_id, None)
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
        hidden = first.startswith(".")
        matching = sorted(
            n
            for n in set(present.values())
            if fnmatchcase(n, first) and n.startswith(".") == hidden
        )
    return [path for name in matching for path in _match(f"{folder}/{name}", rest, names)]


def _list_folder(folder: str) -> _Listing:
    """What is in a folder; nothing if there is no such folder."""
    names = list_names(Path(folder))
    lower = {_with_lower_suffix(name): name for name in sorted(names, reverse=True)}
    return lower | {name: name for name in names}


def _with_lower_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}{dot}{suffix.lower()}" if stem else name


Followed = Callable[[Iterable[Result[str, Header]]], Iterable[Result[str, Header]]]


def list_files(root: Path) -> tuple[list[str], dict[str, str]]:
    """List all files below a folder, whatever their suffix; links are followed.

    Hidden files and folders are left out.

    Returns:
        Paths relative to `root`, in order; and, likewise relative, reasons of what is no file that
        can be read: folders that cannot be listed, links that lead nowhere or back to a folder
        above, pipes, sockets and devices.
    """
    found: list[str] = []
    skipped: dict[str, str] = {}

    def walk(folder: Path, above: frozenset[tuple[int, int]]) -> None:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            identity = folder.stat().st_dev, folder.stat().st_ino
        except OSError as error:
            skipped[folder.relative_to(root).as_posix()] = f"cannot be listed: {error.strerror}"
            return
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = Path(entry.path).relative_to(root).as_posix()
            try:
                status = entry.stat()
            except OSError as error:
                link = "a link that leads nowhere" if entry.is_symlink() else "cannot be read"
                skipped[name] = f"{link}: {error.strerror}"
                continue
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in above | {identity}:
                    skipped[name] = "a link back to a folder above it"
                else:
                    folders.append(Path(entry.path))
            elif stat.S_ISREG(status.st_mode):
                found.append(name)
            else:
                skipped[name] = "no file but a pipe, a socket or a device"
        for below in folders:
            walk(below, above | {identity})

    walk(root, frozenset())
    return found, skipped


def read_headers(
    files: Mapping[str, Path], workers: int, follow: Followed = iter
) -> tuple[dict[str, Header], dict[str, str]]:
    """Read the headers of files.

    Args:
        files: by name.
        workers: processes; 0 reads in this one.
        follow: passes results on, as a progress bar does.

    Returns:
        Headers of the files that have an image, and reasons of the others, both ordered by name.
    """
    headers: dict[str, Header] = {}
    reasons: dict[str, str] = {}
    results = engine.run(read_header, iter(files.items()), workers=min(workers, len(files)))
    for result in follow(results):
        if result.value is not None:
            headers[result.key] = result.value
        else:
            reasons[result.key] = result.reason or "unknown"
    return dict(sorted(headers.items())), dict(sorted(reasons.items()))


def find_copies(headers: Mapping[str, Header], files: Mapping[str, Path]) -> dict[str, str]:
    """Find files that are copies, byte for byte, of one that comes before them.

    One identifier of two different images is an error of an anonymisation, and no copy.

    Returns:
        By name, the name of the original.
    """
    originals: dict[object, list[str]] = {}
    copied: dict[str, str] = {}
    for name, header in headers.items():
        alike = originals.setdefault(header["image_id"] or name, [])
        same = [n for n in alike if filecmp.cmp(files[n], files[name], shallow=False)]
        if same:
            copied[name] = same[0]
        else:
            alike.append(name)
    return copied


def find_unusable(headers: Mapping[str, Header], files: Mapping[str, Path]) -> dict[str, str]:
    """Which files with an image are no mammogram to predict, and why.

    Args:
        headers: from `read_headers`.
        files: by name.

    Returns:
        Reasons by name: it is something else, has several frames, or is a copy (`copies`).
    """
    reasons: dict[str, str] = {}
    for name, header in headers.items():
        if header["kind"]:
            reasons[name] = f"{header['kind']}, no mammogram"
        elif int(header["frames"] or 1) != 1:
            reasons[name] = f"{header['frames']} frames: a tomosynthesis or a film, no mammogram"
    mammograms = {name: headers[name] for name in headers if name not in reasons}
    reasons |= {n: f"a copy of {first}" for n, first in find_copies(mammograms, files).items()}
    return reasons
