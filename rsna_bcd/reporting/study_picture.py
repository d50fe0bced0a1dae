"""Picture of one mammogram: the crop, its saliency map and the result."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsna_bcd.reporting.contact_sheet import AMBER, MUTED, PAPER, RED, shorten, to_uint8
from rsna_bcd.reporting.gallery import overlay_saliency
from rsna_bcd.tables.study_results import NO_DEVICE, QUALITY_FLAGS, BreastResult, ImageResult

_PANEL, _WIDEST, _MARGIN, _LINE = 5.6, 4.2, 0.25, 0.16  # inches
_SMALL, _PLAIN, _LARGE = 7, 9, 13  # points
_PIXELS = 1440  # of the crop's longest side at most
_WEAKEST = 0.3  # saliency of a breast far below the threshold, relative to a positive one
_SIDES = {"L": "left", "R": "right"}
_SALIENCY = (
    "the regions that raised the score; fainter the further the score is below the threshold; not "
    "an outline of a lesion"
)
_DARK = style.context(  # independent of a matplotlibrc
    [
        "default",
        "dark_background",
        {"figure.facecolor": PAPER, "axes.facecolor": PAPER, "text.parse_math": False}
        | {"font.family": "DejaVu Sans Mono", "text.usetex": False},
    ]
)
_LETTER = 0.602 / 72  # inches of a letter's width per point of its size


@_DARK
def study_picture(
    breast: BreastResult,
    image: ImageResult,
    crop: NDArray[np.unsignedinteger[Any]],
    saliency: NDArray[np.floating[Any]] | None,
    notes: Sequence[str],
) -> Figure:
    """Draw the crop, the crop with its saliency map, and the result as text below.

    Below the threshold the map fades with the probability: every breast has a most suspicious
    region.

    Args:
        breast: with a probability.
        image: of the breast.
        crop: (H, W) uint8 or uint16, the network's input.
        saliency: (h, w) in [0, 1] over the whole crop; None where no network used the image.
        notes: sentences about the model.

    Returns:
        A figure for `as_png`.
    """
    assert breast.probability is not None, "an unreadable breast has no picture"
    grey = to_uint8(crop, _PIXELS, _PIXELS)
    aspect = grey.shape[1] / grey.shape[0]
    panel_width = min(_WIDEST, _PANEL * aspect)
    height = panel_width / aspect
    width = max(6.5, 2 * panel_width + 3 * _MARGIN)
    lines = _text_lines(breast, image, crop.shape, notes, _letters(width, _SMALL))
    below = _LINE * (len(lines) + 2) + 2 * _MARGIN
    total = 0.9 + height + below
    figure = Figure(figsize=(width, total), dpi=128)
    _write_heading(figure, breast, image)

    fading = max(_WEAKEST, min(1.0, breast.probability / breast.threshold))
    overlay = grey if saliency is None else overlay_saliency(grey, saliency * fading)
    names = "input of the networks", "saliency" if saliency is not None else "not used by a network"
    lefts = np.array([-panel_width - _MARGIN / 2, _MARGIN / 2]) + width / 2
    for left, pixels, name in zip(lefts, (grey, overlay), names, strict=True):
        box = (left / width, below / total, panel_width / width, height / total)
        axes = figure.add_axes(box, xticks=[], yticks=[])
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        axes.set_xlabel(name, color=MUTED, size=_SMALL, loc="left")
        axes.spines[:].set(color="#2b2f36")
    if saliency is not None:
        _draw_colour_bar(figure, (lefts[1] / width, below / total, panel_width / width, total))
    for row, (line, colour) in enumerate([*lines, (NO_DEVICE, "white")]):
        is_last = row == len(lines)
        y = (below - 0.35 - _LINE * (row + is_last / 2)) / total
        figure.text(
            _MARGIN / width, y, line, size=_SMALL, color=colour, va="top",
            weight="bold" if is_last else "normal",
        )  # fmt: skip
    return figure


@_DARK
def as_png(figure: Figure) -> bytes:
    """Encode a figure without date and version: the same figure gives the same bytes."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(
        content, metadata={"Software": None}, pil_kwargs={"compress_level": 3}
    )
    return content.getvalue()


