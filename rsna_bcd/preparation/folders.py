"""What is in a folder of DICOM files, for those who have no table of it."""

import filecmp
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from rsna_bcd.imaging.headers import Header, read_header
from rsna_bcd.imaging.kinds import PROJECTIONS, shows_breast
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.engine import Result

Followed = Callable[[Iterable[Result[str, Header]]], Iterable[Result[str, Header]]]


def files_below(root: Path) -> Iterator[str]:
    """All files below `root` whatever their suffix, relative to it, in order, none hidden."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name).relative_to(root).as_posix()


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


def refused(headers: Mapping[str, Header], files: Mapping[str, Path]) -> dict[str, str]:
    """Which files with an image are no mammogram to predict, and why.

    Args:
        headers: from `read_headers`.
        files: by name.

    Returns:
        Reasons by name: it is something else, has several frames, or is a copy, byte for byte, of
        one that comes before it. (One identifier of two different images is a mistake of whoever
        made them anonymous, and no reason.)
    """
    reasons: dict[str, str] = {}
    first: dict[object, list[str]] = {}
    for name, header in headers.items():
        part, modality = str(header["body_part"] or ""), str(header["modality"] or "").upper()
        if header["kind"]:
            reasons[name] = f"{header['kind']}, no mammogram"
        elif modality in PROJECTIONS and modality != "MG" and part and not shows_breast(part):
            reasons[name] = f"X-ray of the {part.lower()}, no mammogram"
        elif int(header["frames"] or 1) != 1:
            reasons[name] = f"{header['frames']} frames: a tomosynthesis or a film, no mammogram"
        else:
            alike = first.setdefault(header["image_id"] or name, [])
            copied = [n for n in alike if filecmp.cmp(files[n], files[name], shallow=False)]
            if copied:
                reasons[name] = f"a copy of {copied[0]}"
            else:
                alike.append(name)
    return reasons
