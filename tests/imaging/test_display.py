"""Display transforms: windows and tables against pydicom's, unusable ones, ramps, padding."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from breast_shapes import breast_image
from dicom_files import make_dataset, write_dicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian

from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.display import display_transform
from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.imaging.quality import QualityFlag
from rsna_bcd.imaging.voi import FittedRamp

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")

PIXELS = np.random.default_rng(0).permutation(4096).astype(np.uint16).reshape(64, 64)
WINDOW: dict[str, Any] = {"WindowCenter": 2607, "WindowWidth": 2785}
CURVE = np.sqrt(np.arange(4096) / 4095)
ENTRIES = np.rint(CURVE * 4095).astype(int)
DEPTHS = (8, 11, 12, 16)
FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def displayed(dataset: Dataset, pixels: NDArray = PIXELS) -> NDArray:
    return display_transform(dataset, pixels).apply(pixels)


def with_window(pixels: NDArray = PIXELS, **elements: Any) -> Dataset:
    return make_dataset(pixels, 12, **{**WINDOW, **elements})


def with_tables(*items: Dataset, pixels: NDArray = PIXELS, **elements: Any) -> Dataset:
    return make_dataset(pixels, 12, VOILUTSequence=Sequence(items), **elements)


def table(
    entries: NDArray, first: int = 0, bits: int = 12, *, vr: str = "OW", count: int = -1
) -> Dataset:
    """An item of a LUT sequence.

    Args:
        entries: unsigned integers.
        first: the first input.
        bits: that the descriptor announces.
        vr: of the data; `OB` stores bytes, `packed` two bytes in each US, the first one below.
        count: that the descriptor announces; that of the entries by default.
    """
    item = Dataset()
    count = (len(entries) if count < 0 else count) % 2**16
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [count, first, bits])
    content: Any = entries.astype(np.uint8).tobytes()
    if vr == "OW":
        content = entries.astype("<u2").tobytes()
    elif vr == "packed":
        vr, content = "US", np.frombuffer(content, "<u2").tolist()
    elif vr in ("US", "SS"):
        words = entries.astype(np.uint16)
        content = (words.view(np.int16) if vr == "SS" else words).tolist()
    item.add_new("LUTData", vr, content)
    return item


def group(keyword: str, frame: str, **elements: Any) -> dict[str, Any]:
    """A functional group with an item of elements."""
    item, outer = Dataset(), Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    setattr(outer, frame, Sequence([item]))
    return {keyword: Sequence([outer])}


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(
    ("center", "width"), [(2047, 4096), (2668, 900), (1802.31, 1091.97), (300, 17), (5, 2)]
)
def test_window_agrees_with_pydicom(function: str, center: float, width: float) -> None:
    dataset = with_window(WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    expected = apply_windowing(PIXELS, dataset) / 4095
    np.testing.assert_allclose(displayed(dataset), expected, atol=2e-4)  # float32 of ours


def test_window_linear_of_width_1_is_a_step() -> None:
    dataset = with_window(WindowCenter=1000, WindowWidth=1)
    np.testing.assert_array_equal(displayed(dataset), PIXELS > 999.5)
    np.testing.assert_array_equal(displayed(dataset), apply_windowing(PIXELS, dataset) / 4095)


def test_display_transform_rescales_before_the_window() -> None:
    signed = np.arange(-500, 500, dtype=np.int16).reshape(10, 100)
    elements: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": -100}
    dataset = with_window(signed, WindowCenter=0, WindowWidth=600, **elements)
    rescaled = apply_modality_lut(signed, dataset)
    expected = np.clip((rescaled - (0 - 0.5)) / (600 - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(displayed(dataset, signed), expected, atol=1e-5)
    two: dict[str, Any] = {"RescaleSlope": [2, 1], "RescaleIntercept": [-100, 0]}
    one = displayed(with_window(**elements))
    np.testing.assert_array_equal(displayed(with_window(**two)), one)


def test_display_transform_tables_agree_with_pydicom() -> None:
    modality = table(np.arange(0, 60000, 20), 100, 16, vr="US")
    dataset = with_window(WindowCenter=20000, WindowWidth=30000)
    dataset.ModalityLUTSequence = Sequence([modality])
    ours = display_transform(dataset, PIXELS).modality(PIXELS.astype(np.float32))
    np.testing.assert_array_equal(ours, apply_modality_lut(PIXELS, dataset))
    for vr in ("US", "OW"):  # a VOI table has precedence over the window
        entries = np.round(4095 * np.sqrt(np.arange(3000) / 2999)).astype(int)
        dataset = with_tables(table(entries, 500, vr=vr), WindowCenter=10, WindowWidth=10)
        expected = apply_voi(PIXELS, dataset) / 4095
        np.testing.assert_allclose(displayed(dataset), expected, atol=1e-6)


def test_display_transform_inverts_after_the_window() -> None:
    window: dict[str, Any] = {"WindowCenter": 3000, "WindowWidth": 500, "VOILUTFunction": "SIGMOID"}
    inverted = with_window(PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_allclose(displayed(inverted), 1 - displayed(with_window(**window)))


def test_display_transform_takes_the_first_usable_window() -> None:
    several = with_window(WindowCenter=[1500, 90], WindowWidth=[900, 50])
    one = with_window(WindowCenter=1500, WindowWidth=900)
    np.testing.assert_array_equal(displayed(several), displayed(one))
    assert str(display_transform(several, PIXELS)) == "LINEAR 1500 900 (1 of 2)"
    assert str(display_transform(one, PIXELS)) == "LINEAR 1500 900"
    blank = with_window(WindowCenter=["", "2000"], WindowWidth=["100", "4000"])
    assert str(display_transform(blank, PIXELS)) == "LINEAR 2000 4000"
    second = display_transform(with_window(WindowCenter=[100, 2000], WindowWidth=[0, 4000]), PIXELS)
    assert str(second) == "LINEAR 2000 4000 (2 of 2)"
    assert second.flags == (QualityFlag.WINDOW_DISCARDED,)


@pytest.mark.parametrize("keyword", FRAME_GROUPS)
def test_display_transform_reads_functional_groups(keyword: str) -> None:
    window: dict[str, Any] = {"WindowCenter": 1500, "WindowWidth": 900}
    expected = displayed(with_window(**window, VOILUTFunction="SIGMOID"))
    grouped = group(keyword, "FrameVOILUTSequence", **window, VOILUTFunction=" sigmoid ")
    np.testing.assert_array_equal(displayed(make_dataset(PIXELS, 12, **grouped)), expected)
    unusable = with_window(WindowCenter=0, WindowWidth=0, **grouped)
    np.testing.assert_array_equal(displayed(unusable), expected)
    assert display_transform(unusable, PIXELS).flags == (QualityFlag.WINDOW_DISCARDED,)
    rescale: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": -100}
    grouped = group(keyword, "PixelValueTransformationSequence", **rescale)
    expected = displayed(with_window(**rescale))
    np.testing.assert_array_equal(displayed(with_window(**grouped)), expected)


def assert_ramp(shown: NDArray, values: NDArray) -> None:
    """Assert that values are displayed by a rising line, with hardly any white."""
    inside = (shown > 0.01) & (shown < 0.99)
    assert inside.mean() > 0.9
    slope, offset = np.polyfit(values[inside], shown[inside], 1)
    assert slope > 0
    np.testing.assert_allclose(shown[inside], slope * values[inside] + offset, atol=1e-3)
    assert (shown > 0.998).mean() <= 0.02


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
def test_display_transform_fits_a_ramp_for_an_unusable_window(
    elements: dict, discarded: str
) -> None:
    ramp = np.arange(0, 4096, 3, dtype=np.uint16).reshape(1, -1)
    dataset = with_window(ramp, **{"WindowCenter": 100, "WindowWidth": 100, **elements})
    display = display_transform(dataset, ramp)
    assert str(display).startswith(f"fitted (discarded: {discarded}) ")
    assert display.flags == (QualityFlag.WINDOW_DISCARDED,)
    assert_ramp(display.apply(ramp), ramp)


@pytest.mark.parametrize("text", [b"2047,5", b"2047mm"])
def test_display_transform_discards_a_window_that_is_no_number(tmp_path: Path, text: bytes) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS, bits=12, WindowCenter="123456", WindowWidth=9)
    path.write_bytes(path.read_bytes().replace(b"123456", text))
    mammogram = read_dicom(path)
    assert str(mammogram.display).startswith("fitted (discarded: window: ")
    assert mammogram.flags == (QualityFlag.WINDOW_DISCARDED,)


@pytest.mark.parametrize("scale", [1 / 16, 16])
@pytest.mark.parametrize("inverted", [False, True])
def test_display_transform_discards_a_window_for_another_depth(
    scale: float, inverted: bool
) -> None:
    image = breast_image(300, 240)
    stored = np.rint((1 - image if inverted else image) * 4095 * scale).astype(np.uint16)
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset = make_dataset(
        stored, 16, WindowCenter=2047, WindowWidth=4096, PhotometricInterpretation=photometric
    )
    display = display_transform(dataset, stored)
    if inverted and scale > 1:  # bright background beyond the window, tissue partly within it
        assert np.ptp(display.apply(stored)[image > 0]) > 0.3
        return
    assert str(display).startswith("fitted (discarded: LINEAR 2047 4096) ")
    shown = display.apply(stored)
    assert shown[image == 0].max() < 0.02
    assert 0.6 < np.median(shown[image > 0]) < 1


@pytest.mark.parametrize("slope", [0, 1e39])
def test_display_transform_refuses_a_rescale_without_an_image(slope: float) -> None:
    with pytest.raises(ImageError, match=r"rescale slope .* make no image"):
        display_transform(make_dataset(PIXELS, 12, RescaleSlope=slope), PIXELS)


@pytest.mark.parametrize(
    ("photometric", "shape", "bright_background", "inverted", "contradictory"),
    [
        ("MONOCHROME1", "INVERSE", True, True, False),
        ("MONOCHROME1", "IDENTITY", True, True, True),
        ("MONOCHROME1", "", True, True, False),
        ("MONOCHROME2", "IDENTITY", False, False, False),
        ("MONOCHROME2", "INVERSE", True, True, True),
        ("MONOCHROME2", "INVERSE", False, False, True),
    ],
)
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 128, "WindowWidth": 256}])
def test_display_transform_inversion_by_photometric_interpretation_or_pixels(
    photometric: str, shape: str, bright_background: bool, inverted: bool, contradictory: bool,
    window: dict,
) -> None:  # fmt: skip
    image = breast_image(120, 100)
    stored = np.rint((1 - image if bright_background else image) * 255).astype(np.uint8)
    dataset = make_dataset(
        stored, 8, PhotometricInterpretation=photometric, PresentationLUTShape=shape, **window
    )
    display = display_transform(dataset, stored)
    assert display.inverted == inverted
    assert (QualityFlag.INVERSION_CONTRADICTORY in display.flags) == contradictory
    assert display.apply(stored)[image == 0].max() < 0.02


@pytest.mark.parametrize(
    ("largest", "full", "bits"),
    [(3905, 4095, 12), (2048, 4095, 12), (2047, 2047, 12), (4100, 4100, 12), (999, 999, 0),
     (999, 999, 300), *((2**used - 1, 2**used - 1, bits) for used in DEPTHS for bits in DEPTHS)],
)  # fmt: skip
def test_voi_table_full_scale_is_as_announced_unless_entries_contradict(
    largest: int, full: int, bits: int
) -> None:
    entries = np.rint(CURVE * largest).astype(int)
    shown = displayed(with_tables(table(entries, bits=bits)))
    np.testing.assert_allclose(shown, entries[PIXELS] / full, atol=1e-6)


@pytest.mark.parametrize(
    ("vr", "bits"), [("OB", 8), ("packed", 8), ("US", 8), ("SS", 16), ("US", 16)]
)
def test_voi_table_entries_are_unsigned_words_or_bytes(vr: str, bits: int) -> None:
    entries = np.rint(CURVE * (2**bits - 1)).astype(int)
    expected = entries[PIXELS] / (2**bits - 1)
    shown = displayed(with_tables(table(entries, bits=bits, vr=vr)))
    np.testing.assert_allclose(shown, expected, atol=1e-6)


def test_voi_table_counts() -> None:
    many = np.rint(np.sqrt(np.arange(2**16) / (2**16 - 1)) * 65535).astype(int)
    shown = displayed(with_tables(table(many, bits=16, count=2**16)))  # announced as 0
    np.testing.assert_allclose(shown, many[PIXELS] / 65535, atol=1e-6)
    surplus = np.concatenate([ENTRIES, [0, 65535]])
    shown = displayed(with_tables(table(surplus, count=4096)))
    np.testing.assert_allclose(shown, ENTRIES[PIXELS] / 4095, atol=1e-6)
    odd = table(np.rint(CURVE[:4095] * 255).astype(int), bits=8, vr="OB")
    odd.LUTData += b"\0"  # padding
    np.testing.assert_allclose(displayed(with_tables(odd)), CURVE[PIXELS], atol=2 / 255)
    pixels = np.minimum(PIXELS, 3000)  # no pixel needs the absent entries
    shown = displayed(with_tables(table(ENTRIES[:3500], count=4096), pixels=pixels), pixels)
    np.testing.assert_allclose(shown, ENTRIES[pixels] / 4095, atol=1e-6)
    alike = np.append(ENTRIES[:-1], 0)  # first and last entry
    shown = displayed(with_tables(table(alike)))
    np.testing.assert_allclose(shown, alike[PIXELS] / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("first", "dtype", "shift", "rescale"),
    [
        (-2048, np.int16, -2048, {}),
        (2**16 - 2048, np.int16, -2048, {}),
        (33_000 - 2**16, np.uint16, 33_000, {}),  # unsigned like the pixels, whatever its VR
        (2**16 - 1024, np.uint16, 0, {"RescaleSlope": 1, "RescaleIntercept": -1024}),
    ],
)
def test_voi_table_first_input_has_the_sign_of_the_inputs(
    first: int, dtype: type, shift: int, rescale: dict[str, Any]
) -> None:
    pixels: NDArray = (PIXELS.astype(np.int32) + shift).astype(dtype)
    shown = displayed(with_tables(table(ENTRIES, first), pixels=pixels, **rescale), pixels)
    np.testing.assert_allclose(shown, ENTRIES[PIXELS] / 4095, atol=1e-6)


def test_voi_table_after_a_modality_transform() -> None:
    dataset = with_tables(table(ENTRIES, -4095), RescaleSlope=-1, RescaleIntercept=0)
    np.testing.assert_allclose(displayed(dataset), ENTRIES[4095 - PIXELS] / 4095, atol=1e-6)
    entries = np.rint(CURVE**2 * 4095).astype(int)
    dataset = with_tables(table(entries, bits=8))
    dataset.ModalityLUTSequence = Sequence([table(ENTRIES, bits=8)])  # exceeds its bits
    np.testing.assert_allclose(displayed(dataset), entries[ENTRIES[PIXELS]] / 4095, atol=1e-6)


DATA = ENTRIES.astype("<u2").tobytes()
ABSENT = object()
UNUSABLE: dict[str, dict[str, Any]] = {
    "empty item": {"LUTDescriptor": ABSENT, "LUTData": ABSENT},
    "no data": {"LUTData": ABSENT},
    "data without a value": {"LUTData": None},
    "no descriptor": {"LUTDescriptor": ABSENT},
    "descriptor of two": {"LUTDescriptor": [4096, 0]},
    "half of the entries": {"LUTData": DATA[: len(DATA) // 2]},
    "all 0": {"LUTData": bytes(len(DATA))},
    "all alike": {"LUTData": b"\xff\x0f" * 4096},
    "beyond the pixels": {"LUTDescriptor": [4096, 30000, 12]},
}


def unusable_table(name: str) -> Dataset:
    item = table(ENTRIES)
    for keyword, value in UNUSABLE[name].items():
        if value is ABSENT:
            delattr(item, keyword)
        else:
            setattr(item, keyword, value)
    return item


@pytest.mark.parametrize("name", UNUSABLE)
def test_display_transform_skips_an_unusable_table(name: str) -> None:
    plain = displayed(with_window())
    display = display_transform(with_tables(unusable_table(name), **WINDOW), PIXELS)
    np.testing.assert_array_equal(display.apply(PIXELS), plain)
    assert display.flags == (QualityFlag.LUT_DISCARDED,)
    # A second table comes before the window.
    items = unusable_table(name), table(ENTRIES)
    display = display_transform(with_tables(*items, **WINDOW), PIXELS)
    np.testing.assert_allclose(display.apply(PIXELS), ENTRIES[PIXELS] / 4095, atol=1e-6)
    assert str(display) == "LUT 0 4096 (2 of 2)"
    # Without either, a ramp is fitted.
    display = display_transform(with_tables(unusable_table(name)), PIXELS)
    assert str(display).startswith("fitted (discarded: ")
    assert display.flags == (QualityFlag.LUT_DISCARDED, QualityFlag.NO_WINDOW)
    if name not in ("all 0", "all alike", "beyond the pixels"):
        rescale: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": -100}
        dataset = with_window(**rescale, ModalityLUTSequence=Sequence([unusable_table(name)]))
        np.testing.assert_array_equal(displayed(dataset), displayed(with_window(**rescale)))
        assert display_transform(dataset, PIXELS).flags == (QualityFlag.LUT_DISCARDED,)


def test_display_transform_without_items_of_a_sequence() -> None:
    assert display_transform(with_tables(**WINDOW), PIXELS).flags == ()


@pytest.mark.parametrize("vr", ["OW", "US"])
def test_voi_table_of_big_endian_files(tmp_path: Path, vr: str) -> None:
    dataset = with_tables(table(ENTRIES, vr=vr))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    words = [dataset["PixelData"], dataset.VOILUTSequence[0]["LUTData"]]
    for element in words if vr == "OW" else words[:1]:  # pydicom writes OW as it is
        element.value = np.frombuffer(element.value, np.uint16).byteswap().tobytes()
    path = tmp_path / "a.dcm"
    dataset.save_as(path, implicit_vr=False, little_endian=False, enforce_file_format=True)
    np.testing.assert_allclose(read_and_show(path), ENTRIES[PIXELS] / 4095, atol=1e-6)


def read_and_show(path: Path) -> NDArray:
    mammogram = read_dicom(path)
    return mammogram.display.apply(mammogram.pixels)


HEIGHT, WIDTH = 601, 477  # sizes that codecs round up
BREAST = breast_image(HEIGHT, WIDTH, reach=0.6, half_height=0.42) > 0
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
DISC = BREAST & ((ROWS - 300) ** 2 + (COLUMNS - 90) ** 2 < 100**2)
EDGE = (ROWS < 40) | (COLUMNS > 430)
NOTHING = np.zeros_like(BREAST)
MARKER = (ROWS > 20) & (ROWS < 60) & (COLUMNS > 380) & (COLUMNS < 420)
BORDER = (ROWS < 12) | (ROWS >= HEIGHT - 12) | (COLUMNS >= WIDTH - 12)
DEVICE = (abs(ROWS - 150) < 25) & (abs(COLUMNS - 40) < 25)
MONOCHROME1 = {"PhotometricInterpretation": "MONOCHROME1"}


@cache
def plateau(background: float = 300, low: float = 1500, high: float = 2500) -> NDArray[np.float32]:
    """A compressed breast: a plateau of structures of two sizes, far above the background."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (HEIGHT, WIDTH)).astype(np.float32)
    texture = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (2, 8))
    tissue = (low + high) / 2 + (high - low) / 8 * texture
    values = np.where(BREAST, np.clip(tissue, low, high), background)
    return (values + rng.normal(0, (high - low) / 400, values.shape)).astype(np.float32)


