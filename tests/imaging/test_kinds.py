"""What a file is instead of a mammogram, by class and by modality."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import write_dicom
from pydicom import uid

from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.headers import read_header
from rsna_bcd.imaging.kinds import SECONDARY_CAPTURE
from rsna_bcd.imaging.mammogram import ImageError

PIXELS = np.arange(600, dtype=np.uint16).reshape(30, 20)


@pytest.mark.parametrize(
    ("sop_class", "modality", "kind"),
    [
        (uid.CTImageStorage, "CT", "CT image"),
        (uid.CTImageStorage, None, "CT image"),
        (uid.EnhancedMRImageStorage, "MR", "MR image"),
        (uid.UltrasoundImageStorage, "US", "ultrasound image"),
        (uid.SecondaryCaptureImageStorage, "OT", SECONDARY_CAPTURE),
        (uid.MultiFrameTrueColorSecondaryCaptureImageStorage, "SC", SECONDARY_CAPTURE),
        (uid.BreastTomosynthesisImageStorage, "MG", "breast tomosynthesis"),
        (uid.MammographyCADSRStorage, "SR", "CAD report"),
        (uid.EnhancedSRStorage, "SR", "structured report"),
        (uid.EncapsulatedPDFStorage, "DOC", "PDF document"),
        (uid.GrayscaleSoftcopyPresentationStateStorage, "PR", "presentation state"),
        (uid.MediaStorageDirectoryStorage, None, "DICOMDIR"),
        (uid.DigitalMammographyXRayImageStorageForPresentation, "CT", "CT image"),
        (uid.DigitalMammographyXRayImageStorageForPresentation, "XY", "image of modality XY"),
        (uid.DigitalMammographyXRayImageStorageForPresentation, "MG", None),
        (uid.DigitalXRayImageStorageForPresentation, None, None),
        (uid.ComputedRadiographyImageStorage, "CR", None),
        ("1.2.3", "", None),
    ],
)
def test_it_is_named(
    sop_class: str, modality: str | None, kind: str | None, tmp_path: Path
) -> None:
    elements: dict[str, Any] = {"SOPClassUID": sop_class, "Modality": modality}
    path = write_dicom(tmp_path / "file", PIXELS, bits=12, **elements)
    found = read_header(path)["kind"]
    if kind is None:
        assert found is None
        assert read_dicom(path).height == 30
        return
    assert str(found).startswith(kind)
    with pytest.raises(ImageError, match="no mammogram"):
        read_dicom(path)
    no_image = write_dicom(tmp_path / "file", PIXELS, bits=12, **elements, Rows=None)
    with pytest.raises(ImageError, match=re.escape(f"no image, but {kind}")):
        read_header(no_image)


def test_a_digitised_film_is_read_although_it_is_a_secondary_capture(tmp_path: Path) -> None:
    """Those of CBIS-DDSM are."""
    film = write_dicom(
        tmp_path / "film", PIXELS, bits=12, SOPClassUID=uid.SecondaryCaptureImageStorage
    )
    assert read_header(film)["kind"] == SECONDARY_CAPTURE
    assert read_dicom(film).height == 30


@pytest.mark.parametrize(
    ("elements", "presentation", "synthetic"),
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING", 0),
        ({"SOPClassUID": uid.DigitalMammographyXRayImageStorageForProcessing}, "FOR PROCESSING", 0),
        ({"SOPClassUID": uid.ComputedRadiographyImageStorage}, None, 0),
        ({"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]},
         "FOR PRESENTATION", 1),
        ({"ImageType": ["ORIGINAL", "PRIMARY"]}, "FOR PRESENTATION", 0),
        ({"ImageType": "ORIGINAL"}, "FOR PRESENTATION", 0),
    ],
)  # fmt: skip
def test_how_the_pixels_were_made(
    elements: dict[str, Any], presentation: str | None, synthetic: int, tmp_path: Path
) -> None:
    header = read_header(write_dicom(tmp_path / "file", PIXELS, bits=12, **elements))
    assert (header["presentation"], header["synthetic"]) == (presentation, synthetic)
