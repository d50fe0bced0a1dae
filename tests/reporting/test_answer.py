"""The picture of an answer: the crop as it is, the colours as strong as the score."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rsna_bcd.reporting.contact_sheet import as_png
from rsna_bcd.reporting.gallery import overlaid
from rsna_bcd.reporting.study_picture import study_picture
from rsna_bcd.tables.answers import BreastAnswer, ImageAnswer

IMAGE = ImageAnswer(
    file="a/1.dcm", view="CC", probability=0.7, doubts=[], reason=None,
    facts={
        "view_header": None, "age": 61.0, "machine": "Mammomat", "manufacturer": None,
        "presentation": "FOR PRESENTATION", "rows": 900, "columns": 700, "breast_found": 1,
        "flipped": 1, "rotated": 0, "box_left": 0, "box_top": 0, "box_width": 360,
        "box_height": 720, "window": "min-max 0 4095",
    },
)  # fmt: skip
BREAST = BreastAnswer(
    prediction_id="7_L", patient_id="7", examination=1, laterality="L", probability=0.8,
    threshold=0.5, calibrated=None, decision="positive", doubts=[], images=[IMAGE],
)  # fmt: skip
CROP = np.random.default_rng(0).integers(0, 256, (720, 360), np.uint8)  # in the picture's own size
MAP = np.linspace(0, 1, 45 * 22, dtype=np.float32).reshape(45, 22)
TOP, GAP = 104, 16


def drawn(
    breast: BreastAnswer = BREAST, strength: NDArray[np.float32] | None = MAP, *notes: str
) -> NDArray[np.uint8]:
    png = as_png(study_picture(breast, IMAGE, CROP, strength, notes))
    pixels: Any = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
    return pixels


def panels(picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    left = (picture.shape[1] - 2 * 360 - GAP) // 2
    right = left + 360 + GAP
    return picture[TOP : TOP + 720, left : left + 360], picture[
        TOP : TOP + 720, right : right + 360
    ]


def test_the_crop_is_shown_as_it_is_and_beside_it_with_its_map() -> None:
    plain, coloured = panels(drawn())
    assert np.array_equal(plain, np.repeat(CROP[..., None], 3, axis=2))
    assert np.array_equal(coloured, overlaid(CROP, MAP))
    plain, unseen = panels(drawn(BREAST, None))
    assert np.array_equal(unseen, plain)


@pytest.mark.parametrize(("probability", "fading"), [(0.5, 1.0), (0.25, 0.5), (0.01, 0.3)])
def test_colours_fade_below_the_threshold(probability: float, fading: float) -> None:
    breast = replace(BREAST, probability=probability)
    _, coloured = panels(drawn(breast))
    assert np.array_equal(coloured, overlaid(CROP, MAP * fading))


def test_16_bits_are_shown_as_their_upper_8() -> None:
    wide = (CROP.astype(np.uint16) * 256 + 17).astype(np.uint16)
    figure = study_picture(BREAST, IMAGE, wide, None, [])
    assert as_png(figure) == as_png(study_picture(BREAST, IMAGE, CROP, None, []))


def test_only_a_positive_breast_is_red_and_only_doubts_are_amber() -> None:
    def holds(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> bool:
        return bool((picture == colour).all(axis=2).any())

    red, amber = (255, 92, 92), (255, 166, 43)
    negative = replace(BREAST, probability=0.1, decision="negative")
    doubtful = replace(negative, doubts=["view unknown", "no MLO"])
    pictures = [drawn(breast, None) for breast in (BREAST, negative, doubtful)]
    assert [holds(picture, red) for picture in pictures] == [True, False, False]
    assert [holds(picture, amber) for picture in pictures] == [False, False, True]


def test_the_picture_grows_with_what_there_is_to_say() -> None:
    doubtful = replace(BREAST, doubts=["view unknown", "no MLO"])
    plain = drawn(BREAST, None)
    assert drawn(doubtful, None).shape[0] == plain.shape[0] + 2 * 19
    assert drawn(BREAST, None, "A note.").shape[0] == plain.shape[0] + 19
