"""From a DICOM header to a `DisplayTransform`: lookup tables, windows, inversion, padding.

A lookup table has precedence over a window, and the first usable one of several is taken. An image
without a usable transform is displayed by a linear ramp that is fitted to its tissue.
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
from rsna_bcd.imaging.mammogram import (
    ImageError,
    Mammogram,
    ResolutionLevel,
    StoredPixels,
    reduce_to_overview,
)
from rsna_bcd.imaging.parsing import UNPARSABLE, first_integer
from rsna_bcd.imaging.quality import QualityFlag
from rsna_bcd.imaging.voi import (
    BoolMask,
    DisplayTransform,
    LookupTable,
    Rescale,
    Values,
    VOITransform,
    Window,
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
_STEP = 7  # these checks use every seventh pixel of the overview
_LARGEST = 1e9  # of slopes and windows; stored values have 16 bits
_WORD = 2**16

_MIXED = 3  # pixels of the overview around padding: averages and wavelets mix padding and tissue
_BLACK = 0.02  # of [0, 1]; padding that is displayed darker stays as it is


class _UnusableError(Exception):
    """A transform of the header that cannot be applied; the message describes it."""


def display_transform(dataset: Dataset, pixels: StoredPixels) -> DisplayTransform:
    """Read the display transform of a header.

    Args:
        dataset: the header.
        pixels: stored values of the image or its overview, to check the transforms and to fit a
            ramp where the header has no usable one.

    Raises:
        ImageError: the modality transform makes no image.
    """
    signed = pixels.dtype.kind == "i"
    valid = _valid_pixels(dataset, pixels)
    modality, flags = _modality_transform(dataset, float(pixels.max()), signed=signed)
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
        except _UnusableError as error:
            flags.append(flag)
            discarded.append(str(error))
        else:
            return DisplayTransform(modality, voi, inverted, total, position, tuple(flags))
    if QualityFlag.WINDOW_DISCARDED not in flags:
        flags.append(QualityFlag.NO_WINDOW)
    ramp = fit_ramp(values, inverted=inverted, valid=valid, discarded="; ".join(discarded))
    return DisplayTransform(modality, ramp, inverted, flags=tuple(flags))


def _modality_transform(
    dataset: Dataset, largest: float, *, signed: bool
) -> tuple[Rescale | LookupTable, list[QualityFlag]]:
    """The modality LUT if there is a usable one, else rescale, else identity; and the flags."""
    flags: list[QualityFlag] = []
    for item in _items(dataset, "ModalityLUTSequence", "PixelValueTransformationSequence"):
        try:
            return _read_lookup_table(item, largest, signed=signed), flags
        except _UnusableError:
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


def _inversion(dataset: Dataset, values: Values, valid: BoolMask | None) -> tuple[bool, bool]:
    """Whether the image is inverted, and whether the header contradicts itself about that.

    MONOCHROME1 is inverted, although many such files have the shape IDENTITY. The shape INVERSE of
    MONOCHROME2 is respected where the background becomes dark.
    """
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    if str(dataset.PhotometricInterpretation).strip().upper() == "MONOCHROME1":
        return True, shape == "IDENTITY"
    if shape != "INVERSE":
        return False, False
    # The background may be padding, or beside it.
    parts = [values] if valid is None else [values, values[valid].reshape(1, -1)]
    return any(has_bright_background(_normalize(part)) for part in parts), True


def _voi_transforms(
    dataset: Dataset, values: Values, *, signed: bool
) -> Iterator[tuple[QualityFlag, int, int, Callable[[], VOITransform]]]:
    """The transforms of the header, in order of precedence.

    Yields:
        The flag if it is discarded, its position, the number of its kind, and a function that
        reads it and raises _UnusableError.
    """
    # The first input of a VOI table is signed if its inputs are (PS3.3 C.11.2.1.1).
    largest, signed = float(values.max()), signed or bool(values.min() < 0)
    items = _items(dataset, "VOILUTSequence", "FrameVOILUTSequence")
    for n, item in enumerate(items, 1):
        read = partial(_read_voi_lookup_table, item, largest, signed=signed)
        yield QualityFlag.LUT_DISCARDED, n, len(items), read
    for source in _sources(dataset, "FrameVOILUTSequence"):
        function = str(source.get("VOILUTFunction") or "LINEAR").strip().upper()
        try:
            centers, widths = (_values(source.get(f"Window{key}")) for key in ("Center", "Width"))
            pairs = [
                (center, width)
                for center, width in zip(centers, widths, strict=False)
                if center not in (None, "") and width not in (None, "")
            ]
        except UNPARSABLE as error:  # text that is no number
            pairs = [(error, error)]
        for n, pair in enumerate(pairs, 1):
            yield QualityFlag.WINDOW_DISCARDED, n, len(pairs), partial(_window, function, *pair)


def _window(function: str, center: Any, width: Any) -> Window:
    try:
        center, width = float(center), float(width)
    except (ValueError, TypeError) as error:
        raise _UnusableError(f"window: {center}") from error
    known = function in ("LINEAR", "LINEAR_EXACT", "SIGMOID")
    too_narrow = width < 1 if function == "LINEAR" else width <= 0
    if not known or too_narrow or not _are_usable(center, width):
        raise _UnusableError(f"{function} {center:g} {width:g}")
    return Window(function, center, width)


def _check_contrast(
    voi: VOITransform, values: Values, valid: BoolMask | None, *, inverted: bool
) -> None:
    """Raise _UnusableError if a transform hides (nearly) all contrast of the breast."""
    inside = (values if valid is None else values[valid]).ravel()
    displayed = voi(np.append(inside[::_STEP], [inside.min(), inside.max()]).astype(np.float32))
    if np.ptp(displayed) < _LEAST_CONTRAST:
        raise _UnusableError(str(voi))
    bright = 1 - displayed if inverted else displayed
    if (bright > 1 - _CLIPPED).mean() < _FEW and (bright < _CLIPPED).mean() < 1 - _FEW:
        return  # the breast is large enough to be among the others
    image = _normalize(-values if inverted else values)
    breast = breast_mask(image if valid is None else np.where(valid, image, np.float32(0)))
    if breast is not None:
        displayed = voi(values[breast])
        if (np.abs(displayed - 0.5) >= 0.5 - _CLIPPED).mean() > _MOST_CLIPPED:
            raise _UnusableError(str(voi))


def _normalize(values: Values) -> Values:
    """Scale values to [0, 1], outliers clipped."""
    low, high = value_range(values)
    scaled: Values = np.clip((values - low) / np.float32(high - low), 0, 1)
    return scaled


def _read_lookup_table(item: Dataset, largest_input: float, *, signed: bool) -> LookupTable:
    """Read an item of a modality or VOI LUT sequence (PS3.3 C.11.1.1, C.11.2.1.1).

    Tables in real files announce other bits, other counts or another sign than their data have.
    The data decide where they are unambiguous.

    Args:
        item: the item.
        largest_input: a table with fewer entries than announced is used if it reaches so far.
        signed: whether the inputs, and so the first input of the table, are signed.

    Raises:
        _UnusableError: descriptor or data are absent, incomplete or contradictory.
    """
    descriptor = _integers(item, "LUTDescriptor")
    if len(descriptor) != 3:
        raise _UnusableError(f"lookup table with a descriptor of {len(descriptor)} values")
    # The first value is unsigned, whatever VR the descriptor has; 0 stands for 65,536.
    count, first, bits = descriptor[0] % _WORD or _WORD, descriptor[1], descriptor[2]
    if signed and first >= _WORD // 2:
        first -= _WORD
    if not signed and first < 0 and first + _WORD <= largest_input:  # the descriptor's VR is SS
        first += _WORD
    data = _get(item, "LUTData")
    if not isinstance(data, bytes):  # bytes are little endian: `parse_dicom` swaps other files
        data = np.array([v % _WORD for v in _integers(item, "LUTData")], "<u2").tobytes()
    if bits <= 8 and len(data) < 2 * count:  # bytes, packed two to a word if in words
        entries: NDArray[np.unsignedinteger[Any]] = np.frombuffer(data, np.uint8)
    else:
        entries = np.frombuffer(data[: len(data) // 2 * 2], "<u2")
    if not entries.size or (entries.size < count and first + entries.size <= largest_input):
        raise _UnusableError(f"lookup table of {entries.size} entries, {count} announced")
    return LookupTable(first, entries[:count].astype(np.float32))


def _read_voi_lookup_table(item: Dataset, largest_input: float, *, signed: bool) -> LookupTable:
    """Read an item of a VOI LUT sequence; the entries are divided by full scale.

    Full scale is 2**bits - 1, as announced: tables of GE end at 3905 of 4095. Only if an entry is
    beyond that, or all are below half of it, is the largest entry full scale.

    Raises:
        _UnusableError: see `_read_lookup_table`; or all entries are 0.
    """
    table = _read_lookup_table(item, largest_input, signed=signed)
    largest = float(table.entries.max())
    if largest == 0:
        raise _UnusableError(f"lookup table of {len(table.entries)} entries of 0")
    bits = _integers(item, "LUTDescriptor")[2]
    announced = 2.0**bits - 1 if 1 <= bits <= 16 else largest
    full = announced if announced / 2 <= largest <= announced else largest
    return LookupTable(table.first, table.entries / np.float32(full))


def _get(item: Dataset, keyword: str) -> Any:
    try:
        return item.get(keyword)
    except UNPARSABLE as error:
        raise _UnusableError(f"lookup table: {error}") from error


def _integers(item: Dataset, keyword: str) -> list[int]:
    """The values of an element that may have one or several."""
    value = _get(item, keyword)
    if value is None or isinstance(value, str | bytes):
        raise _UnusableError("lookup table without a descriptor or data")
    try:
        return [int(v) for v in np.atleast_1d(value).tolist()]
    except (TypeError, ValueError) as error:
        raise _UnusableError(f"lookup table: {error}") from error


def _sources(dataset: Dataset, group: str) -> Iterator[Dataset]:
    """The header, then its functional groups of one kind (PS3.3 C.7.6.16), the frame's first."""
    yield dataset
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for groups in _sequence(dataset, keyword)[:1]:
            yield from _sequence(groups, group)[:1]


