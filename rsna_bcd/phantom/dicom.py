"""Writes stored values as a DICOM file, compressed without loss."""

import tempfile
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1

_SYNTAXES = {
    JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
}
_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"  # Digital X-Ray Image Storage - For Presentation
_UID_ROOT = "1.2.826.0.1.3680043.8.498"  # pydicom's root, free for such use


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
        header: DICOM keyword to value; must include BitsStored, HighBit and
            PhotometricInterpretation.
        patient_id: number as text.
        image_id: number as text.
        syntax: UID of JPEG 2000 lossless (...4.90) or JPEG lossless SV1 (...4.70).
    """
    dataset = _dataset(pixels, header, patient_id, image_id)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        plain, coded = Path(folder) / "plain.dcm", Path(folder) / "coded.dcm"
        dataset.save_as(plain, enforce_file_format=True)
        _transcode(plain, coded, syntax)
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


def _transcode(source: Path, target: Path, syntax: str) -> None:
    """Compress a DICOM file with GDCM."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    if not reader.Read():
        raise RuntimeError(f"GDCM cannot read {source}")
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(_SYNTAXES[pydicom.uid.UID(syntax)]))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise RuntimeError(f"GDCM cannot compress {source} to {syntax}")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError(f"GDCM cannot write {target}")
