"""From a DICOM header to a `DisplayTransform`: modality transform, VOI transform, inversion.

A lookup table comes before a window where both are there, and the first usable one of several is
taken. An image without a usable one is shown by a linear ramp, fitted to its tissue.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from rsna_bcd.imaging.breast import breast_mask, has_bright_background
from rsna_bcd.imaging.mammogram import ImageError, Level, Mammogram, StoredPixels, overview_of
from rsna_bcd.imaging.parsing import UNPARSABLE, first_integer
from rsna_bcd.imaging.quality import QualityFlag
from rsna_bcd.imaging.voi import (
    DisplayTransform,
    Linear,
    LinearExact,
    LookupTable,
    Rescale,
    Sigmoid,
    Values,
    VOITransform,
    fit_ramp,
    value_range,
)

# A window that leaves less contrast than this between the darkest and the brightest pixel was made
# for another depth: 8-bit pixels under a 12-bit window keep .06. Fitting ones keep .5 and more.
_LEAST_CONTRAST = 0.1
# So is one that clips more of the breast than this to black or white.
_MOST_CLIPPED = 0.75
_CLIPPED = 0.005  # this close to black or white
_FEW = 0.04  # of the frame; a breast fills more
_STEP = 7  # these checks look at every seventh pixel of the overview
_LARGEST = 1e9  # of slopes and windows; stored values have 16 bits

_FUNCTIONS: dict[str, Callable[[float, float], VOITransform]] = {
    "LINEAR": Linear,
    "LINEAR_EXACT": LinearExact,
    "SIGMOID": Sigmoid,
}
_SMALLEST_WIDTH = {"LINEAR": 1.0, "LINEAR_EXACT": 0.0, "SIGMOID": 0.0}

_Mask = NDArray[np.bool_] | None


def display_transform(dataset: Dataset, pixels: StoredPixels) -> DisplayTransform:
    """How the header wants its pixels shown.

    Args:
        dataset: the header.
        pixels: stored values, of the whole image or of its overview, to check the transforms and
            to fit a ramp where the header has no usable one.

    Raises:
        ImageError: a modality transform that makes no image.
    """
    signed = pixels.dtype.kind == "i"
    valid = without_padding(dataset, pixels)
    modality, flags = _modality(dataset, float(pixels.max()), signed=signed)
    values = modality(pixels.astype(np.float32))
    inside = values if valid is None else values[valid]
    if inside.min() == inside.max():
        valid, inside = None, values  # padding around one value, or the value is not padding
    if inside.min() == inside.max():
        raise ImageError("the modality transform maps all pixels to one value")
    inverted, contradictory = _inversion(dataset, values, valid)
    flags += [QualityFlag.INVERSION_CONTRADICTORY] if contradictory else []
    discarded = []
    for flag, position, total, read in _voi_transforms(dataset, inside, signed=signed):
        try:
            voi = read()
            _check_contrast(voi, values, valid, inverted=inverted)
        except UnusableError as error:
            flags.append(flag)
            discarded.append(str(error))
        else:
            return DisplayTransform(modality, voi, inverted, total, position, tuple(flags))
    if QualityFlag.WINDOW_DISCARDED not in flags:
        flags.append(QualityFlag.NO_WINDOW)
    ramp = fit_ramp(values, inverted=inverted, valid=valid, discarded="; ".join(discarded))
    return DisplayTransform(modality, ramp, inverted, flags=tuple(flags))


def _modality(
    dataset: Dataset, largest: float, *, signed: bool
) -> tuple[Rescale | LookupTable, list[QualityFlag]]:
    """Modality LUT if there is a usable one, else rescale, else identity; and the flags."""
    flags: list[QualityFlag] = []
    for item in _items(dataset, "ModalityLUTSequence"):
        try:
            return read_lookup_table(item, largest, signed=signed), flags
        except UnusableError:
            flags.append(QualityFlag.LUT_DISCARDED)
    slope = intercept = None
    for source in _sources(dataset, "PixelValueTransformationSequence"):
        slope = _first(source.get("RescaleSlope")) if slope is None else slope
        intercept = _first(source.get("RescaleIntercept")) if intercept is None else intercept
    rescale = Rescale(
        1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    )
    if rescale.slope == 0 or not _are_usable(rescale.slope, rescale.intercept):
        raise ImageError(f"rescale slope {slope} and intercept {intercept} make no image")
    return rescale, flags


def _inversion(dataset: Dataset, values: Values, valid: _Mask) -> tuple[bool, bool]:
    """Whether the image is inverted, and whether the header contradicts itself about that.

    MONOCHROME1 is inverted: many such files have the shape IDENTITY, and are meant like that. The
    shape INVERSE of MONOCHROME2 is respected where the background becomes dark.
    """
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    if str(dataset.PhotometricInterpretation).strip().upper() == "MONOCHROME1":
        return True, shape == "IDENTITY"
    if shape != "INVERSE":
        return False, False
    # The background may be padding, or beside it.
    everything = [values] if valid is None else [values, values[valid].reshape(1, -1)]
    bright = (has_bright_background(_unit(part, value_range(part))) for part in everything)
    return any(bright), True


def _voi_transforms(
    dataset: Dataset, values: Values, *, signed: bool
) -> Iterator[tuple[QualityFlag, int, int, Callable[[], VOITransform]]]:
    """The transforms of the header, in order of preference.

    Yields:
        The flag if it is discarded, its position among how many of its kind, and a function that
        reads it and raises UnusableError.
    """
    # The first input of a VOI table is signed if what goes into it is (PS3.3 C.11.2.1.1).
    largest, signed = float(values.max()), signed or bool(values.min() < 0)
    items = _items(dataset, "VOILUTSequence", "FrameVOILUTSequence")
    for n, item in enumerate(items, 1):
        read = partial(read_voi_lookup_table, item, largest, signed=signed)
        yield QualityFlag.LUT_DISCARDED, n, len(items), read
    for source in _sources(dataset, "FrameVOILUTSequence"):
        windows = _windows(source)
        for n, window in enumerate(windows, 1):
            yield QualityFlag.WINDOW_DISCARDED, n, len(windows), partial(_window, *window)


def _windows(dataset: Dataset) -> list[tuple[Any, Any, str]]:
    """Center, width and function of each window; pairs of which one is blank are none."""
    name = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    try:
        centers, widths = (_several(dataset.get(f"Window{key}")) for key in ("Center", "Width"))
    except UNPARSABLE as error:  # text that is no number
        return [(error, error, name)]
    pairs = zip(centers, widths, strict=False)
    return [(c, w, name) for c, w in pairs if c not in (None, "") and w not in (None, "")]


def _window(center: Any, width: Any, name: str) -> VOITransform:
    """Make the function of a window."""
    try:
        center, width = float(center), float(width)
    except (ValueError, TypeError) as error:
        raise UnusableError(f"window: {center}") from error
    smallest = _SMALLEST_WIDTH.get(name)
    if smallest is None or width < smallest or width <= 0 or not _are_usable(center, width):
        raise UnusableError(f"{name} {center:g} {width:g}")
    return _FUNCTIONS[name](center, width)


def _check_contrast(voi: VOITransform, values: Values, valid: _Mask, *, inverted: bool) -> None:
    """Refuse a transform that was made for pixels of another depth.

    Raises:
        UnusableError: it shows all values alike, or hardly any of the breast's.
    """
    inside = (values if valid is None else values[valid]).ravel()
    shown = voi(np.append(inside[::_STEP], [inside.min(), inside.max()]).astype(np.float32))
    if np.ptp(shown) < _LEAST_CONTRAST:
        raise UnusableError(str(voi))
    bright = 1 - shown if inverted else shown
    if (bright > 1 - _CLIPPED).mean() < _FEW and (bright < _CLIPPED).mean() < 1 - _FEW:
        return  # the breast is large enough to be among the others
    picture = _unit(-values if inverted else values, value_range(-values if inverted else values))
    breast = breast_mask(picture if valid is None else np.where(valid, picture, np.float32(0)))
    if breast is not None:
        shown = voi(values[breast])
        if (np.abs(shown - 0.5) >= 0.5 - _CLIPPED).mean() > _MOST_CLIPPED:
            raise UnusableError(str(voi))


def _unit(values: Values, ends: tuple[float, float]) -> Values:
    """Bring values to [0, 1]."""
    low, high = ends
    scaled: Values = np.clip((values - low) / np.float32(high - low), 0, 1)
    return scaled


def _sources(dataset: Dataset, group: str) -> Iterator[Dataset]:
    """The header, then its functional groups of one kind (PS3.3 C.7.6.16), the frame's first."""
    yield dataset
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for groups in _sequence(dataset, keyword)[:1]:
            yield from _sequence(groups, group)[:1]


