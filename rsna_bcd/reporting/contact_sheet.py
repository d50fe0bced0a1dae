"""Contact sheet: a sample of prepared crops of each machine in one picture.

Windows, boxes and orientation differ by machine, and so do their errors: some crops of each machine
show most of them. The sample depends on the identifiers alone, so that a rerun shows the same ones.
"""

import hashlib
import importlib.util
import io
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rsna_bcd.errors import InputError

Kind = Literal["failed", "whole frame", "crop", "missing"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of showing
Crop = NDArray[np.unsignedinteger[Any]]  # (H, W), uint8 or uint16

PAPER, MUTED, RED, AMBER = "#111317", "#969ca5", "#ff5c5c", "#ffa62b"
_COLOURS: Mapping[Kind, str] = {
    "failed": RED,
    "whole frame": AMBER,
    "crop": "#3a3f47",
    "missing": "#80868f",
}
_LEGEND: Mapping[Kind, str] = {
    "crop": "crops",
    "failed": "failed, with the reason",
    "whole frame": "without a visible breast: whole frame",
    "missing": "missing on disk",
}
# Pixels.
_CELL_HEIGHT, _NARROWEST, _WIDEST, _LABEL_WIDTH = 243, 110, 307, 147
_ABOVE, _BELOW, _GAP, _MARGIN, _HEADER = 23, 41, 15, 32, 96
_MIN_WIDTH = 1040  # room for legend and footer
_LINE, _SMALL_LINE = 19, 14
_FIELDS = ["patient_id", "image_id", "kind", "caption", "reason"]  # of `SampledImage`


@dataclass(frozen=True)
class SampledImage:
    """An image of the sheet."""

    patient_id: str
    image_id: str
    kind: Kind  # `whole frame` where no breast was found to crop to
    caption: str  # laterality, view, and `cancer` where the table says so
    reason: str  # of a failure; otherwise empty


@dataclass(frozen=True)
class MachineSample:
    """The images of one machine."""

    name: str  # `machine 49`, or `all images` where the table has no machines
    site: str  # `site 1`; empty where the table has no sites
    counts: Mapping[Kind, int]  # of all its images
    images: tuple[SampledImage, ...]  # in the order of `KINDS`


@dataclass(frozen=True)
class CropSample:
    """The images of a contact sheet."""

    machines: tuple[MachineSample, ...]
    counts: Mapping[Kind, int]  # of all images
    machines_left_out: int
    images_left_out: int  # of these machines
    columns: int


def sample_crops(
    images: pd.DataFrame,
    finished: Mapping[str, bool],
    failures: Mapping[str, str],
    columns: int = 8,
    lines: int = 12,
) -> CropSample:
    """Choose the images of a contact sheet.

    Every machine has as many lines as fit, at least one. Its failed images, whole frames and crops
    alternate; missing images fill the rest. Where there are more machines than lines, those with
    the most failures and whole frames stay, then those with the most images.

    Args:
        images: table from `read_images`: `patient_id, image_id, laterality`, and optionally
            `view, cancer, site_id, machine_id`.
        finished: by `image_id` of the crops, whether a breast was found.
        failures: by `image_id`, the reason. Images in neither are missing on disk.
        columns: images per line.
        lines: at most.

    Raises:
        InputError: no images, or `columns` or `lines` below 1.
    """
    if images.empty or columns < 1 or lines < 1:
        raise InputError(
            f"A contact sheet of {len(images)} images in {lines} lines of {columns} is empty. Give "
            "a table with rows, and at least one line and column."
        )
    table = _outcomes(images, finished, failures)
    by_machine = {str(name): rows for name, rows in table.groupby("machine")}
    order = sorted(by_machine, key=_number_first)
    bad = {name: int((rows["rank"] < 2).sum()) for name, rows in by_machine.items()}
    ranked = sorted(order, key=lambda name: (-bad[name], -len(by_machine[name])))
    kept, left_out = ranked[:lines], ranked[lines:]
    n = columns * (lines // len(kept))
    machines = []
    for name in sorted(kept, key=_number_first):
        rows = by_machine[name]
        chosen = rows.sort_values(["last", "turn", "rank"]).head(n).sort_values(["rank", "turn"])
        sites = sorted(set(rows["site"]) - {""}, key=_number_first)
        machines.append(
            MachineSample(
                f"machine {name}" if "machine_id" in images else "all images",
                f"site {', '.join(sites)}" if sites else "",
                _count_kinds(rows),
                tuple(SampledImage(*image) for image in chosen[_FIELDS].to_numpy().tolist()),
            )
        )
    n_left_out = sum(len(by_machine[name]) for name in left_out)
    return CropSample(tuple(machines), _count_kinds(table), len(left_out), n_left_out, columns)


def _outcomes(
    images: pd.DataFrame, finished: Mapping[str, bool], failures: Mapping[str, str]
) -> pd.DataFrame:
    """Kind, caption, machine and order of each image, sorted by the hash of its id."""
    ids = images["image_id"].astype(str)
    table = pd.DataFrame({"patient_id": images["patient_id"].astype(str), "image_id": ids})
    table["machine"] = [name or "unknown" for name in _as_text(images, "machine_id")]
    table["site"] = _as_text(images, "site_id")
    cancer = ["cancer" if value == "1" else "" for value in _as_text(images, "cancer")]
    parts = _as_text(images, "laterality"), _as_text(images, "view"), cancer
    table["caption"] = [" ".join(filter(None, words)) for words in zip(*parts, strict=True)]
    kinds = ids.map(dict(finished)).map({True: "crop", False: "whole frame"})
    table["kind"] = kinds.fillna(ids.map(lambda i: "failed" if i in failures else "missing"))
    reasons = ids.map(lambda i: failures.get(i) or "no reason given")
    table["reason"] = reasons.where(table["kind"] == "failed", "")
    table["rank"] = table["kind"].map(KINDS.index)
    table["last"] = table["kind"] == "missing"
    table["hash"] = [hashlib.sha256(i.encode()).hexdigest() for i in ids]
    table = table.sort_values("hash")
    table["turn"] = table.groupby(["machine", "kind"]).cumcount()
    return table


def _count_kinds(rows: pd.DataFrame) -> dict[Kind, int]:
    return {kind: int((rows["kind"] == kind).sum()) for kind in KINDS}


def _as_text(images: pd.DataFrame, column: str) -> list[str]:
    """Identifiers as text, `7` for 7.0 (pandas' integers beside missing values), else empty."""
    if column not in images:
        return [""] * len(images)
    return ["" if pd.isna(value) else str(value).removesuffix(".0") for value in images[column]]


def _number_first(name: str) -> tuple[int, float, str]:
    """Sort key: 9 before 10, numbers before words, `unknown` last."""
    if name.isdecimal():
        return 0, float(name), name
    return (2 if name == "unknown" else 1), 0.0, name


def _font(size: int, weight: str = "") -> ImageFont.FreeTypeFont:
    """DejaVu Sans Mono, from the files of matplotlib (which takes half a second to import)."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    file = Path(str(spec.origin)).parent / f"mpl-data/fonts/ttf/DejaVuSansMono{weight}.ttf"
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


_SMALL, _PLAIN, _BOLD, _LARGE = _font(11), _font(13), _font(13, "-Bold"), _font(23, "-Bold")


def contact_sheet(sample: CropSample, read: Callable[[SampledImage], Crop], title: str) -> bytes:
    """Draw a sample of crops: lines of images by machine, each framed by its outcome.

    Args:
        sample: from `sample_crops`.
        read: returns the crop of an image that is neither failed nor missing: (H, W), uint8 or
            uint16, tissue bright.
        title: of the sheet: dataset, crop, split.

    Returns:
        A PNG; the same sample gives the same bytes.
    """
    n = sample.columns
    lines = [
        (machine if start == 0 else None, machine.images[start : start + n])
        for machine in sample.machines
        for start in range(0, len(machine.images), n)
    ]
    crops = {
        image.image_id: to_uint8(read(image), _CELL_HEIGHT, _WIDEST, enlarge=True)
        for _, images in lines
        for image in images
        if image.kind in ("crop", "whole frame")
    }
    cell = max([_NARROWEST, *(crop.shape[1] for crop in crops.values())])
    row_height = _ABOVE + _CELL_HEIGHT + _BELOW
    columns = max(len(images) for _, images in lines)
    width = max(2 * _MARGIN + _LABEL_WIDTH + columns * (cell + _GAP), _MIN_WIDTH)
    height = _HEADER + len(lines) * row_height + 2 * _MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (machine, images) in enumerate(lines):
        top = _HEADER + row * row_height + _ABOVE
        if machine is not None:
            _write_label(draw, machine, top)
        for column, image in enumerate(images):
            left = _MARGIN + _LABEL_WIDTH + column * (cell + _GAP)
            _draw_image(sheet, image, crops.get(image.image_id), (left, top), cell)
    name = shorten(title, _letters(width - 2 * _MARGIN, _LARGE))
    draw.text((_MARGIN, 25), name, "white", _LARGE)
    _draw_legend(draw, sample.counts)
    footer = "Sampled by a hash of image_id, failed and whole frames first."
    if sample.machines_left_out:
        machines = _count(sample.machines_left_out, "machine")
        footer += f" Not shown: {machines} with {_count(sample.images_left_out, 'image')}."
    draw.text((_MARGIN, height - _MARGIN - 16), footer, MUTED, _PLAIN)
    content = io.BytesIO()
    sheet.save(content, "PNG", compress_level=1)
    return content.getvalue()


def _letters(width: int, font: ImageFont.FreeTypeFont) -> int:
    """Letters of a font that fit into a width."""
    return int(width / font.getlength("m"))


def _draw_legend(draw: ImageDraw.ImageDraw, counts: Mapping[Kind, int]) -> None:
    """Colours and counts of the outcomes; whole frames are crops, too."""
    totals = {**counts, "crop": counts["crop"] + counts["whole frame"]}
    x, y = _MARGIN, 58
    for kind, label in _LEGEND.items():
        if kind == "crop" or totals[kind]:
            text = f"{totals[kind]:,} {label}"
            draw.rectangle((x, y + 3, x + 12, y + 13), outline=_COLOURS[kind], width=2)
            draw.text((x + 18, y), text, "white", _PLAIN)
            x += 30 + round(_PLAIN.getlength(text))


def _write_label(draw: ImageDraw.ImageDraw, machine: MachineSample, y: int) -> None:
    """Name, site and counts of a machine, from `y` downwards."""
    letters = _letters(_LABEL_WIDTH - _GAP, _PLAIN)
    name = textwrap.wrap(machine.name, letters, max_lines=3, placeholder="…")
    lines = [(line, "white", _BOLD) for line in name]
    if machine.site:
        lines.append((shorten(machine.site, letters), MUTED, _PLAIN))
    lines.append((_count(sum(machine.counts.values()), "image"), MUTED, _PLAIN))
    for kind in ("failed", "whole frame", "missing"):
        if machine.counts[kind]:
            lines.append((f"{machine.counts[kind]:,} {kind}", _COLOURS[kind], _PLAIN))
    for row, (text, colour, font) in enumerate(lines):
        draw.text((_MARGIN, y + _LINE * row), text, colour, font)


def _draw_image(
    sheet: Image.Image,
    image: SampledImage,
    crop: NDArray[np.uint8] | None,
    at: tuple[int, int],
    width: int,
) -> None:
    """A crop, or the reason why there is none, with its frame and caption."""
    draw = ImageDraw.Draw(sheet)
    (left, top), height = at, _CELL_HEIGHT
    letters = _letters(width, _SMALL)
    colour, is_marked = _COLOURS[image.kind], image.kind in ("failed", "whole frame")
    if crop is not None:
        height, width = crop.shape
        sheet.paste(Image.fromarray(crop), at)
    else:
        reason = image.reason or image.kind
        lines = textwrap.wrap(reason, letters - 2, max_lines=16, placeholder=" …")
        for row, line in enumerate(lines):
            draw.text((left + 6, top + 4 + _SMALL_LINE * row), line, colour, _SMALL)
    edge = 3 if is_marked else 1
    box = left - edge, top - edge, left + width + edge - 1, top + height + edge - 1
    draw.rectangle(box, outline=colour, width=edge)
    if is_marked:
        draw.text((left, top - 21), image.kind, colour, _BOLD)
    for row, line in enumerate((image.image_id, image.caption)):
        y = top + height + 5 + _SMALL_LINE * row
        draw.text((left, y), shorten(line, letters), MUTED, _SMALL)


def to_uint8(
    crop: Crop, height: float, width: float, *, enlarge: bool = False
) -> NDArray[np.uint8]:
    """The upper 8 bits, resized to at most `height` x `width` pixels.

    Pixels are averaged: subsampled grain looks like calcifications.
    """
    grey: NDArray[Any] = crop if crop.dtype == np.uint8 else crop >> 8
    scale = min(height / grey.shape[0], width / grey.shape[1])
    if scale < 1 or enlarge:
        size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
        grey = cv2.resize(grey.astype(np.uint8), size, interpolation=cv2.INTER_AREA)
    return grey.astype(np.uint8)


def shorten(text: str, letters: int) -> str:
    """Cut the middle out of a text that is longer: identifiers differ at their ends."""
    if len(text) <= letters:
        return text
    end = (letters - 1) // 2
    return f"{text[: letters - 1 - end]}…{text[len(text) - end :]}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
