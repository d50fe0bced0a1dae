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
CURVE = np.sqrt(np.arange(4096) / 4095)
ENTRIES = np.rint(CURVE * 4095).astype(int)
DEPTHS = (8, 11, 12, 16)
DISCARDED = QualityFlag.WINDOW_DISCARDED


def displayed(dataset: Dataset, pixels: NDArray = PIXELS) -> NDArray:
    return display_transform(dataset, pixels).apply(pixels)


def header(pixels: NDArray = PIXELS, **elements: Any) -> Dataset:
    return make_dataset(pixels, 12, **elements)


def window(center: Any = 2607, width: Any = 2785, **elements: Any) -> dict[str, Any]:
    return {"WindowCenter": center, "WindowWidth": width, **elements}


def rescale(slope: Any = 2, intercept: Any = -100) -> dict[str, Any]:
    return {"RescaleSlope": slope, "RescaleIntercept": intercept}


def voi_tables(*items: Dataset) -> dict[str, Any]:
    return {"VOILUTSequence": Sequence(items)}


def curve(largest: float) -> NDArray:
    return np.rint(CURVE * largest).astype(int)


def table(
    entries: NDArray, first: int = 0, bits: int = 12, *, vr: str = "OW", count: int | None = None
) -> Dataset:
    """An item of a LUT sequence; `bits` and `count` are those that its descriptor announces.

    VR `OB` stores bytes, `packed` two bytes in each US, the first one below.
    """
    count = len(entries) if count is None else count
    content: Any = entries.astype("<u2" if vr == "OW" else np.uint8).tobytes()
    if vr == "packed":
        vr, content = "US", np.frombuffer(content, "<u2").tolist()
    elif vr in ("US", "SS"):
        content = entries.astype(np.uint16).view(np.int16 if vr == "SS" else np.uint16).tolist()
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [count % 2**16, first, bits])
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
    ("center", "width"),
    [(2047, 4096), (2668, 900), (1802.31, 1091.97), (300, 17), (5, 2), (1000, 1)],
)
def test_window_agrees_with_pydicom(function: str, center: float, width: float) -> None:
    dataset = header(**window(center, width, VOILUTFunction=function))
    with np.errstate(over="ignore"):
        expected = apply_windowing(PIXELS, dataset) / 4095
    np.testing.assert_allclose(displayed(dataset), expected, atol=2e-4)  # float32 of ours
    dataset.PhotometricInterpretation = "MONOCHROME1"
    np.testing.assert_allclose(displayed(dataset), 1 - expected, atol=2e-4)


def test_display_transform_rescales_before_the_window() -> None:
    signed = np.arange(-500, 500, dtype=np.int16).reshape(10, 100)
    dataset = header(signed, **rescale(), **window(0, 600))
    expected = np.clip((apply_modality_lut(signed, dataset) + 0.5) / 599 + 0.5, 0, 1)
    np.testing.assert_allclose(displayed(dataset, signed), expected, atol=1e-5)


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_display_transform_tables_agree_with_pydicom(vr: str) -> None:
    modality = table(np.arange(0, 60000, 20), 100, 16, vr=vr)
    dataset = header(**window(20000, 30000), ModalityLUTSequence=Sequence([modality]))
    ours = display_transform(dataset, PIXELS).modality(PIXELS.astype(np.float32))
    np.testing.assert_array_equal(ours, apply_modality_lut(PIXELS, dataset))
    entries = np.round(4095 * np.sqrt(np.arange(3000) / 2999)).astype(int)
    dataset = header(**window(10, 10), **voi_tables(table(entries, 500, vr=vr)))
    np.testing.assert_allclose(displayed(dataset), apply_voi(PIXELS, dataset) / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("elements", "equivalent", "text", "flags"),
    [
        (window([1500, 90], [900, 50]), window(1500, 900), "LINEAR 1500 900 (1 of 2)", ()),
        (window(["", "2000"], ["100", "4000"]), window(2000, 4000), "LINEAR 2000 4000", ()),
        (window([9, 2000], [0, 4000]), window(2000, 4000), "LINEAR 2000 4000 (2 of 2)",
         (DISCARDED,)),
        (window(**rescale([2, 1], [-100, 0])), window(**rescale()), "LINEAR 2607 2785", ()),
        (window(**voi_tables()), window(), "LINEAR 2607 2785", ()),
    ],
)  # fmt: skip
def test_display_transform_takes_the_first_usable_value(
    elements: dict[str, Any], equivalent: dict[str, Any], text: str, flags: tuple[QualityFlag, ...]
) -> None:
    display = display_transform(header(**elements), PIXELS)
    np.testing.assert_array_equal(display.apply(PIXELS), displayed(header(**equivalent)))
    assert (str(display), display.flags) == (text, flags)


