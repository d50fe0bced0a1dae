"""The breast's box, mask and chest wall on shapes whose outline is known."""

from typing import Any

import numpy as np
import pytest
from breast_shapes import breast_image, oblique_image
from numpy.typing import NDArray

from rsna_bcd.imaging.breast import breast_mask, find_breast, has_bright_background

ROWS, COLUMNS = np.mgrid[:400, :320]


def assert_box(
    image: NDArray, *, reach: float = 0.5, half_height: float = 0.4, right: bool = False,
    within: int = 6,
) -> None:  # fmt: skip
    """The box agrees with the ellipse of `breast_image` to within some pixels."""
    height, width = image.shape
    breast = find_breast(image.astype(np.float32))
    box = breast.box
    assert breast.found
    assert breast.chest_wall == ("right" if right else "left")
    assert (width - box.left - box.width if right else box.left) == 0
    assert box.width == pytest.approx(reach * width, abs=within)
    assert box.top == pytest.approx((0.5 - half_height) * height, abs=within)
    assert box.top + box.height == pytest.approx((0.5 + half_height) * height, abs=within)


def add_noise(image: NDArray, deviation: float) -> NDArray[np.float32]:
    image = image + np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(image, 0, 1).astype(np.float32)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize(
    ("reach", "half_height", "background", "noise"),
    [
        (0.5, 0.4, 0, 0),
        (0.16, 0.2, 0, 0),  # as small as they come
        (0.95, 0.46, 0, 0),
        (0.5, 0.4, 0.12, 0),
        (0.5, 0.4, 0.1, 0.01),
    ],
)
def test_find_breast_box_and_side(
    right: bool, reach: float, half_height: float, background: float, noise: float
) -> None:
    shape: dict[str, Any] = {"reach": reach, "half_height": half_height, "right": right}
    image = breast_image(**shape, background=background)
    assert_box(add_noise(image, noise) if noise else image, **shape)


def with_marker() -> NDArray:
    image = breast_image()
    image[20:40, 220:300] = 1  # a plate with letters
    image[60:62, 200:300] = 1
    return image


def with_implant() -> NDArray:
    image = breast_image()
    image[np.hypot(COLUMNS, ROWS - 200) < 90] = 1  # brighter than all tissue, at the chest wall
    return image


def with_dark_fat() -> NDArray:
    image = breast_image()
    fat = 0.04 + 0.03 * np.random.default_rng(0).random(image.shape, np.float32)
    gland = np.hypot((ROWS - 200) / 90, (COLUMNS - 60) / 60) < 1
    return np.where((image > 0) & ~gland, fat, image)


def with_other_parts() -> NDArray:
    image = breast_image(half_height=0.3)
    image[:, 260:268] = 0.5  # the rim of a paddle, as high as the frame
    image[350:, :40] = 0.4  # a fold of the belly
    return image


def with_tilted_rim() -> NDArray:
    image = np.maximum(breast_image(half_height=0.35), 0.04)
    image[COLUMNS > 300 + ROWS / 50] = 0.9
    return image


def in_field() -> NDArray:
    image = np.maximum(breast_image(reach=0.4), 0.12)
    image[:, 290:] = image[:15] = image[-20:] = 0  # beyond the collimator
    return image


def in_paddle() -> NDArray:
    image = breast_image(reach=0.22, half_height=0.2)
    image[60:68, :260] = image[332:340, :260] = image[60:340, 252:260] = 0.9
    return image


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (with_marker, {}),
        (with_implant, {}),
        (with_dark_fat, {}),
        (with_other_parts, {"half_height": 0.3}),
        (with_tilted_rim, {"half_height": 0.35}),
        (in_field, {"reach": 0.4}),
        (in_paddle, {"reach": 0.22, "half_height": 0.2}),
    ],
)
def test_find_breast_beside_other_structures(make: Any, shape: dict[str, Any]) -> None:
    assert_box(make(), **shape)


@pytest.mark.parametrize("column", [4, 200, 312])
def test_find_breast_ignores_the_edge_of_a_collimator(column: int) -> None:
    image = breast_image(reach=0.4, right=column < 160)
    image[:, column : column + 3] = 0.5
    assert_box(image, reach=0.4, right=column < 160)


def test_find_breast_with_a_dark_strip_at_the_chest_wall() -> None:
    breast = find_breast(np.roll(breast_image(reach=0.4), 30, axis=1))
    assert breast.chest_wall == "left"
    assert breast.box.left == pytest.approx(30, abs=4)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_find_breast_on_a_gradient(axis: int, noise: float) -> None:
    image = breast_image(reach=0.4)
    shape = (-1, 1) if axis == 0 else (1, -1)
    shade = np.linspace(0.02, 0.16, image.shape[axis], dtype=np.float32).reshape(shape)
    image = np.where(image == 0, shade, image)
    assert_box(add_noise(image, noise), reach=0.4, within=8)


@pytest.mark.parametrize(
    ("fat", "background", "noise"),
    [(0.08, 0.05, 0.005), (0.08, 0.05, 0.01), (0.03, 0.0, 0.0), (0.05, 0.05, 0.0)],
)
def test_find_breast_with_fat_as_dark_as_the_background(
    fat: float, background: float, noise: float
) -> None:
    distance = np.hypot(COLUMNS / 160, (ROWS + 0.5 - 200) / 160)
    image = np.where(distance < 1, fat, background)
    image[(distance > 0.97) & (distance < 1)] = 0.1  # the skin
    image[distance < 0.6] = 0.5  # the gland
    assert_box(add_noise(image, noise), within=8)


