"""The breast's box, mask and chest wall on shapes whose outline is known."""

from typing import Any

import numpy as np
import pytest
from breast_shapes import breast_image, oblique_image
from numpy.typing import NDArray

from rsna_bcd.imaging.breast import breast_mask, find_breast, has_bright_background

ROWS, COLUMNS = np.mgrid[:400, :320]
DISTANCE = np.hypot(COLUMNS / 160, (ROWS + 0.5 - 200) / 160)  # 1 at the outline of breast_image()
RANDOM = np.random.default_rng(0).random((400, 320), np.float32)

Parts = list[tuple[NDArray, Any]]


def draw(image: NDArray, parts: Parts, noise: float = 0, background: float = 0) -> NDArray:
    """Draw parts, each a mask and its values, on an image with background; then add noise."""
    image = np.maximum(image, background)
    for where, values in parts:
        image = np.where(where, values, image)
    noisy = image + np.random.default_rng(0).normal(0, noise, image.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)


def between(values: NDArray, first: int, end: int) -> NDArray:
    return (values >= first) & (values < end)


def fat(level: float) -> Parts:
    skin = (DISTANCE > 0.97) & (DISTANCE < 1)
    return [(DISTANCE < 1, level), (skin, 0.1), (DISTANCE < 0.6, 0.5)]


def outline(top: int, bottom: int, right: int, bar: int, left: int = 0) -> Parts:
    """Bars at the borders of a paddle."""
    box = between(ROWS, top, bottom) & between(COLUMNS, left, right)
    inside = between(ROWS, top + bar, bottom - bar) & between(
        COLUMNS, left + bar if left else 0, right - bar
    )
    return [(box & ~inside, 0.9)]


