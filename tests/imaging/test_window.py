"""Windows against pydicom's, which follow the text of the standard."""

from pathlib import Path

import numpy as np
import pytest
from breast_shapes import breast_picture
from dicom_files import dataset_of, write_dicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing
from pydicom.sequence import Sequence

from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.display import display_transform
from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.imaging.quality import QualityFlag

PIXELS = np.arange(0, 4096, 3, dtype=np.uint16).reshape(1, -1)


def shown(dataset: Dataset, pixels: NDArray = PIXELS) -> NDArray:
    return display_transform(dataset, pixels).apply(pixels)


def unit_range(values: NDArray, bits: int = 12) -> NDArray:
    """Windows of pydicom fill the range of the bits stored."""
    return values / (2**bits - 1)


def assert_ramp(shown: NDArray, values: NDArray) -> None:
    """Assert that values are shown by a rising line, cut off at 0 and 1, with hardly any white."""
    inside = (shown > 0.01) & (shown < 0.99)
    assert inside.mean() > 0.9
    slope, offset = np.polyfit(values[inside], shown[inside], 1)
    assert slope > 0
    np.testing.assert_allclose(shown[inside], slope * values[inside] + offset, atol=1e-3)
    assert (shown > 0.998).mean() <= 0.02


def table(first: int, entries: list[int], bits: int, *, packed: bool = False) -> Dataset:
    """An item of a LUT sequence; `packed` stores the entries as bytes."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    content = np.array(entries, "<u2").tobytes() if packed else entries
    item.add_new("LUTData", "OW" if packed else "US", content)
    return item


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(
    ("center", "width"), [(2047, 4096), (2668, 900), (1802.31, 1091.97), (300, 17), (5, 2)]
)
def test_windows_agree_with_pydicom(function: str, center: float, width: float) -> None:
    dataset = dataset_of(PIXELS, 12, WindowCenter=center, WindowWidth=width)
    dataset.VOILUTFunction = function
    expected = unit_range(apply_windowing(PIXELS, dataset))
    np.testing.assert_allclose(shown(dataset), expected, atol=2e-4)  # float32 of ours


def test_linear_of_width_1_is_a_step() -> None:
    dataset = dataset_of(PIXELS, 12, WindowCenter=1000, WindowWidth=1)
    np.testing.assert_array_equal(shown(dataset), PIXELS > 999.5)
    np.testing.assert_array_equal(shown(dataset), unit_range(apply_windowing(PIXELS, dataset)))


def test_the_first_of_several_windows_is_taken() -> None:
    several = dataset_of(PIXELS, 12, WindowCenter=[1500, 90], WindowWidth=[900, 50])
    one = dataset_of(PIXELS, 12, WindowCenter=1500, WindowWidth=900)
    np.testing.assert_array_equal(shown(several), shown(one))
    assert str(display_transform(several, PIXELS)) == "LINEAR 1500 900 (1 of 2)"
    assert str(display_transform(one, PIXELS)) == "LINEAR 1500 900"


def test_rescale_comes_before_the_window() -> None:
    signed = (np.arange(-500, 500, dtype=np.int16)).reshape(10, 100)
    dataset = dataset_of(signed, 12, RescaleSlope=2, RescaleIntercept=-100)
    dataset.WindowCenter, dataset.WindowWidth = 0, 600
    rescaled = apply_modality_lut(signed, dataset)
    expected = np.clip((rescaled - (0 - 0.5)) / (600 - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(shown(dataset, signed), expected, atol=1e-5)


def test_modality_table_agrees_with_pydicom() -> None:
    dataset = dataset_of(PIXELS, 12, WindowCenter=20000, WindowWidth=30000)
    dataset.ModalityLUTSequence = Sequence([table(100, list(range(0, 60000, 20)), 16)])
    modality = display_transform(dataset, PIXELS).modality
    expected = apply_modality_lut(PIXELS, dataset)
    np.testing.assert_array_equal(modality(PIXELS.astype(np.float32)), expected)


@pytest.mark.parametrize("packed", [False, True])
def test_voi_table_agrees_with_pydicom_and_beats_the_window(packed: bool) -> None:
    entries = np.round(4095 * np.sqrt(np.arange(3000) / 2999)).astype(int).tolist()
    dataset = dataset_of(PIXELS, 12, WindowCenter=10, WindowWidth=10)
    dataset.VOILUTSequence = Sequence([table(500, entries, 12, packed=packed)])
    expected = unit_range(apply_voi(PIXELS, dataset))
    np.testing.assert_allclose(shown(dataset), expected, atol=1e-6)


def test_inversion_comes_after_the_window() -> None:
    window = {"WindowCenter": 3000, "WindowWidth": 500, "VOILUTFunction": "SIGMOID"}
    upright = dataset_of(PIXELS, 12, **window)
    inverted = dataset_of(PIXELS, 12, PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_allclose(shown(inverted), 1 - shown(upright))


@pytest.mark.parametrize(
    ("elements", "discarded"),
    [
        ({"VOILUTFunction": "CUBIC"}, "CUBIC 100 100"),
        ({"WindowWidth": 0}, "LINEAR 100 0"),
        ({"WindowWidth": -5, "VOILUTFunction": "SIGMOID"}, "SIGMOID 100 -5"),
        ({"WindowCenter": "nan"}, "LINEAR nan 100"),
        ({"WindowCenter": "1e39", "WindowWidth": "1e39"}, "LINEAR 1e+39 1e+39"),
        ({"WindowCenter": 90000}, "LINEAR 90000 100"),  # shows nothing
    ],
)
def test_an_unusable_window_is_recorded_and_gives_way_to_a_ramp(
    elements: dict, discarded: str
) -> None:
    dataset = dataset_of(PIXELS, 12, **{"WindowCenter": 100, "WindowWidth": 100} | elements)
    presentation = display_transform(dataset, PIXELS)
    assert str(presentation).startswith(f"fitted (discarded: {discarded}) ")
    assert presentation.flags == (QualityFlag.WINDOW_DISCARDED,)
    assert_ramp(presentation.apply(PIXELS), PIXELS)


def test_the_second_window_is_taken_where_the_first_is_unusable() -> None:
    dataset = dataset_of(PIXELS, 12, WindowCenter=[100, 2000], WindowWidth=[0, 4000])
    presentation = display_transform(dataset, PIXELS)
    assert str(presentation) == "LINEAR 2000 4000 (2 of 2)"
    assert presentation.flags == (QualityFlag.WINDOW_DISCARDED,)


@pytest.mark.parametrize("scale", [1 / 16, 16])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_window_made_for_another_depth_is_not_used(scale: float, inverted: bool) -> None:
    picture = breast_picture(300, 240)
    stored = np.rint((1 - picture if inverted else picture) * 4095 * scale).astype(np.uint16)
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    window = {"WindowCenter": 2047, "WindowWidth": 4096, "PhotometricInterpretation": photometric}
    presentation = display_transform(dataset_of(stored, 16, **window), stored)
    if inverted and scale > 1:  # bright background beyond the window, tissue partly within it
        assert np.ptp(presentation.apply(stored)[picture > 0]) > 0.3
        return
    assert str(presentation).startswith("fitted (discarded: LINEAR 2047 4096) ")
    shown = presentation.apply(stored)
    assert shown[picture == 0].max() < 0.02
    assert 0.6 < np.median(shown[picture > 0]) < 1


def test_a_modality_transform_that_makes_no_image_is_refused() -> None:
    dataset = dataset_of(PIXELS, 12, RescaleSlope=0)
    with pytest.raises(ImageError, match="rescale slope 0.0 and intercept None make no image"):
        display_transform(dataset, PIXELS)
    dataset.RescaleSlope = 1e39  # beyond float32
    with pytest.raises(ImageError, match=r"slope 1e\+39 and intercept None make no image"):
        display_transform(dataset, PIXELS)


@pytest.mark.parametrize("text", [b"2047,5", b"2047mm"])
def test_a_window_that_is_no_number_is_not_used(tmp_path: Path, text: bytes) -> None:
    pixels = PIXELS.reshape(2, -1)
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=12, WindowCenter="123456", WindowWidth=9)
    path.write_bytes(path.read_bytes().replace(b"123456", text))
    mammogram = read_dicom(path)
    assert str(mammogram.display).startswith("fitted (discarded: window: ")
    assert mammogram.flags == (QualityFlag.WINDOW_DISCARDED,)


def test_windows_of_which_a_part_is_blank_are_none() -> None:
    dataset = dataset_of(PIXELS, 12, WindowCenter=["", "2000"], WindowWidth=["100", "4000"])
    assert str(display_transform(dataset, PIXELS)) == "LINEAR 2000 4000"


def test_the_first_value_of_a_table_is_signed_like_what_goes_in() -> None:
    entries = np.round(4095 * np.sqrt(np.arange(4096) / 4095)).astype(int).tolist()
    dataset = dataset_of(PIXELS, 12, RescaleSlope=1, RescaleIntercept=-1024)
    item = table(0, entries, 12)
    item.LUTDescriptor = [4096, 2**16 - 1024, 12]  # what implicit VR makes of -1024
    dataset.VOILUTSequence = Sequence([item])
    np.testing.assert_allclose(shown(dataset), np.array(entries)[PIXELS] / 4095, atol=1e-6)


def grouped(dataset: Dataset, keyword: str, frame: str, content: Dataset) -> Dataset:
    """Put `content` into a functional group of `dataset`."""
    group = Dataset()
    setattr(group, frame, Sequence([content]))
    setattr(dataset, keyword, Sequence([group]))
    return dataset


@pytest.mark.parametrize(
    "keyword", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
)
def test_transforms_in_functional_groups_are_found(keyword: str) -> None:
    window = Dataset()
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = 1500, 900, " sigmoid "
    dataset = grouped(dataset_of(PIXELS, 12), keyword, "FrameVOILUTSequence", window)
    plain = dataset_of(PIXELS, 12, WindowCenter=1500, WindowWidth=900, VOILUTFunction="SIGMOID")
    np.testing.assert_array_equal(shown(dataset), shown(plain))
    rescale = Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, -100
    dataset = dataset_of(PIXELS, 12, WindowCenter=1500, WindowWidth=900)
    dataset = grouped(dataset, keyword, "PixelValueTransformationSequence", rescale)
    plain = dataset_of(
        PIXELS, 12, WindowCenter=1500, WindowWidth=900, RescaleSlope=2, RescaleIntercept=-100
    )
    np.testing.assert_array_equal(shown(dataset), shown(plain))


def test_an_unusable_window_gives_way_to_one_in_a_functional_group() -> None:
    window = Dataset()
    window.WindowCenter, window.WindowWidth = 1500, 900
    dataset = dataset_of(PIXELS, 12, WindowCenter=0, WindowWidth=0)
    dataset = grouped(dataset, "SharedFunctionalGroupsSequence", "FrameVOILUTSequence", window)
    plain = dataset_of(PIXELS, 12, WindowCenter=1500, WindowWidth=900)
    np.testing.assert_array_equal(shown(dataset), shown(plain))
    flags = display_transform(dataset, PIXELS).flags
    assert flags == (QualityFlag.WINDOW_DISCARDED,)


def test_the_first_of_two_rescale_values_is_taken() -> None:
    window = {"WindowCenter": 1500, "WindowWidth": 900}
    two = dataset_of(PIXELS, 12, RescaleSlope=[2, 1], RescaleIntercept=[-100, 0], **window)
    one = dataset_of(PIXELS, 12, RescaleSlope=2, RescaleIntercept=-100, **window)
    np.testing.assert_array_equal(shown(two), shown(one))


@pytest.mark.parametrize(
    ("photometric", "shape", "bright_background", "inverted", "contradictory"),
    [
        ("MONOCHROME1", "INVERSE", True, True, False),
        ("MONOCHROME1", "IDENTITY", True, True, True),
        ("MONOCHROME1", None, True, True, False),
        ("MONOCHROME2", "IDENTITY", False, False, False),
        ("MONOCHROME2", "INVERSE", True, True, True),
        ("MONOCHROME2", "inverse ", True, True, True),
        ("MONOCHROME2", "INVERSE", False, False, True),
    ],
)
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 128, "WindowWidth": 256}])
def test_inversion_is_by_the_photometric_interpretation_unless_the_pixels_deny_it(
    photometric: str,
    shape: str | None,
    bright_background: bool,
    inverted: bool,
    contradictory: bool,
    window: dict,
) -> None:
    picture = breast_picture(120, 100)
    stored = np.rint((1 - picture if bright_background else picture) * 255).astype(np.uint8)
    dataset = dataset_of(stored, 8, PhotometricInterpretation=photometric, **window)
    if shape is not None:
        dataset.PresentationLUTShape = shape
    presentation = display_transform(dataset, stored)
    assert presentation.inverted == inverted
    assert (QualityFlag.INVERSION_CONTRADICTORY in presentation.flags) == contradictory
    shown = presentation.apply(stored)
    assert shown[picture == 0].max() < 0.02
