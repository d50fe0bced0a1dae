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
    """An image of the sheet.

    Attributes:
        patient_id: of the table.
        image_id: of the table.
        kind: `whole frame` where no breast was found to crop to.
        caption: laterality, view, and `cancer` where the table says so.
        reason: of a failure; otherwise empty.
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
        name: `machine 49`, or `all images` where the table has no machines.
        site: `site 1`; empty where the table has no sites.
        counts: of all its images, by kind.
        images: the sample, in the order of `KINDS`.
    """

    name: str
    site: str
    counts: Mapping[Kind, int]
    images: tuple[SampledImage, ...]


@dataclass(frozen=True)
class CropSample:
    """The images of a contact sheet.

    Attributes:
        machines: in the order of their numbers.
        counts: of all images, by kind.
        machines_left_out: number of machines that are not shown.
        images_left_out: number of their images.
        columns: images per line.
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
    ids = images["image_id"].astype(str)
    table = pd.DataFrame({"patient_id": images["patient_id"].astype(str), "image_id": ids})
    table["machine"] = [name or "unknown" for name in _as_text(images, "machine_id")]
    table["site"] = _as_text(images, "site_id")
    words = [_as_text(images, column) for column in ("laterality", "view")]
    words.append(["cancer" if value == "1" else "" for value in _as_text(images, "cancer")])
    table["caption"] = [" ".join(filter(None, parts)) for parts in zip(*words, strict=True)]
    found = ids.map(dict(finished)).map({True: "crop", False: "whole frame"})
    table["kind"] = found.fillna(ids.map(lambda i: "failed" if i in failures else "missing"))
    table["reason"] = [(failures.get(i) or "no reason given") if k == "failed" else ""
                       for i, k in zip(ids, table["kind"], strict=True)]  # fmt: skip
    table["place"] = table["kind"].map(KINDS.index)
    table["hash"] = [hashlib.sha256(i.encode()).hexdigest() for i in ids]
    table = table.sort_values("hash")
    table["turn"] = table.groupby(["machine", "kind"]).cumcount()
    table["last"] = table["kind"] == "missing"

    by_machine = table.groupby("machine")
    importance = pd.DataFrame(
        {"bad": by_machine["place"].agg(lambda place: (place < 2).sum()), "n": by_machine.size()}
    )
    order = sorted(importance.index, key=_number_first)
    ranked = importance.loc[order].sort_values(["bad", "n"], ascending=False, kind="stable").index
    kept, left_out = ranked[:lines], ranked[lines:]
    per_machine = columns * (lines // len(kept))
    machines = []
    for name in sorted(kept, key=_number_first):
        rows = by_machine.get_group(name)
        chosen = rows.sort_values(["last", "turn", "place"]).head(per_machine)
        sites = sorted(set(rows["site"]) - {""}, key=_number_first)
        machines.append(
            MachineSample(
                f"machine {name}" if "machine_id" in images else "all images",
                f"site {', '.join(sites)}" if sites else "",
                _count_kinds(rows),
                tuple(
                    SampledImage(*image)
                    for image in chosen.sort_values(["place", "turn"])[_FIELDS].to_numpy().tolist()
                ),
            )
        )
    n_left_out = int(importance.loc[left_out, "n"].sum())
    return CropSample(tuple(machines), _count_kinds(table), len(left_out), n_left_out, columns)


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
    """Draw a sample of crops: a line per machine, each image framed by what became of it.

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
    crops = {
        image.image_id: _thumbnail(read(image))
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
    at = _MARGIN / width, 1 - 0.4 / height
    figure.text(*at, shorten(title, letters), size=_LARGE, weight="bold")
    totals = {"crop": 0, **sample.counts}
    totals["crop"] += totals["whole frame"]
    keys = [
        Patch(fc="none", ec=_COLOURS[kind], label=f"{totals[kind]:,} {label}")
        for kind, label in _LEGEND.items()
        if kind == "crop" or totals[kind]
    ]
    figure.legend(
        handles=keys, loc="upper left", bbox_to_anchor=(at[0], 1 - 0.45 / height), ncols=4,
        fontsize=_PLAIN, frameon=False, borderpad=0, borderaxespad=0, columnspacing=1,
        handlelength=1,
    )  # fmt: skip
    footer = "Sampled by a hash of image_id, failed and whole frames first."
    if sample.machines_left_out:
        machines = _count(sample.machines_left_out, "machine")
        footer += f" Not shown: {machines} with {_count(sample.images_left_out, 'image')}."
    figure.text(at[0], _MARGIN / height, footer, size=_PLAIN, color=MUTED)
    return figure


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
    striking = image.kind in ("failed", "whole frame")
    colour = _COLOURS[image.kind]
    letters = int(width / (_SMALL * LETTER))
    height = _CELL_HEIGHT

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x, y, text, transform=figure.dpi_scale_trans, **style)

    if crop is not None:  # not on axes: a hundred of them take seconds
        height, width = crop.shape[0] / _DPI, crop.shape[1] / _DPI
        x, y = round(left * _DPI), round((top - height) * _DPI)
        figure.figimage(crop, x, y, cmap="gray", vmin=0, vmax=255)
    else:
        reason = textwrap.wrap(
            image.reason or image.kind, letters - 3, max_lines=16, placeholder=" …"
        )
        write(left + 0.05, top - 0.05, "\n".join(reason), color=colour, size=_SMALL, va="top")
    figure.add_artist(
        Rectangle(
            (left, top - height), width, height, fc="none", ec=colour,
            lw=1.5 if striking else 0.6, transform=figure.dpi_scale_trans,
        )
    )  # fmt: skip
    if striking:
        write(left, top + 0.03, image.kind, color=colour, size=_PLAIN, weight="bold")
    caption = f"{shorten(image.image_id, letters)}\n{shorten(image.caption, letters)}"
    write(left, top - height - 0.06, caption, size=_SMALL, color=MUTED, va="top")


def _thumbnail(crop: Crop) -> NDArray[np.uint8]:
    """uint8, as large as it is shown. Averages: subsampled grain looks like calcification."""
    height, width = crop.shape
    scale = min(_DPI * _CELL_HEIGHT / height, _DPI * _WIDEST / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    grey = (crop if crop.dtype == np.uint8 else crop >> 8).astype(np.uint8)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA))


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
