"""From a DICOM header to a `Presentation`: which modality transform, which window.

A lookup table comes before a window where both are there, the first of several windows is taken,
and an image without a window (or with one that is no window, or would show nothing) is shown from
its minimum to its maximum, which the manifest then says.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from rsna_bcd.imaging.mammogram import ImageError, StoredPixels, extremes_of
from rsna_bcd.imaging.window import (
    Linear,
    LinearExact,
    LookupTable,
    MinMax,
    Presentation,
    Rescale,
    Sigmoid,
    ValuesOfInterest,
)

# A window that leaves less contrast than this between the darkest and the brightest pixel was made
# for another depth: 8-bit pixels under a 12-bit window keep .06. Fitting ones keep .5 and more.
_LEAST_CONTRAST = 0.1
_LARGEST = 1e9  # of slopes and windows; stored values have 16 bits

_FUNCTIONS: dict[str, Callable[[float, float], ValuesOfInterest]] = {
    "LINEAR": Linear,
    "LINEAR_EXACT": LinearExact,
    "SIGMOID": Sigmoid,
}
_SMALLEST_WIDTH = {"LINEAR": 1.0, "LINEAR_EXACT": 0.0, "SIGMOID": 0.0}


def presentation_of(dataset: Dataset, pixels: StoredPixels) -> Presentation:
    """How the header wants its pixels shown.

    Args:
        dataset: the header.
        pixels: stored values, of the whole image or of its overview, for the min-max window of an
            image whose own does not fit.

    Raises:
        ImageError: a modality transform that makes no image.
    """
    signed = pixels.dtype.kind == "i"
    modality = _modality(dataset, signed)
    # Extremes stay extremes: rescaling is monotonous, and so are the lookup tables that occur.
    extremes = modality(extremes_of(pixels))
    if extremes[0] == extremes[1]:
        raise ImageError("the modality transform maps all pixels to one value")
    windows = 1
    voi: ValuesOfInterest
    try:
        # The first input of a VOI table is signed if what goes into it is (PS3.3 C.11.2.1.1).
        announced, windows = _announced(dataset, signed or bool(extremes.min() < 0))
    except _UnfitError as unfit:
        voi = MinMax(0, 1, str(unfit)).of(extremes)
    else:
        if announced is None:
            voi = MinMax(0, 1).of(extremes)
        elif np.ptp(announced(extremes)) < _LEAST_CONTRAST:
            voi = MinMax(0, 1, str(announced)).of(extremes)
        else:
            voi = announced
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    return Presentation(modality, voi, inverted, windows)


class _UnfitError(Exception):
    """What the header asks for cannot be done; the text says what that is."""


def _modality(dataset: Dataset, signed: bool) -> Rescale | LookupTable:
    """Modality LUT if present, else rescale, else identity."""
    if dataset.get("ModalityLUTSequence"):
        return _lookup_table(dataset.ModalityLUTSequence[0], signed)[0]
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    rescale = Rescale(
        1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    )
    if rescale.slope == 0 or not _are_usable(rescale.slope, rescale.intercept):
        raise ImageError(f"rescale slope {slope} and intercept {intercept} make no image")
    return rescale


def _announced(dataset: Dataset, signed: bool) -> tuple[ValuesOfInterest | None, int]:
    """VOI LUT if present, else the first window, else None; and of how many it is the first."""
    if dataset.get("VOILUTSequence"):
        try:
            table, largest = _lookup_table(dataset.VOILUTSequence[0], signed)
        except ImageError as error:
            raise _UnfitError(error) from error
        voi = LookupTable(table.first, table.entries / np.float32(largest))
        return voi, len(dataset.VOILUTSequence)
    windows = _windows(dataset)
    if not windows:
        return None, 1
    center, width = windows[0]
    name = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    smallest = _SMALLEST_WIDTH.get(name)
    if smallest is None or width < smallest or width <= 0 or not _are_usable(center, width):
        raise _UnfitError(f"{name} {center:g} {width:g}")
    return _FUNCTIONS[name](center, width), len(windows)


def _are_usable(*numbers: float) -> bool:
    """Whether float32 can calculate with the numbers of a header; NaN is none of them."""
    return all(abs(number) <= _LARGEST for number in numbers)


def _windows(dataset: Dataset) -> list[tuple[float, float]]:
    """Center and width of each window; pairs of which one is blank are none."""
    try:
        centers, widths = (_several(dataset.get(f"Window{key}")) for key in ("Center", "Width"))
        pairs = zip(centers, widths, strict=False)
        return [
            (float(c), float(w)) for c, w in pairs if c not in (None, "") and w not in (None, "")
        ]
    except (ValueError, TypeError) as error:
        raise _UnfitError(f"window: {error}") from error


def _several(value: Any) -> list[Any]:
    """The values of an element that may have one or several."""
    return list(value) if isinstance(value, MultiValue) else [value]


def _lookup_table(item: Dataset, signed: bool) -> tuple[LookupTable, int]:
    """A table and the largest value its bits can hold (PS3.3 C.11.1.1.1, C.11.2.1.1)."""
    count, first, bits = (int(v) for v in item.LUTDescriptor)
    count = count or 2**16  # 0 stands for 65,536, which does not fit the 16 bits of the field
    if signed and first >= 2**15:
        first -= 2**16  # parsed as unsigned, meant like the pixels
    data = item.LUTData
    entries: NDArray
    if isinstance(data, bytes):
        entries = np.frombuffer(data, np.uint8 if len(data) < 2 * count else "<u2")
    else:
        entries = np.asarray(data)
    if len(entries) < count or not 8 <= bits <= 16:
        raise ImageError(
            f"lookup table of {len(entries)} entries, {count} of {bits} bits announced"
        )
    return LookupTable(first, entries[:count].astype(np.float32)), 2**bits - 1
