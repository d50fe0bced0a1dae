"""A sample of prepared crops on one picture, machine by machine.

Windows, boxes and orientation differ by machine, and so do their mistakes: a column of numbers
shows few of them, a look at some crops of each machine most.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsna_bcd.reporting.crop_sample import CropSample, Kind, MachineSample, SampledImage
from rsna_bcd.reporting.sheet import (
    ADVANCE,
    AMBER,
    MUTED,
    PAPER,
    PLAIN,
    RED,
    RULE,
    Page,
    shortened,
)

Crop = NDArray[np.unsignedinteger[Any]]  # (H, W), uint8 or uint16
ReadCrop = Callable[[SampledImage], Crop]

# All lengths are pixels.
_TALLEST, _WIDEST, _NARROWEST = 192, 288, 96  # a crop's height and width; the space of one
_GAP, _MARGIN, _LABELS = 12, 28, 132  # between crops; around the sheet; the column of machines
_TAB, _CAPTION, _BELOW = 24, 30, 14  # above a crop, for its tab; below it; then to the next line
_HEADER, _FOOTER, _NARROWEST_SHEET = 120, 46, 760
_SMALL, _LARGE = 10, 21  # sizes of text

_EDGE = (58, 63, 71)
_COLOURS: dict[Kind, tuple[int, int, int]] = {
    "failed": RED,
    "whole frame": AMBER,
    "crop": _EDGE,
    "missing": (128, 134, 144),
}
_LEGEND: dict[Kind, str] = {
    "failed": "failed, with the reason",
    "whole frame": "no breast found: whole frame",
    "missing": "missing on disk",
}


def contact_sheet(sample: CropSample, read: ReadCrop, title: str) -> Figure:
    """Draw a sample of crops.

    Args:
        sample: what to show, from `sample_crops`.
        read: gives the crop of an image that is neither failed nor missing: (H, W), uint8 or
            uint16, tissue bright.
        title: of the sheet: the dataset, the crop, the split.

    Returns:
        A figure of one image and text, for `as_png`. A crop keeps its aspect; the largest are 192
        pixels high.
    """
    thumbnails = {
        image.image_id: _thumbnail(read(image))
        for machine in sample.machines
        for image in machine.images
        if image.kind in ("crop", "whole frame")
    }
    cell = max([_NARROWEST, *(pixels.shape[1] for pixels in thumbnails.values())])
    lines = [_lines(machine, sample.columns) for machine in sample.machines]
    columns = max(len(line) for of_machine in lines for line in of_machine)
    step = _TAB + _TALLEST + _CAPTION + _BELOW
    width = 2 * _MARGIN + _LABELS + columns * (cell + _GAP) - _GAP
    height = _HEADER + sum(map(len, lines)) * step + _FOOTER
    page = Page(max(width, _NARROWEST_SHEET), height)
    _draw_header(page, sample, title)
    top = _HEADER
    for machine, of_machine in zip(sample.machines, lines, strict=True):
        page.fill(_MARGIN, top - 1, page.width - 2 * _MARGIN, 1, RULE)
        _draw_label(page, machine, top + _TAB)
        for line in of_machine:
            for column, image in enumerate(line):
                left = _MARGIN + _LABELS + column * (cell + _GAP)
                _draw_cell(page, image, thumbnails.get(image.image_id), left, top + _TAB, cell)
            top += step
    _draw_footer(page, sample, top)
    return page.figure()


def _draw_header(page: Page, sample: CropSample, title: str) -> None:
    """Title, totals, legend."""
    room = int((page.width - 2 * _MARGIN) / (_LARGE * ADVANCE))
    page.write(_MARGIN, 44, shortened(title, room), _LARGE, weight="bold")
    made = sample.counts["crop"] + sample.counts["whole frame"]
    end = page.write(_MARGIN, 70, _number(made, "crop"), PLAIN + 1)
    for kind, words in _amiss(sample.counts):
        end = page.write(end + 18, 70, words, PLAIN + 1, _COLOURS[kind])
    left = _MARGIN
    for kind, words in _LEGEND.items():
        _draw_frame(page, left, 87, 12, 12, kind)
        left = int(page.write(left + 19, 97, words, colour=MUTED)) + 24


def _draw_footer(page: Page, sample: CropSample, top: int) -> None:
    """How the sample was drawn, and what is not on it."""
    page.fill(_MARGIN, top - 1, page.width - 2 * _MARGIN, 1, RULE)
    words = "Sampled by a hash of image_id, failed and whole frames first."
    if sample.machines_left_out:
        machines = _number(sample.machines_left_out, "machine")
        images = _number(sample.images_left_out, "image")
        words += f" Not shown: {machines} with {images}."
    page.write(_MARGIN, top + 24, words, PLAIN, MUTED)


def _draw_label(page: Page, machine: MachineSample, top: int) -> None:
    """What a machine is called, and how many images it has."""
    room = int((_LABELS - _GAP) / (PLAIN * ADVANCE))
    baseline = top + PLAIN
    for words in textwrap.wrap(machine.name, room, max_lines=3, placeholder="…"):
        page.write(_MARGIN, baseline, words, weight="bold")
        baseline += 17
    facts = [
        *([(MUTED, shortened(machine.site, room))] if machine.site else []),
        (MUTED, _number(sum(machine.counts.values()), "image")),
        *((_COLOURS[kind], words) for kind, words in _amiss(machine.counts)),
    ]
    for colour, words in facts:
        page.write(_MARGIN, baseline + 2, words, colour=colour)
        baseline += 17


def _draw_cell(
    page: Page,
    image: SampledImage,
    pixels: NDArray[np.uint8] | None,
    left: int,
    top: int,
    cell: int,
) -> None:
    """A crop, or why there is none, in its frame, and its caption."""
    letters = int(cell / (_SMALL * ADVANCE))
    if pixels is None:
        _draw_frame(page, left, top, cell, _TALLEST, image.kind)
        _write_reason(page, image, left, top, cell)
    else:
        height, width = pixels.shape
        _draw_frame(page, left, top, width, height, image.kind)
        page.pixels[top : top + height, left : left + width] = pixels[..., None]
    if image.kind in ("failed", "whole frame"):
        long = len(image.kind) * _SMALL * ADVANCE + 8
        page.fill(left - 2, top - 15, round(long) + 2, 13, _COLOURS[image.kind])
        page.write(left + 3, top - 5, image.kind, _SMALL, PAPER, "bold")
    page.write(left, top + _TALLEST + 14, shortened(image.image_id, letters), _SMALL)
    page.write(left, top + _TALLEST + 27, shortened(image.caption, letters), _SMALL, MUTED)


def _draw_frame(page: Page, left: int, top: int, width: int, height: int, kind: Kind) -> None:
    """An empty frame around a rectangle, outside it."""
    edge = 2 if kind in ("failed", "whole frame") else 1
    page.fill(left - edge, top - edge, width + 2 * edge, height + 2 * edge, _COLOURS[kind])
    page.fill(left, top, width, height, PAPER)


def _write_reason(page: Page, image: SampledImage, left: int, top: int, cell: int) -> None:
    """In place of a crop."""
    inset, leading = 6, 13
    words = textwrap.wrap(
        image.reason or image.kind,
        int((cell - 2 * inset) / (_SMALL * ADVANCE)),
        max_lines=(_TALLEST - 2 * inset) // leading,
        placeholder=" …",
    )
    for row, line in enumerate(words):
        baseline = top + inset + 9 + row * leading
        page.write(left + inset, baseline, line, _SMALL, _COLOURS[image.kind])


def _thumbnail(crop: Crop) -> NDArray[np.uint8]:
    """A crop in the size in which it is shown, uint8."""
    height, width = crop.shape
    scale = min(_TALLEST / height, _WIDEST / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # The mean of what a pixel covers: grain that is only sampled would look like calcifications.
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(crop, size, interpolation=how)
    return (small if crop.dtype == np.uint8 else small // 256).astype(np.uint8)


def _lines(machine: MachineSample, columns: int) -> list[Sequence[SampledImage]]:
    """The images of a machine, line by line."""
    images = machine.images
    return [images[i : i + columns] for i in range(0, len(images), columns)]


def _amiss(counts: Mapping[Kind, int]) -> list[tuple[Kind, str]]:
    """What is not as it should be, in words."""
    words: dict[Kind, str] = {
        "failed": f"{counts['failed']:,} failed",
        "whole frame": _number(counts["whole frame"], "whole frame"),
        "missing": f"{counts['missing']:,} missing",
    }
    return [(kind, text) for kind, text in words.items() if counts[kind]]


def _number(n: int, noun: str) -> str:
    """A number of things."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
