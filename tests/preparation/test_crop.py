"""Crops: geometry, orientation, resolution, grey levels."""

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from breast_shapes import breast_image
from dicom_files import write_dicom

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.mammogram import ImageError, Mammogram, in_memory
from rsna_bcd.imaging.quality import QualityFlag
from rsna_bcd.imaging.voi import DisplayTransform, Range, Rescale
from rsna_bcd.preparation.crop import CropSettings, PreparedImage, crop_mammogram, prepare_image

SETTINGS = CropSettings("test", 128, 64, box="breast", margin=0.01, orient=True, fit="pad")
WINDOW: dict[str, Any] = {"WindowCenter": 2000.5, "WindowWidth": 4001}
BOTH_FITS = pytest.mark.parametrize("fit", ["pad", "stretch"])
BOTH_BOXES = pytest.mark.parametrize("box", ["breast", "full"])


def mammogram(image: np.ndarray, *, bits: int = 8) -> Mammogram:
    """`image` in [0, 1] as stored values of `bits` bits."""
    top = 2**bits - 1
    pixels = np.rint(image * top).astype(np.uint8 if bits == 8 else np.uint16)
    display = DisplayTransform(Rescale(), Range(0, top), inverted=False)
    return in_memory(pixels, "test", lambda _: display)


def crop(image: np.ndarray, *, stored_bits: int = 8, **settings: Any) -> PreparedImage:
    return crop_mammogram(mammogram(image, bits=stored_bits), replace(SETTINGS, **settings))


def number(prepared: PreparedImage, key: str) -> float:
    value = prepared.record[key]
    assert isinstance(value, int | float)
    return value


def test_crop_is_the_breast_at_its_own_aspect() -> None:
    image = breast_image(400, 320)
    prepared = crop(image)
    assert prepared.record["breast_found"]
    # The ellipse: 160 wide, 320 high; margin .01 of 320 on each side, none beyond the frame.
    assert number(prepared, "box_left") == 0
    assert number(prepared, "box_width") == pytest.approx(163, abs=4)
    assert number(prepared, "box_top") == pytest.approx(37, abs=4)
    assert number(prepared, "box_height") == pytest.approx(326, abs=6)
    scale = number(prepared, "scale")
    assert scale == pytest.approx(min(128 / 326, 64 / 163), rel=0.03)
    # The skin's widest point is where scale and box say it is: both axes have one scale.
    rows, columns = np.nonzero(prepared.pixels > 40)
    assert columns.max() + 1 == pytest.approx(160 * scale, abs=1.5)
    assert np.ptp(rows) + 1 == pytest.approx(320 * scale, abs=2.5)
    # Areas are averaged, so the sum of grey levels scales with the area of a pixel.
    total = prepared.pixels.sum(dtype=float) / scale**2
    assert total == pytest.approx(255 * image.sum(dtype=float), rel=0.01)


@pytest.mark.parametrize(
    ("shape", "empty"),
    [
        ({"reach": 0.2, "half_height": 0.45}, (slice(None), slice(40, None))),  # right
        ({"reach": 0.9, "half_height": 0.3}, (slice(0, 30), slice(None))),  # above
        ({"reach": 0.9, "half_height": 0.3}, (slice(98, None), slice(None))),  # and below
    ],
)
def test_crop_is_padded_opposite_the_chest_wall(shape: dict, empty: tuple) -> None:
    pixels = crop(breast_image(**shape)).pixels
    assert pixels.shape == (128, 64)
    assert not pixels[empty].any()
    assert pixels[60:68, 0].all()


@BOTH_FITS
@BOTH_BOXES
@pytest.mark.parametrize(("turns", "rotated"), [(3, 90), (1, 270)])  # chest wall above, below
def test_crop_rotates_a_chest_wall_above_or_below_to_the_left(
    turns: int, rotated: int, box: str, fit: str
) -> None:
    upright = breast_image(400, 320, half_height=0.45)
    turned = np.rot90(upright, turns).copy()
    expected, actual = (crop(image, box=box, fit=fit) for image in (upright, turned))
    assert (actual.record["rotated"], actual.record["flipped"]) == (rotated, 0)
    np.testing.assert_allclose(actual.pixels.astype(int), expected.pixels, atol=1)
    # The box is that of the source, before it is rotated.
    assert actual.record["box_width"] == expected.record["box_height"]
    assert actual.record["box_height"] == expected.record["box_width"]
    assert actual.record["scale"] == expected.record["scale"]
    assert crop(turned, box=box, fit=fit, orient=False).record["rotated"] == 0


