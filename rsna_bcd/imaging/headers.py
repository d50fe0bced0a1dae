"""Read the header of a DICOM file: the kind of file, quality flags, and facts for the tables."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.imaging.parsing import (
    element_text,
    header_errors,
    parse_dicom,
    sequence_items,
)
from rsna_bcd.imaging.positioning import (
    MODIFIER_FLAGS,
    POSITIONING_TAGS,
    SPECIMEN_CODES,
    parse_view,
    read_laterality,
    read_view,
    view_description,
    view_modifiers,
)
from rsna_bcd.imaging.quality import QualityFlag, join_flags

Header = dict[str, str | int | float | None]

# Some archives store mammograms as DX, CR or RG, screen-film radiography (PS3.3 C.7.3.1.1.1).
_PROJECTIONS = ("MG", "DX", "CR", "RG")
SECONDARY_CAPTURE = "secondary capture (a screenshot or a scan)"
_TOMOSYNTHESIS = "breast tomosynthesis"

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_MAMMOGRAPHY = f"{_STORAGE}1.2"
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
# SOP classes (PS3.4 B.5) by their UID after _STORAGE; the first that matches, item by item.
_KINDS = {
    "1.3": "dental X-ray",
    "2": "CT image",
    "3": "ultrasound image",
    "4": "MR image",
    "6": "ultrasound image",
    "7": SECONDARY_CAPTURE,
    "9": "waveform",
    "11": "presentation state (how an image is shown)",
    "12": "angiography",
    "13.1.3": _TOMOSYNTHESIS,
    "13.1.4": "projection of a tomosynthesis",
    "13.1.5": "projection of a tomosynthesis",
    "20": "nuclear medicine image",
    "66.4": "segmentation",
    "77": "photograph or slide",
    "88.50": "CAD report",
    "88.59": "key object note (a list of images)",
    "88.67": "dose report",
    "88": "structured report",
    "104.1": "PDF document",
    "128": "PET image",
    "130": "PET image",
    "481": "radiotherapy object",
}
# By modality, where the class is missing or contradicts it.
_MODALITY_KINDS = {
    "CT": "CT image", "MR": "MR image", "US": "ultrasound image", "PT": "PET image",
    "NM": "nuclear medicine image", "XA": "angiography", "SR": "structured report",
    "DOC": "document", "PR": "presentation state (how an image is shown)",
    "KO": "key object note (a list of images)", "SEG": "segmentation",
    "SC": SECONDARY_CAPTURE,
}  # fmt: skip

# Free text. The description of a study applies to all its images.
_DESCRIPTIONS = (
    "SeriesDescription", "StudyDescription", "ProtocolName", "PaddleDescription",
    "AcquisitionDeviceProcessingDescription",
)  # fmt: skip
# In capital letters, digits and single blanks. Image types are those of PS3.3 C.8.11.7.1.4.
_FLAG_PATTERNS = {
    QualityFlag.SPOT_COMPRESSION: re.compile(
        r"(?<!FOCAL )\bSPOTS?\b|\bSPOT ?(COMP|MAG|VIEW)|MAG ?SPOT|\bCON(E|ED) ?(DOWN|COMP)"
    ),
    QualityFlag.MAGNIFICATION: re.compile(
        r"\bMAGS?\b|\bMAGN?\d|MAGNIF|SPOT ?MAG|\bMAG ?(SPOT|VIEW)"
    ),
    QualityFlag.NEEDLE_LOCALIZATION: re.compile(
        r"NEEDLE|\bNDL\b|WIRE(?!LESS)|\b(N|NL|PRE|SEED|HOOK|POST) ?LOC(S|\b|AL)"
        r"|LOCALI[SZ]ATION|\bLOC\b"
    ),
    QualityFlag.SPECIMEN: re.compile(r"SPECIMEN|\bSPECS?\b|\bPR(AE|A| )PARAT"),
    QualityFlag.BIOPSY: re.compile(
        r"STEREO|BIOPS|\bBX\b|\b(TOMO|STEREO) SCOUT|\b(PRE|POST) ?(FIRE|MARKER|CLIP|BX)\b"
    ),
}
_SYNTHETIC = re.compile(
    r"\bC-?VIEW|\bV-?PREVIEW|SYNTHETI[CZ]|SYNTHESI[SZ]ED|INSIGHT *2D|INTELLIGENT *2D"
    r"|GENERATED[ _]*2D",
    re.IGNORECASE,
)
_SYNTHETIC_TYPES = {"GENERATED_2D", "TOMOSYNTHESIS", "TOMOSYNTHESIS_2D"}
_MAGNIFIED = 1.4  # times; on the breast support, up to 1.1

_OLDEST = 120  # years
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}

# Versions of the software that vendors append to the name of a model.
_VERSIONS = (
    r"[\s,;(]+(SOFTWARE|SW|VERSION|VERS?\.?|REV(ISION)?\.?|RELEASE|BUILD)[\s:.]+.*$",
    r"[\s,;(_-]+(ADS|SW)[\s_]?\d[\d.]*\)?$",  # GE: ADS_54.11.7
    r"[\s,;(_-]+V[A-Z]\d\d[A-Z]?\)?$",  # Siemens: VB30A
    r"[\s,;(_-]+V?\d+(\.\d+)+[A-Z]?\)?$",  # V1.8.3, 1.8
)

_TAGS = [
    *POSITIONING_TAGS, *_DESCRIPTIONS, "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID",
    "SeriesInstanceUID", "Modality", "Manufacturer", "ManufacturerModelName", "PatientID",
    "PatientAge", "Rows", "Columns", "NumberOfFrames", "PhotometricInterpretation", "BitsStored",
    "ImageType", "PresentationIntentType", "ConversionType", "DetectorType", "PartialView",
    "BreastImplantPresent", "SpecimenDescriptionSequence",
    "EstimatedRadiographicMagnificationFactor",
]  # fmt: skip


def read_header(path: Path) -> Header:
    """Read the header of a DICOM file with an image.

    Returns:
        `patient_id, image_id` (SOP Instance UID)`, laterality` (L, R), `view` (CC, MLO and others,
        see `read_view`), `view_header` (the view in the header's own words), `age` (years),
        `implant` (0, 1), `machine` (model, see `machine_name`), `manufacturer, modality, kind` (if
        no mammogram, see `non_mammogram_kind`)`, body_part, presentation` (FOR PRESENTATION or FOR
        PROCESSING)`, synthetic` (1: made from a tomosynthesis, else 0)`, quality_flags` (see
        `header_flags`; joined)`, supplemental` (see `HeaderFlags`; 0, 1)`, photometric,
        bits_stored, rows, columns` (pixels)`, frames, transfer_syntax, study_id, series_id`. Absent
        and unintelligible values are None.

    Raises:
        ImageError: not a DICOM file, one without an image, or a damaged one.
    """
    with path.open("rb") as file, header_errors():
        try:
            dataset = parse_dicom(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        except (InvalidDicomError, EOFError) as error:
            raise ImageError("not a DICOM file") from error
        kind = non_mammogram_kind(dataset)
        if not dataset.get("Rows") or not dataset.get("Columns"):
            named = kind or _sop_class(dataset).name or "something without a class"
            raise ImageError(f"no image, but {named}")
        flags, supplemental = header_flags(dataset) if kind is None else HeaderFlags((), False)
        implant = element_text(dataset, "BreastImplantPresent").upper()
        bits = dataset.get("BitsStored")

        def text(keyword: str) -> str | None:
            return element_text(dataset, keyword) or None

        return {
            "patient_id": text("PatientID"),
            "image_id": text("SOPInstanceUID"),
            "laterality": read_laterality(dataset).value,
            "view": read_view(dataset).value,
            "view_header": view_description(dataset),
            "age": _age(element_text(dataset, "PatientAge")),
            "implant": {"YES": 1, "NO": 0}.get(implant),
            "machine": machine_name(element_text(dataset, "ManufacturerModelName")),
            "manufacturer": text("Manufacturer"),
            "modality": text("Modality"),
            "kind": kind,
            "body_part": text("BodyPartExamined"),
            "presentation": _presentation_intent(dataset) or _class_intent(_sop_class(dataset)),
            "synthetic": int(QualityFlag.SYNTHETIC_2D in flags),
            "quality_flags": join_flags(flags),
            "supplemental": int(supplemental),
            "photometric": text("PhotometricInterpretation"),
            "bits_stored": bits if isinstance(bits, int) else None,
            "rows": int(dataset.Rows),
            "columns": int(dataset.Columns),
            "frames": int(dataset.get("NumberOfFrames") or 1),
            "transfer_syntax": str(dataset.file_meta.get("TransferSyntaxUID", "")) or None,
            "study_id": text("StudyInstanceUID"),
            "series_id": text("SeriesInstanceUID"),
        }


def machine_name(model: str) -> str | None:
    """Normalise the name of a machine's model, so that all its files have the same one.

    A version of the software is removed, blanks and underscores become single blanks. Words begin
    with a capital letter (`Senographe Essential`), those of up to three letters are capitals (`DS`,
    `2000D`). The numbers of the competition are unchanged.

    Args:
        model: `ManufacturerModelName`.

    Returns:
        None where the model has no name.
    """
    name = re.sub(r"[\s_]+", " ", re.sub(r"(?<![\d])_(?!\d)", " ", model)).strip()
    for _ in range(2):  # `VB30 SP 1.2`: one may hide another
        for version in _VERSIONS:
            name = re.sub(version, "", name, flags=re.IGNORECASE).strip() or name
    cased = re.sub(
        "[^\\W\\d]+", lambda w: w[0].capitalize() if len(w[0]) > 3 else w[0].upper(), name
    )
    return cased or None


def _age(text: str) -> float | None:
    """Years from an age such as `052Y`, `732M` or `61` (PS3.5 6.2, AS).

    None beyond 0 to 120: `000Y` and `999Y` stand for an unknown age.
    """
    age = re.fullmatch(r"(\d{1,4})\s*([DWMY]?)", text.upper())
    years = 0.0 if age is None else int(age[1]) * _YEARS[age[2] or "Y"]
    return round(years, 2) if 0 < years <= _OLDEST else None


def non_mammogram_kind(dataset: Dataset) -> str | None:
    """Name the kind of a file that is no mammogram: `CT image`, `structured report`, ...

    Args:
        dataset: with the elements of `_TAGS`; a file that has none of them may be a mammogram (the
            competition's headers are sparse).

    Returns:
        None where it may be a mammogram: by class a digital mammogram, a digital X-ray, a computed
        radiograph, a single image in the class of tomosyntheses (a synthetic 2D view), a secondary
        capture that is digitized film, or unknown; and by modality nothing else, nor an X-ray of
        another part of the body. Tomosyntheses under another class have several frames.
    """
    sop_class = _sop_class(dataset)
    if sop_class == _MEDIA_DIRECTORY:
        return "DICOMDIR (the contents of a disc)"
    kind = _class_kind(sop_class)
    one_frame = element_text(dataset, "NumberOfFrames") in ("", "0", "1")
    if kind == _TOMOSYNTHESIS and one_frame:
        kind = None
    if kind == SECONDARY_CAPTURE and _is_captured_film(dataset):
        kind = None
    if kind is None and "TOMO_PROJ" in _image_type(dataset):
        kind = "projection of a tomosynthesis"
    if kind is not None:
        return kind
    modality, part = _modality(dataset), element_text(dataset, "BodyPartExamined")
    if modality in _PROJECTIONS and modality != "MG" and part and not _is_breast(part):
        return f"X-ray of the {part.lower()}"
    if not modality or modality in _PROJECTIONS:
        return None
    return _MODALITY_KINDS.get(modality, f"image of modality {modality}")


def _is_captured_film(dataset: Dataset) -> bool:
    """Whether a secondary capture is a mammogram on film, as those of CBIS-DDSM are."""
    part, modality = element_text(dataset, "BodyPartExamined"), _modality(dataset)
    series = element_text(dataset, "SeriesDescription").upper()
    if any("SCREEN" in value for value in _image_type(dataset)) or "MASK" in series:
        return False  # a screenshot, or the mask of a lesion
    if modality == "MG":
        return not part or _is_breast(part)
    return modality in _PROJECTIONS and _is_breast(part)


class HeaderFlags(NamedTuple):
    """The kind of mammogram in a header.

    Attributes:
        flags: in the order of `QualityFlag`.
        supplemental: whether codes, the image type or the view position (and not a description
            alone) say that it shows a part of the breast, a specimen or a needle. Such an image is
            ignored for a breast that has standard views.
    """

    flags: tuple[QualityFlag, ...]
    supplemental: bool


def header_flags(dataset: Dataset) -> HeaderFlags:
    """Read quality flags from a header with the elements of `_TAGS`."""
    coded = _coded_flags(dataset)
    flags = coded | _described_flags(dataset)
    sop_class, modality = _sop_class(dataset), _modality(dataset)
    kind = _class_kind(sop_class)
    # Other modalities of X-rays show any part of the body; a header that names no modality may be
    # of mammography by its class, or by an element that only mammograms have.
    by_class = sop_class.startswith(_MAMMOGRAPHY) or kind == _TOMOSYNTHESIS
    by_elements = "PartialView" in dataset or "BreastImplantPresent" in dataset
    is_mammogram = modality == "MG" or (not modality and (by_class or by_elements))
    conditions = {
        QualityFlag.FOR_PROCESSING: "FOR PROCESSING"
        in (_presentation_intent(dataset), _class_intent(sop_class)),
        QualityFlag.SYNTHETIC_2D: bool(_SYNTHETIC_TYPES & {*_image_type(dataset)})
        or kind == _TOMOSYNTHESIS
        or any(
            _SYNTHETIC.search(element_text(dataset, keyword))
            for keyword in _DESCRIPTIONS
            if keyword != "StudyDescription"  # of exposed images as well
        ),
        QualityFlag.DIGITIZED_FILM: kind == SECONDARY_CAPTURE
        or modality == "RG"
        or element_text(dataset, "ConversionType").upper() == "DF"
        or element_text(dataset, "DetectorType").upper() == "FILM",
        QualityFlag.NOT_MAMMOGRAM: not is_mammogram
        and not _is_breast(element_text(dataset, "BodyPartExamined")),
        QualityFlag.LATERALITY_CONTRADICTORY: read_laterality(dataset).contradictory,
        QualityFlag.VIEW_CONTRADICTORY: read_view(dataset).contradictory,
    }
    flags |= {flag for flag, holds in conditions.items() if holds}
    return HeaderFlags(tuple(flag for flag in QualityFlag if flag in flags), bool(coded))


def _coded_flags(dataset: Dataset) -> set[QualityFlag]:
    """Flags by codes of the view and its modifiers, image type, view position and specimen."""
    codes = sequence_items(dataset, "ViewCodeSequence")
    modifiers = view_modifiers(dataset)
    values = [element_text(code, "CodeValue").upper() for code in modifiers]
    flags = {MODIFIER_FLAGS[value] for value in values if value in MODIFIER_FLAGS}
    if (
        any(element_text(code, "CodeValue").upper() in SPECIMEN_CODES for code in codes)
        or sequence_items(dataset, "SpecimenDescriptionSequence")
        or "SPECIMEN" in element_text(dataset, "BodyPartExamined").upper()
    ):
        flags.add(QualityFlag.SPECIMEN)
    position = element_text(dataset, "ViewPosition")
    texts = [position, *_image_type(dataset)[2:]]
    texts += [element_text(code, "CodeMeaning") for code in (*codes, *modifiers)]
    return flags | parse_view(position).flags | _matching_flags(texts)


def _described_flags(dataset: Dataset) -> set[QualityFlag]:
    """Flags by descriptions, which are typed by hand, by the paddle and by the geometry."""
    texts = [element_text(dataset, keyword) for keyword in _DESCRIPTIONS]
    flags = _matching_flags(texts)
    for text in texts:
        flags |= parse_view(text, description=True).flags
    factor = element_text(dataset, "EstimatedRadiographicMagnificationFactor")
    if re.fullmatch(r"\d+(\.\d*)?", factor) and float(factor) >= _MAGNIFIED:
        flags.add(QualityFlag.MAGNIFICATION)
    return flags


def _matching_flags(texts: list[str]) -> set[QualityFlag]:
    normalized = [re.sub("[^A-Z0-9]+", " ", text.upper()) for text in texts if text]
    return {
        flag
        for flag, pattern in _FLAG_PATTERNS.items()
        if any(pattern.search(text) for text in normalized)
    }


def _presentation_intent(dataset: Dataset) -> str:
    """FOR PRESENTATION or FOR PROCESSING, by its own element."""
    words = re.findall("[A-Z]+", element_text(dataset, "PresentationIntentType").upper())
    return " ".join(words)


def _class_intent(sop_class: UID) -> str | None:
    """The intent in the name of a class (`... Storage - For Processing`)."""
    words = sop_class.name.rpartition(" - ")[2].upper()
    return words if words.startswith("FOR ") else None


def _sop_class(dataset: Dataset) -> UID:
    """The SOP Class UID, else that of the meta information, else empty."""
    meta = getattr(dataset, "file_meta", None) or Dataset()
    own = element_text(dataset, "SOPClassUID")
    return UID(own or element_text(meta, "MediaStorageSOPClassUID"))


@cache
def _class_kind(sop_class: UID) -> str | None:
    """The kind of a class that is no projection; None for a projection or an unknown class."""
    own = sop_class.removeprefix(_STORAGE) if sop_class.startswith(_STORAGE) else ""
    for beginning, kind in _KINDS.items():
        if own == beginning or own.startswith(f"{beginning}."):
            return kind
    return None


def _is_breast(body_part: str) -> bool:
    return re.search("BREAST|MAMM", body_part.upper()) is not None


def _modality(dataset: Dataset) -> str:
    return element_text(dataset, "Modality").upper()


def _image_type(dataset: Dataset) -> list[str]:
    return [v.strip() for v in element_text(dataset, "ImageType").upper().split("\\")]
