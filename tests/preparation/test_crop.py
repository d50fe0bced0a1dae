"""The geometry of crops: aspect, padding, side, and that nothing is cut off."""

import itertools
from dataclasses import replace
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
from rsna_bcd.preparation.crop import CropSettings, crop_mammogram, prepare_image

SETTINGS = CropSettings("test", 128, 64, box="breast", margin=0.01, orient=True, fit="pad")


def mammogram_of(picture: np.ndarray, *, bits: int = 8) -> Mammogram:
    """`picture` in [0, 1] as stored values of `bits` bits."""
    top = 2**bits - 1
    pixels = np.rint(picture * top).astype(np.uint8 if bits == 8 else np.uint16)
    shown = DisplayTransform(Rescale(), Range(0, top), inverted=False)
    return in_memory(pixels, "test", lambda _: shown, {})


def test_a_breast_is_cut_out_at_its_own_aspect() -> None:
    prepared = crop_mammogram(mammogram_of(breast_image(400, 320)), SETTINGS)
    record = prepared.record
    assert record["breast_found"]
    # The ellipse: 160 wide, 320 high; margin .01 of 320 on each side, none beyond the frame.
    assert record["box_left"] == 0
    assert record["box_width"] == pytest.approx(163, abs=4)
    assert record["box_top"] == pytest.approx(37, abs=4)
    assert record["box_height"] == pytest.approx(326, abs=6)
    scale = record["scale"]
    assert isinstance(scale, float)
    assert scale == pytest.approx(min(128 / 326, 64 / 163), rel=0.03)
    # The skin's widest point is where scale and box say it is: both axes have one scale.
    rows, columns = np.nonzero(prepared.pixels > 40)
    assert columns.max() + 1 == pytest.approx(160 * scale, abs=1.5)
    assert np.ptp(rows) + 1 == pytest.approx(320 * scale, abs=2.5)


def test_nothing_of_the_tissue_is_lost() -> None:
    picture = breast_image(400, 320)
    prepared = crop_mammogram(mammogram_of(picture), SETTINGS)
    scale = prepared.record["scale"]
    assert isinstance(scale, float)
    # Areas are averaged, so the sum of grey levels scales with the area of a pixel.
    kept = prepared.pixels.sum(dtype=float) / scale**2
    assert kept == pytest.approx(255 * picture.sum(dtype=float), rel=0.01)


@pytest.mark.parametrize(
    ("shape", "empty"),
    [
        ({"reach": 0.2, "half_height": 0.45}, (slice(None), slice(40, None))),  # right
        ({"reach": 0.9, "half_height": 0.3}, (slice(0, 30), slice(None))),  # above
        ({"reach": 0.9, "half_height": 0.3}, (slice(98, None), slice(None))),  # and below
    ],
)
def test_padding_is_opposite_the_chest_wall_and_in_equal_parts(shape: dict, empty: tuple) -> None:
    pixels = crop_mammogram(mammogram_of(breast_image(**shape)), SETTINGS).pixels
    assert pixels.shape == (128, 64)
    assert not pixels[empty].any()
    assert pixels[60:68, 0].all()


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("box", ["breast", "full"])
@pytest.mark.parametrize(("turns", "rotated"), [(3, 90), (1, 270)])  # chest wall above, below
def test_a_chest_wall_above_or_below_is_rotated_to_the_left(
    turns: int, rotated: int, box: Any, fit: Any
) -> None:
    upright = breast_image(400, 320, half_height=0.45)
    settings = replace(SETTINGS, box=box, fit=fit)
    expected = crop_mammogram(mammogram_of(upright), settings)
    turned = crop_mammogram(mammogram_of(np.rot90(upright, turns).copy()), settings)
    assert (turned.record["rotated"], turned.record["flipped"]) == (rotated, 0)
    np.testing.assert_allclose(turned.pixels.astype(int), expected.pixels, atol=1)
    # The box is that of the source, before it is rotated.
    assert turned.record["box_width"] == expected.record["box_height"]
    assert turned.record["box_height"] == expected.record["box_width"]
    assert turned.record["scale"] == expected.record["scale"]
    as_it_was = crop_mammogram(
        mammogram_of(np.rot90(upright, turns).copy()), replace(settings, orient=False)
    )
    assert as_it_was.record["rotated"] == 0


UNCLEAR = np.maximum(*(breast_image(reach=0.3, half_height=0.35, right=r) for r in (False, True)))