UNCLEAR = np.maximum(*(breast_image(reach=0.3, half_height=0.35, right=r) for r in (False, True)))


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize(
    ("image", "header", "expected"),
    [
        (UNCLEAR, "A\\F", (0, 0, "")),
        (UNCLEAR, "P\\L", (1, 0, "")),
        (UNCLEAR, "L\\A", (0, 90, "")),
        (UNCLEAR, "L\\P", (0, 270, "")),
        (UNCLEAR, "p\\fl", (1, 0, "")),
        (UNCLEAR, "", (0, 0, "")),
        (UNCLEAR, "X", (0, 0, "")),
        (breast_image(), "AR\\FR", (0, 0, "")),
        (breast_image(), "L\\F", (0, 0, "")),
        (breast_image(), "P\\R", (0, 0, QualityFlag.ORIENTATION_CONTRADICTORY)),
        (breast_image(right=True), "A\\R", (1, 0, QualityFlag.ORIENTATION_CONTRADICTORY)),
        (breast_image(right=True), "P\\R", (1, 0, "")),
    ],
)
def test_prepare_image_orients_by_clear_pixels_else_by_the_header(
    tmp_path: Path, image: np.ndarray, header: str, expected: tuple[int, int, str]
) -> None:
    values = np.rint(image * 4000).astype(np.uint16)
    elements = WINDOW | ({"PatientOrientation": header.split("\\")} if header else {})
    path = write_dicom(tmp_path / "a.dcm", values, bits=12, **elements)
    record = prepare_image(path, SETTINGS, "dicom").record
    assert (record["flipped"], record["rotated"], record["quality_flags"]) == expected


@BOTH_FITS
def test_crop_of_a_mirror_image_is_the_same(fit: str) -> None:
    left, right = (crop(breast_image(background=0.05, right=r), fit=fit) for r in (False, True))
    assert (left.record["flipped"], right.record["flipped"]) == (0, 1)
    np.testing.assert_array_equal(left.pixels, right.pixels)


@pytest.mark.parametrize(("source", "shape"), [("dicom", (63, 400)), ("image", (400, 63))])
def test_prepare_image_refuses_few_pixels(tmp_path: Path, shape: tuple, source: Any) -> None:
    values = np.rint(breast_image(*shape) * 200).astype(np.uint16)
    path = tmp_path / "a.png"
    if source == "dicom":
        write_dicom(path, values, bits=12)
    else:
        cv2.imwrite(str(path), values.astype(np.uint8))
    with pytest.raises(ImageError, match=f"^{shape[0]} x {shape[1]} pixels: .* fewer than 64"):
        prepare_image(path, SETTINGS, source)