def _items(dataset: Dataset, keyword: str, group: str | None = None) -> list[Dataset]:
    """The items of a sequence, from the first source that has any."""
    sources = _sources(dataset, group or "PixelValueTransformationSequence")
    return next((items for items in (_sequence(s, keyword) for s in sources) if items), [])


def _sequence(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is absent or is something else."""
    value = dataset.get(keyword)
    return list(value) if isinstance(value, Sequence) else []


def _first(value: Any) -> Any:
    """The first value of an element; None where it is absent or blank."""
    first = _several(value)[:1]
    return first[0] if first and first[0] != "" else None


def _several(value: Any) -> list[Any]:
    """The values of an element that may have one or several."""
    return list(value) if isinstance(value, MultiValue) else [value]


def _are_usable(*numbers: float) -> bool:
    """Whether float32 can calculate with the numbers of a header; NaN is none of them."""
    return all(abs(number) <= _LARGEST for number in numbers)


_WORD = 2**16


class UnusableError(Exception):
    """A transform of the header that cannot be applied; the message describes it."""


def read_lookup_table(item: Dataset, largest_input: float, *, signed: bool) -> LookupTable:
    """Read an item of a modality or VOI LUT sequence.

    Args:
        item: the item.
        largest_input: the largest value that is looked up. A table with fewer entries than
            announced is used if it reaches so far.
        signed: whether the inputs are signed; the first input of the table is, then, too.

    Returns:
        The table, its entries as stored.

    Raises:
        UnusableError: the descriptor or the data are absent, incomplete or contradictory.
    """
    descriptor = _integers(_element(item, "LUTDescriptor"))
    if len(descriptor) != 3:
        raise UnusableError(f"lookup table with a descriptor of {len(descriptor)} values")
    # The first value is unsigned, whatever VR the descriptor has; 0 stands for 65,536.
    count, first, bits = descriptor[0] % _WORD or _WORD, descriptor[1], descriptor[2]
    if signed and first >= _WORD // 2:
        first -= _WORD
    if not signed and first < 0 and first + _WORD <= largest_input:  # the descriptor's VR is SS
        first += _WORD
    entries = _entries(item, count, bits)
    if not entries.size or (entries.size < count and first + entries.size <= largest_input):
        raise UnusableError(f"lookup table of {entries.size} entries, {count} announced")
    return LookupTable(first, entries[:count].astype(np.float32))


def read_voi_lookup_table(item: Dataset, largest_input: float, *, signed: bool) -> LookupTable:
    """Read an item of a VOI LUT sequence; the entries are divided by their full scale.

    Full scale is 2**bits - 1, as announced: tables of GE end at 3905 of 4095. Only if an entry is
    beyond that, or all are below half of it, is the largest entry full scale.

    Raises:
        UnusableError: see `read_lookup_table`; or all entries are 0.
    """
    table = read_lookup_table(item, largest_input, signed=signed)
    largest = float(table.entries.max())
    if largest == 0:
        raise UnusableError(f"lookup table of {len(table.entries)} entries of 0")
    bits = _integers(item.LUTDescriptor)[2]
    announced = 2.0**bits - 1 if 1 <= bits <= 16 else largest
    full = announced if announced / 2 <= largest <= announced else largest
    return LookupTable(table.first, table.entries / np.float32(full))


def _entries(item: Dataset, count: int, bits: int) -> NDArray[np.unsignedinteger[Any]]:
    """The entries: unsigned words whatever the VR; or bytes, packed two to a word if in words."""
    data = _element(item, "LUTData")
    if isinstance(data, bytes):
        content = data  # little endian: `parse_dicom` swaps the words of other files
    else:
        content = np.array([value % _WORD for value in _integers(data)], "<u2").tobytes()
    if bits <= 8 and len(content) < 2 * count:
        return np.frombuffer(content, np.uint8)
    return np.frombuffer(content[: len(content) // 2 * 2], "<u2")


def _element(item: Dataset, keyword: str) -> Any:
    try:
        return item.get(keyword)
    except UNPARSABLE as error:
        raise UnusableError(f"lookup table: {error}") from error


def _integers(value: Any) -> list[int]:
    """The values of an element that may have none, one or several."""
    if value is None or isinstance(value, str | bytes):
        raise UnusableError("lookup table without a descriptor or data")
    try:
        return [int(v) for v in np.atleast_1d(value).tolist()]
    except (TypeError, ValueError) as error:
        raise UnusableError(f"lookup table: {error}") from error


_WORD = 2**16
# Pixels of the overview around padding that are left out too: averages and wavelets mix the two.
_MIXED = 3
_BLACK = 0.02  # of [0, 1]; padding that is shown darker stays as it is


def padding_range(dataset: Dataset, *, signed: bool) -> tuple[int, int] | None:
    """The lowest and highest stored value of padding (PS3.3 C.7.5.1.1.2); None without padding."""
    value = first_integer(dataset.get("PixelPaddingValue"))
    if value is None:
        return None
    limit = first_integer(dataset.get("PixelPaddingRangeLimit"))
    ends = [value, value if limit is None else limit]
    # With the pixels' sign, whatever VR the elements have.
    ends = [(v + _WORD // 2) % _WORD - _WORD // 2 if signed else v % _WORD for v in ends]
    return min(ends), max(ends)


def is_padding(pixels: StoredPixels, ends: tuple[int, int]) -> NDArray[np.bool_]:
    """Find pixels whose value lies between the ends, both included."""
    return (pixels >= ends[0]) & (pixels <= ends[1])


def without_padding(dataset: Dataset, pixels: StoredPixels) -> NDArray[np.bool_] | None:
    """Find the pixels that are no padding.

    Args:
        dataset: the header.
        pixels: (H, W), of the overview.

    Returns:
        (H, W), False in areas of padding and close to them; None if there is no such area, or
        nothing else. Single pixels of tissue may have the value of padding by chance.
    """
    ends = padding_range(dataset, signed=pixels.dtype.kind == "i")
    if ends is None:
        return None
    square = np.ones((3, 3), np.uint8)
    areas = cv2.erode(is_padding(pixels, ends).astype(np.uint8), square)
    if not areas.any():
        return None
    valid = cv2.dilate(areas, square, iterations=1 + _MIXED) == 0
    return valid if valid.any() else None


def bright_padding(
    dataset: Dataset, overview: StoredPixels, display: DisplayTransform
) -> tuple[int, int] | None:
    """The lowest and highest value of padding that would be shown bright; None without such."""
    ends = padding_range(dataset, signed=overview.dtype.kind == "i")
    if ends is None or without_padding(dataset, overview) is None:
        return None
    values = overview[is_padding(overview, ends)]
    return ends if display.apply(values).max() > _BLACK else None


def blackened(mammogram: Mammogram, ends: tuple[int, int]) -> Mammogram:
    """The same image, padding replaced by a value that is shown black.

    It is decoded in full: a codec that halves the resolution would mix padding with tissue.

    Args:
        mammogram: the image.
        ends: the lowest and highest value of padding.
    """
    dtype = mammogram.overview.pixels.dtype
    info = np.iinfo(dtype)
    candidates = np.arange(info.min, info.max + 1).astype(dtype)
    candidates = candidates[~is_padding(candidates, ends)]
    shown = mammogram.display.apply(candidates)
    # The nearest to the tissue: at the border, both are averaged.
    darkest = candidates[shown <= shown.min()].astype(np.int64)
    middle = int(np.median(mammogram.overview.pixels))
    black = darkest[np.argmin(np.abs(darkest - middle))]

    @cache
    def decode(_: int) -> Level:
        whole = mammogram.decode(0)
        pixels = np.where(is_padding(whole.pixels, ends), dtype.type(black), whole.pixels)
        return replace(whole, pixels=pixels)

    return replace(mammogram, overview=overview_of(decode(0)), most_reduced=0, decode=decode)
