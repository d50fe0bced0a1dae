"""From a projection to a DICOM file: machines, orientation, markers, noise, bits, window, header.

Counts and header values of the machines were tabulated from the competition's `train.csv` and from
the headers of 10,920 of its DICOM files.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from rsna_bcd.phantom.anatomy import Projection

_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"  # Digital X-Ray Image Storage - For Presentation
_UID_ROOT = "1.2.826.0.1.3680043.8.498"  # pydicom's root, free for such use


@dataclass(frozen=True)
class Detector:
    """A matrix of a machine; `height_mm` is rows times pitch, `share` that of the images."""

    rows: int
    columns: int
    height_mm: float
    share: float


@dataclass(frozen=True)
class Machine:
    """How a machine stores its images.

    Attributes:
        machine_id: as in the tables.
        site_id: the only site that uses it.
        patients: patients seen on it in the real training set.
        detectors: from small to large; large breasts get the large one.
        bits: bits stored.
        photometric: MONOCHROME1 stores tissue dark.
        window: style of the VOI window in the header; `absent` leaves it out.
        padding: whether the header has PixelPaddingValue.
        spacing: whether the header has PixelSpacing.
        turned: share of images that face the other way than their laterality says.
        periphery_mm: how far from the skin the image is darker because the breast is thinner.
        skin: brightness of the skin line.
        fat: brightness of fat.
        noise: standard deviation of the quantum noise in display units of [0, 1].
        marker: style of the burned-in view marker.
        collimator: whether the edges of the collimator show.
    """

    machine_id: int
    site_id: int
    patients: int
    detectors: tuple[Detector, ...]
    bits: int = 12
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2"
    window: Literal["full", "narrow", "sigmoid", "sigmoid_fixed", "absent"] = "full"
    padding: bool = True
    spacing: bool = False
    turned: float = 0.0
    periphery_mm: float = 25.0
    skin: float = 0.05
    fat: float = 0.3
    noise: float = 0.02
    marker: Literal["boxed", "plain", "none"] = "plain"
    collimator: bool = False


_HOLOGIC = (Detector(3328, 2560, 217.0, 0.38), Detector(4096, 3328, 267.0, 0.62))
_GE = (Detector(2294, 1914, 229.4, 0.33), Detector(3062, 2394, 306.2, 0.67))
_GE_SMALL = (Detector(2294, 1914, 229.4, 1.0),)
_COMPUTED = (Detector(2776, 2082, 277.6, 1.0),)

MACHINES = {
    machine.machine_id: machine
    for machine in (
        Machine(49, 1, 4589, _HOLOGIC, spacing=True, turned=0.41, periphery_mm=12.0, skin=0.22,
                fat=0.22, noise=0.03, marker="boxed"),
        Machine(93, 1, 388, _GE, window="sigmoid", turned=0.02),
        Machine(170, 1, 191, _HOLOGIC, spacing=True, skin=0.1),
        Machine(190, 1, 27, _GE_SMALL, window="sigmoid", padding=False),
        Machine(197, 1, 4, _GE_SMALL, window="absent", padding=False),
        Machine(210, 1, 234, (Detector(4740, 3540, 237.0, 0.74), Detector(5928, 4728, 296.4, 0.26)),
                bits=10, photometric="MONOCHROME1", padding=False, spacing=True, turned=0.02),
        Machine(216, 1, 386, _GE_SMALL, window="sigmoid", padding=False),
        Machine(21, 2, 2000, _COMPUTED, window="narrow", fat=0.36),
        Machine(29, 2, 2021, (Detector(5355, 4915, 267.8, 1.0),), bits=16,
                photometric="MONOCHROME1", window="sigmoid_fixed", periphery_mm=15.0, fat=0.4,
                marker="none", collimator=True),
        Machine(48, 2, 2074, (Detector(4096, 3328, 267.0, 1.0),), spacing=True, periphery_mm=12.0,
                skin=0.22, fat=0.22, noise=0.03, marker="boxed"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Exposure:
    """One stored image.

    Attributes:
        pixels: (H, W) uint16, stored values.
        header: DICOM keyword to value, of the elements that differ between images.
        mirrored: whether the chest wall is on the right.
    """

    pixels: np.ndarray
    header: dict[str, object] = field(repr=False)
    mirrored: bool


def choose_detector(machine: Machine, size: float) -> Detector:
    """Take the matrix for a breast of standard score `size`: large breasts, large detectors."""
    # The logistic function stands in for the normal distribution: close enough for a share.
    quantile = 1 / (1 + np.exp(-1.7 * size))
    cumulated = 0.0
    for detector in machine.detectors:
        cumulated += detector.share
        if quantile <= cumulated:
            break
    return detector


def matrix(detector: Detector, pixel_mm: float) -> tuple[int, int]:
    """Rows and columns of the stored image at a pitch of `pixel_mm`, the detector's aspect."""
    rows = round(detector.height_mm / pixel_mm)
    return rows, round(rows * detector.columns / detector.rows)