OUTSIDE = breast_image(reach=0.4) == 0
GLAND = np.hypot((ROWS - 200) / 90, (COLUMNS - 60) / 60) < 1
BOXES: dict[str, tuple[dict[str, float], Parts, float, float]] = {  # the last: noise, background
    "plain": ({}, [], 0, 0),
    "small": ({"reach": 0.16, "half_height": 0.2}, [], 0, 0),
    "large": ({"reach": 0.95, "half_height": 0.46}, [], 0, 0),
    "grey background": ({}, [], 0, 0.12),
    "noise": ({}, [], 0.01, 0.1),
    "marker": (
        {},
        [(between(ROWS, 20, 40) & between(COLUMNS, 220, 300), 1),
         (between(ROWS, 60, 62) & between(COLUMNS, 200, 300), 1)], 0, 0,
    ),
    "implant": ({}, [(np.hypot(COLUMNS, ROWS - 200) < 90, 1)], 0, 0),
    "dark fat": ({}, [((DISTANCE < 1) & ~GLAND, 0.04 + 0.03 * RANDOM)], 0, 0),
    "rim of a paddle, and belly": (
        {"half_height": 0.3},
        [(between(COLUMNS, 260, 268), 0.5), ((ROWS >= 350) & (COLUMNS < 40), 0.4)], 0, 0,
    ),
    "tilted rim": ({"half_height": 0.35}, [(COLUMNS > 300 + ROWS / 50, 0.9)], 0, 0.04),
    "collimator": (
        {"reach": 0.4}, [((COLUMNS >= 290) | (ROWS < 15) | (ROWS >= 380), 0)], 0, 0.12,
    ),
    "in a paddle": ({"reach": 0.22, "half_height": 0.2}, outline(60, 340, 260, 8), 0, 0),
    **{
        f"edge of a collimator in column {column}": (
            {"reach": 0.4}, [(between(COLUMNS, column, column + 3), 0.5)], 0, 0,
        )
        for column in (200, 312)
    },
    **{
        f"gradient to the {end}, noise {noise}": (
            {"reach": 0.4}, [(OUTSIDE, 0.02 + 0.14 * values / values.max())], noise, 0,
        )
        for end, values in (("bottom", ROWS), ("right", COLUMNS))
        for noise in (0, 0.02)
    },
    **{
        f"fat {level} on {background}, noise {noise}": ({}, fat(level), noise, background)
        for level, background, noise in (
            (0.08, 0.05, 0.005), (0.08, 0.05, 0.01), (0.03, 0.0, 0.0), (0.05, 0.05, 0.0),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("name", BOXES)
def test_find_breast_box_and_side(name: str, right: bool) -> None:
    shape, parts, noise, background = BOXES[name]
    image = draw(breast_image(**shape), parts, noise, background)  # type: ignore[arg-type]
    breast = find_breast(image[:, ::-1].copy() if right else image)
    box = breast.box
    reach, half_height = shape.get("reach", 0.5), shape.get("half_height", 0.4)
    assert (breast.found, breast.chest_wall) == (True, "right" if right else "left")
    assert (320 - box.left - box.width if right else box.left) == 0
    assert box.width == pytest.approx(reach * 320, abs=6)
    assert box.top == pytest.approx((0.5 - half_height) * 400, abs=6)
    assert box.top + box.height == pytest.approx((0.5 + half_height) * 400, abs=6)


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("sides", ["left", "right", "top", "bottom", "left right top bottom"])
@pytest.mark.parametrize("thickness", [4, 20])
def test_find_breast_ignores_bright_rims(thickness: int, sides: str, noise: float) -> None:
    rims = {
        "left": between(COLUMNS, 0, thickness), "right": between(COLUMNS, 320 - thickness, 320),
        "top": between(ROWS, 0, thickness), "bottom": between(ROWS, 400 - thickness, 400),
    }  # fmt: skip
    parts: Parts = [(rims[side], 0.95) for side in sides.split()]
    breast = find_breast(draw(breast_image(half_height=0.35), parts, noise, 0.04))
    assert (breast.found, breast.chest_wall, breast.side_is_clear) == (True, "left", True)
    wall = thickness if "left" in sides else 0
    assert wall <= breast.box.left <= wall + 3
    assert breast.box.left + breast.box.width == pytest.approx(160, abs=6)
    assert breast.box.top == pytest.approx(60, abs=6)
    assert breast.box.height == pytest.approx(280, abs=12)


def test_find_breast_with_a_dark_strip_at_the_chest_wall() -> None:
    breast = find_breast(np.roll(breast_image(reach=0.4), 30, axis=1))
    assert breast.chest_wall == "left"
    assert breast.box.left == pytest.approx(30, abs=4)


@pytest.mark.parametrize("bar", [3, 8])
@pytest.mark.parametrize("left", [0, 30])
def test_find_breast_ignores_the_outline_of_a_paddle(bar: int, left: int) -> None:
    image = breast_image(reach=0.4, half_height=0.47)
    breast = find_breast(draw(image, outline(60, 340, 260, bar, left)))
    assert breast.chest_wall == "left"
    assert breast.box.width < 160  # of 128; bars reach column 260
    assert breast.box.height == pytest.approx(376, abs=12)


@pytest.mark.parametrize(
    "image",
    [
        draw(np.full((400, 320), 0.5), [], 0.08),
        draw(np.zeros((400, 320)), [(between(ROWS, 50, 55) & between(COLUMNS, 50, 90), 1)]),
    ],
)
def test_find_breast_returns_the_frame_without_a_breast(image: NDArray) -> None:
    breast = find_breast(image)
    assert (breast.found, breast.chest_wall) == (False, "left")
    box = breast.box
    assert (box.left, box.top, box.width, box.height) == (0, 0, 320, 400)
    assert breast_mask(image) is None


@pytest.mark.parametrize("background", [0.0, 0.12])
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("reach", [0.16, 0.95])
def test_has_bright_background(background: float, right: bool, reach: float) -> None:
    image = breast_image(reach=reach, right=right, background=background)
    assert not has_bright_background(image)
    assert has_bright_background(1 - image)
    large = breast_image(reach=0.9, half_height=0.5, noise=0.01)
    assert not has_bright_background(np.where(large > 0.2, large + 0.25, large))


@pytest.mark.parametrize("right", [False, True])
def test_breast_mask_fills_the_ellipse_in_the_box(right: bool) -> None:
    image = breast_image(right=right)
    mask, box = breast_mask(image), find_breast(image).box
    assert mask is not None
    assert mask.shape == image.shape
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (box.top, box.top + box.height - 1)
    assert (columns[0], columns[-1]) == (box.left, box.left + box.width - 1)
    assert mask.sum() == pytest.approx(np.pi / 2 * 0.5 * 0.4 * image.size, rel=0.05)


WIDE_ABDOMEN: Parts = [(np.hypot((ROWS - 400) / 85, COLUMNS / 60) < 1, 0.5)]
SHOULDER: Parts = [((ROWS < 20) & (COLUMNS < 250) | between(ROWS, 20, 50) & (COLUMNS < 40), 0.5)]


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize(
    ("image", "bottom", "within"),
    [
        (oblique_image(), 320, 4),
        (oblique_image(abdomen=0.03), 324, 6),
        (oblique_image(abdomen=0.055), 324, 6),
        (oblique_image(abdomen=0.2), 400, 4),  # no strip
        (draw(oblique_image(), WIDE_ABDOMEN), 320, 10),  # meets the breast in a notch
        (draw(np.roll(breast_image(half_height=0.35, reach=0.6), 40, axis=0), SHOULDER), 380, 6),
    ],
    ids=["none", "strip", "wider strip", "breast", "notch", "shoulder"],
)
def test_find_breast_cuts_off_the_abdomen(
    image: NDArray, bottom: int, within: int, right: bool
) -> None:
    image = image[:, ::-1].copy() if right else image
    box, mask = find_breast(image).box, breast_mask(image)
    assert box.top + box.height == pytest.approx(bottom, abs=within)
    assert mask is not None
    assert not mask[box.top + box.height :].any()


ONE = breast_image(reach=0.3, half_height=0.35)
SPECIMEN = np.hypot((ROWS - 200) / 80, (COLUMNS - 150) / 70) < 1
LANDSCAPE = breast_image(300, 400, half_height=0.45)


@pytest.mark.parametrize(
    ("image", "side", "is_clear", "is_whole_width"),
    [
        (breast_image(reach=1.05, half_height=0.7), "left", True, True),  # little background
        (np.maximum(ONE, ONE[:, ::-1]), None, False, True),
        (draw(np.full((400, 320), 0.05), [(SPECIMEN, 0.6)]), None, False, False),
        (np.rot90(LANDSCAPE, 3), "top", True, False),
        (np.rot90(LANDSCAPE), "bottom", True, False),
        (np.rot90(oblique_image(), 3), "top", True, False),
        (np.rot90(oblique_image()), "bottom", True, False),
    ],
)
def test_find_breast_side_is_clear(
    image: NDArray, side: str | None, is_clear: bool, is_whole_width: bool
) -> None:
    breast = find_breast(image.copy())
    assert (breast.found, breast.side_is_clear) == (True, is_clear)
    assert side in (None, breast.chest_wall)
    assert not is_whole_width or breast.box.width == image.shape[1]


@pytest.mark.parametrize("shape", [(64, 64), (16, 16), (20, 400), (3, 5)])
def test_find_breast_of_tiny_images(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).random(shape, np.float32)
    for image in (noise, np.zeros(shape, np.float32), noise * (np.arange(shape[1]) < 4)):
        box = find_breast(image.astype(np.float32)).box
        assert box.width > 0
        assert box.height > 0
        breast_mask(image.astype(np.float32))
