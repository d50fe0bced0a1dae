"""Contact sheet: a sample of prepared crops of each machine in one picture.

Windows, boxes and orientation differ by machine, and so do their errors: some crops of each machine
show most of them. The sample depends on the identifiers alone, so that a rerun shows the same ones.
"""

import hashlib
import io
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from rsna_bcd.errors import InputError

Kind = Literal["failed", "whole frame", "crop", "missing"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of showing
Crop = NDArray[np.unsignedinteger[Any]]  # (H, W), uint8 or uint16

PAPER, MUTED, RED, AMBER = "#111317", "#969ca5", "#ff5c5c", "#ffa62b"
DARK = style.context(  # independent of a matplotlibrc
    [
        "default",
        "dark_background",
        {"figure.facecolor": PAPER, "axes.facecolor": PAPER, "text.parse_math": False}
        | {"font.family": "DejaVu Sans Mono", "text.usetex": False},
    ]
)
LETTER = 0.602 / 72  # inches of a letter's width per point of its size
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
_DPI = 128
_CELL_HEIGHT, _NARROWEST, _WIDEST, _LABEL_WIDTH = 1.9, 0.85, 2.4, 1.15  # inches
_ABOVE, _BELOW, _GAP, _MARGIN, _HEADER = 0.18, 0.32, 0.12, 0.25, 0.75
_FIELDS = ["patient_id", "image_id", "kind", "caption", "reason"]  # of `SampledImage`
_SMALL, _PLAIN, _LARGE = 6, 7.5, 13  # points


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


@DARK
def contact_sheet(sample: CropSample, read: Callable[[SampledImage], Crop], title: str) -> Figure:
    """Draw a sample of crops: lines of images by machine, each framed by its outcome.

    Args:
        sample: from `sample_crops`.
        read: returns the crop of an image that is neither failed nor missing: (H, W), uint8 or
            uint16, tissue bright.
        title: of the sheet: dataset, crop, split.

    Returns:
        A figure for `as_png`.
    """
    n = sample.columns
    lines = [
        (machine if start == 0 else None, machine.images[start : start + n])
        for machine in sample.machines
        for start in range(0, len(machine.images), n)
    ]
    size = _DPI * _CELL_HEIGHT, _DPI * _WIDEST
    crops = {
        image.image_id: to_uint8(read(image), *size, enlarge=True)
        for _, images in lines
        for image in images
        if image.kind in ("crop", "whole frame")
    }
    aspect = max((crop.shape[1] / crop.shape[0] for crop in crops.values()), default=0.0)
    cell = min(max(aspect * _CELL_HEIGHT, _NARROWEST), _WIDEST)
    row_height = _ABOVE + _CELL_HEIGHT + _BELOW
    columns = max(len(images) for _, images in lines)
    width = max(2 * _MARGIN + _LABEL_WIDTH + columns * (cell + _GAP), 6.5)
    height = _HEADER + len(lines) * row_height + 2 * _MARGIN
    figure = Figure(figsize=(width, height), dpi=_DPI)
    for row, (machine, images) in enumerate(lines):
        top = height - _HEADER - row * row_height - _ABOVE
        if machine is not None:
            _write_label(figure, machine, top)
        for column, image in enumerate(images):
            left = _MARGIN + _LABEL_WIDTH + column * (cell + _GAP)
            _draw_image(figure, image, crops.get(image.image_id), left, top, cell)
    letters = int((width - 2 * _MARGIN) / (_LARGE * LETTER))
    x = _MARGIN / width
    figure.text(x, 1 - 0.4 / height, shorten(title, letters), size=_LARGE, weight="bold")
    _draw_legend(figure, sample.counts, (x, 1 - 0.45 / height))
    footer = "Sampled by a hash of image_id, failed and whole frames first."
    if sample.machines_left_out:
        machines = _count(sample.machines_left_out, "machine")
        footer += f" Not shown: {machines} with {_count(sample.images_left_out, 'image')}."
    figure.text(x, _MARGIN / height, footer, size=_PLAIN, color=MUTED)
    return figure


def _draw_legend(figure: Figure, counts: Mapping[Kind, int], at: tuple[float, float]) -> None:
    """Colours and counts of the outcomes; whole frames are crops, too."""
    totals = {**counts, "crop": counts["crop"] + counts["whole frame"]}
    keys = [
        Patch(fc="none", ec=_COLOURS[kind], label=f"{totals[kind]:,} {label}")
        for kind, label in _LEGEND.items()
        if kind == "crop" or totals[kind]
    ]
    figure.legend(
        handles=keys, loc="upper left", bbox_to_anchor=at, ncols=4, fontsize=_PLAIN, frameon=False,
        borderpad=0, borderaxespad=0, columnspacing=1, handlelength=1,
    )  # fmt: skip


def _write_label(figure: Figure, machine: MachineSample, top: float) -> None:
    """Name, site and counts of a machine, `top` inches above the lower edge."""
    letters = int((_LABEL_WIDTH - _GAP) / (_PLAIN * LETTER))
    name = textwrap.wrap(machine.name, letters, max_lines=3, placeholder="…")
    lines = [(line, "white", "bold") for line in name]
    if machine.site:
        lines.append((shorten(machine.site, letters), MUTED, "normal"))
    lines.append((_count(sum(machine.counts.values()), "image"), MUTED, "normal"))
    for kind in ("failed", "whole frame", "missing"):
        if machine.counts[kind]:
            lines.append((f"{machine.counts[kind]:,} {kind}", _COLOURS[kind], "normal"))
    width, height = figure.get_size_inches()
    for row, (text, colour, weight) in enumerate(lines):
        y = (top - 0.15 * row) / height
        figure.text(_MARGIN / width, y, text, color=colour, weight=weight, size=_PLAIN, va="top")


def _draw_image(
    figure: Figure,
    image: SampledImage,
    crop: NDArray[np.uint8] | None,
    left: float,
    top: float,
    width: float,
) -> None:
    """A crop, or the reason why there is none, with its frame and caption; positions in inches."""
    colour, is_marked = _COLOURS[image.kind], image.kind in ("failed", "whole frame")
    letters = int(width / (_SMALL * LETTER))
    height = _CELL_HEIGHT

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x, y, text, transform=figure.dpi_scale_trans, **style)

    if crop is not None:  # not on axes: a hundred of them take seconds
        height, width = crop.shape[0] / _DPI, crop.shape[1] / _DPI
        x, y = round(left * _DPI), round((top - height) * _DPI)
        figure.figimage(crop, x, y, cmap="gray", vmin=0, vmax=255)
    else:
        reason = image.reason or image.kind
        lines = textwrap.wrap(reason, letters - 3, max_lines=16, placeholder=" …")
        write(left + 0.05, top - 0.05, "\n".join(lines), color=colour, size=_SMALL, va="top")
    figure.add_artist(
        Rectangle(
            (left, top - height), width, height, fc="none", ec=colour,
            lw=1.5 if is_marked else 0.6, transform=figure.dpi_scale_trans,
        )
    )  # fmt: skip
    if is_marked:
        write(left, top + 0.03, image.kind, color=colour, size=_PLAIN, weight="bold")
    caption = f"{shorten(image.image_id, letters)}\n{shorten(image.caption, letters)}"
    write(left, top - height - 0.06, caption, color=MUTED, size=_SMALL, va="top")


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


@DARK
def as_png(figure: Figure) -> bytes:
    """Encode a figure without date and version: the same figure gives the same bytes."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(
        content, metadata={"Software": None}, pil_kwargs={"compress_level": 3}
    )
    return content.getvalue()


def shorten(text: str, letters: int) -> str:
    """Cut the middle out of a text that is longer: identifiers differ at their ends."""
    if len(text) <= letters:
        return text
    end = (letters - 1) // 2
    return f"{text[: letters - 1 - end]}…{text[len(text) - end :]}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
