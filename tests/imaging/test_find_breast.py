"""The breast's box and side on shapes whose outline is known."""

from typing import Any

import numpy as np
import pytest
from breast_shapes import breast_picture, oblique_picture
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


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("abdomen", [0.03, 0.055])
def test_a_strip_of_abdomen_is_cut_off(right: bool, abdomen: float) -> None:
    picture = oblique_picture(abdomen=abdomen, right=right)
    box = find_breast(picture).box
    assert box.top == 0
    assert box.width == pytest.approx(160, abs=4)
    assert 318 <= box.height <= 330  # the fold is in row 320
    mask = breast_mask(picture)
    assert mask is not None
    assert not mask[box.height :].any()


def test_a_wider_abdomen_is_cut_off_at_the_fold() -> None:
    picture = oblique_picture()
    rows, columns = np.mgrid[:400, :320]
    picture[np.hypot((rows - 400) / 85, columns / 60) < 1] = 0.5  # meets the breast in a notch
    box = find_breast(picture).box
    assert 310 <= box.height <= 330


@pytest.mark.parametrize("abdomen", [0.0, 0.2])
def test_a_breast_without_a_strip_is_not_cut(abdomen: float) -> None:
    picture = oblique_picture(abdomen=abdomen)
    bottom = np.flatnonzero(picture.any(axis=1))[-1] + 1
    box = find_breast(picture).box
    assert box.height == pytest.approx(bottom, abs=4)


def test_a_shoulder_above_the_breast_does_not_make_it_an_abdomen() -> None:
    picture = np.roll(breast_picture(half_height=0.35, reach=0.6), 40, axis=0)
    picture[:20, :250] = 0.5  # wider than the breast, and a narrow neck between
    picture[20:50, :40] = 0.5
    box = find_breast(picture).box
    assert box.top + box.height == pytest.approx(380, abs=6)


@pytest.mark.parametrize("thickness", [4, 20])
@pytest.mark.parametrize("sides", ["left", "right", "top", "left right top bottom"])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_bright_rims_are_left_out(thickness: int, sides: str, noise: float) -> None:
    picture = np.maximum(breast_picture(half_height=0.35), 0.04)
    rims: dict[str, Any] = {
        "left": np.s_[:, :thickness], "right": np.s_[:, -thickness:],
        "top": np.s_[:thickness], "bottom": np.s_[-thickness:],
    }  # fmt: skip
    for side in sides.split():
        picture[rims[side]] = 0.95
    picture += np.random.default_rng(0).normal(0, noise, picture.shape)
    breast = find_breast(np.clip(picture, 0, 1).astype(np.float32))
    assert breast.found
    assert (breast.chest_wall, breast.side_is_clear) == ("left", True)
    wall = thickness if "left" in sides else 0
    assert wall <= breast.box.left <= wall + 3
    assert breast.box.left + breast.box.width == pytest.approx(160, abs=6)
    assert breast.box.top == pytest.approx(60, abs=6)
    assert breast.box.height == pytest.approx(280, abs=12)


def test_a_tilted_rim_is_left_out() -> None:
    picture = np.maximum(breast_picture(half_height=0.35), 0.04)
    rows, columns = np.mgrid[:400, :320]
    picture[columns > 300 + rows / 50] = 0.9
    assert_box(picture, {"half_height": 0.35})


@pytest.mark.parametrize("bar", [3, 8])
@pytest.mark.parametrize("closed", [False, True])
def test_the_outline_of_a_paddle_is_left_out(bar: int, closed: bool) -> None:
    picture = breast_picture(reach=0.4, half_height=0.47)
    picture[60 : 60 + bar, 30 * closed : 260] = 0.9
    picture[340 - bar : 340, 30 * closed : 260] = 0.9
    picture[60:340, 260 - bar : 260] = 0.9
    if closed:
        picture[60:340, 30 : 30 + bar] = 0.9
    breast = find_breast(picture)
    assert breast.chest_wall == "left"
    assert breast.box.width < 160  # of 128; bars reach column 260
    assert breast.box.height == pytest.approx(376, abs=12)


