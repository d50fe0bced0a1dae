"""Headers: facts for the tables, views in three vocabularies, kinds of files, quality flags."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import write_dicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.headers import SECONDARY_CAPTURE, Header, machine_name, read_header
from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.imaging.positioning import (
    MODIFIER_VIEWS,
    VIEW_CODES,
    HeaderValue,
    parse_view,
    read_laterality,
    read_view,
)
from rsna_bcd.imaging.quality import QualityFlag, count_flags, join_flags, split_flags
from rsna_bcd.tables.study_results import QUALITY_FLAGS

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")

PIXELS = np.arange(80 * 64, dtype=np.uint16).reshape(80, 64)
PIXEL_FLAGS = (
    QualityFlag.NO_WINDOW, QualityFlag.WINDOW_DISCARDED, QualityFlag.LUT_DISCARDED,
    QualityFlag.INVERSION_CONTRADICTORY, QualityFlag.ORIENTATION_CONTRADICTORY,
)  # fmt: skip
SC, CR = uid.SecondaryCaptureImageStorage, uid.ComputedRadiographyImageStorage
DX = uid.DigitalXRayImageStorageForPresentation
MG = uid.DigitalMammographyXRayImageStorageForPresentation
MG_PROCESSING = uid.DigitalMammographyXRayImageStorageForProcessing
TOMOSYNTHESIS = uid.BreastTomosynthesisImageStorage


def write(folder: Path, **elements: Any) -> Path:
    return write_dicom(folder / "file", PIXELS, bits=12, **elements)


def header_with(folder: Path, **elements: Any) -> Header:
    return read_header(write(folder, **elements))


def assert_flags(path: Path, flags: str, supplemental: int) -> None:
    """Header and pixels give the same flags."""
    header = read_header(path)
    assert (header["quality_flags"], header["supplemental"]) == (flags, supplemental)
    found = [flag for flag in read_dicom(path).flags if flag not in PIXEL_FLAGS]
    assert found == split_flags(flags)


def dataset_with(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def code(value: str, meaning: str = "", *modifiers: Dataset) -> Dataset:
    item = dataset_with(CodeValue=value, CodeMeaning=meaning)
    if modifiers:
        item.ViewModifierCodeSequence = Sequence(modifiers)
    return item


def view(*modifiers: Dataset, value: str = "399162004") -> dict[str, Any]:
    """A craniocaudal view with modifiers."""
    return {"ViewCodeSequence": Sequence([code(value, "cranio-caudal", *modifiers)])}


def image_type(*values: str) -> dict[str, Any]:
    return {"ImageType": ["DERIVED", "PRIMARY", *values]}


def anatomy(**elements: Any) -> Sequence:
    """Functional groups of a multi-frame object."""
    return Sequence([dataset_with(FrameAnatomySequence=Sequence([dataset_with(**elements)]))])


def test_read_header_all_fields(tmp_path: Path) -> None:
    elements = {
        "PatientID": "D1-0001", "SOPInstanceUID": "1.2.3", "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.2.1", "ImageLaterality": "R", "PatientAge": "052Y",
        "BreastImplantPresent": "YES", "BodyPartExamined": "BREAST", "Manufacturer": "Maker",
        "ManufacturerModelName": "Mammomat", "PresentationIntentType": "FOR PRESENTATION",
    }  # fmt: skip
    path = write(tmp_path, syntax="jpeg", **elements, **view())
    header = read_header(path)
    assert header == {
        "patient_id": "D1-0001", "image_id": "1.2.3", "laterality": "R", "view": "CC",
        "view_header": "cranio-caudal", "age": 52.0, "implant": 1, "machine": "Mammomat",
        "manufacturer": "Maker", "modality": "MG", "kind": None, "body_part": "BREAST",
        "presentation": "FOR PRESENTATION", "synthetic": 0, "quality_flags": "",
        "supplemental": 0, "photometric": "MONOCHROME2", "bits_stored": 12, "rows": 80,
        "columns": 64, "frames": 1, "transfer_syntax": "1.2.840.10008.1.2.4.70",
        "study_id": "1.2", "series_id": "1.2.1",
    }  # fmt: skip
    path.write_bytes(path.read_bytes()[:-100])  # in the middle of the frame
    assert read_header(path) == header  # pixels are not read


# PS3.16 CID 4014 and those of CID 4015 that are views of their own, as pydicom has them.
STANDARD_VIEWS = {
    "CC": codes.cid4014.CranioCaudal,
    "MLO": codes.cid4014.MedioLateralObliqueProjection,
    "ML": codes.cid4014.MedioLateralProjection,
    "LM": codes.cid4014.LateroMedial,
    "LMO": codes.cid4014.LateroMedialOblique,
    "XCCL": codes.cid4014.CranioCaudalExaggeratedLaterally,
    "XCCM": codes.cid4014.CranioCaudalExaggeratedMedially,
    "FB": codes.cid4014.CaudoCranial,
    "SIO": codes.cid4014.SuperolateralToInferomedialOblique,
    "ISO": codes.cid4014.InferomedialToSuperolateralOblique,
    "AT": codes.cid4015.AxillaryTail,
    "CV": codes.cid4015.Cleavage,
    "TAN": codes.cid4015.Tangential,
}


@pytest.mark.parametrize("name", STANDARD_VIEWS)
def test_read_view_by_the_codes_of_the_standard(name: str) -> None:
    is_modifier = name in MODIFIER_VIEWS.values()
    table = MODIFIER_VIEWS if is_modifier else VIEW_CODES
    ours = [value for value, its_view in table.items() if its_view == name]
    ours = [value for value in ours if not value.startswith("Y-")]  # withdrawn
    schemes = ["SCT" if value.isdigit() else "SRT" for value in ours]
    assert sorted(schemes) == ["SCT", "SRT"]
    for value, scheme in zip(ours, schemes, strict=True):
        assert Code(value, scheme, "") == STANDARD_VIEWS[name]
        elements = view(code(value)) if is_modifier else view(value=value)
        assert read_view(dataset_with(**elements)).value == name
    if not is_modifier:
        private = code("1", STANDARD_VIEWS[name].meaning.capitalize())
        assert read_view(dataset_with(ViewCodeSequence=Sequence([private]))).value == name


@pytest.mark.parametrize(
    ("elements", "expected", "words"),
    [
        ({}, None, None),
        ({"ViewPosition": "MLO "}, "MLO", "MLO"),
        ({"ViewCodeSequence": Sequence(), "ViewPosition": "CC"}, "CC", "CC"),
        ({"ViewCodeSequence": Sequence([code("X1", "ours")]), "ViewPosition": "ML"}, "ML", "ours"),
        ({"ViewCodeSequence": Sequence([Dataset()]), "ViewPosition": "ML"}, "ML", "ML"),
        (view(value="399192008"), "XCCL", "cranio-caudal"),
        (view(code("399163009", "Magnification"), value="r-10226"), "MLO",
         "cranio-caudal, Magnification"),
        (view(code("399011000", "Axillary Tail"), value="399368009"), "AT",
         "cranio-caudal, Axillary Tail"),
        ({"ViewPosition": "??", "PatientOrientation": "MLO"}, "MLO", "??"),  # as CBIS-DDSM has it
        ({"PatientOrientation": ["A", "L"]}, None, None),
        ({"SeriesDescription": "LMLO"}, "MLO", None),
        ({"ViewCodeSequence": Sequence([code("G-8310")]), "ViewPosition": "CC"}, None, "G-8310"),
    ],
)  # fmt: skip
def test_read_view(
    elements: dict[str, Any], expected: str | None, words: str | None, tmp_path: Path
) -> None:
    assert read_view(dataset_with(**elements)) == HeaderValue(expected, False)
    assert header_with(tmp_path, **elements)["view_header"] == words


@pytest.mark.parametrize(
    ("text", "side", "expected"),
    [
        ("LMLO", "L", "MLO"), ("RCC", "R", "CC"), ("LMO", None, "LMO"), ("LM", None, "LM"),
        ("LML", "L", "ML"), ("LLM", "L", "LM"), ("RLM", "R", "LM"), ("MML", None, "ML"),
        ("MLM", None, "LM"), ("RXCCL", "R", "XCCL"), ("LCCID", "L", "CC"), ("CCRL", None, "CC"),
        ("RL", None, "RL"), ("RM", None, "RM"), ("SIO", None, "SIO"), ("AT", None, "AT"),
        ("LAT", None, None), ("L-CC", "L", "CC"), ("mlo_r", "R", "MLO"), ("LT MLO", "L", "MLO"),
        ("Left medio-lateral oblique", "L", "MLO"), ("CRANIO CAUDAL", None, "CC"),
        ("LMLO RMLO", None, "MLO"), ("CC/MLO", None, None), ("", None, None), ("PA", None, None),
        ("L M CC", "L", "CC"), ("X CC L", None, "XCCL"), ("LM CC", None, None),
    ],
)  # fmt: skip
def test_parse_view_position(text: str, side: str | None, expected: str | None) -> None:
    assert parse_view(text)[:2] == (side, expected)


@pytest.mark.parametrize("text", ["MCC", "M CC", "RMMLO", "CC-MAG", "LMCCID", "Mag ML", "SMCC"])
def test_parse_view_magnified(text: str) -> None:
    assert QualityFlag.MAGNIFICATION in parse_view(text).flags
    assert QualityFlag.MAGNIFICATION not in parse_view(text.replace("M", "", 1)).flags


@pytest.mark.parametrize(
    ("text", "side", "expected"),
    [
        ("R CC", "R", "CC"), ("Mammo left", "L", None), ("Mammo L", None, None),
        ("R/L CC", None, "CC"), ("L MLO Tomo", "L", "MLO"), ("At risk, L", None, None),
        ("Screening, 4 views", None, None), ("RCC / RMLO", "R", None),
    ],
)  # fmt: skip
def test_parse_view_description(text: str, side: str | None, expected: str | None) -> None:
    assert parse_view(text, description=True)[:2] == (side, expected)


@pytest.mark.parametrize(
    ("elements", "side"),
    [
        ({}, None),
        ({"ImageLaterality": "L", "Laterality": "R"}, "L"),
        ({"ImageLaterality": "U", "Laterality": "R"}, "R"),
        ({"ImageLaterality": "", "Laterality": "r"}, "R"),
        ({"ImageLaterality": "B", "Laterality": "R"}, None),
        ({"ImageLaterality": "l "}, "L"),
        ({"ImageLaterality": "Left breast"}, "L"),
        ({"Laterality": "B"}, None),
        ({"ViewPosition": "LMLO"}, "L"),
        ({"SharedFunctionalGroupsSequence": anatomy(FrameLaterality="R")}, "R"),
        ({"PerFrameFunctionalGroupsSequence": anatomy(FrameLaterality="L")}, "L"),
        ({"SharedFunctionalGroupsSequence": anatomy(FrameLaterality="B"), "Laterality": "L"}, None),
        ({"AnatomicRegionSequence": Sequence([code("T-04020")])}, "R"),
        ({"AnatomicRegionSequence": Sequence([dataset_with(
            CodeValue="T-04000", AnatomicRegionModifierSequence=Sequence([code("7771000")]))])},
         "L"),
        ({"BodyPartExamined": "LBREAST"}, "L"),
        ({"BodyPartExamined": "BREAST"}, None),
        ({"SeriesDescription": "R CC"}, "R"),
        ({"ProtocolName": "Left breast"}, "L"),
        # The columns of an MLO run to the feet and to the middle: of the left breast, to the right.
        ({"ViewPosition": "MLO", "PatientOrientation": ["A", "FR"]}, "L"),
        ({"ViewPosition": "MLO", "PatientOrientation": ["P", "FL"]}, "R"),
        ({"ViewPosition": "MLO", "PatientOrientation": ["A", "HL"]}, "L"),
        ({"ViewPosition": "CC", "PatientOrientation": ["A", "R"]}, None),  # may be turned over
    ],
)  # fmt: skip
def test_read_laterality(elements: dict[str, Any], side: str | None) -> None:
    assert read_laterality(dataset_with(**elements)).value == side


@pytest.mark.parametrize(
    ("age", "years"),
    [
        ("052Y", 52), ("624M", 52), ("026W", 0.5), ("", None), ("732m", 61), ("61", 61),
        (" 61Y", 61), ("000Y", None), ("999Y", None), ("000D", None), ("999", None), ("Y", None),
        ("61Y or so", None),
    ],
)  # fmt: skip
def test_read_header_age(age: str, years: float | None, tmp_path: Path) -> None:
    found = header_with(tmp_path, PatientAge=age)["age"]
    assert found == (None if years is None else pytest.approx(years, abs=0.01))


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("Senographe DS", ["Senographe DS VERSION ADS_54.11.7", "Senographe DS ADS_43.10.1",
                           "SENOGRAPHE  ds"]),
        ("Senograph 2000D", ["Senograph 2000D ADS_17.4.5"]),
        ("Mammomat Inspiration", ["Mammomat_Inspiration VB30A"]),
        ("Selenia Dimensions", ["Selenia Dimensions 1.8.3.63", "SELENIA DIMENSIONS (V1.9.0)",
                                "Selenia Dimensions Software Version 2"]),
        ("Mammomat 3000 Nova", ["MAMMOMAT 3000 Nova"]),  # numbers of models stay
        *((model, [model]) for model in ("3Dimensions", "Clarity V2", "49")),
        (None, [" "]),
    ],
)  # fmt: skip
def test_machine_name(name: str | None, models: list[str]) -> None:
    assert {machine_name(model) for model in models} == {name}


def test_read_header_refuses_files_without_an_image(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match="not a DICOM file"):
        read_header(tmp_path / "file")
    with pytest.raises(ImageError, match="no image, but Digital Mammography X-Ray Image Storage"):
        header_with(tmp_path, Rows=None)


@pytest.mark.parametrize(
    ("elements", "kind"),
    [
        ({"SOPClassUID": uid.CTImageStorage, "Modality": None}, "CT image"),
        ({"SOPClassUID": uid.EnhancedMRImageStorage, "Modality": "MR"}, "MR image"),
        ({"SOPClassUID": uid.UltrasoundImageStorage, "Modality": "US"}, "ultrasound image"),
        ({"SOPClassUID": SC, "Modality": "OT"}, SECONDARY_CAPTURE),
        ({"SOPClassUID": uid.MultiFrameTrueColorSecondaryCaptureImageStorage, "Modality": "SC"},
         SECONDARY_CAPTURE),
        ({"SOPClassUID": TOMOSYNTHESIS, "Modality": "CT"}, "CT image"),
        ({"SOPClassUID": TOMOSYNTHESIS, "NumberOfFrames": 40}, "breast tomosynthesis"),
        (image_type("TOMO_PROJ"), "projection of a tomosynthesis"),
        ({"SOPClassUID": uid.MammographyCADSRStorage, "Modality": "SR"}, "CAD report"),
        ({"SOPClassUID": uid.EnhancedSRStorage, "Modality": "SR"}, "structured report"),
        ({"SOPClassUID": uid.EncapsulatedPDFStorage, "Modality": "DOC"}, "PDF document"),
        ({"SOPClassUID": uid.GrayscaleSoftcopyPresentationStateStorage, "Modality": "PR"},
         "presentation state"),
        ({"SOPClassUID": uid.MediaStorageDirectoryStorage, "Modality": None}, "DICOMDIR"),
        ({"SOPClassUID": MG, "Modality": "CT"}, "CT image"),
        ({"SOPClassUID": MG, "Modality": "XY"}, "image of modality XY"),
        ({"SOPClassUID": DX, "Modality": "DX", "BodyPartExamined": "CHEST"}, "X-ray of the chest"),
        # Digitized film is a secondary capture, too.
        ({"SOPClassUID": SC, "Modality": "RG"}, SECONDARY_CAPTURE),
        ({"SOPClassUID": SC, "BodyPartExamined": "CHEST"}, SECONDARY_CAPTURE),
        ({"SOPClassUID": SC, **image_type("SCREEN SAVE")}, SECONDARY_CAPTURE),
        ({"SOPClassUID": SC, "Modality": "OT", "BodyPartExamined": "BREAST"}, SECONDARY_CAPTURE),
        ({"SOPClassUID": SC, "SeriesDescription": "ROI mask images"}, SECONDARY_CAPTURE),
    ],
)  # fmt: skip
def test_non_mammogram_kind_is_named(elements: dict[str, Any], kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, **elements)
    assert str(read_header(path)["kind"]).startswith(kind)
    assert read_header(path)["quality_flags"] == ""
    with pytest.raises(ImageError, match="no mammogram"):
        read_dicom(path)
    with pytest.raises(ImageError, match=re.escape(f"no image, but {kind}")):
        header_with(tmp_path, Rows=None, **elements)


@pytest.mark.parametrize(
    ("elements", "flags"),
    [
        ({}, ""),
        ({"Modality": "mg "}, ""),
        ({"SOPClassUID": DX}, ""),
        ({"PresentationIntentType": "for  processing"}, "for processing"),
        ({"SOPClassUID": MG_PROCESSING, "PresentationIntentType": "FOR PRESENTATION"},
         "for processing"),
        ({"SOPClassUID": TOMOSYNTHESIS, "NumberOfFrames": 1}, "synthetic 2D"),  # of Hologic
        (image_type("TOMOSYNTHESIS", "GENERATED_2D"), "synthetic 2D"),
        ({"SOPClassUID": SC, "BodyPartExamined": "BREAST"}, "digitized film"),  # CBIS-DDSM
        ({"SOPClassUID": SC}, "digitized film"),
        ({"SOPClassUID": SC, "Modality": "RG", "BodyPartExamined": "Left Breast"},
         "digitized film"),
        ({"SOPClassUID": CR, "Modality": "RG", "BodyPartExamined": "BREAST"}, "digitized film"),
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
def test_header_flags(elements: dict[str, Any], flags: str, tmp_path: Path) -> None:
    path = write(tmp_path, **elements)
    assert read_header(path)["kind"] is None
    assert read_header(path)["synthetic"] == int("synthetic" in flags)
    assert_flags(path, flags, supplemental=0)


DESCRIPTIONS = {  # typed by hand
    "magnification": ["L CC Mag"], "spot compression": ["R MLO SPOT COMP", "10CM SPOT"],
    "spot compression; magnification": ["RMLO spot/mag"], "specimen": ["R Specimen"],
    "needle localization": ["MAMMO NEEDLE LOC LEFT", "Wire Localisation"],
    "stereotactic or biopsy": ["STEREO_15", "L CC post-bx"],
    "synthetic 2D": ["L CC C-View", "L MLO Intelligent 2D"],
    "": ["Images of a screening", "Small focal spot", "WIRELESS DETECTOR"],
}  # fmt: skip


@pytest.mark.parametrize(
    "keyword", ["SeriesDescription", "PaddleDescription", "AcquisitionDeviceProcessingDescription"]
)
@pytest.mark.parametrize(
    ("text", "flags"), [(text, flags) for flags, texts in DESCRIPTIONS.items() for text in texts]
)
def test_header_flags_of_descriptions(text: str, flags: str, keyword: str, tmp_path: Path) -> None:
    assert_flags(write(tmp_path, **{keyword: text}), flags, supplemental=0)
    expected = "" if "synthetic" in flags else flags  # a study has exposed images as well
    assert_flags(write(tmp_path, StudyDescription=text), expected, supplemental=0)


TYPES = ["STEREO_SCOUT", "PREFIRE_PLUS", "POSTBIOPSY", "POSTMARKER", "TOMO_SCOUT"]


@pytest.mark.parametrize(
    ("elements", "flags", "supplemental"),
    [
        ({"EstimatedRadiographicMagnificationFactor": "1.8"}, "magnification", 0),
        ({"EstimatedRadiographicMagnificationFactor": "1.07"}, "", 0),
        (view(code("399055006")), "spot compression", 1),
        (view(code("399163009"), code("R-102D7")), "spot compression; magnification", 1),
        (view(code("1", "Spot Compression")), "spot compression", 1),  # a private code
        (view() | {"ViewModifierCodeSequence": Sequence([code("R-102D6")])}, "magnification", 1),
        (view(value="G-8310"), "specimen", 1),
        (view(value="127457009"), "specimen", 1),
        ({"SpecimenDescriptionSequence": Sequence([Dataset()])}, "specimen", 1),
        ({"BodyPartExamined": "BREAST SPECIMEN"}, "specimen", 1),
        ({"ViewPosition": "RMCC"}, "magnification", 1),
        ({"ViewPosition": "CC SPOT MAG"}, "spot compression; magnification", 1),
        ({"ViewPosition": "SPECIMEN"}, "specimen", 1),
        *((image_type(value), "stereotactic or biopsy", 1) for value in TYPES),
        (image_type("", "NEEDLE LOC"), "needle localization", 1),
    ],
)
def test_header_flags_of_codes_make_an_image_supplemental(
    elements: dict[str, Any], flags: str, supplemental: int, tmp_path: Path
) -> None:
    assert_flags(write(tmp_path, **elements), flags, supplemental)


@pytest.mark.parametrize(
    ("elements", "intent"),
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING"),
        ({"SOPClassUID": MG_PROCESSING}, "FOR PROCESSING"),
        ({"SOPClassUID": CR}, None),
        ({}, "FOR PRESENTATION"),
    ],
)  # fmt: skip
def test_read_header_presentation_intent(
    elements: dict[str, Any], intent: str | None, tmp_path: Path
) -> None:
    assert header_with(tmp_path, **elements)["presentation"] == intent


@pytest.mark.parametrize(
    ("text", "damaged"),
    [(b"1.8 ", b"one "), (b"\x20\0\x62\0CS", b"\x20\0\x62\0FD")],  # doubles of 2 bytes
)
def test_header_flags_ignore_elements_that_cannot_be_parsed(
    text: bytes, damaged: bytes, tmp_path: Path
) -> None:
    factor = {"EstimatedRadiographicMagnificationFactor": "1.8" if text == b"1.8 " else "1"}
    path = write(tmp_path, ImageLaterality="L", **factor)
    path.write_bytes(path.read_bytes().replace(text, damaged))
    assert_flags(path, "", supplemental=0)


def test_read_header_of_flipped_bits_is_a_header_or_an_error(tmp_path: Path) -> None:
    path = write(
        tmp_path, **view(code("399055006", "spot")), **image_type("POST_CONTRAST"),
        PatientAge="061Y", ImageLaterality="L", ManufacturerModelName="Senographe", Modality="MG",
    )  # fmt: skip
    sound, content = read_header(path), path.read_bytes()
    rng, n_read = np.random.default_rng(0), 0
    for _ in range(200):
        damaged = bytearray(content)
        for bit in rng.integers(8 * content.index(PIXELS.tobytes()), size=rng.integers(1, 5)):
            damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert read_header(path).keys() == sound.keys()
            n_read += 1
        except ImageError:
            continue
    assert 0 < n_read < 200


def test_quality_flags_as_text() -> None:
    flags = [QualityFlag.SPECIMEN, QualityFlag.NO_WINDOW, QualityFlag.SPECIMEN]
    assert join_flags(flags) == "no window; specimen"
    assert split_flags("no window; specimen") == [QualityFlag.NO_WINDOW, QualityFlag.SPECIMEN]
    assert (join_flags([]), split_flags("")) == ("", [])
    with pytest.raises(ValueError, match="no such flag"):
        split_flags("no window; no such flag")
    cells = ["no window; specimen", "", "no window"]
    assert count_flags(cells) == {QualityFlag.NO_WINDOW: 2, QualityFlag.SPECIMEN: 1}


def test_quality_flags_are_all_explained() -> None:
    assert {str(flag) for flag in QualityFlag} <= set(QUALITY_FLAGS)