@pytest.mark.parametrize(
    ("picture", "header", "expected"),
    [
        (UNCLEAR, "A\\F", (0, 0, "")),
        (UNCLEAR, "P\\L", (1, 0, "")),
        (UNCLEAR, "L\\A", (0, 90, "")),
        (UNCLEAR, "L\\P", (0, 270, "")),
        (UNCLEAR, "p\\fl", (1, 0, "")),
        (UNCLEAR, "", (0, 0, "")),
        (UNCLEAR, "X", (0, 0, "")),
        (breast_image(), "A\\R", (0, 0, "")),
        (breast_image(), "AR\\FR", (0, 0, "")),
        (breast_image(), "L\\F", (0, 0, "")),
        (breast_image(), "P\\R", (0, 0, QualityFlag.ORIENTATION_CONTRADICTORY)),
        (breast_image(right=True), "A\\R", (1, 0, QualityFlag.ORIENTATION_CONTRADICTORY)),
        (breast_image(right=True), "P\\R", (1, 0, "")),
    ],
)
def test_clear_pixels_decide_about_the_orientation_else_the_header(
    tmp_path: Path, picture: np.ndarray, header: str, expected: tuple[int, int, str]
) -> None:
    values = np.rint(picture * 4000).astype(np.uint16)
    elements: dict[str, Any] = {"WindowCenter": 2000.5, "WindowWidth": 4001}
    if header:
        elements["PatientOrientation"] = header.split("\\")
    path = write_dicom(tmp_path / "a.dcm", values, bits=12, **elements)
    record = prepare_image(path, SETTINGS, "dicom").record
    assert (record["flipped"], record["rotated"], record["quality_flags"]) == expected


@pytest.mark.parametrize("shape", [(63, 400), (400, 63), (20, 20)])
@pytest.mark.parametrize("source", ["dicom", "image"])
def test_images_of_few_pixels_are_refused(tmp_path: Path, shape: tuple, source: Any) -> None:
    values = np.rint(breast_image(*shape) * 200).astype(np.uint16)
    path = tmp_path / ("a.dcm" if source == "dicom" else "a.png")
    if source == "dicom":
        write_dicom(path, values, bits=12)
    else:
        cv2.imwrite(str(path), values.astype(np.uint8))
    with pytest.raises(ImageError, match=f"^{shape[0]} x {shape[1]} pixels: .* fewer than 64"):
        prepare_image(path, SETTINGS, source)


def test_crops_of_another_algorithm_are_not_made() -> None:
    replace(SETTINGS, algorithm=2).check_algorithm()
    with pytest.raises(InputError, match=r"crop.algorithm=1.*install the older version"):
        SETTINGS.check_algorithm()  # what records from before the key existed mean


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_mirror_images_make_the_same_crop(fit: str) -> None:
    settings = replace(SETTINGS, fit=fit)  # type: ignore[arg-type]
    left = crop_mammogram(mammogram_of(breast_image(background=0.05)), settings)
    right = crop_mammogram(mammogram_of(breast_image(background=0.05, right=True)), settings)
    assert (left.record["flipped"], right.record["flipped"]) == (0, 1)
    np.testing.assert_array_equal(left.pixels, right.pixels)


