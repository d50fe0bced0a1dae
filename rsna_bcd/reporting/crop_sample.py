"""Which crops to look at: some of every machine, those with something amiss first.

The choice hangs on the identifiers alone, not on the order of rows or of completion: the same crops
are shown again after a rerun. Hashes have nothing to do with what an image shows.
"""

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from rsna_bcd.errors import InputError

Kind = Literal["failed", "whole frame", "crop", "missing"]
KINDS: tuple[Kind, ...] = ("failed", "whole frame", "crop", "missing")  # in the order of showing

_ALL, _UNKNOWN = "all images", "unknown"


@dataclass(frozen=True)
class SampledImage:
    """One image that is shown.

    Attributes:
        patient_id: whose it is.
        image_id: which it is.
        kind: what became of it; `whole frame` where no breast was found to cut out.
        caption: laterality and view, and whether the breast has cancer where that is known.
        reason: why it failed; empty if it did not.
    """

    patient_id: str
    image_id: str
    kind: Kind
    caption: str
    reason: str


@dataclass(frozen=True)
class MachineSample:
    """The images of one machine.

    Attributes:
        name: `machine 49`, or `all images` where the table knows no machines.
        site: `site 1`; empty where the table knows no sites.
        counts: of all its images, by kind.
        images: those that are shown: failed, whole frames, crops, missing.
    """

    name: str
    site: str
    counts: Mapping[Kind, int]
    images: tuple[SampledImage, ...]


@dataclass(frozen=True)
class CropSample:
    """What a contact sheet shows.

    Attributes:
        machines: in the order of their names, numbers as numbers.
        counts: of all images, by kind, those of machines not shown included.
        machines_left_out: how many are not shown.
        images_left_out: how many images these have.
        columns: images beside each other; a machine with more goes on in the next line.
    """

    machines: tuple[MachineSample, ...]
    counts: Mapping[Kind, int]
    machines_left_out: int
    images_left_out: int
    columns: int


def sample_crops(
    images: pd.DataFrame,
    finished: Mapping[str, bool],
    failures: Mapping[str, str],
    columns: int = 8,
    lines: int = 12,
) -> CropSample:
    """Choose the images of a contact sheet.

    Every machine has as many lines as fit, and at least one. Its failed, whole and ordinary images
    take turns, so that neither a thousand failures hide what a crop looks like nor the reverse;
    missing ones only fill what is left. Where there are more machines than lines, those with the
    most failed and whole images stay, then those with the most images.

    Args:
        images: table from `read_images`: `patient_id, image_id, laterality`, and where it has them
            `view, cancer, site_id, machine_id`.
        finished: by `image_id` of crops that were made, whether a breast was found.
        failures: by `image_id`, why others failed. Images in neither were missing on disk.
        columns: images in a line.
        lines: at most.

    Raises:
        InputError: no images, or `columns` or `lines` below 1.
    """
    if images.empty or columns < 1 or lines < 1:
        raise InputError(
            f"A contact sheet of {len(images)} images in {lines} lines of {columns} is empty. Give "
            "a table with rows, and at least one line and column."
        )
    table = pd.DataFrame(
        {
            "patient_id": images["patient_id"].astype(str),
            "image_id": images["image_id"].astype(str),
            "machine": _names(images, "machine_id", _ALL, _UNKNOWN),
            "site": _names(images, "site_id"),
            "caption": _captions(images),
        }
    )
    table["kind"] = [_kind(image_id, finished, failures) for image_id in table["image_id"]]
    table["place"] = table["kind"].map(KINDS.index)
    table["hash"] = [hashlib.sha256(i.encode()).hexdigest() for i in table["image_id"]]
    table = table.sort_values("hash")
    table["turn"] = table.groupby(["machine", "kind"]).cumcount()

    found = {str(name): rows for name, rows in table.groupby("machine")}
    by_importance = sorted(found, key=lambda name: (_importance(found[name]), _natural(name)))
    shown = sorted(by_importance[:lines], key=_natural)
    each = columns * (lines // len(shown))
    return CropSample(
        tuple(_machine(name, found[name], failures, each) for name in shown),
        _counts(table),
        len(found) - len(shown),
        sum(len(found[name]) for name in by_importance[lines:]),
        columns,
    )


def _kind(image_id: str, finished: Mapping[str, bool], failures: Mapping[str, str]) -> Kind:
    """What became of an image."""
    if image_id in finished:
        return "crop" if finished[image_id] else "whole frame"
    return "failed" if image_id in failures else "missing"


def _machine(
    name: str, rows: pd.DataFrame, failures: Mapping[str, str], each: int
) -> MachineSample:
    """The sample of one machine, of `each` images at most."""
    turns = rows.assign(missing=rows["kind"] == "missing").sort_values(["missing", "turn", "place"])
    chosen = turns.head(each).sort_values(["place", "turn"])
    sites = sorted(set(rows["site"]) - {""}, key=_natural)
    return MachineSample(
        name if name == _ALL else f"machine {name}",
        f"site {', '.join(sites)}" if sites else "",
        _counts(rows),
        tuple(_image(row, failures) for row in chosen.to_dict("records")),
    )


def _image(row: Mapping[Hashable, Any], failures: Mapping[str, str]) -> SampledImage:
    """One row of the sample."""
    reason = (failures[row["image_id"]] or "no reason given") if row["kind"] == "failed" else ""
    return SampledImage(row["patient_id"], row["image_id"], row["kind"], row["caption"], reason)


def _importance(rows: pd.DataFrame) -> tuple[int, int]:
    """Smaller for machines with more failed and whole images, then for those with more images."""
    return -int(rows["kind"].isin(["failed", "whole frame"]).sum()), -len(rows)


def _counts(rows: pd.DataFrame) -> dict[Kind, int]:
    """Number of images by kind."""
    return {kind: int((rows["kind"] == kind).sum()) for kind in KINDS}


def _names(images: pd.DataFrame, column: str, absent: str = "", empty: str = "") -> list[str]:
    """Values of a column as text; `absent` where it is not there, `empty` for an empty cell."""
    if column not in images:
        return [absent] * len(images)
    return [_name(value) or empty for value in images[column].tolist()]


def _name(value: object) -> str:
    """An identifier as text: pandas makes floats of integers where one is missing."""
    if value is None or value is pd.NA or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _captions(images: pd.DataFrame) -> list[str]:
    """Laterality and view, and cancer."""
    parts = [_names(images, column) for column in ("laterality", "view")]
    cancer = ["cancer" if name == "1" else "" for name in _names(images, "cancer")]
    return [" ".join(filter(None, words)) for words in zip(*parts, cancer, strict=True)]


def _natural(name: str) -> tuple[int, float, str]:
    """Sorts 9 before 10, numbers before words, what is unknown last."""
    if name == _UNKNOWN:
        return 2, 0.0, name
    return (0, float(name), name) if name.isdecimal() else (1, 0.0, name)