def expose(
    projection: Projection,
    columns: int,
    machine: Machine,
    laterality: str,
    view: str,
    rng: np.random.Generator,
) -> Exposure:
    """Make the stored image of a projection.

    Args:
        projection: of the breast, chest wall on the left.
        columns: of the detector.
        machine: the machine.
        laterality: L or R; left breasts face right unless the machine turns them.
        view: for the marker.
        rng: noise, window and orientation of this image.
    """
    brightness = _brightness(projection, machine, rng)
    display = np.zeros((brightness.shape[0], columns), np.float32)
    display[:, : brightness.shape[1]] = brightness
    mirrored = (laterality == "R") != (rng.random() < machine.turned)
    if mirrored:
        display = np.ascontiguousarray(display[:, ::-1])
    if machine.marker != "none":
        _burn_in(display, f"{laterality} {view}", machine, mirrored)
    if machine.collimator and rng.random() < 0.5:
        _shade_edge(display, mirrored, rng)
    display = np.clip(display, 0.0, 1.0)
    window = _choose_window(machine, rng)
    inverted = machine.photometric == "MONOCHROME1"
    pixels = _stored(1 - display if inverted else display, window)
    highest = 2**machine.bits - 1
    background = 0
    if inverted:
        # The white of 16-bit machines is below the highest value that they could store.
        background = 3044 + 32 * int(rng.integers(16)) if machine.bits == 16 else highest
    pixels[display <= 0] = background
    header: dict[str, object] = {
        "PhotometricInterpretation": machine.photometric,
        "BitsStored": machine.bits,
        "HighBit": machine.bits - 1,
        "ImageLaterality": laterality,
        **window,
    }
    if machine.padding:
        header["PixelPaddingValue"] = background
    if machine.spacing:
        header["PixelSpacing"] = [round(projection.pixel_mm, 6)] * 2
    return Exposure(np.clip(pixels, 0, highest).astype(np.uint16), header, mirrored)


def _brightness(projection: Projection, machine: Machine, rng: np.random.Generator) -> np.ndarray:
    """Brightness in display units, (H, w) float32: 0 outside the breast, above 0 inside."""
    depth = projection.depth
    # The edge of the compressed breast is round; machines even it out more or less.
    rim = 1 - np.minimum(depth / np.float32(machine.periphery_mm), 1)
    thickness = np.sqrt(1 - rim * rim)
    fat = machine.fat + rng.normal(0, 0.03)
    tissue = (fat + rng.uniform(0.9, 1.1) * projection.tissue) * (0.25 + 0.75 * thickness)
    skin = machine.skin * np.exp(-np.square((depth - 1.2) / 0.9))
    noise = rng.standard_normal(depth.shape, dtype=np.float32)
    noisy = tissue + skin + machine.noise * noise
    bounded = np.maximum(noisy, 0.01)
    bounded = bounded / np.sqrt(np.sqrt(1 + bounded**4))  # the shoulder of the film's curve
    return bounded * (depth > 0)


def _choose_window(machine: Machine, rng: np.random.Generator) -> dict[str, Any]:
    """Draw the elements of a VOI window in the machine's style; the first centre and width apply.

    Without VOILUTFunction, a window is LINEAR.
    """
    function = None
    if machine.window == "absent":
        return {}
    if machine.window == "full":
        centres, widths = ([511.0], [1023.0]) if machine.bits == 10 else ([2047.0], [4096.0])
    elif machine.window == "narrow":
        centres, widths = [2048.0], [4096.0]
        if rng.random() >= 0.5:
            centres, widths = [float(rng.integers(1650, 1750))], [1500.0]
    elif machine.window == "sigmoid":
        centre, step = float(rng.integers(2200, 3000)), 6.0 * float(rng.integers(4, 9))
        centres, widths = [centre, centre + step, centre - 1.5 * step], [900.0, 750.0, 1050.0]
        function = "SIGMOID"
    elif rng.random() < 0.05:
        centres, widths = [2304.0, 2304.0, 2816.0, 2048.0, 1894.4], [2048.0] * 3 + [2560.0, 2867.2]
        function = "LINEAR"
    else:
        centres, widths = [1802.31, 1802.31, 2020.704, 1583.916], [1091.97] * 4
        function = "SIGMOID"
    window: dict[str, Any] = {"WindowCenter": centres, "WindowWidth": widths}
    return window if function is None else {**window, "VOILUTFunction": function}