def test_the_plain_baseline_stretches_the_whole_frame() -> None:
    settings = CropSettings("full", 96, 96, box="full", margin=0, orient=False, fit="stretch")
    mammogram = mammogram_of(breast_image(400, 320, right=True))
    prepared = crop_mammogram(mammogram, settings)
    expected = cv2.resize(mammogram.pixels, (96, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(prepared.pixels.astype(int) - expected).max() <= 1  # rounding
    assert prepared.record["scale"] is None
    assert prepared.record["flipped"] == 0
    geometry = [prepared.record[f"box_{side}"] for side in ("left", "top", "width", "height")]
    assert geometry == [0, 0, 320, 400]


def test_a_frame_without_background_is_taken_whole() -> None:
    tissue = np.clip(np.random.default_rng(0).normal(0.5, 0.08, (200, 100)), 0, 1)
    record = crop_mammogram(mammogram_of(tissue), SETTINGS).record
    assert (record["breast_found"], record["box_width"], record["box_height"]) == (0, 100, 200)


def test_16_bits_become_8_without_wrapping() -> None:
    picture = breast_image(reach=0.9, half_height=0.45)
    deep = crop_mammogram(mammogram_of(picture, bits=16), SETTINGS)
    shallow = crop_mammogram(mammogram_of(picture), SETTINGS)
    assert np.abs(deep.pixels.astype(int) - shallow.pixels).max() <= 1


def test_small_pictures_are_enlarged() -> None:
    prepared = crop_mammogram(mammogram_of(breast_image(50, 40)), SETTINGS)
    scale = prepared.record["scale"]
    assert isinstance(scale, float)
    assert scale > 2
    assert prepared.pixels[64, 0] > 150


def test_monochrome1_and_signed_files_make_the_same_crop(tmp_path: Path) -> None:
    values = np.rint(breast_image(300, 200) * 4000).astype(np.uint16)
    window: dict[str, Any] = {"WindowCenter": 2000.5, "WindowWidth": 4001}
    plain = write_dicom(tmp_path / "a.dcm", values, bits=12, **window)
    inverted = write_dicom(
        tmp_path / "b.dcm",
        4000 - values,
        bits=12,
        PhotometricInterpretation="MONOCHROME1",
        **window,
    )
    signed = write_dicom(
        tmp_path / "c.dcm",
        (values.astype(np.int16) - 2000).astype(np.int16),
        bits=12,
        RescaleSlope=1,
        RescaleIntercept=2000,
        **window,
    )
    crops = [prepare_image(path, SETTINGS, "dicom").pixels for path in (plain, inverted, signed)]
    np.testing.assert_allclose(crops[0].astype(int), crops[1], atol=1)
    np.testing.assert_array_equal(crops[0], crops[2])


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 0},
        {"box": "guess"},
        {"margin": -0.1},
        {"fit": "crop"},
        {"reduce": -1},
        {"clahe": -2},
        {"bits": 12},
    ],
)
def test_settings_that_make_no_crop_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        replace(SETTINGS, **wrong)


