"""Contact sheet: a sample of prepared crops of each machine in one picture."""

import hashlib
import io
import textwrap
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsna_bcd.errors import InputError

# All lengths are pixels.
PLAIN = 12  # size of text
ADVANCE = 0.602  # width of a letter of DejaVu Sans Mono, as a part of its size
_DPI = 128  # a power of two: pixels / dpi * dpi are the same pixels

PAPER, RULE = (17, 19, 23), (43, 47, 54)
BRIGHT, MUTED = (232, 234, 237), (150, 156, 165)
RED, AMBER = (255, 92, 92), (255, 166, 43)


def as_png(figure: Figure) -> bytes:
    """Encode a figure; the same figure gives the same bytes, on whatever day."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return content.getvalue()


class Page:
    """A dark page: pixels are painted, so that edges are sharp, and text is set upon them.

    Args:
        width: in pixels.
        height: in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.pixels = np.full((height, width, 3), PAPER, np.uint8)
        self._texts: list[_Text] = []

    def fill(
        self, left: int, top: int, width: int, height: int, colour: tuple[int, int, int]
    ) -> None:
        """Paint a rectangle."""
        self.pixels[top : top + height, left : left + width] = colour

    def write(
        self,
        left: float,
        baseline: int,
        content: str,
        size: int = PLAIN,
        colour: tuple[int, int, int] = BRIGHT,
        weight: str = "normal",
    ) -> float:
        """Set one line in letters of one width; returns where it ends."""
        self._texts.append(_Text(left, baseline, content, size, colour, weight))
        return left + len(content) * size * ADVANCE

    def figure(self) -> Figure:
        """The page, one pixel a pixel."""
        height, width, _ = self.pixels.shape
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        figure.set_layout_engine("none")  # whatever the user prefers
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(
            self.pixels,
            aspect="auto",
            extent=(0, width, height, 0),
            origin="upper",
            interpolation="none",
        )
        for text in self._texts:
            axes.text(
                text.left, text.baseline, text.content,
                fontsize=text.size * 72 / _DPI, color=[c / 255 for c in text.colour],
                # Named, not the user's own; and a dollar in a reason is no formula.
                fontfamily="DejaVu Sans Mono", fontweight=text.weight,
                verticalalignment="baseline", parse_math=False, usetex=False,
            )  # fmt: skip
        return figure


@dataclass(frozen=True)
class _Text:
    """A line of text."""

    left: float
    baseline: int
    content: str
    size: int
    colour: tuple[int, int, int]
    weight: str


def shortened(text: str, letters: int) -> str:
    """At most so many letters: beginnings and ends of identifiers tell most."""
    if len(text) <= letters:
        return text
    end = (letters - 1) // 2
    return f"{text[: letters - 1 - end]}…{text[len(text) - end :]}"


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