def _stored(display: np.ndarray, window: Mapping[str, Any]) -> np.ndarray:
    """Stored values, rounded, that `window` shows as `display` in [0, 1]; (H, W) float32."""
    if not window:
        return np.rint(500 + 3000 * display)
    centre, width = window["WindowCenter"][0], window["WindowWidth"][0]
    if window.get("VOILUTFunction") == "SIGMOID":  # PS3.3 C.11.2.1.3.1, solved for x
        bounded = np.clip(display, 0.01, 0.99)
        return np.rint(centre + width / 4 * np.log(bounded / (1 - bounded)))
    # PS3.3 C.11.2.1.2.1, solved for x
    return np.rint(centre - 0.5 + (display - 0.5) * (width - 1))


def _shade_edge(display: np.ndarray, mirrored: bool, rng: np.random.Generator) -> None:
    """Let the collimator's edge show as a faint bar in the air, parallel to the chest wall."""
    columns = display.shape[1]
    start = round(columns * rng.uniform(0.6, 0.7))
    from_wall = display[:, ::-1] if mirrored else display
    bar = from_wall[:, start : start + max(1, columns // 80)]
    np.maximum(bar, 0.04, out=bar)


def _burn_in(display: np.ndarray, text: str, machine: Machine, mirrored: bool) -> None:
    """Write the view in the corner away from the chest wall."""
    rows, columns = display.shape
    scale = rows / 1200
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x = round(0.06 * columns) if mirrored else round(0.94 * columns) - width
    y = round(0.06 * rows)
    value = 0.75 if machine.marker == "plain" else 1.0
    cv2.putText(display, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, value, 1, cv2.LINE_AA)
    if machine.marker == "boxed":
        cv2.rectangle(display, (x - 3, y - height - 3), (x + width + 2, y + 3), value, 1)


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    header: dict[str, object],
    patient_id: str,
    image_id: str,
    syntax: str,
) -> None:
    """Write one image; the file is either whole or absent.

    Args:
        path: of the file; its folder exists.
        pixels: (H, W) uint16.
        header: DICOM keyword to value, with BitsStored, HighBit and PhotometricInterpretation.
        patient_id: a number.
        image_id: a number.
        syntax: UID of JPEG 2000 lossless (...4.90) or JPEG lossless SV1 (...4.70).
    """
    dataset = _dataset(pixels, header, patient_id, image_id)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        plain, coded = Path(folder) / "plain.dcm", Path(folder) / "coded.dcm"
        dataset.save_as(plain, enforce_file_format=True)
        transcode(plain, coded, syntax)
        # Only the compressed frame is GDCM's: it would add elements of its own to the header.
        dataset.PixelData = pydicom.dcmread(coded).PixelData
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        dataset.save_as(coded, enforce_file_format=True)
        coded.replace(path)


def _dataset(
    pixels: np.ndarray, header: dict[str, object], patient_id: str, image_id: str
) -> Dataset:
    """Build the uncompressed data set with the elements that the competition's files have."""
    study = f"{_UID_ROOT}.{patient_id}"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.UID(_PRESENTATION)
    meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"{study}.1.{image_id}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.preamble, dataset.file_meta = bytes(128), meta
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientID = patient_id
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = f"{study}.1"
    dataset.InstanceNumber = image_id
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 16
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = 1
    dataset.LossyImageCompression = "00"
    dataset.PartialView = "NO"  # of all that the real ones have, this alone says mammogram
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def transcode(source: Path, target: Path, syntax: str) -> None:
    """Change the transfer syntax of a DICOM file to that of a UID, with GDCM."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    if not reader.Read():
        raise RuntimeError(f"GDCM cannot read {source}")
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise RuntimeError(f"GDCM cannot transcode {source} to {syntax}")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError(f"GDCM cannot write {target}")