def test_crop_full_and_stretched_is_the_resized_frame() -> None:
    image = breast_image(400, 320, right=True)
    prepared = crop(image, height=96, width=96, box="full", orient=False, fit="stretch")
    expected = cv2.resize(mammogram(image).pixels, (96, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(prepared.pixels.astype(int) - expected).max() <= 1  # rounding
    assert (prepared.record["scale"], prepared.record["flipped"]) == (None, 0)
    geometry = [prepared.record[f"box_{side}"] for side in ("left", "top", "width", "height")]
    assert geometry == [0, 0, 320, 400]


def test_crop_of_a_frame_without_background_is_the_frame() -> None:
    tissue = np.clip(np.random.default_rng(0).normal(0.5, 0.08, (200, 100)), 0, 1)
    record = crop(tissue).record
    assert (record["breast_found"], record["box_width"], record["box_height"]) == (0, 100, 200)


def test_crop_enlarges_small_images() -> None:
    prepared = crop(breast_image(50, 40))
    assert number(prepared, "scale") > 2
    assert prepared.pixels[64, 0] > 150


def test_prepare_image_of_monochrome1_and_signed_values_is_the_same(tmp_path: Path) -> None:
    values = np.rint(breast_image(300, 200) * 4000).astype(np.uint16)
    signed = (values.astype(np.int16) - 2000).astype(np.int16)
    stored: list[tuple[np.ndarray, dict[str, Any]]] = [
        (values, {}),
        (4000 - values, {"PhotometricInterpretation": "MONOCHROME1"}),
        (signed, {"RescaleSlope": 1, "RescaleIntercept": 2000}),
    ]
    plain, inverted, shifted = (
        prepare_image(
            write_dicom(tmp_path / "a.dcm", pixels, bits=12, **WINDOW, **elements),
            SETTINGS, "dicom",
        ).pixels
        for pixels, elements in stored
    )  # fmt: skip
    np.testing.assert_allclose(plain.astype(int), inverted, atol=1)
    np.testing.assert_array_equal(plain, shifted)


@pytest.mark.parametrize("wrong", [{"height": 0}, {"margin": -0.1}, {"reduce": -1}, {"clahe": -2}])
def test_crop_settings_refuse_values_out_of_range(wrong: dict) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        replace(SETTINGS, **wrong)


@cache
def textured(height: int, width: int) -> np.ndarray:
    """A breast with structures of many sizes, 12 bits."""
    noise = np.random.default_rng(0).normal(0, 1, (height, width))
    texture = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (1, 3, 9, 27))
    breast = breast_image(height, width, reach=0.7, half_height=0.45)
    return np.rint(np.clip(breast * (2200 + 250 * texture), 0, 4095)).astype(np.uint16)


@pytest.mark.parametrize(("height", "level"), [(900, 0), (400, 1), (250, 2), (120, 3), (60, 4)])
def test_prepare_image_decodes_no_more_resolution_than_needed(
    tmp_path: Path, height: int, level: int
) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    pixels = textured(1203, 901)
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=12, syntax="jpeg2000", **window)
    settings = replace(SETTINGS, height=height, width=height)
    full, limited, reduced = (
        prepare_image(path, replace(settings, reduce=reduce), "dicom") for reduce in (0, 1, 5)
    )
    levels = [prepared.record["resolution_level"] for prepared in (full, limited, reduced)]
    assert levels == [0, min(level, 1), level]
    same = [k for k in full.record if k not in ("resolution_level", "decoder")]
    assert {k: full.record[k] for k in same} == {k: reduced.record[k] for k in same}
    # The level has at least the crop's resolution, and the next one would not.
    rows = int(number(full, "box_height"))
    assert rows >> level >= round(rows * number(full, "scale")) > rows >> level + 1
    difference = full.pixels.astype(float) - reduced.pixels
    # The rougher the image at the scale of a crop's pixel, the more band and mean differ.
    assert np.abs(difference).mean() <= (0 if level == 0 else 1 if level <= 2 else 3)


@BOTH_BOXES
@pytest.mark.parametrize(
    ("size", "right"), [((1200, 896), False), ((1203, 901), True), ((1201, 897), False)]
)
def test_prepare_image_does_not_displace_a_reduced_crop(
    tmp_path: Path, size: tuple[int, int], right: bool, box: Any
) -> None:
    pixels = np.ascontiguousarray(textured(*size)[:, :: -1 if right else 1])
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=12, syntax="jpeg2000")
    settings = replace(SETTINGS, height=240, width=240, box=box)
    full, reduced = (
        prepare_image(path, replace(settings, reduce=reduce), "dicom") for reduce in (0, 5)
    )
    assert reduced.record["resolution_level"]
    window = cv2.createHanningWindow((80, 80), cv2.CV_32F)
    # At the wall and away from it, above and below: a crop may also shrink or grow.
    for place in itertools.product(
        (slice(20, 100), slice(140, 220)), (slice(2, 82), slice(60, 140))
    ):
        first, second = (p.pixels[place].astype(np.float32, order="C") for p in (full, reduced))
        shift, _ = cv2.phaseCorrelate(first, second, window)
        # Of a pixel: 0.4 if sampling at even pixels were not made up for, 0.9 if the part beyond
        # an odd edge were squeezed in.
        assert np.abs(shift).max() < 0.2


