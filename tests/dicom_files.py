"""DICOM files for tests: written with pydicom, compressed with GDCM."""

from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation as MammographyStorage
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SYNTAXES = {
    "jpeg2000": gdcm.TransferSyntax.JPEG2000Lossless,
    "jpeg": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "jpeg_ls": gdcm.TransferSyntax.JPEGLSLossless,
    "rle": gdcm.TransferSyntax.RLELossless,
}


def dataset_of(pixels: np.ndarray, bits: int, **elements: Any) -> Dataset:
    """A mammogram with stored values `pixels`; `elements` are set last, None removes one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = MammographyStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["test"])
    dataset.Modality = "MG"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    content = pixels.tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def write_dicom(
    path: Path, pixels: np.ndarray, *, bits: int, syntax: str = "raw", **elements: Any
) -> Path:
    """Write a DICOM file; `syntax` is `raw` or a key of SYNTAXES."""
    dataset_of(pixels, bits, **elements).save_as(path, enforce_file_format=True)
    if syntax != "raw":
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(SYNTAXES[syntax]))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    return path