def test_a_small_breast_within_a_paddle_is_found() -> None:
    picture = breast_picture(reach=0.22, half_height=0.2)
    picture[60:68, :260] = picture[332:340, :260] = picture[60:340, 252:260] = 0.9
    assert_box(picture, {"reach": 0.22, "half_height": 0.2})


def test_an_exposed_field_is_no_breast() -> None:
    picture = np.maximum(breast_picture(reach=0.4), 0.12)
    picture[:, 290:] = picture[:15] = picture[-20:] = 0  # beyond the collimator
    assert_box(picture, {"reach": 0.4})


@pytest.mark.parametrize(
    ("fat", "background", "noise"),
    [(0.08, 0.05, 0.005), (0.08, 0.05, 0.01), (0.03, 0.0, 0.0), (0.05, 0.05, 0.0)],
)
def test_fat_nearly_as_dark_as_the_background_belongs_to_the_breast(
    fat: float, background: float, noise: float
) -> None:
    rows, columns = np.mgrid[:400, :320]
    distance = np.hypot(columns / 160, (rows + 0.5 - 200) / 160)
    picture = np.where(distance < 1, fat, background)
    picture[(distance > 0.97) & (distance < 1)] = 0.1  # the skin
    picture[distance < 0.6] = 0.5  # the gland
    picture += np.random.default_rng(0).normal(0, noise, picture.shape)
    assert_box(np.clip(picture, 0, 1).astype(np.float32), {}, within=8)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_background_with_a_gradient(axis: int, noise: float) -> None:
    picture = breast_picture(reach=0.4)
    shape = (-1, 1) if axis == 0 else (1, -1)
    shade = np.linspace(0.02, 0.16, picture.shape[axis], dtype=np.float32).reshape(shape)
    picture = np.where(picture == 0, shade, picture)
    picture += np.random.default_rng(0).normal(0, noise, picture.shape)
    assert_box(np.clip(picture, 0, 1).astype(np.float32), {"reach": 0.4}, within=8)


def test_a_breast_that_leaves_little_background() -> None:
    picture = breast_picture(reach=1.05, half_height=0.7)
    breast = find_breast(picture)
    assert breast.found
    assert breast.chest_wall == "left"
    assert (breast.box.width, breast.box.height) == (320, 400)


def test_two_breasts_beside_each_other_are_both_in_the_box() -> None:
    one = breast_picture(reach=0.3, half_height=0.35)
    breast = find_breast(np.maximum(one, one[:, ::-1]))
    assert breast.box.width == 320
    assert not breast.side_is_clear


@pytest.mark.parametrize(("turns", "side"), [(3, "top"), (1, "bottom")])
@pytest.mark.parametrize("shape", [breast_picture(300, 400, half_height=0.45), oblique_picture()])
def test_a_chest_wall_above_or_below(turns: int, side: str, shape: NDArray[np.float32]) -> None:
    breast = find_breast(np.rot90(shape, turns).copy())
    assert (breast.chest_wall, breast.side_is_clear) == (side, True)


def test_a_specimen_has_no_clear_side() -> None:
    rows, columns = np.mgrid[:400, :320]
    inside = np.hypot((rows - 200) / 80, (columns - 150) / 70) < 1
    breast = find_breast(np.where(inside, 0.6, 0.05).astype(np.float32))
    assert breast.found
    assert not breast.side_is_clear


@pytest.mark.parametrize("shape", [(64, 64), (16, 16), (20, 400), (3, 5)])
def test_tiny_pictures_do_not_fail(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).random(shape, np.float32)
    for picture in (noise, np.zeros(shape, np.float32), noise * (np.arange(shape[1]) < 4)):
        box = find_breast(picture.astype(np.float32)).box
        assert box.width > 0
        assert box.height > 0
        breast_mask(picture.astype(np.float32))
