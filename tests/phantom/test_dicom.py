"""DICOM files: pixels survive compression."""

from pathlib import Path

import dicomsdl
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from rsna_bcd.phantom.dicom import write_dicom


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1])
def test_pixels_survive_in_every_decoder(syntax: str, bits: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(bits).integers(0, 2**bits, (37, 53), dtype=np.uint16)
    header: dict[str, object] = {
        "PhotometricInterpretation": "MONOCHROME1",
        "BitsStored": bits,
        "HighBit": bits - 1,
        "ImageLaterality": "L",
        "WindowCenter": [1.5, 2.0],
        "WindowWidth": [10.0, 11.0],
    }
    path = tmp_path / "99.dcm"
    write_dicom(path, pixels, header, "12", "99", syntax)
    assert [file.name for file in tmp_path.iterdir()] == ["99.dcm"]

    dataset = pydicom.dcmread(path)
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert (dataset.PatientID, dataset.InstanceNumber) == ("12", 99)
    assert dataset.BitsStored == bits
    assert list(dataset.WindowCenter) == [1.5, 2.0]
    np.testing.assert_array_equal(dataset.pixel_array, pixels)
    np.testing.assert_array_equal(dicomsdl.open(str(path)).pixelData(), pixels)
