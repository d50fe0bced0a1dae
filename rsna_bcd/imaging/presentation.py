"""From a DICOM header to a `Presentation`: which modality transform, which window.

A lookup table comes before a window where both are there, the first of several windows is taken,
and an image without a window (or with one that would show nothing) is shown from its minimum to
its maximum, which the manifest then says.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from rsna_bcd.imaging.mammogram import ImageError, StoredPixels
from rsna_bcd.imaging.window import (
    FullRange,
    Linear,
    LinearExact,
    LookupTable,
    Presentation,
    Rescale,
    Sigmoid,
    ValuesOfInterest,
)

# A window that leaves less contrast than this between the darkest and the brightest pixel was made
# for another depth: 8-bit pixels under a 12-bit window keep .06. Fitting ones keep .5 and more.
_LEAST_CONTRAST = 0.1

_FUNCTIONS: dict[str, Callable[[float, float], ValuesOfInterest]] = {
    "LINEAR": Linear,
    "LINEAR_EXACT": LinearExact,
    "SIGMOID": Sigmoid,
}
_SMALLEST_WIDTH = {"LINEAR": 1.0, "LINEAR_EXACT": 0.0, "SIGMOID": 0.0}


def presentation_of(dataset: Dataset, pixels: StoredPixels) -> Presentation:
    """How the header wants its pixels shown.

    Raises:
        ImageError: an unknown VOI LUT function, or a window or table that makes no sense.
    """
    signed = pixels.dtype.kind == "i"
    modality = _modality(dataset, signed)
    # Transforms are monotonous, falling ones included: extremes stay extremes.
    extremes = np.sort(modality(np.array([pixels.min(), pixels.max()], np.float32)))
    if extremes[0] == extremes[1]:
        raise ImageError("the modality transform maps all pixels to one value")
    voi = _voi(dataset, signed)
    if voi is None:
        voi = FullRange(float(extremes[0]), float(extremes[1]))
    elif np.ptp(voi(extremes)) < _LEAST_CONTRAST:
        voi = FullRange(float(extremes[0]), float(extremes[1]), f"min-max (unfit {voi})")
    return Presentation(modality, voi, dataset.PhotometricInterpretation == "MONOCHROME1")


def _modality(dataset: Dataset, signed: bool) -> Rescale | LookupTable:
    """Modality LUT if present, else rescale, else identity."""
    if dataset.get("ModalityLUTSequence"):
        return _lookup_table(dataset.ModalityLUTSequence[0], signed)[0]
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    rescale = Rescale(
        1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    )
    if rescale.slope == 0 or not np.isfinite([rescale.slope, rescale.intercept]).all():
        raise ImageError(f"rescale slope {slope} and intercept {intercept} make no image")
    return rescale


def _voi(dataset: Dataset, signed: bool) -> ValuesOfInterest | None:
    """VOI LUT if present, else the first window, else None."""
    if dataset.get("VOILUTSequence"):
        table, largest = _lookup_table(dataset.VOILUTSequence[0], signed)
        return LookupTable(table.first, table.entries / np.float32(largest))
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if center is None or width is None:
        return None
    name = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if name not in _FUNCTIONS:
        raise ImageError(f"unknown VOI LUT function {name}")
    smallest = _SMALLEST_WIDTH[name]
    if width < smallest or width <= 0 or not np.isfinite([center, width]).all():
        raise ImageError(f"window width {width:g} does not fit the function {name}")
    return _FUNCTIONS[name](center, width)


def _first(value: Any) -> float | None:
    """The first of one or several decimal strings; None where there is none."""
    first = value[0] if isinstance(value, MultiValue) and value else value
    return float(first) if first or first == 0 else None


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