@pytest.mark.parametrize("kind", ["Shared", "PerFrame"])
def test_display_transform_reads_functional_groups(kind: str) -> None:
    keyword = f"{kind}FunctionalGroupsSequence"
    expected = displayed(header(**window(1500, 900, VOILUTFunction="SIGMOID")))
    own = group(keyword, "FrameVOILUTSequence", **window(1500, 900, VOILUTFunction=" sigmoid "))
    for elements, flags in ((own, ()), (window(0, 0, **own), (DISCARDED,))):
        display = display_transform(header(**elements), PIXELS)
        np.testing.assert_array_equal(display.apply(PIXELS), expected)
        assert display.flags == flags
    own = group(keyword, "PixelValueTransformationSequence", **rescale())
    expected = displayed(header(**window(**rescale())))
    np.testing.assert_array_equal(displayed(header(**window(**own))), expected)


@pytest.mark.parametrize(
    ("elements", "discarded"),
    [
        (window(100, 100, VOILUTFunction="CUBIC"), "CUBIC 100 100"),
        (window(100, 0), "LINEAR 100 0"),
        (window(100, -5, VOILUTFunction="SIGMOID"), "SIGMOID 100 -5"),
        (window("nan", 100), "LINEAR nan 100"),
        (window("1e39", "1e39"), "LINEAR 1e+39 1e+39"),
        (window(90000, 100), "LINEAR 90000 100"),  # shows nothing
    ],
)
def test_display_transform_fits_a_ramp_for_an_unusable_window(
    elements: dict, discarded: str
) -> None:
    ramp = np.arange(0, 4096, 3, dtype=np.uint16).reshape(1, -1)
    display = display_transform(header(ramp, **elements), ramp)
    assert str(display).startswith(f"fitted (discarded: {discarded}) ")
    assert display.flags == (DISCARDED,)
    shown = display.apply(ramp)
    inside = (shown > 0.01) & (shown < 0.99)
    assert inside.mean() > 0.9
    slope, offset = np.polyfit(ramp[inside], shown[inside], 1)
    assert slope > 0
    np.testing.assert_allclose(shown[inside], slope * ramp[inside] + offset, atol=1e-3)
    assert (shown > 0.998).mean() <= 0.02


@pytest.mark.parametrize("text", [b"2047,5", b"2047mm"])
def test_display_transform_discards_a_window_that_is_no_number(tmp_path: Path, text: bytes) -> None:
    path = write_dicom(tmp_path / "a.dcm", PIXELS, bits=12, **window("123456", 9))
    path.write_bytes(path.read_bytes().replace(b"123456", text))
    mammogram = read_dicom(path)
    assert str(mammogram.display).startswith("fitted (discarded: window: ")
    assert mammogram.flags == (DISCARDED,)


@pytest.mark.parametrize("scale", [1 / 16, 16])
@pytest.mark.parametrize("inverted", [False, True])
def test_display_transform_discards_a_window_for_another_depth(
    scale: float, inverted: bool
) -> None:
    image = breast_image(300, 240)
    stored = np.rint((1 - image if inverted else image) * 4095 * scale).astype(np.uint16)
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset = make_dataset(stored, 16, **window(2047, 4096), PhotometricInterpretation=photometric)
    display = display_transform(dataset, stored)
    shown = display.apply(stored)
    if inverted and scale > 1:  # bright background beyond the window, tissue partly within it
        assert np.ptp(shown[image > 0]) > 0.3
        return
    assert str(display).startswith("fitted (discarded: LINEAR 2047 4096) ")
    assert shown[image == 0].max() < 0.02
    assert 0.6 < np.median(shown[image > 0]) < 1


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        (rescale(0, 0), "rescale slope .* make no image"),
        (rescale(1e39, 0), "rescale slope .* make no image"),
        (rescale(1e-12, 1), "maps all pixels to one value"),
    ],
)
def test_display_transform_refuses_a_rescale_without_an_image(
    elements: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ImageError, match=reason):
        display_transform(header(**elements), PIXELS)


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
@pytest.mark.parametrize("elements", [{}, window(128, 256)])
def test_display_transform_inversion_by_photometric_interpretation_or_pixels(
    photometric: str, shape: str, bright_background: bool, inverted: bool, contradictory: bool,
    elements: dict,
) -> None:  # fmt: skip
    image = breast_image(120, 100)
    stored = np.rint((1 - image if bright_background else image) * 255).astype(np.uint8)
    dataset = make_dataset(
        stored, 8, PhotometricInterpretation=photometric, PresentationLUTShape=shape, **elements
    )
    display = display_transform(dataset, stored)
    assert display.inverted == inverted
    assert (QualityFlag.INVERSION_CONTRADICTORY in display.flags) == contradictory
    assert display.apply(stored)[image == 0].max() < 0.02


