"""From a DICOM header to a `Presentation`: modality transform, VOI transform, inversion.

A lookup table comes before a window where both are there, and the first usable one of several is
taken. An image without a usable one is shown by a linear ramp, fitted to its tissue.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from rsna_bcd.imaging.breast import breast_mask, has_bright_background
from rsna_bcd.imaging.lookup import UnusableError, read_lookup_table, read_voi_lookup_table
from rsna_bcd.imaging.mammogram import ImageError, StoredPixels
from rsna_bcd.imaging.padding import without_padding
from rsna_bcd.imaging.parsing import UNPARSABLE
from rsna_bcd.imaging.quality import QualityFlag
from rsna_bcd.imaging.ramp import fit_ramp, value_range
from rsna_bcd.imaging.window import (
    Linear,
    LinearExact,
    LookupTable,
    Presentation,
    Rescale,
    Sigmoid,
    Values,
    ValuesOfInterest,
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

_FUNCTIONS: dict[str, Callable[[float, float], ValuesOfInterest]] = {
    "LINEAR": Linear,
    "LINEAR_EXACT": LinearExact,
    "SIGMOID": Sigmoid,
}
_SMALLEST_WIDTH = {"LINEAR": 1.0, "LINEAR_EXACT": 0.0, "SIGMOID": 0.0}

_Mask = NDArray[np.bool_] | None


def presentation_of(dataset: Dataset, pixels: StoredPixels) -> Presentation:
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
            return Presentation(modality, voi, inverted, total, position, tuple(flags))
    if QualityFlag.WINDOW_DISCARDED not in flags:
        flags.append(QualityFlag.NO_WINDOW)
    ramp = fit_ramp(values, inverted=inverted, valid=valid, discarded="; ".join(discarded))
    return Presentation(modality, ramp, inverted, flags=tuple(flags))


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
) -> Iterator[tuple[QualityFlag, int, int, Callable[[], ValuesOfInterest]]]:
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


def _window(center: Any, width: Any, name: str) -> ValuesOfInterest:
    """Make the function of a window."""
    try:
        center, width = float(center), float(width)
    except (ValueError, TypeError) as error:
        raise UnusableError(f"window: {center}") from error
    smallest = _SMALLEST_WIDTH.get(name)
    if smallest is None or width < smallest or width <= 0 or not _are_usable(center, width):
        raise UnusableError(f"{name} {center:g} {width:g}")
    return _FUNCTIONS[name](center, width)


def _check_contrast(voi: ValuesOfInterest, values: Values, valid: _Mask, *, inverted: bool) -> None:
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
