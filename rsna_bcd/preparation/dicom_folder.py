"""List a folder of DICOM files and read their headers.

Apart from `source_files`, for this needs pydicom: `submit` on pictures does without.
"""

import filecmp
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rsna_bcd.imaging.headers import Header, read_header
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.engine import Result

Followed = Callable[[Iterable[Result[str, Header]]], Iterable[Result[str, Header]]]


def list_files(root: Path) -> tuple[list[str], dict[str, str]]:
    """List all files below a folder, whatever their suffix; links are followed.

    Hidden files and folders are left out.

    Returns:
        Paths relative to `root`, in order; and, by such a path, the reasons to skip the others:
        folders that cannot be listed, links that lead nowhere or back to a folder above, pipes,
        sockets and devices.
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
        follow: yields the results that it is given, as a progress bar does.

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
    """Find files with an image that are no mammogram to predict.

    Returns:
        Reasons by name: another kind of image, several frames, or a copy (`find_copies`).
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