SCALES = [
    (3905, 4095, 12), (2048, 4095, 12), (2047, 2047, 12), (4100, 4100, 12), (999, 999, 0),
    (999, 999, 300), *((2**used - 1, 2**used - 1, bits) for used in DEPTHS for bits in DEPTHS),
]  # fmt: skip
FULL_RANGES = [("OB", 8), ("packed", 8), ("US", 8), ("SS", 16), ("US", 16)]
SHOWN = ENTRIES[PIXELS] / 4095
MANY = np.rint(np.sqrt(np.arange(2**16) / 65535) * 65535)
ALIKE, SQUARE = np.append(ENTRIES[:-1], 0), np.rint(CURVE**2 * 4095)
FEW, SIGNED = np.minimum(PIXELS, 3000), (PIXELS.astype(int) - 2048).astype(np.int16)
PADDED_BYTES = table(curve(254), bits=8, vr="OB", count=4095)
TABLES: list[tuple[Dataset, NDArray, dict[str, Any]]] = [
    *(
        (table(curve(largest), bits=bits), curve(largest)[PIXELS] / full, {})
        for largest, full, bits in SCALES
    ),
    *(
        (table(curve(2**b - 1), bits=b, vr=vr), curve(2**b - 1)[PIXELS] / (2**b - 1), {})
        for vr, b in FULL_RANGES
    ),
    (PADDED_BYTES, curve(254)[np.minimum(PIXELS, 4094)] / 255, {}),
    (table(MANY, bits=16), MANY[PIXELS] / 65535, {}),  # 0 entries announced
    (table(np.append(ENTRIES, [0, 65535]), count=4096), SHOWN, {}),
    (table(ENTRIES[:3500], count=4096), ENTRIES[FEW] / 4095, {"pixels": FEW}),
    (table(ALIKE), ALIKE[PIXELS] / 4095, {}),
    # The first input has the sign of the inputs, whatever its VR.
    (table(ENTRIES, -2048), SHOWN, {"pixels": SIGNED}),
    (table(ENTRIES, 2**16 - 2048), SHOWN, {"pixels": SIGNED}),
    (table(ENTRIES, 33_000 - 2**16), SHOWN, {"pixels": PIXELS + np.uint16(33_000)}),
    (table(ENTRIES, 2**16 - 1024), SHOWN, rescale(1, -1024)),
    (table(ENTRIES, -4095), ENTRIES[4095 - PIXELS] / 4095, rescale(-1, 0)),
    (table(SQUARE, bits=8), SQUARE[ENTRIES[PIXELS]] / 4095,
     {"ModalityLUTSequence": Sequence([table(ENTRIES, bits=8)])}),  # exceed their bits
]  # fmt: skip


@pytest.mark.parametrize(("item", "expected", "elements"), TABLES)
def test_voi_table_is_displayed(item: Dataset, expected: NDArray, elements: dict[str, Any]) -> None:
    shown = displayed(header(**voi_tables(item), **elements), elements.get("pixels", PIXELS))
    np.testing.assert_allclose(shown, expected, atol=1e-6)


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