def _items(dataset: Dataset, keyword: str, group: str) -> list[Dataset]:
    """The items of a sequence, from the first source that has any."""
    sources = (_sequence(source, keyword) for source in _sources(dataset, group))
    return next((items for items in sources if items), [])


def _sequence(dataset: Dataset, keyword: str) -> list[Dataset]:
    value = dataset.get(keyword)
    return list(value) if isinstance(value, Sequence) else []


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, MultiValue) else [value]


def _first(value: Any) -> Any:
    """The first value of an element; None where it is absent or blank."""
    first = _values(value)[:1]
    return first[0] if first and first[0] != "" else None


def _are_usable(*numbers: float) -> bool:
    """Whether float32 can represent the numbers well; not so NaN."""
    return all(abs(number) <= _LARGEST for number in numbers)


def _padding_range(dataset: Dataset, *, signed: bool) -> tuple[int, int] | None:
    """The lowest and highest stored value of padding (PS3.3 C.7.5.1.1.2); None without padding."""
    value = first_integer(dataset.get("PixelPaddingValue"))
    if value is None:
        return None
    limit = first_integer(dataset.get("PixelPaddingRangeLimit"))
    ends = [value, value if limit is None else limit]
    # With the pixels' sign, whatever VR the elements have.
    ends = [(v + _WORD // 2) % _WORD - _WORD // 2 if signed else v % _WORD for v in ends]
    return min(ends), max(ends)


def _is_padding(pixels: StoredPixels, ends: tuple[int, int]) -> BoolMask:
    return (pixels >= ends[0]) & (pixels <= ends[1])


def _valid_pixels(dataset: Dataset, pixels: StoredPixels) -> BoolMask | None:
    """Find the pixels of an overview that are neither padding nor close to it.

    Returns:
        (H, W); None if there is no area of padding, or nothing else. Single pixels of tissue may
        have the value of padding by chance.
    """
    ends = _padding_range(dataset, signed=pixels.dtype.kind == "i")
    if ends is None:
        return None
    square = np.ones((3, 3), np.uint8)
    areas = cv2.erode(_is_padding(pixels, ends).astype(np.uint8), square)
    if not areas.any():
        return None
    valid = cv2.dilate(areas, square, iterations=1 + _MIXED) == 0
    return valid if valid.any() else None


def blacken_padding(mammogram: Mammogram, dataset: Dataset) -> Mammogram:
    """Replace padding that would be displayed bright by a value that is displayed black.

    Such an image is decoded in full: a codec that halves the resolution would mix padding with
    tissue.
    """
    overview = mammogram.overview.pixels
    ends = _padding_range(dataset, signed=overview.dtype.kind == "i")
    if ends is None or _valid_pixels(dataset, overview) is None:
        return mammogram
    if mammogram.display.apply(overview[_is_padding(overview, ends)]).max() <= _BLACK:
        return mammogram
    dtype = overview.dtype
    info = np.iinfo(dtype)
    candidates = np.arange(info.min, info.max + 1).astype(dtype)
    candidates = candidates[~_is_padding(candidates, ends)]
    displayed = mammogram.display.apply(candidates)
    # The nearest to the tissue, because both are averaged at the border.
    darkest = candidates[displayed <= displayed.min()].astype(np.int64)
    black = darkest[np.argmin(np.abs(darkest - int(np.median(overview))))]

    @cache
    def decode(_: int) -> ResolutionLevel:
        whole = mammogram.decode(0)
        pixels = np.where(_is_padding(whole.pixels, ends), dtype.type(black), whole.pixels)
        return replace(whole, pixels=pixels)

    return replace(mammogram, overview=reduce_to_overview(decode(0)), most_reduced=0, decode=decode)
