"""One mammogram as a picture: the crop, its saliency map and the result."""

import textwrap
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsna_bcd.reporting.contact_sheet import (
    ADVANCE,
    AMBER,
    BRIGHT,
    MUTED,
    PLAIN,
    RED,
    RULE,
    Page,
    shortened,
)
from rsna_bcd.reporting.gallery import overlaid
from rsna_bcd.tables.answers import DOUBTS, BreastAnswer, ImageAnswer

NO_DEVICE = "No medical device: for research only, not validated for the care of patients."

# All lengths are pixels.
_TALLEST, _WIDEST = 720, 540  # of a crop
_MARGIN, _GAP, _NARROWEST = 28, 16, 780
_HEADER, _CAPTION, _LEADING, _FOOTER = 104, 24, 19, 12
_LARGE, _VERDICT = 21, 16  # sizes of text
_NAMES = 12  # letters of the column of names
_RAMP = 96, 10  # width and height of the legend's colours
_FAINTEST = 0.3  # colours of a breast called negative, of those of a positive one
_SIDES = {"L": "left", "R": "right"}

_Colour = tuple[int, int, int]


def study_picture(
    breast: BreastAnswer,
    image: ImageAnswer,
    crop: NDArray[np.unsignedinteger[Any]],
    strength: NDArray[np.floating[Any]] | None,
    notes: Sequence[str],
) -> Figure:
    """Draw the crop, beside it the crop with its map, and all the rest in words beneath.

    Args:
        breast: that could be read.
        image: of it.
        crop: (H, W) uint8 or uint16, as networks saw it.
        strength: (h, w) in [0, 1] over the whole crop, how much each place raised the score; None
            where no network was shown the image.
        notes: what else is to be known, in sentences.

    Returns:
        A figure for `sheet.as_png`. Crops keep their aspect; they are at most 720 pixels high.
    """
    grey = _shown(crop)
    height, wide = grey.shape
    width = max(_NARROWEST, 2 * wide + _GAP + 2 * _MARGIN)
    letters = int((width - 2 * _MARGIN) / (PLAIN * ADVANCE)) - _NAMES
    lines = _lines(breast, image, crop.shape, notes, letters)
    page = Page(width, _HEADER + height + _CAPTION + _LEADING * (len(lines) + 2) + _FOOTER)
    _draw_header(page, breast, image)
    left = (width - 2 * wide - _GAP) // 2
    faded = None if strength is None else strength * _fading(breast)
    _draw_panels(page, grey, faded, (left, left + wide + _GAP))
    baseline = _HEADER + height + _CAPTION + _LEADING + 6
    for name, words, colour in lines:
        page.write(_MARGIN, baseline, name, PLAIN, MUTED if colour == BRIGHT else colour)
        page.write(_MARGIN + _NAMES * PLAIN * ADVANCE, baseline, words, PLAIN, colour)
        baseline += _LEADING
    page.fill(_MARGIN, baseline - 8, page.width - 2 * _MARGIN, 1, RULE)
    page.write(_MARGIN, baseline + 14, NO_DEVICE, PLAIN, BRIGHT, "bold")
    return page.figure()


def _lines(
    breast: BreastAnswer,
    image: ImageAnswer,
    shape: tuple[int, ...],
    notes: Sequence[str],
    letters: int,
) -> list[tuple[str, str, _Colour]]:
    """Doubts, facts and notes: name, at most so many letters, colour; a name stands once."""
    kinds = {*breast.doubts, *image.doubts}
    parts = [("in doubt", f"{kind}: {DOUBTS[kind]}", AMBER) for kind in DOUBTS if kind in kinds]
    parts += [(name, words, BRIGHT) for name, words in _facts(image, shape).items()]
    parts += [("note", note, MUTED) for note in notes]
    return [
        ("" if row else name, line, colour)
        for name, words, colour in parts
        for row, line in enumerate(textwrap.wrap(words, letters))
    ]