def stored(values: NDArray, dtype: Any = np.uint16, most: int = 4095) -> NDArray:
    low = 0 if np.dtype(dtype).kind == "u" else -most - 1
    return np.clip(np.rint(values), low, most).astype(dtype)


Kind = tuple[NDArray, int, dict[str, Any], NDArray]


def on_plateau(
    where: NDArray = NOTHING,
    value: Any = 0,
    *,
    high: float = 2500,
    most: int = 4095,
    **elements: Any,
) -> Callable[[], Kind]:
    """Stored values, bits, elements, and pixels that are neither breast nor background."""
    return lambda: (
        stored(np.where(where, value, plateau(high=high)), most=most),
        most.bit_length(),
        elements,
        where,
    )


KINDS: dict[str, Callable[[], Kind]] = {
    "plain": on_plateau(),
    "marker": on_plateau(MARKER, 4095),
    "8 bits": lambda: (stored(plateau(0, 90, 150), np.uint8, 255), 8, {}, NOTHING),
    "few levels": lambda: (stored(plateau(0, 60, 100)), 12, {}, NOTHING),
    "signed": lambda: (stored(plateau() - 1700, np.int16, 2047), 12, {}, NOTHING),
    "negative slope": lambda: (
        stored(4095 - plateau()), 12, {"RescaleSlope": -1, "RescaleIntercept": 4095}, NOTHING,
    ),
    "MONOCHROME1": lambda: (stored(4095 - plateau()), 12, MONOCHROME1, NOTHING),
    "INVERSE": lambda: (
        stored(4095 - plateau()), 12, {"PresentationLUTShape": "INVERSE"}, NOTHING,
    ),
    "background is not the minimum": on_plateau(ROWS > 580, 0),
    "film with a bright border": on_plateau(BORDER, 4095),
    "implant": on_plateau(DISC, 4095),
    "implant in a breast without contrast": on_plateau(DISC, 4095, high=1800),
    "pacemaker": on_plateau(DEVICE, 16000, most=16383),
    "padding below": on_plateau(EDGE, 0, PixelPaddingValue=0),
    "padding far below": lambda: (
        stored(np.where(EDGE, -9000, plateau() - 1000), np.int16, 32767), 16,
        {"PixelPaddingValue": -9000}, EDGE,
    ),
    "padding above": on_plateau(EDGE, 4095, PixelPaddingValue=4095),
    "a range of padding": on_plateau(
        EDGE, 3900 + ROWS % 100, PixelPaddingValue=3900, PixelPaddingRangeLimit=4095
    ),
    "a range of padding, downwards": on_plateau(
        EDGE, 3900 + ROWS % 100, PixelPaddingValue=4095, PixelPaddingRangeLimit=3900
    ),
    "padding of MONOCHROME1": lambda: (
        stored(np.where(EDGE, 0, 4095 - plateau())), 12, {"PixelPaddingValue": 0, **MONOCHROME1},
        EDGE,
    ),
    "padding that occurs in the tissue": on_plateau(PixelPaddingValue=2000),
    "padding that would be everything": on_plateau(
        PixelPaddingValue=0, PixelPaddingRangeLimit=4095
    ),
}  # fmt: skip


