"""The picture of one mammogram in `predict`."""

import re
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsna_bcd.reporting.contact_sheet import AMBER, RED
from rsna_bcd.reporting.gallery import overlay_saliency
from rsna_bcd.reporting.study_picture import as_png, study_picture
from rsna_bcd.tables.study_results import BreastResult, ImageResult

IMAGE = ImageResult(
    file="a/1.dcm", view="CC", probability=0.7, flags=[], reason=None,
    facts={
        "view_header": None, "age": 61.0, "machine": "Mammomat", "manufacturer": None,
        "presentation": "FOR PRESENTATION", "rows": 900, "columns": 700, "breast_found": 1,
        "flipped": 1, "rotated": 0, "box_left": 0, "box_top": 0, "box_width": 360,
        "box_height": 720, "window": "min-max 0 4095",
    },
)  # fmt: skip
BREAST = BreastResult(
    prediction_id="7_L", patient_id="7", examination=1, laterality="L", probability=0.8,
    threshold=0.5, calibrated=None, decision="positive", flags=[], images=[IMAGE],
)  # fmt: skip
NEGATIVE = replace(BREAST, probability=0.1, decision="negative")
CROP = np.random.default_rng(0).integers(0, 256, (720, 360), np.uint8)
SALIENCY = np.linspace(0, 1, 45 * 22, dtype=np.float32).reshape(45, 22)


def pixels(figure: Figure, panel: int) -> NDArray[Any]:
    return np.asarray(figure.axes[panel].images[0].get_array())


@pytest.mark.parametrize(
    ("probability", "fading"), [(0.8, 1.0), (0.5, 1.0), (0.25, 0.5), (0.01, 0.3)]
)
def test_study_picture_saliency_fades_below_the_threshold(
    probability: float, fading: float
) -> None:
    figure = study_picture(replace(BREAST, probability=probability), IMAGE, CROP, SALIENCY, [])
    assert np.array_equal(pixels(figure, 0), CROP)
    assert np.array_equal(pixels(figure, 1), overlay_saliency(CROP, SALIENCY * fading))


def test_study_picture_without_saliency_shows_the_upper_8_bits_twice() -> None:
    figure = study_picture(BREAST, IMAGE, CROP * np.uint16(256) + np.uint16(17), None, [])
    assert np.array_equal(pixels(figure, 0), CROP)
    assert np.array_equal(pixels(figure, 1), CROP)


@pytest.mark.parametrize(
    ("breast", "colours"),
    [(BREAST, {RED}), (NEGATIVE, set()), (replace(NEGATIVE, flags=["no MLO"]), {AMBER})],
)
def test_study_picture_only_positives_are_red_and_only_flags_amber(
    breast: BreastResult, colours: set[str]
) -> None:
    figure = study_picture(breast, IMAGE, CROP, None, [])
    assert {to_hex(str(text.get_color())) for text in figure.texts} & {RED, AMBER} == colours


def test_study_picture_has_room_for_every_line() -> None:
    plain = study_picture(BREAST, IMAGE, CROP, None, [])
    flagged = replace(BREAST, flags=["view unknown", "no MLO"], patient_id="1.2.840." * 20)
    noted = replace(IMAGE, file="folder/" * 40, facts=IMAGE.facts | {"window": r"$\nosuch$"})
    figure = study_picture(flagged, noted, CROP, SALIENCY, ["A note."] * 3)
    assert figure.get_figheight() > plain.get_figheight() + 5 * 0.15
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    for box in (text.get_window_extent() for text in figure.texts):
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height


def test_study_picture_png_is_reproducible_whatever_the_matplotlibrc() -> None:
    png = as_png(study_picture(BREAST, IMAGE, CROP, SALIENCY, ["A note."]))
    theirs: Any = {
        "font.family": "serif", "savefig.dpi": 50, "figure.autolayout": True,
        "text.color": "blue", "savefig.bbox": "tight", "axes.grid": True,
    }  # fmt: skip
    with mpl.rc_context(theirs):
        assert as_png(study_picture(BREAST, IMAGE, CROP, SALIENCY, ["A note."])) == png
    assert not re.search(b"tIME|[it]EXt|zTXt|Software|matplotlib", png)  # no date, no version