def _letters(width: float, size: float) -> int:
    """Letters that fit between the margins."""
    return int((width - 2 * _MARGIN) / (size * _LETTER))


def _write_heading(figure: Figure, breast: BreastResult, image: ImageResult) -> None:
    """Patient, side and view; below, the result."""
    width, height = figure.get_size_inches()
    examination = f", examination {breast.examination}" if breast.examination > 1 else ""
    side = _SIDES.get(breast.laterality, "side unknown")
    title = f"{breast.patient_id}{examination} · {side} · {image.view or 'view unknown'}"
    title = shorten(title, _letters(width, _LARGE))
    figure.text(_MARGIN / width, 1 - 0.35 / height, title, size=_LARGE, weight="bold")
    calibrated = "" if breast.calibrated is None else f"; calibrated {breast.calibrated:.3f}"
    result = (
        f"{breast.decision}: probability {breast.probability:.3f} (threshold "
        f"{breast.threshold:.3f}{calibrated})"
    )
    colour = RED if breast.decision == "positive" else "white"
    figure.text(_MARGIN / width, 1 - 0.65 / height, result, size=_PLAIN, color=colour)


def _draw_colour_bar(figure: Figure, panel: tuple[float, float, float, float]) -> None:
    """The colours of the map, from none to the strongest, below the right half of the panel."""
    left, bottom, width, height = panel
    ramp = overlay_saliency(np.full((1, 256), 128, np.uint8), np.linspace(0, 1, 256)[None])
    axes = figure.add_axes((left + 0.5 * width, bottom - 0.17 / height, 0.5 * width, 0.09 / height))
    axes.imshow(np.arange(256)[None], cmap=ListedColormap(ramp[0] / 255), aspect="auto")
    axes.set(xticks=[0, 255], yticks=[], xticklabels=["none", "strong"])
    axes.tick_params(length=0, labelsize=_SMALL - 1, labelcolor=MUTED, pad=1)
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    axes.spines[:].set_visible(False)


def _text_lines(
    breast: BreastResult,
    image: ImageResult,
    shape: tuple[int, ...],
    notes: Sequence[str],
    letters: int,
) -> list[tuple[str, str]]:
    """Lines of at most `letters`, with their colour: quality flags, header, crop and notes."""
    facts = image.facts
    device = " ".join(str(facts[key]) for key in ("manufacturer", "machine") if facts[key])
    header = [
        f"{facts['rows']} x {facts['columns']} pixels",
        facts["view_header"],
        None if facts["age"] is None else f"{facts['age']:.0f} years",
        device or "machine unknown",
        facts["presentation"] and facts["presentation"].lower(),
    ]
    box = [facts[f"box_{key}"] for key in ("height", "width", "top", "left")]
    turned = "mirrored" if facts["flipped"] else ""
    if facts["rotated"]:
        turned = f"rotated by {facts['rotated']} degrees counterclockwise"
    orientation = f", {turned}: the chest wall is on the left" if turned else ""
    crop = (
        f"{shape[0]} x {shape[1]} pixels, of {box[0]} x {box[1]} at row {box[2]}, column {box[3]}"
        f"{orientation}; window {facts['window']}"
    )
    alone = f"probability {image.probability or 0:.3f} of it alone"
    flags = {*breast.flags, *image.flags}
    entries = [
        *(("flag", f"{f}: {QUALITY_FLAGS[f]}", AMBER) for f in QUALITY_FLAGS if f in flags),
        ("file", image.file, "white"),
        ("header", ", ".join(str(part) for part in header if part), "white"),
        ("crop", crop, "white"),
        *([("image", alone, "white")] if image.probability is not None else []),
        ("saliency", _SALIENCY, "white"),
        *(("note", note, MUTED) for note in notes),
    ]
    return [
        (f"{'' if row else name:<10}{line}", colour)
        for name, text, colour in entries
        for row, line in enumerate(textwrap.wrap(text, letters - 10))
    ]
