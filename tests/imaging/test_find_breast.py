"""The breast's box and side on shapes whose outline is known."""

import numpy as np
import pytest
from breast_shapes import breast_picture
from numpy.typing import NDArray

from rsna_bcd.imaging.breast import breast_mask, find_breast, has_bright_background


def assert_box(picture: NDArray[np.float32], shape: dict, *, within: int = 6) -> None:
    """The box agrees with the ellipse it was drawn from, to within some pixels."""
    height, width = picture.shape
    reach = shape.get("reach", 0.5) * width
    half = shape.get("half_height", 0.4) * height
    breast = find_breast(picture)
    assert breast.found
    assert breast.chest_wall_right == shape.get("right", False)
    box = breast.box
    near_wall = width - box.left - box.width if breast.chest_wall_right else box.left
    assert near_wall == 0
    assert box.width == pytest.approx(reach, abs=within)
    assert box.top == pytest.approx(height / 2 - half, abs=within)
    assert box.top + box.height == pytest.approx(height / 2 + half, abs=within)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"reach": 0.16, "half_height": 0.2},  # as small as they come
        {"reach": 0.95, "half_height": 0.46},
        {"background": 0.12},
        {"background": 0.1, "noise": 0.01},
    ],
    ids=str,
)
def test_box_and_side(right: bool, shape: dict) -> None:
    assert_box(breast_picture(right=right, **shape), {**shape, "right": right})


def test_uneven_background() -> None:
    picture = breast_picture(reach=0.4)
    shade = np.linspace(0.05, 0.1, picture.shape[1], dtype=np.float32)
    assert_box(np.where(picture == 0, shade, picture), {"reach": 0.4}, within=8)


def test_dark_fat_belongs_to_the_breast() -> None:
    picture = breast_picture()
    fat = 0.04 + 0.03 * np.random.default_rng(0).random(picture.shape, np.float32)
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    gland = np.hypot((rows - 200) / 90, (columns - 60) / 60) < 1
    assert_box(np.where((picture > 0) & ~gland, fat, picture).astype(np.float32), {})


def test_markers_are_left_out() -> None:
    picture = breast_picture()
    picture[20:40, 220:300] = 1  # a plate with letters
    picture[60:62, 200:300] = 1
    assert_box(picture, {})


@pytest.mark.parametrize("column", [4, 200, 312])
def test_the_edge_of_a_collimator_is_left_out(column: int) -> None:
    picture = breast_picture(reach=0.4, right=column < 160)
    picture[:, column : column + 3] = 0.5
    assert_box(picture, {"reach": 0.4, "right": column < 160})


def test_a_dark_strip_behind_the_chest_wall_does_not_turn_the_breast() -> None:
    picture = np.roll(breast_picture(reach=0.4), 30, axis=1)  # the wall is 30 pixels inside
    breast = find_breast(picture)
    assert not breast.chest_wall_right
    assert breast.box.left == pytest.approx(30, abs=4)


def test_an_implant_belongs_to_the_breast() -> None:
    picture = breast_picture(reach=0.6)
    rows, columns = np.mgrid[:400, :320]
    picture[np.hypot(columns, rows - 200) < 90] = 1  # brighter than all tissue, at the chest wall
    assert_box(picture, {"reach": 0.6})


def test_the_largest_of_two_pieces_is_the_breast() -> None:
    picture = breast_picture(half_height=0.3)
    picture[:, 260:268] = 0.5  # the rim of a paddle, as high as the frame
    picture[330:, :60] = 0.4
    assert_box(picture, {"half_height": 0.3})


def test_other_parts_of_the_body_are_left_out() -> None:
    picture = breast_picture(half_height=0.3)
    picture[350:, :40] = 0.4  # a fold of the belly that does not touch
    assert_box(picture, {"half_height": 0.3})


def test_a_frame_full_of_tissue_is_taken_whole() -> None:
    tissue = np.random.default_rng(0).normal(0.5, 0.08, (400, 320)).astype(np.float32)
    breast = find_breast(np.clip(tissue, 0, 1))
    assert not breast.found
    assert not breast.chest_wall_right
    assert (breast.box.left, breast.box.top) == (0, 0)
    assert (breast.box.width, breast.box.height) == (320, 400)


def test_an_empty_frame_is_taken_whole() -> None:
    empty = np.zeros((400, 320), np.float32)
    empty[50:55, 50:90] = 1
    assert not find_breast(empty).found


@pytest.mark.parametrize("background", [0.0, 0.12])
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("reach", [0.16, 0.95])
def test_a_bright_background_is_recognised(background: float, right: bool, reach: float) -> None:
    picture = breast_picture(reach=reach, right=right, background=background)
    assert not has_bright_background(picture)
    assert has_bright_background(1 - picture)


def test_bright_tissue_is_no_background() -> None:
    picture = breast_picture(reach=0.9, half_height=0.5, noise=0.01)
    assert not has_bright_background(np.where(picture > 0.2, picture + 0.25, picture))


@pytest.mark.parametrize("right", [False, True])
def test_the_mask_fills_the_ellipse_in_the_box(right: bool) -> None:
    picture = breast_picture(right=right, reach=0.5, half_height=0.4)
    mask, box = breast_mask(picture), find_breast(picture).box
    assert mask is not None
    assert mask.shape == picture.shape
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (box.top, box.top + box.height - 1)
    assert (columns[0], columns[-1]) == (box.left, box.left + box.width - 1)
    half_an_ellipse = np.pi / 2 * 0.5 * 0.4 * picture.size
    assert mask.sum() == pytest.approx(half_an_ellipse, rel=0.05)


def test_a_picture_without_a_breast_has_no_mask() -> None:
    assert breast_mask(np.full((64, 64), 0.5, np.float32)) is None