@pytest.mark.parametrize("name", UNUSABLE)
def test_display_transform_skips_an_unusable_table(name: str) -> None:
    unusable = table(ENTRIES)
    for keyword, value in UNUSABLE[name].items():
        if value is ABSENT:
            delattr(unusable, keyword)
        else:
            setattr(unusable, keyword, value)
    before_window = display_transform(header(**voi_tables(unusable), **window()), PIXELS)
    np.testing.assert_array_equal(before_window.apply(PIXELS), displayed(header(**window())))
    assert before_window.flags == (QualityFlag.LUT_DISCARDED,)
    tables = voi_tables(unusable, table(ENTRIES))  # the second one comes before the window
    before_table = display_transform(header(**tables, **window()), PIXELS)
    np.testing.assert_allclose(before_table.apply(PIXELS), ENTRIES[PIXELS] / 4095, atol=1e-6)
    assert str(before_table) == "LUT 0 4096 (2 of 2)"
    alone = display_transform(header(**voi_tables(unusable)), PIXELS)
    assert str(alone).startswith("fitted (discarded: ")
    assert alone.flags == (QualityFlag.LUT_DISCARDED, QualityFlag.NO_WINDOW)
    if name not in ("all 0", "all alike", "beyond the pixels"):
        plain = header(**window(), **rescale())
        dataset = header(**window(), **rescale(), ModalityLUTSequence=Sequence([unusable]))
        np.testing.assert_array_equal(displayed(dataset), displayed(plain))
        assert display_transform(dataset, PIXELS).flags == (QualityFlag.LUT_DISCARDED,)


def read_and_show(path: Path) -> NDArray:
    mammogram = read_dicom(path)
    return mammogram.display.apply(mammogram.pixels)


@pytest.mark.parametrize("vr", ["OW", "US"])
def test_voi_table_of_big_endian_files(tmp_path: Path, vr: str) -> None:
    dataset = header(**voi_tables(table(ENTRIES, vr=vr)))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    words = [dataset["PixelData"], dataset.VOILUTSequence[0]["LUTData"]]
    for element in words if vr == "OW" else words[:1]:  # pydicom writes OW as it is
        element.value = np.frombuffer(element.value, np.uint16).byteswap().tobytes()
    path = tmp_path / "a.dcm"
    dataset.save_as(path, implicit_vr=False, little_endian=False, enforce_file_format=True)
    np.testing.assert_allclose(read_and_show(path), ENTRIES[PIXELS] / 4095, atol=1e-6)


HEIGHT, WIDTH = 601, 477  # sizes that codecs round up
BREAST = breast_image(HEIGHT, WIDTH, reach=0.6, half_height=0.42) > 0
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
DISC = BREAST & ((ROWS - 300) ** 2 + (COLUMNS - 90) ** 2 < 100**2)
EDGE = (ROWS < 40) | (COLUMNS > 430)
NOTHING = np.zeros_like(BREAST)
MARKER = (ROWS > 20) & (ROWS < 60) & (COLUMNS > 380) & (COLUMNS < 420)
BORDER = (ROWS < 12) | (ROWS >= HEIGHT - 12) | (COLUMNS >= WIDTH - 12)
DEVICE = (abs(ROWS - 150) < 25) & (abs(COLUMNS - 40) < 25)
MONOCHROME1: dict[str, Any] = {"PhotometricInterpretation": "MONOCHROME1"}


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


def inverted() -> NDArray[np.float32]:
    return 4095 - plateau()


Kind = tuple[NDArray, int, dict[str, Any], NDArray]


def on_plateau(
    where: NDArray = NOTHING, value: Any = 0, *, image: Callable[[], NDArray] = plateau,
    dtype: Any = np.uint16, most: int = 4095, **elements: Any,
) -> Callable[[], Kind]:  # fmt: skip
    """Stored values, bits, elements, and pixels that are neither breast nor background."""

    def make() -> Kind:
        bits = most.bit_length() + (np.dtype(dtype).kind == "i")
        return stored(np.where(where, value, image()), dtype, most), bits, elements, where

    return make


