"""Headers as they are written: views in three vocabularies, ages, sides, and what is no image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import write_dicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from rsna_bcd.imaging import headers
from rsna_bcd.imaging.headers import read_header
from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.imaging.positioning import MODIFIER_VIEWS, VIEW_CODES

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")

PIXELS = np.arange(600, dtype=np.uint16).reshape(30, 20)
# PS3.16 CID 4014 and those of CID 4015 that are views of their own, as pydicom has them.
CID_4014 = {
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
}
CID_4015 = {
    "AT": codes.cid4015.AxillaryTail,
    "CV": codes.cid4015.Cleavage,
    "TAN": codes.cid4015.Tangential,
}


def coded(value: str, scheme: str, meaning: str, *modifiers: Dataset) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    code.ViewModifierCodeSequence = Sequence(modifiers)
    return code


def header_of(folder: Path, **elements: Any) -> headers.Header:
    return read_header(write_dicom(folder / "image", PIXELS, bits=12, **elements))


def test_all_fields(tmp_path: Path) -> None:
    header = header_of(
        tmp_path,
        PatientID="D1-0001",
        SOPInstanceUID="1.2.3",
        StudyInstanceUID="1.2",
        SeriesInstanceUID="1.2.1",
        ImageLaterality="R",
        ViewCodeSequence=Sequence([coded("399162004", "SCT", "cranio-caudal")]),
        PatientAge="052Y",
        BreastImplantPresent="YES",
        BodyPartExamined="BREAST",
        ManufacturerModelName="Mammomat",
        Manufacturer="Maker",
        PresentationIntentType="FOR PRESENTATION",
        syntax="jpeg",
    )
    assert header == {
        "patient_id": "D1-0001",
        "image_id": "1.2.3",
        "laterality": "R",
        "view": "CC",
        "view_header": "cranio-caudal",
        "age": 52.0,
        "implant": 1,
        "machine": "Mammomat",
        "manufacturer": "Maker",
        "modality": "MG",
        "kind": None,
        "body_part": "BREAST",
        "presentation": "FOR PRESENTATION",
        "synthetic": 0,
        "quality_flags": "",
        "supplemental": 0,
        "photometric": "MONOCHROME2",
        "bits_stored": 12,
        "rows": 30,
        "columns": 20,
        "frames": 1,
        "transfer_syntax": "1.2.840.10008.1.2.4.70",
        "study_id": "1.2",
        "series_id": "1.2.1",
    }


@pytest.mark.parametrize(("view", "code"), CID_4014.items(), ids=CID_4014)
def test_views_by_the_codes_of_the_standard(view: str, code: Code, tmp_path: Path) -> None:
    withdrawn = ("Y-X1770", "Y-X1771")
    ours = [value for value, its_view in VIEW_CODES.items() if its_view == view]
    ours = [value for value in ours if value not in withdrawn]
    schemes = ["SCT" if value.isdigit() else "SRT" for value in ours]
    assert sorted(schemes) == ["SCT", "SRT"]
    for value, scheme in zip(ours, schemes, strict=True):
        assert Code(value, scheme, "") == code
        sequence = Sequence([coded(value, scheme, "in other words")])
        assert header_of(tmp_path, ViewCodeSequence=sequence)["view"] == view
    in_words = Sequence([coded("1", "99PRIVATE", code.meaning.capitalize())])
    assert header_of(tmp_path, ViewCodeSequence=in_words)["view"] == view


@pytest.mark.parametrize(("view", "code"), CID_4015.items(), ids=CID_4015)
def test_modifiers_that_are_views_of_their_own(view: str, code: Code, tmp_path: Path) -> None:
    ours = [value for value, its_view in MODIFIER_VIEWS.items() if its_view == view]
    for value in ours:
        assert Code(value, "SCT" if value.isdigit() else "SRT", "") == code
        modifier = coded(value, "SCT", "in other words")
        sequence = Sequence([coded("399162004", "SCT", "cranio-caudal", modifier)])
        header = header_of(tmp_path, ViewCodeSequence=sequence)
        assert (header["view"], header["supplemental"]) == (view, 0)


@pytest.mark.parametrize(
    ("position", "view"),
    [("CC", "CC"), ("MLO ", "MLO"), ("LMO", "LMO"), ("XCCL", "XCCL"), ("", None), (None, None)],
)
def test_views_by_position(position: str | None, view: str | None, tmp_path: Path) -> None:
    elements = {} if position is None else {"ViewPosition": position}
    header = header_of(tmp_path, **elements)
    assert header["view"] == view
    assert header["view_header"] == ((position or "").strip() or None)


def test_a_code_outweighs_the_position_and_its_modifiers_are_told(tmp_path: Path) -> None:
    magnified = coded("399163009", "SCT", "Magnification")
    tail = coded("399011000", "SCT", "Axillary Tail")
    for code, modifiers, view, words in [
        ("399192008", (), "XCCL", "exaggerated"),
        ("r-10226", (magnified,), "MLO", "exaggerated, Magnification"),
        ("399368009", (tail,), "AT", "exaggerated, Axillary Tail"),
    ]:
        sequence = Sequence([coded(code, "SCT", "exaggerated", *modifiers)])
        header = header_of(tmp_path, ViewCodeSequence=sequence, ViewPosition="CC")
        assert (header["view"], header["view_header"]) == (view, words)


@pytest.mark.parametrize(
    ("image", "series", "expected"),
    [
        ("L", None, "L"),
        (None, "R", "R"),
        ("L", "R", "L"),
        ("B", None, None),
        (None, None, None),
        ("U", "R", "R"),
        ("", "r", "R"),
        ("LEFT", None, "L"),
        ("l ", None, "L"),
        ("B", "R", None),
        ("Left breast", None, "L"),
        (None, "B", None),
        ("?", "L", "L"),
    ],  # fmt: skip
)
def test_laterality(
    image: str | None, series: str | None, expected: str | None, tmp_path: Path
) -> None:
    sides = {"ImageLaterality": image, "Laterality": series}
    header = header_of(tmp_path, **{k: v for k, v in sides.items() if v is not None})
    assert header["laterality"] == expected


@pytest.mark.parametrize(
    ("age", "years"),
    [
        ("052Y", 52),
        ("624M", 52),
        ("026W", 0.5),
        ("", None),
        ("732m", 61),
        ("61", 61),
        ("061", 61),
        (" 61Y", 61),
        ("061y", 61),
        ("000Y", None),
        ("999Y", None),
        ("000D", None),
        ("999", None),
        ("Y", None),
        ("61Y or so", None),
    ],  # fmt: skip
)
def test_age(age: str, years: float | None, tmp_path: Path) -> None:
    found = header_of(tmp_path, PatientAge=age)["age"]
    assert found == (None if years is None else pytest.approx(years, abs=0.01))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Senographe DS VERSION ADS_54.11.7", "Senographe DS"),
        ("Senographe DS ADS_43.10.1", "Senographe DS"),
        ("SENOGRAPHE  ds", "Senographe DS"),
        ("Senograph 2000D ADS_17.4.5", "Senograph 2000D"),
        ("MAMMOMAT Inspiration", "Mammomat Inspiration"),
        ("Mammomat_Inspiration VB30A", "Mammomat Inspiration"),
        ("Selenia Dimensions 1.8.3.63", "Selenia Dimensions"),
        ("SELENIA DIMENSIONS (V1.9.0)", "Selenia Dimensions"),
        ("Selenia Dimensions Software Version 2", "Selenia Dimensions"),
        ("3Dimensions", "3Dimensions"),
        ("MAMMOMAT 3000 Nova", "Mammomat 3000 Nova"),  # numbers of models stay
        ("Giotto Class 40000", "Giotto Class 40000"),
        ("Clarity V2", "Clarity V2"),
        ("49", "49"),
        (" ", None),
    ],
)
def test_a_model_has_one_name(model: str, name: str | None, tmp_path: Path) -> None:
    assert headers.machine_name(model) == name
    assert header_of(tmp_path, ManufacturerModelName=model)["machine"] == name


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_text("file,reason\n" * 50)
    with pytest.raises(ImageError, match="not a DICOM file"):
        read_header(file)
    file.write_bytes(b"")
    with pytest.raises(ImageError, match="not a DICOM file"):
        read_header(file)
    write_dicom(file, PIXELS, bits=12, Rows=None)
    with pytest.raises(ImageError, match="no image, but Digital Mammography X-Ray Image Storage"):
        read_header(file)


def test_damaged_headers_are_read_or_refused_with_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "image"
    sequence = Sequence([coded("399162004", "SCT", "cranio-caudal")])
    whole = write_dicom(file, PIXELS, bits=12, PatientAge="052Y", ViewCodeSequence=sequence)
    content, rng, refused = whole.read_bytes(), np.random.default_rng(0), 0
    last = content.index(b"\xe0\x7f\x10\x00")
    for _ in range(500):
        damaged = bytearray(content)
        for _ in range(int(rng.integers(1, 9))):
            damaged[int(rng.integers(132, last))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(damaged))
        try:
            read_header(file)
        except ImageError:
            refused += 1
    assert refused > 50  # nothing else was raised


def test_pixels_are_not_read(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "image", PIXELS, bits=12, PatientID="7", syntax="jpeg2000")
    whole = read_header(file)
    file.write_bytes(file.read_bytes()[:-100])  # in the middle of the frame
    assert read_header(file) == whole