def assert_equal_ramps(first: Any, second: Any, *, within: float) -> None:
    """Both are fitted, and differ by at most a part of the first ramp's length, or by rounding."""
    assert isinstance(first, FittedRamp)
    assert isinstance(second, FittedRamp)
    tolerance = max(within * (first.high - first.low), 0.5)  # values are whole numbers
    assert second.low == pytest.approx(first.low, abs=tolerance)
    assert second.high == pytest.approx(first.high, abs=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_ramp_keeps_the_contrast_of_tissue_in_every_syntax(tmp_path: Path, kind: str) -> None:
    pixels, bits, elements, other = KINDS[kind]()
    ramps = []
    for syntax in ("raw", "jpeg2000"):
        path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax=syntax, **elements)
        mammogram = read_dicom(path)
        assert QualityFlag.NO_WINDOW in mammogram.flags
        ramps.append(mammogram.display.voi)
        shown = mammogram.display.apply(mammogram.pixels) * 255
        tissue = shown[BREAST & ~other]
        assert np.ptp(np.percentile(tissue, (25, 75))) >= 32
        assert (tissue > 254.5).mean() <= 0.02
        assert (tissue < 0.5).mean() <= 0.06
        assert np.median(shown[~BREAST & ~other]) < 5
        if "PixelPaddingValue" in elements:
            assert shown[other].max(initial=0) < 5
    assert_equal_ramps(*ramps, within=0.01)