RAMP_OF_PADDING = 3900 + ROWS % 100
KINDS: dict[str, Callable[[], Kind]] = {
    "plain": on_plateau(),
    "marker": on_plateau(MARKER, 4095),
    "8 bits": on_plateau(image=lambda: plateau(0, 90, 150), dtype=np.uint8, most=255),
    "few levels": on_plateau(image=lambda: plateau(0, 60, 100)),
    "signed": on_plateau(image=lambda: plateau() - 1700, dtype=np.int16, most=2047),
    "negative slope": on_plateau(image=inverted, **rescale(-1, 4095)),
    "MONOCHROME1": on_plateau(image=inverted, **MONOCHROME1),
    "INVERSE": on_plateau(image=inverted, PresentationLUTShape="INVERSE"),
    "background is not the minimum": on_plateau(ROWS > 580, 0),
    "film with a bright border": on_plateau(BORDER, 4095),
    "implant": on_plateau(DISC, 4095),
    "implant in a breast without contrast": on_plateau(
        DISC, 4095, image=lambda: plateau(high=1800)
    ),
    "pacemaker": on_plateau(DEVICE, 16000, most=16383),
    "padding below": on_plateau(EDGE, 0, PixelPaddingValue=0),
    "padding far below": on_plateau(
        EDGE, -9000, image=lambda: plateau() - 1000, dtype=np.int16, most=2**15 - 1,
        PixelPaddingValue=-9000,
    ),
    "padding above": on_plateau(EDGE, 4095, PixelPaddingValue=4095),
    "a range of padding": on_plateau(
        EDGE, RAMP_OF_PADDING, PixelPaddingValue=3900, PixelPaddingRangeLimit=4095
    ),
    "a range of padding, downwards": on_plateau(
        EDGE, RAMP_OF_PADDING, PixelPaddingValue=4095, PixelPaddingRangeLimit=3900
    ),
    "padding of MONOCHROME1": on_plateau(
        EDGE, 0, image=inverted, PixelPaddingValue=0, **MONOCHROME1
    ),
    "padding that occurs in the tissue": on_plateau(PixelPaddingValue=2000),
    "padding that would be everything": on_plateau(
        PixelPaddingValue=0, PixelPaddingRangeLimit=4095
    ),
}  # fmt: skip


def fitted(path: Path) -> NDArray:
    """Ends of the ramp of a file."""
    ramp = read_dicom(path).display.voi
    assert isinstance(ramp, FittedRamp)
    return np.array([ramp.low, ramp.high])


@pytest.mark.parametrize("kind", KINDS)
def test_fit_ramp_keeps_the_contrast_of_tissue_in_every_syntax(tmp_path: Path, kind: str) -> None:
    pixels, bits, elements, other = KINDS[kind]()
    ends = []
    for syntax in ("raw", "jpeg2000"):
        path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax=syntax, **elements)
        mammogram = read_dicom(path)
        assert QualityFlag.NO_WINDOW in mammogram.flags
        ends.append(fitted(path))
        shown = mammogram.display.apply(mammogram.pixels) * 255
        tissue = shown[BREAST & ~other]
        assert np.ptp(np.percentile(tissue, (25, 75))) >= 32
        assert (tissue > 254.5).mean() <= 0.02
        assert (tissue < 0.5).mean() <= 0.06
        assert np.median(shown[~BREAST & ~other]) < 5
        if "PixelPaddingValue" in elements:
            assert shown[other].max(initial=0) < 5
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=max(0.01 * np.ptp(ends[0]), 0.5))
    if kind in ("implant", "pacemaker", "marker", "film with a bright border"):
        plain = fitted(write_dicom(tmp_path / "b.dcm", KINDS["plain"]()[0], bits=12))
        np.testing.assert_allclose(ends[0], plain, rtol=0, atol=0.1 * np.ptp(plain))


def test_fit_ramp_of_phantoms_and_frames_full_of_tissue(tmp_path: Path) -> None:
    def show(pixels: NDArray) -> NDArray:
        return read_and_show(write_dicom(tmp_path / "a.dcm", pixels, bits=12))

    noise = np.random.default_rng(0).normal(0, 12, BREAST.shape)
    shown = show(stored(np.where(BREAST, 2000 + noise, 0)))
    assert shown[BREAST].std() < 0.06  # noise is not amplified
    assert (shown[BREAST] > 0.998).mean() <= 0.02
    shown = show(stored(BREAST * 100.0))
    assert shown[~BREAST].max() < 0.02
    assert 0.5 < shown[BREAST].min() <= shown[BREAST].max() < 0.998
    shown = show(stored(plateau()[180:420, 20:200]))
    assert np.ptp(np.percentile(shown, (25, 75))) * 255 > 35
    assert (shown > 0.998).mean() <= 0.02


@pytest.mark.parametrize("syntax", ["raw", "jpeg2000"])
@pytest.mark.parametrize("value", [0, 4095])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
def test_blacken_padding_under_a_window(
    tmp_path: Path, syntax: str, value: int, photometric: str, function: str
) -> None:
    image = inverted() if photometric == "MONOCHROME1" else plateau()
    elements = window(2048, 1500, VOILUTFunction=function, PhotometricInterpretation=photometric)
    padded = stored(np.where(EDGE, value, image))
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
