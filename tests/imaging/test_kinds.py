"""What a file is instead of a mammogram, by class and by modality."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import write_dicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.headers import SECONDARY_CAPTURE, read_header
from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.imaging.quality import QualityFlag, split_flags

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")

PIXELS = np.arange(80 * 64, dtype=np.uint16).reshape(80, 64)
_OF_PIXELS = (
    QualityFlag.NO_WINDOW, QualityFlag.WINDOW_DISCARDED, QualityFlag.LUT_DISCARDED,
    QualityFlag.INVERSION_CONTRADICTORY, QualityFlag.ORIENTATION_CONTRADICTORY,
)  # fmt: skip


def flags_with_pixels(path: Path) -> list[QualityFlag]:
    """Flags of a file that is read whole, without those that its pixels have."""
    return [flag for flag in read_dicom(path).flags if flag not in _OF_PIXELS]


def test_an_x_ray_of_another_part_is_named_in_all_stages(tmp_path: Path) -> None:
    elements: dict[str, Any] = {"SOPClassUID": uid.DigitalXRayImageStorageForPresentation}
    elements |= {"Modality": "DX", "BodyPartExamined": "CHEST"}
    path = write_dicom(tmp_path / "file", PIXELS, bits=12, **elements)
    assert read_header(path)["kind"] == "X-ray of the chest"
    with pytest.raises(ImageError, match="X-ray of the chest, no mammogram"):
        read_dicom(path)


@pytest.mark.parametrize(
    ("sop_class", "modality", "kind"),
    [
        (uid.CTImageStorage, "CT", "CT image"),
        (uid.CTImageStorage, None, "CT image"),
        (uid.EnhancedMRImageStorage, "MR", "MR image"),
        (uid.UltrasoundImageStorage, "US", "ultrasound image"),
        (uid.SecondaryCaptureImageStorage, "OT", SECONDARY_CAPTURE),
        (uid.MultiFrameTrueColorSecondaryCaptureImageStorage, "SC", SECONDARY_CAPTURE),
        (uid.BreastTomosynthesisImageStorage, "CT", "CT image"),
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
        (uid.ComputedRadiographyImageStorage, "RG", None),
        (uid.DigitalMammographyXRayImageStorageForPresentation, "mg ", None),
        (uid.BreastTomosynthesisImageStorage, "MG", None),
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
        assert read_dicom(path).height == 80
        return
    assert str(found).startswith(kind)
    with pytest.raises(ImageError, match="no mammogram"):
        read_dicom(path)
    no_image = write_dicom(tmp_path / "file", PIXELS, bits=12, **elements, Rows=None)
    with pytest.raises(ImageError, match=re.escape(f"no image, but {kind}")):
        read_header(no_image)


SC = uid.SecondaryCaptureImageStorage
CR = uid.ComputedRadiographyImageStorage


@pytest.mark.parametrize(
    ("elements", "is_film"),
    [
        ({"SOPClassUID": SC, "BodyPartExamined": "BREAST"}, True),  # as those of CBIS-DDSM
        ({"SOPClassUID": SC}, True),
        ({"SOPClassUID": SC, "Modality": "RG", "BodyPartExamined": "Left Breast"}, True),
        ({"SOPClassUID": SC, "Modality": "RG"}, False),
        ({"SOPClassUID": SC, "BodyPartExamined": "CHEST"}, False),
        ({"SOPClassUID": SC, "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, False),
        ({"SOPClassUID": SC, "Modality": "OT", "BodyPartExamined": "BREAST"}, False),
        ({"SOPClassUID": SC, "SeriesDescription": "ROI mask images"}, False),
        ({"SOPClassUID": CR, "Modality": "RG", "BodyPartExamined": "BREAST"}, True),
    ],
)
def test_digitized_film_is_read_by_one_rule(
    elements: dict[str, Any], is_film: bool, tmp_path: Path
) -> None:
    path = write_dicom(tmp_path / "film", PIXELS, bits=12, **elements)
    header = read_header(path)
    if is_film:
        assert header["kind"] is None
        assert header["quality_flags"] == "digitized film"
        assert flags_with_pixels(path) == [QualityFlag.DIGITIZED_FILM]
    else:
        assert header["kind"] == SECONDARY_CAPTURE
        with pytest.raises(ImageError, match="no mammogram"):
            read_dicom(path)


def test_tomosyntheses_are_told_by_their_frames(tmp_path: Path) -> None:
    """Hologic stores its synthetic views in the class of tomosyntheses."""
    tomosynthesis = {"SOPClassUID": uid.BreastTomosynthesisImageStorage}
    one = write_dicom(tmp_path / "one", PIXELS, bits=12, NumberOfFrames=1, **tomosynthesis)
    header = read_header(one)
    assert (header["kind"], header["synthetic"]) == (None, 1)
    assert flags_with_pixels(one) == [QualityFlag.SYNTHETIC_2D]
    many = write_dicom(tmp_path / "many", PIXELS, bits=12, NumberOfFrames=40, **tomosynthesis)
    header = read_header(many)
    assert (header["kind"], header["quality_flags"]) == ("breast tomosynthesis", "")
    with pytest.raises(ImageError, match="breast tomosynthesis, no mammogram"):
        read_dicom(many)
    image_type = ["ORIGINAL", "PRIMARY", "TOMO_PROJ"]
    projection = write_dicom(tmp_path / "projection", PIXELS, bits=12, ImageType=image_type)
    assert read_header(projection)["kind"] == "projection of a tomosynthesis"


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


def coded(value: str, meaning: str = "words", *modifiers: Dataset) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodeMeaning = value, meaning
    if modifiers:
        code.ViewModifierCodeSequence = Sequence(modifiers)
    return code


def view(*modifiers: Dataset) -> dict[str, Any]:
    """A craniocaudal view with modifiers."""
    return {"ViewCodeSequence": Sequence([coded("399162004", "cranio-caudal", *modifiers)])}


def image_type(*values: str) -> dict[str, Any]:
    return {"ImageType": ["DERIVED", "PRIMARY", *values]}


@pytest.mark.parametrize(
    ("elements", "flags"),
    [
        (view(coded("399055006")), "spot compression"),
        (view(coded("R-102D7")), "spot compression"),
        (view(coded("399163009"), coded("399055006")), "spot compression; magnification"),
        (view(coded("1", "Spot Compression")), "spot compression"),  # a private code
        (view() | {"ViewModifierCodeSequence": Sequence([coded("R-102D6")])}, "magnification"),
        ({"ViewCodeSequence": Sequence([coded("G-8310")])}, "specimen"),
        ({"ViewCodeSequence": Sequence([coded("127457009")])}, "specimen"),
        ({"SpecimenDescriptionSequence": Sequence([Dataset()])}, "specimen"),
        ({"BodyPartExamined": "BREAST SPECIMEN"}, "specimen"),
        ({"ViewPosition": "RMCC"}, "magnification"),
        ({"ViewPosition": "SMLO"}, "spot compression"),
        ({"ViewPosition": "CC SPOT MAG"}, "spot compression; magnification"),
        ({"ViewPosition": "SPECIMEN"}, "specimen"),
        (image_type("STEREO_SCOUT"), "stereotactic or biopsy"),
        (image_type("STEREO_MINUS"), "stereotactic or biopsy"),
        (image_type("PREFIRE_PLUS"), "stereotactic or biopsy"),
        (image_type("POSTBIOPSY"), "stereotactic or biopsy"),
        (image_type("POSTMARKER"), "stereotactic or biopsy"),
        (image_type("TOMO_SCOUT"), "stereotactic or biopsy"),
        (image_type("", "NEEDLE LOC"), "needle localization"),
    ],
)  # fmt: skip
def test_codes_image_type_and_position_make_an_image_supplemental(
    elements: dict[str, Any], flags: str, tmp_path: Path
) -> None:
    path = write_dicom(tmp_path / "file", PIXELS, bits=12, **elements)
    header = read_header(path)
    assert (header["quality_flags"], header["supplemental"]) == (flags, 1)
    assert flags_with_pixels(path) == split_flags(flags)


@pytest.mark.parametrize(
    ("keyword", "description", "flags"),
    [
        ("SeriesDescription", "L CC Mag", "magnification"),
        ("SeriesDescription", "R MLO SPOT COMP", "spot compression"),
        ("SeriesDescription", "RMLO spot/mag", "spot compression; magnification"),
        ("SeriesDescription", "SPOTMAG", "spot compression; magnification"),
        ("SeriesDescription", "R Specimen", "specimen"),
        ("StudyDescription", "MAMMO NEEDLE LOC LEFT", "needle localization"),
        ("StudyDescription", "Wire Localisation", "needle localization"),
        ("AcquisitionDeviceProcessingDescription", "STEREO_15", "stereotactic or biopsy"),
        ("SeriesDescription", "L CC post-bx", "stereotactic or biopsy"),
        ("PaddleDescription", "10CM SPOT", "spot compression"),
        ("EstimatedRadiographicMagnificationFactor", "1.8", "magnification"),
        ("SeriesDescription", "L CC C-View", "synthetic 2D"),
        ("SeriesDescription", "L MLO Intelligent 2D", "synthetic 2D"),
        # Not everything that looks like it.
        ("SeriesDescription", "Images of a screening", ""),
        ("SeriesDescription", "Small focal spot", ""),
        ("AcquisitionDeviceProcessingDescription", "WIRELESS DETECTOR", ""),
        ("StudyDescription", "MAMMO SCREENING BILATERAL", ""),
        ("StudyDescription", "MAMMO 3D with C-View", ""),
        ("EstimatedRadiographicMagnificationFactor", "1.07", ""),
        ("SeriesDescription", "L CC", ""),
    ],
)
def test_descriptions_only_flag(keyword: str, description: str, flags: str, tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "file", PIXELS, bits=12, **{keyword: description})
    header = read_header(path)
    assert (header["quality_flags"], header["supplemental"]) == (flags, 0)


DX = uid.DigitalXRayImageStorageForPresentation


@pytest.mark.parametrize(
    ("elements", "flags"),
    [
        ({"PresentationIntentType": "for  processing"}, "for processing"),
        ({"SOPClassUID": uid.DigitalMammographyXRayImageStorageForProcessing,
          "PresentationIntentType": "FOR PRESENTATION"}, "for processing"),
        ({"Modality": None}, ""),  # the class says it
        ({"Modality": None, "SOPClassUID": DX}, "not said to be a mammogram"),
        ({"Modality": None, "SOPClassUID": DX, "PartialView": "NO"}, ""),  # the competition's
        ({"Modality": None, "SOPClassUID": "1.2.3"}, "not said to be a mammogram"),
        ({"Modality": None, "SOPClassUID": "1.2.3", "BodyPartExamined": "BREAST"}, ""),
        ({"Modality": "CR", "SOPClassUID": CR}, "not said to be a mammogram"),
        ({"Modality": "DX", "BodyPartExamined": "Mamma"}, ""),
        ({"ImageLaterality": "L", "Laterality": "R"}, "laterality contradictory"),
        ({"ImageLaterality": "L", "ViewPosition": "RCC"}, "laterality contradictory"),
        ({"ImageLaterality": "L", "SeriesDescription": "R CC"}, "laterality contradictory"),
        ({"ImageLaterality": "L", "Laterality": "B"}, ""),
        (view() | {"ViewPosition": "MLO"}, "view contradictory"),
        (view() | {"ViewPosition": "XCCL"}, ""),  # a kind of it
        (view() | {"ViewPosition": "??"}, ""),
    ],
)  # fmt: skip
def test_flags_of_headers(elements: dict[str, Any], flags: str, tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "file", PIXELS, bits=12, **elements)
    header = read_header(path)
    assert (header["quality_flags"], header["supplemental"]) == (flags, 0)
    assert flags_with_pixels(path) == split_flags(flags)


def test_an_element_that_cannot_be_parsed_says_nothing(tmp_path: Path) -> None:
    elements = {"EstimatedRadiographicMagnificationFactor": "1.8", "ImageLaterality": "L"}
    path = write_dicom(tmp_path / "file", PIXELS, bits=12, **elements)
    path.write_bytes(path.read_bytes().replace(b"1.8 ", b"one "))
    assert read_header(path)["quality_flags"] == ""
    assert flags_with_pixels(path) == []