@pytest.mark.parametrize("kind", ["implant", "pacemaker", "marker", "film with a bright border"])
def test_fit_ramp_ignores_other_structures(tmp_path: Path, kind: str) -> None:
    ramps = []
    for name in ("plain", kind):
        pixels, bits, elements, _ = KINDS[name]()
        path = write_dicom(tmp_path / name, pixels, bits=bits, **elements)
        ramps.append(read_dicom(path).display.voi)
    assert_equal_ramps(*ramps, within=0.1)


def test_fit_ramp_of_phantoms_and_frames_full_of_tissue(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 12, BREAST.shape)
    flat, two_levels = stored(np.where(BREAST, 2000 + noise, 0)), stored(BREAST * 100.0)
    shown = read_and_show(write_dicom(tmp_path / "a.dcm", flat, bits=12))
    assert shown[BREAST].std() < 0.06  # noise is not amplified
    assert (shown[BREAST] > 0.998).mean() <= 0.02
    shown = read_and_show(write_dicom(tmp_path / "a.dcm", two_levels, bits=12))
    assert shown[~BREAST].max() < 0.02
    assert 0.5 < shown[BREAST].min() <= shown[BREAST].max() < 0.998
    full = stored(plateau()[180:420, 20:200])
    shown = read_and_show(write_dicom(tmp_path / "a.dcm", full, bits=12))
    assert np.ptp(np.percentile(shown, (25, 75))) * 255 > 35
    assert (shown > 0.998).mean() <= 0.02


