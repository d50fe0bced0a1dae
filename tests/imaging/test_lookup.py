"""Lookup tables that break the rules of their descriptor, and what stands in for unusable ones."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import dataset_of
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian

from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.display import display_transform
from rsna_bcd.imaging.quality import QualityFlag

RNG = np.random.default_rng(0)
PIXELS = RNG.permutation(4096).astype(np.uint16).reshape(64, 64)
WINDOW = {"WindowCenter": 2607, "WindowWidth": 2785}
CURVE = np.sqrt(np.arange(4096) / 4095)


def item(entries: NDArray, first: int, bits: int, *, vr: str = "OW", count: int = -1) -> Dataset:
    """An item of a LUT sequence.

    Args:
        entries: unsigned integers.
        first: the first input.
        bits: that the descriptor announces.
        vr: of the data; `OB` stores bytes, `packed` two bytes in each US, the first one below.
        count: that the descriptor announces; that of the entries by default.
    """
    result = Dataset()
    count = (len(entries) if count < 0 else count) % 2**16
    result.add_new("LUTDescriptor", "SS" if first < 0 else "US", [count, first, bits])
    if first < 0 and count >= 2**15:
        result.LUTDescriptor[0] = count - 2**16
    if vr == "OB":
        result.add_new("LUTData", "OB", entries.astype(np.uint8).tobytes())
    elif vr == "OW":
        result.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    elif vr == "packed":
        words = np.frombuffer(entries.astype(np.uint8).tobytes(), "<u2")
        result.add_new("LUTData", "US", words.tolist())
    else:
        words = entries.astype(np.uint16)
        result.add_new("LUTData", vr, (words.view(np.int16) if vr == "SS" else words).tolist())
    return result


def shown(items: list[Dataset], pixels: NDArray = PIXELS, **elements: object) -> NDArray:
    """The pixels as a header with these VOI lookup tables shows them."""
    dataset = dataset_of(pixels, 12, **elements)
    dataset.VOILUTSequence = Sequence(items)
    return display_transform(dataset, pixels).apply(pixels)


@pytest.mark.parametrize("announced", range(8, 17))
@pytest.mark.parametrize("used", range(8, 17))
def test_full_scale_is_as_announced_unless_the_entries_deny_it(announced: int, used: int) -> None:
    entries = np.rint(CURVE * (2**used - 1)).astype(int)
    expected = entries / (2**used - 1)
    np.testing.assert_allclose(
        shown([item(entries, 0, announced)])[0], expected[PIXELS[0]], atol=1e-6
    )


@pytest.mark.parametrize(
    ("largest", "full"), [(3905, 4095), (2048, 4095), (2047, 2047), (4100, 4100)]
)
def test_a_table_may_end_below_full_scale(largest: int, full: int) -> None:
    entries = np.rint(CURVE * largest).astype(int)
    np.testing.assert_allclose(shown([item(entries, 0, 12)]), entries[PIXELS] / full, atol=1e-6)


@pytest.mark.parametrize(
    ("vr", "bits"), [("OB", 8), ("packed", 8), ("US", 8), ("SS", 16), ("US", 16)]
)
def test_entries_are_unsigned_words_or_bytes(vr: str, bits: int) -> None:
    entries = np.rint(CURVE * (2**bits - 1)).astype(int)
    expected = entries[PIXELS] / (2**bits - 1)
    np.testing.assert_allclose(shown([item(entries, 0, bits, vr=vr)]), expected, atol=1e-6)


def test_an_odd_number_of_bytes_is_padded() -> None:
    entries = np.rint(CURVE[:4095] * 255).astype(int)
    table = item(entries, 0, 8, vr="OB")
    table.LUTData += b"\0"
    expected = entries[np.minimum(PIXELS, 4094)] / entries.max()
    np.testing.assert_allclose(shown([table]), expected, atol=2 / 255)


@pytest.mark.parametrize("bits", [0, 20, 300])
def test_bits_that_cannot_be_give_way_to_the_largest_entry(bits: int) -> None:
    entries = np.rint(CURVE * 1000).astype(int)
    np.testing.assert_allclose(shown([item(entries, 0, bits)]), entries[PIXELS] / 1000, atol=1e-6)


def test_a_count_of_0_is_65536() -> None:
    entries = np.rint(np.sqrt(np.arange(2**16) / (2**16 - 1)) * 65535).astype(int)
    np.testing.assert_allclose(
        shown([item(entries, 0, 16, count=2**16)]), entries[PIXELS] / 65535, atol=1e-6
    )


def test_surplus_entries_are_left_out() -> None:
    entries = np.concatenate([np.rint(CURVE * 4095).astype(int), [0, 65535]])
    np.testing.assert_allclose(
        shown([item(entries, 0, 12, count=4096)]), entries[PIXELS] / 4095, atol=1e-6
    )


def test_first_and_last_entry_may_be_alike() -> None:
    entries = np.rint(CURVE * 4095).astype(int)
    entries[-1] = 0
    np.testing.assert_allclose(shown([item(entries, 0, 12)]), entries[PIXELS] / 4095, atol=1e-6)


@pytest.mark.parametrize("first", [-2048, 2**16 - 2048])
def test_the_first_input_of_signed_pixels_is_signed(first: int) -> None:
    pixels = (PIXELS.astype(np.int32) - 2048).astype(np.int16)
    entries = np.rint(CURVE * 4095).astype(int)
    np.testing.assert_allclose(
        shown([item(entries, first, 12)], pixels), entries[PIXELS] / 4095, atol=1e-6
    )


def test_a_table_follows_a_negative_slope() -> None:
    entries = np.rint(CURVE * 4095).astype(int)
    result = shown([item(entries, -4095, 12)], RescaleSlope=-1, RescaleIntercept=0)
    np.testing.assert_allclose(result, entries[4095 - PIXELS] / 4095, atol=1e-6)


def test_a_table_follows_a_modality_table_that_exceeds_its_bits() -> None:
    modality = np.rint(CURVE * 4095).astype(int)
    entries = np.rint(CURVE**2 * 4095).astype(int)
    dataset = dataset_of(PIXELS, 12)
    dataset.ModalityLUTSequence = Sequence([item(modality, 0, 8)])
    dataset.VOILUTSequence = Sequence([item(entries, 0, 8)])
    result = display_transform(dataset, PIXELS).apply(PIXELS)
    np.testing.assert_allclose(result, entries[modality[PIXELS]] / 4095, atol=1e-6)


def broken(name: str) -> Dataset:
    """An item that cannot be used."""
    table = item(np.rint(CURVE * 4095).astype(int), 0, 12)
    if name == "empty item":
        return Dataset()
    if name == "no data":
        del table.LUTData
    elif name == "data without a value":
        table.LUTData = None
    elif name == "no descriptor":
        del table.LUTDescriptor
    elif name == "descriptor of two":
        table.LUTDescriptor = [4096, 0]
    elif name == "half of the entries":
        table.LUTData = table.LUTData[: len(table.LUTData) // 2]
    elif name == "quarter of the entries":
        table.LUTData = table.LUTData[: len(table.LUTData) // 4]
    elif name == "all 0":
        table.LUTData = bytes(len(table.LUTData))
    elif name == "all alike":
        table.LUTData = b"\xff\x0f" * 4096
    elif name == "beyond the pixels":
        table.LUTDescriptor = [4096, 30000, 12]
    return table


BROKEN = (
    "empty item", "no data", "data without a value", "no descriptor", "descriptor of two",
    "half of the entries", "quarter of the entries", "all 0", "all alike", "beyond the pixels",
)  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_an_unusable_table_gives_way_to_the_next_transform(name: str) -> None:
    dataset = dataset_of(PIXELS, 12, **WINDOW)
    plain = display_transform(dataset, PIXELS).apply(PIXELS)
    dataset.VOILUTSequence = Sequence([broken(name)])
    presentation = display_transform(dataset, PIXELS)
    np.testing.assert_array_equal(presentation.apply(PIXELS), plain)
    assert presentation.flags == (QualityFlag.LUT_DISCARDED,)
    # A second table comes before the window.
    entries = np.rint(CURVE * 4095).astype(int)
    dataset.VOILUTSequence = Sequence([broken(name), item(entries, 0, 12)])
    presentation = display_transform(dataset, PIXELS)
    np.testing.assert_allclose(presentation.apply(PIXELS), entries[PIXELS] / 4095, atol=1e-6)
    assert str(presentation) == "LUT 0 4096 (2 of 2)"
    # Without either, a ramp is fitted.
    del dataset.WindowCenter, dataset.WindowWidth
    dataset.VOILUTSequence = Sequence([broken(name)])
    presentation = display_transform(dataset, PIXELS)
    assert str(presentation).startswith("fitted (discarded: ")
    assert presentation.flags == (QualityFlag.LUT_DISCARDED, QualityFlag.NO_WINDOW)


def test_an_unusable_modality_table_gives_way_to_the_rescale_values() -> None:
    elements = {"RescaleSlope": 2, "RescaleIntercept": -100, **WINDOW}
    plain = display_transform(dataset_of(PIXELS, 12, **elements), PIXELS).apply(PIXELS)
    for name in BROKEN[:7]:
        dataset = dataset_of(PIXELS, 12, **elements)
        dataset.ModalityLUTSequence = Sequence([broken(name)])
        presentation = display_transform(dataset, PIXELS)
        np.testing.assert_array_equal(presentation.apply(PIXELS), plain)
        assert presentation.flags == (QualityFlag.LUT_DISCARDED,)


def test_missing_entries_that_no_pixel_needs_are_not_missed() -> None:
    entries = np.rint(CURVE * 4095).astype(int)
    pixels = np.minimum(PIXELS, 3000)
    table = item(entries[:3500], 0, 12, count=4096)
    np.testing.assert_allclose(shown([table], pixels), entries[pixels] / 4095, atol=1e-6)


def test_a_sequence_without_items_is_no_table() -> None:
    dataset = dataset_of(PIXELS, 12, **WINDOW)
    dataset.VOILUTSequence = Sequence([])
    assert display_transform(dataset, PIXELS).flags == ()


@pytest.mark.parametrize("vr", ["OW", "US"])
def test_tables_of_big_endian_files(tmp_path: Path, vr: str) -> None:
    entries = np.rint(CURVE * 4095).astype(int)
    dataset = dataset_of(PIXELS, 12)
    dataset.VOILUTSequence = Sequence([item(entries, 0, 12, vr=vr)])
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    words = [dataset["PixelData"], dataset.VOILUTSequence[0]["LUTData"]]
    for element in words if vr == "OW" else words[:1]:  # pydicom writes OW as it is
        element.value = np.frombuffer(element.value, np.uint16).byteswap().tobytes()
    path = tmp_path / "a.dcm"
    dataset.save_as(path, implicit_vr=False, little_endian=False, enforce_file_format=True)
    mammogram = read_dicom(path)
    shown = mammogram.display.apply(mammogram.pixels)
    np.testing.assert_allclose(shown, entries[PIXELS] / 4095, atol=1e-6)


def test_the_first_input_of_unsigned_pixels_is_unsigned_whatever_its_vr() -> None:
    pixels = (33_000 + PIXELS.astype(int)).astype(np.uint16)
    entries = np.rint(CURVE * 4095).astype(int)
    table = item(entries, 33_000 - 2**16, 12)
    np.testing.assert_allclose(shown([table], pixels), entries[PIXELS] / 4095, atol=1e-6)