def _facts(image: ImageAnswer, shape: tuple[int, ...]) -> dict[str, str]:
    """What is known of an image, for reading."""
    facts = image.facts
    machine = " ".join(str(facts[key]) for key in ("manufacturer", "machine") if facts[key])
    said = [
        f"{facts['rows']} x {facts['columns']} pixels",
        *([facts["view_header"]] if facts["view_header"] else []),
        *([f"{facts['age']:.0f} years"] if facts["age"] is not None else []),
        machine or "machine not named",
        *([facts["presentation"].lower()] if facts["presentation"] else []),
    ]
    box = [facts[f"box_{key}"] for key in ("height", "width", "top", "left")]
    turned = "mirrored" if facts["flipped"] else ""
    if facts["rotated"]:
        turned = f"rotated by {facts['rotated']} degrees counterclockwise"
    oriented = f", {turned}: the chest wall is on the left" if turned else ""
    alone = image.probability
    return {
        "file": image.file,
        "header": ", ".join(map(str, said)),
        "crop": f"{shape[0]} x {shape[1]} pixels, of {box[0]} x {box[1]} at row {box[2]}, column "
        f"{box[3]}{oriented}; window {facts['window']}",
        **({} if alone is None else {"by itself": f"{alone:.3f}, this image alone"}),
        "colour": "strongest where this breast has most of it, fainter the lower its score is "
        "below the threshold; it explains a score and outlines no lesion",
    }


def _draw_header(page: Page, breast: BreastAnswer, image: ImageAnswer) -> None:
    """Whose image it is, and what the model says of the breast."""
    number = f", examination {breast.examination}" if breast.examination > 1 else ""
    side = _SIDES.get(breast.laterality, "side unknown")
    title = f"{breast.patient_id}{number} · {side} · {image.view or 'view unknown'}"
    room = int((page.width - 2 * _MARGIN) / (_LARGE * ADVANCE))
    page.write(_MARGIN, 44, shortened(title, room), _LARGE, BRIGHT, "bold")
    colour = RED if breast.decision == "positive" else BRIGHT
    page.fill(_MARGIN, 62, 4, 22, colour)
    calibrated = "" if breast.calibrated is None else f"; calibrated {breast.calibrated:.3f}"
    verdict = (
        f"The model calls this breast {breast.decision}: {breast.probability:.3f} "
        f"(threshold {breast.threshold:.3f}{calibrated})"
    )
    page.write(_MARGIN + 14, 78, verdict, _VERDICT, colour)


def _draw_panels(
    page: Page,
    grey: NDArray[np.uint8],
    strength: NDArray[np.floating[Any]] | None,
    lefts: tuple[int, int],
) -> None:
    """The crop, and the crop with its map; what they are, beneath."""
    height, wide = grey.shape
    plain = np.repeat(grey[..., None], 3, axis=2)
    beside = plain if strength is None else overlaid(grey, strength)
    for left, pixels in zip(lefts, (plain, beside), strict=True):
        page.fill(left - 1, _HEADER - 1, wide + 2, height + 2, RULE)
        page.pixels[_HEADER : _HEADER + height, left : left + wide] = pixels
    left, right = lefts
    baseline = _HEADER + height + _CAPTION - 6
    page.write(left, baseline, "as the networks saw it", PLAIN, MUTED)
    if strength is None:
        page.write(right, baseline, "no network was shown this image", PLAIN, MUTED)
        return
    end = page.write(right, baseline, "what raised the score: less ", PLAIN, MUTED)
    _draw_ramp(page, round(end), baseline)
    page.write(end + _RAMP[0] + 7, baseline, "more", PLAIN, MUTED)


def _fading(breast: BreastAnswer) -> float:
    """How strong the colours are: also where nothing is wrong, something is the most suspicious."""
    assert breast.probability is not None, "a breast that could not be read has no picture"
    if breast.probability >= breast.threshold:
        return 1.0
    return max(_FAINTEST, breast.probability / breast.threshold)


def _draw_ramp(page: Page, left: int, baseline: int) -> None:
    """The colours of a map, from nothing to the strongest."""
    width, height = _RAMP
    ramp = np.linspace(0, 1, width, dtype=np.float32)[None].repeat(height, axis=0)
    beneath = np.full((height, width), 128, np.uint8)
    page.pixels[baseline - height + 1 : baseline + 1, left : left + width] = overlaid(beneath, ramp)


def _shown(crop: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """8 bits, in the size of the picture."""
    grey: NDArray[Any] = crop if crop.dtype == np.uint8 else crop >> 8
    scale = min(_TALLEST / grey.shape[0], _WIDEST / grey.shape[1])
    size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(grey.astype(np.uint8), size, interpolation=how).astype(np.uint8)