@pytest.mark.parametrize("syntax", ["raw", "jpeg2000"])
def test_prepare_image_without_a_window_ignores_markers(tmp_path: Path, syntax: str) -> None:
    values = np.rint(breast_image(300, 200) * 3000 + 500).astype(np.uint16)
    marked = values.copy()
    marked[10:20, 150:190] = 4095  # beside the breast
    plain, other = (
        prepare_image(write_dicom(tmp_path / "a.dcm", v, bits=12, syntax=syntax), SETTINGS, "dicom")
        for v in (values, marked)
    )
    assert str(plain.record["window"]).startswith("fitted ")
    assert plain.record["quality_flags"] == "no window"
    np.testing.assert_allclose(plain.pixels, other.pixels.astype(int), atol=4)
    assert 220 < plain.pixels.max() <= 255


def test_crop_of_16_bits_has_the_greys_of_8_bits_with_more_steps(tmp_path: Path) -> None:
    image = breast_image(400, 320)
    deep = crop(image, stored_bits=16, bits=16).pixels
    assert deep.dtype == np.uint16
    shallow = crop(image, stored_bits=16).pixels
    np.testing.assert_array_equal(shallow, np.rint(deep / np.float32(257)).astype(np.uint8))
    assert np.abs(shallow.astype(int) - crop(image).pixels).max() <= 1
    assert len(np.unique(deep)) > 2 * len(np.unique(shallow))
    few = np.rint(image * 100).astype(np.uint16)  # stored values: their means are not rounded
    path = write_dicom(tmp_path / "a.dcm", few, bits=12, WindowCenter=50, WindowWidth=101)
    deep = prepare_image(path, replace(SETTINGS, bits=16), "dicom").pixels
    assert len(np.unique(deep)) > 200


@pytest.mark.parametrize("bits", [8, 16])
def test_crop_with_clahe_spreads_the_greys_of_the_breast(bits: int) -> None:
    dull = breast_image(400, 320, reach=0.25, noise=0.02) * 0.3 + 0.1
    plain, enhanced = (crop(dull, bits=bits, clahe=clahe).pixels for clahe in (0, 3.0))
    assert enhanced.shape == plain.shape
    assert enhanced.dtype == plain.dtype
    inside = (slice(40, 88), slice(0, 20))
    assert enhanced[inside].std() > 1.5 * plain[inside].std()
    np.testing.assert_array_equal(enhanced[:, -10:], 0)  # padding stays background


@BOTH_BOXES
@pytest.mark.parametrize("aspect", [2.0, 0.5])
@pytest.mark.parametrize("size", [(128, 64), (640, 480)])
def test_crop_resamples_pixels_that_are_not_square(
    size: tuple[int, int], aspect: float, box: Any
) -> None:
    settings = replace(SETTINGS, height=size[0], width=size[1], box=box, margin=0)
    image = breast_image(400, 320)
    half = (200, 320) if aspect == 2 else (400, 160)  # averaged in one direction
    flat = cv2.resize(image, half[::-1], interpolation=cv2.INTER_AREA)
    square = crop_mammogram(mammogram(image), settings)
    prepared = crop_mammogram(replace(mammogram(flat), pixel_aspect=aspect), settings)
    assert prepared.pixels.shape == square.pixels.shape
    difference = np.abs(prepared.pixels.astype(int) - square.pixels)
    assert difference.mean() < (6 if box == "breast" else 2.5)
    assert number(prepared, "box_height") <= half[0]  # in source pixels
    if box == "full":
        across = 1 if aspect == 2 else 2  # source columns are twice as wide as pixels
        assert number(prepared, "scale") == pytest.approx(number(square, "scale") * across)