def textured(height: int, width: int) -> np.ndarray:
    """A breast with structures of many sizes, 12 bits."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (height, width))
    texture = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (1, 3, 9, 27))
    breast = breast_image(height, width, reach=0.7, half_height=0.45)
    return np.rint(np.clip(breast * (2200 + 250 * texture), 0, 4095)).astype(np.uint16)


@pytest.mark.parametrize(("height", "level"), [(900, 0), (400, 1), (250, 2), (120, 3), (60, 4)])
def test_no_more_resolution_is_decoded_than_needed(tmp_path: Path, height: int, level: int) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    pixels = textured(1203, 901)
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=12, syntax="jpeg2000", **window)
    settings = replace(SETTINGS, height=height, width=height)
    full = prepare_image(path, settings, "dicom")
    reduced = prepare_image(path, replace(settings, reduce=5), "dicom")
    assert (full.record["resolution_level"], reduced.record["resolution_level"]) == (0, level)
    same = [k for k in full.record if k not in ("resolution_level", "decoder")]
    assert {k: full.record[k] for k in same} == {k: reduced.record[k] for k in same}
    # The level has at least the crop's resolution, and the next one would not.
    scale, tall = full.record["scale"], full.record["box_height"]
    assert isinstance(scale, float)
    assert isinstance(tall, int)
    assert tall >> level >= round(tall * scale) > tall >> level + 1
    difference = full.pixels.astype(float) - reduced.pixels
    # The rougher the image at the scale of a crop's pixel, the more band and mean differ.
    assert np.abs(difference).mean() <= (0 if level == 0 else 1 if level <= 2 else 3)
    limited = prepare_image(path, replace(settings, reduce=1), "dicom")
    assert limited.record["resolution_level"] == min(level, 1)


@pytest.mark.parametrize("box", ["breast", "full"])
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("size", [(1200, 896), (1203, 901), (1201, 897)])
def test_a_reduced_crop_is_not_displaced(
    tmp_path: Path, size: tuple[int, int], right: bool, box: Any
) -> None:
    pixels = textured(*size)[:, :: -1 if right else 1]
    path = write_dicom(tmp_path / "a.dcm", np.ascontiguousarray(pixels), bits=12, syntax="jpeg2000")
    settings = replace(SETTINGS, height=240, width=240, box=box)
    full = prepare_image(path, settings, "dicom").pixels.astype(np.float32)
    prepared = prepare_image(path, replace(settings, reduce=5), "dicom")
    assert prepared.record["resolution_level"]
    window = cv2.createHanningWindow((80, 80), cv2.CV_32F)
    # At the wall and away from it, above and below: a crop may also shrink or grow.
    for rows, columns in itertools.product(
        (slice(20, 100), slice(140, 220)), (slice(2, 82), slice(60, 140))
    ):
        reduced = prepared.pixels[rows, columns].astype(np.float32)
        (across, down), _ = cv2.phaseCorrelate(
            np.ascontiguousarray(full[rows, columns]), np.ascontiguousarray(reduced), window
        )
        # Of a pixel: 0.4 if sampling at even pixels were not made up for, 0.9 if what is beyond an
        # odd edge were squeezed in.
        assert abs(across) < 0.2
        assert abs(down) < 0.2


def test_without_a_window_the_tissue_is_shown_whatever_is_beside_it(tmp_path: Path) -> None:
    values = np.rint(breast_image(300, 200) * 3000 + 500).astype(np.uint16)
    marked = values.copy()
    marked[10:20, 150:190] = 4095  # a marker beside the breast
    for syntax in ("raw", "jpeg2000"):
        plain, other = (
            prepare_image(
                write_dicom(tmp_path / "a.dcm", v, bits=12, syntax=syntax), SETTINGS, "dicom"
            )
            for v in (values, marked)
        )
        assert str(plain.record["window"]).startswith("fitted ")
        assert plain.record["quality_flags"] == "no window"
        np.testing.assert_allclose(plain.pixels, other.pixels.astype(int), atol=4)
        assert 220 < plain.pixels.max() <= 255


def test_16_bits_are_8_bits_with_more_steps() -> None:
    mammogram = mammogram_of(breast_image(400, 320), bits=16)
    deep = crop_mammogram(mammogram, replace(SETTINGS, bits=16)).pixels
    assert deep.dtype == np.uint16
    shallow = crop_mammogram(mammogram, SETTINGS).pixels
    np.testing.assert_array_equal(shallow, np.rint(deep / np.float32(257)).astype(np.uint8))
    assert len(np.unique(deep)) > 2 * len(np.unique(shallow))


def test_means_of_few_stored_values_keep_their_steps_in_16_bits(tmp_path: Path) -> None:
    values = np.rint(breast_image(400, 320) * 100).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", values, bits=12, WindowCenter=50, WindowWidth=101)
    deep = prepare_image(path, replace(SETTINGS, bits=16), "dicom").pixels
    assert len(np.unique(deep)) > 200


@pytest.mark.parametrize("bits", [8, 16])
def test_contrast_enhancement_spreads_the_greys_of_the_breast(bits: Any) -> None:
    dull = mammogram_of(breast_image(400, 320, reach=0.25, noise=0.02) * 0.3 + 0.1)
    plain = crop_mammogram(dull, replace(SETTINGS, bits=bits)).pixels
    enhanced = crop_mammogram(dull, replace(SETTINGS, bits=bits, clahe=3.0)).pixels
    assert enhanced.shape == plain.shape
    assert enhanced.dtype == plain.dtype
    inside = (slice(40, 88), slice(0, 20))
    assert enhanced[inside].std() > 1.5 * plain[inside].std()
    np.testing.assert_array_equal(enhanced[:, -10:], 0)  # padding stays background


@pytest.mark.parametrize("box", ["breast", "full"])
@pytest.mark.parametrize("aspect", [2.0, 0.5])
@pytest.mark.parametrize("size", [(128, 64), (640, 480)])
def test_pixels_that_are_not_square_are_resampled(
    size: tuple[int, int], aspect: float, box: Any
) -> None:
    settings = replace(SETTINGS, height=size[0], width=size[1], box=box, margin=0)
    picture = breast_image(400, 320)
    half = (200, 320) if aspect == 2 else (400, 160)  # averaged in one direction
    flat = cv2.resize(picture, half[::-1], interpolation=cv2.INTER_AREA)
    square = crop_mammogram(mammogram_of(picture), settings)
    prepared = crop_mammogram(replace(mammogram_of(flat), pixel_aspect=aspect), settings)
    assert prepared.pixels.shape == square.pixels.shape
    difference = np.abs(prepared.pixels.astype(int) - square.pixels)
    assert difference.mean() < (6 if box == "breast" else 2.5)
    height, scales = prepared.record["box_height"], [p.record["scale"] for p in (prepared, square)]
    assert isinstance(height, int)
    assert height <= half[0]  # in source pixels
    if box == "full":
        across = 1 if aspect == 2 else 2  # source columns are twice as wide as pixels
        assert float(str(scales[0])) == pytest.approx(float(str(scales[1])) * across)