@pytest.mark.parametrize("kind", ["tissue", "empty"])
def test_find_breast_returns_the_frame_without_a_breast(kind: str) -> None:
    image = np.random.default_rng(0).normal(0.5, 0.08, (400, 320)).clip(0, 1).astype(np.float32)
    if kind == "empty":
        image[:] = 0
        image[50:55, 50:90] = 1
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


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("abdomen", [0.03, 0.055])
def test_find_breast_cuts_off_a_strip_of_abdomen(right: bool, abdomen: float) -> None:
    image = oblique_image(abdomen=abdomen, right=right)
    box, mask = find_breast(image).box, breast_mask(image)
    assert box.top == 0
    assert box.width == pytest.approx(160, abs=4)
    assert 318 <= box.height <= 330  # the fold is in row 320
    assert mask is not None
    assert not mask[box.height :].any()


def test_find_breast_cuts_off_a_wider_abdomen_at_the_fold() -> None:
    image = oblique_image()
    image[np.hypot((ROWS - 400) / 85, COLUMNS / 60) < 1] = 0.5  # meets the breast in a notch
    assert 310 <= find_breast(image).box.height <= 330


@pytest.mark.parametrize("abdomen", [0.0, 0.2])
def test_find_breast_keeps_a_breast_without_a_strip(abdomen: float) -> None:
    image = oblique_image(abdomen=abdomen)
    bottom = np.flatnonzero(image.any(axis=1))[-1] + 1
    assert find_breast(image).box.height == pytest.approx(bottom, abs=4)


def test_find_breast_below_a_shoulder() -> None:
    image = np.roll(breast_image(half_height=0.35, reach=0.6), 40, axis=0)
    image[:20, :250] = 0.5  # wider than the breast, and a narrow neck between
    image[20:50, :40] = 0.5
    box = find_breast(image).box
    assert box.top + box.height == pytest.approx(380, abs=6)


@pytest.mark.parametrize("thickness", [4, 20])
@pytest.mark.parametrize("sides", ["left", "right", "top", "bottom", "left right top bottom"])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_find_breast_ignores_bright_rims(thickness: int, sides: str, noise: float) -> None:
    image = np.maximum(breast_image(half_height=0.35), 0.04)
    rims: dict[str, Any] = {
        "left": np.s_[:, :thickness], "right": np.s_[:, -thickness:],
        "top": np.s_[:thickness], "bottom": np.s_[-thickness:],
    }  # fmt: skip
    for side in sides.split():
        image[rims[side]] = 0.95
    breast = find_breast(add_noise(image, noise))
    assert (breast.found, breast.chest_wall, breast.side_is_clear) == (True, "left", True)
    wall = thickness if "left" in sides else 0
    assert wall <= breast.box.left <= wall + 3
    assert breast.box.left + breast.box.width == pytest.approx(160, abs=6)
    assert breast.box.top == pytest.approx(60, abs=6)
    assert breast.box.height == pytest.approx(280, abs=12)


@pytest.mark.parametrize("bar", [3, 8])
@pytest.mark.parametrize("closed", [False, True])
def test_find_breast_ignores_the_outline_of_a_paddle(bar: int, closed: bool) -> None:
    image = breast_image(reach=0.4, half_height=0.47)
    left = 30 * closed
    image[60 : 60 + bar, left:260] = image[340 - bar : 340, left:260] = 0.9
    image[60:340, 260 - bar : 260] = 0.9
    if closed:
        image[60:340, 30 : 30 + bar] = 0.9
    breast = find_breast(image)
    assert breast.chest_wall == "left"
    assert breast.box.width < 160  # of 128; bars reach column 260
    assert breast.box.height == pytest.approx(376, abs=12)


def test_find_breast_of_large_and_of_two_breasts() -> None:
    breast = find_breast(breast_image(reach=1.05, half_height=0.7))  # leaves little background
    assert (breast.found, breast.chest_wall) == (True, "left")
    assert (breast.box.width, breast.box.height) == (320, 400)
    one = breast_image(reach=0.3, half_height=0.35)
    breast = find_breast(np.maximum(one, one[:, ::-1]))
    assert (breast.box.width, breast.side_is_clear) == (320, False)


@pytest.mark.parametrize(("turns", "side"), [(3, "top"), (1, "bottom")])
@pytest.mark.parametrize("shape", [breast_image(300, 400, half_height=0.45), oblique_image()])
def test_find_breast_with_a_chest_wall_above_or_below(
    turns: int, side: str, shape: NDArray[np.float32]
) -> None:
    breast = find_breast(np.rot90(shape, turns).copy())
    assert (breast.chest_wall, breast.side_is_clear) == (side, True)


def test_find_breast_of_a_specimen_has_no_clear_side() -> None:
    inside = np.hypot((ROWS - 200) / 80, (COLUMNS - 150) / 70) < 1
    breast = find_breast(np.where(inside, 0.6, 0.05).astype(np.float32))
    assert (breast.found, breast.side_is_clear) == (True, False)


@pytest.mark.parametrize("shape", [(64, 64), (16, 16), (20, 400), (3, 5)])
def test_find_breast_of_tiny_images(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).random(shape, np.float32)
    for image in (noise, np.zeros(shape, np.float32), noise * (np.arange(shape[1]) < 4)):
        box = find_breast(image.astype(np.float32)).box
        assert box.width > 0
        assert box.height > 0
        breast_mask(image.astype(np.float32))