@pytest.mark.parametrize("syntax", ["raw", "jpeg2000"])
@pytest.mark.parametrize("value", [0, 4095])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
def test_blacken_padding_under_a_window(
    tmp_path: Path, syntax: str, value: int, photometric: str, function: str
) -> None:
    values = 4095 - plateau() if photometric == "MONOCHROME1" else plateau()
    elements: dict[str, Any] = {
        "PhotometricInterpretation": photometric, "WindowCenter": 2048, "WindowWidth": 1500,
        "VOILUTFunction": function,
    }  # fmt: skip
    padded = stored(np.where(EDGE, value, values))
    path = write_dicom(
        tmp_path / "a.dcm", padded, bits=12, syntax=syntax, PixelPaddingValue=value, **elements
    )
    mammogram = read_dicom(path)
    assert mammogram.flags == ()
    shown = mammogram.display.apply(mammogram.pixels)
    assert shown[EDGE].max() < 0.02
    plain = read_and_show(write_dicom(tmp_path / "b.dcm", padded, bits=12, **elements))
    np.testing.assert_array_equal(shown[~EDGE], plain[~EDGE])
    preview = mammogram.preview()
    edge = cv2.resize(EDGE.astype(np.uint8), preview.shape[::-1], interpolation=cv2.INTER_AREA)
    assert preview[edge == 1].max() < 0.02
