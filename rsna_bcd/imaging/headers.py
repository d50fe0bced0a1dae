"""What a DICOM file is: no mammogram at all, or which kind of mammogram (quality flags)."""

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
    parse_dicom,
    refusing_damaged_headers,
    sequence_items,
)
from rsna_bcd.imaging.positioning import (
    MODIFIER_FLAGS,
    SPECIMEN_CODES,
    VIEW_TAGS,
    parse_view,
    read_laterality,
    read_view,
    view_header,
    view_modifiers,
)
from rsna_bcd.imaging.quality import QualityFlag, join_flags

# Some archives call their mammograms so; RG is screen-film radiography (PS3.3 C.7.3.1.1.1).
PROJECTIONS = ("MG", "DX", "CR", "RG")
SECONDARY_CAPTURE = "secondary capture (a screenshot or a scan)"
TOMOSYNTHESIS = "breast tomosynthesis"

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# DICOM PS3.4 B.5: the classes of images and documents, by what follows; the first that begins so.
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
    "13.1.3": TOMOSYNTHESIS,
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
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
# Of files whose class is missing, or says otherwise.
_OF_MODALITY = {
    "CT": "CT image", "MR": "MR image", "US": "ultrasound image", "PT": "PET image",
    "NM": "nuclear medicine image", "XA": "angiography", "SR": "structured report",
    "DOC": "document", "PR": "presentation state (how an image is shown)",
    "KO": "key object note (a list of images)", "SEG": "segmentation",
    "SC": SECONDARY_CAPTURE,
}  # fmt: skip

_MAMMOGRAPHY = f"{_STORAGE}1.2"
# Free text. The description of a study is of all its images.
_DESCRIPTIONS = (
    "SeriesDescription", "StudyDescription", "ProtocolName", "PaddleDescription",
    "AcquisitionDeviceProcessingDescription",
)  # fmt: skip
# In capital letters, digits and single blanks. Image types are those of PS3.3 C.8.11.7.1.4.
_WORDS = {
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
_MAGNIFIED = 1.4  # times; on the breast support, up to 1.1

TAGS = (
    *VIEW_TAGS, "SOPClassUID", "Modality", "NumberOfFrames", "ImageType", "PresentationIntentType",
    "ConversionType", "DetectorType", "PartialView", "BreastImplantPresent",
    "SpecimenDescriptionSequence", "EstimatedRadiographicMagnificationFactor", *_DESCRIPTIONS,
)  # fmt: skip


def sop_class_of(dataset: Dataset) -> UID:
    """The class of a file (SOP Class UID), of its meta information where it has none; or empty."""
    meta = getattr(dataset, "file_meta", None) or Dataset()
    own = element_text(dataset, "SOPClassUID")
    return UID(own or element_text(meta, "MediaStorageSOPClassUID"))


def foreign_kind(dataset: Dataset) -> str | None:
    """Name what a file is instead of a mammogram: `CT image`, `structured report`, ...

    Args:
        dataset: with the elements of `TAGS`; a file that has none of them may be a mammogram (those
            of the competition say little).

    Returns:
        None where it may be a mammogram: by class a digital mammogram, a digital X-ray, a computed
        radiograph, a single image in the class of tomosyntheses (a synthetic 2D view), a secondary
        capture that is digitized film, or unknown; and by modality nothing else, nor an X-ray of
        another part of the body. Tomosyntheses under another class have several frames.
    """
    sop_class = sop_class_of(dataset)
    if sop_class == _MEDIA_DIRECTORY:
        return "DICOMDIR (the contents of a disc)"
    kind = _kind_of_class(sop_class)
    one_frame = element_text(dataset, "NumberOfFrames") in ("", "0", "1")
    if kind == TOMOSYNTHESIS and one_frame:
        kind = None
    if kind == SECONDARY_CAPTURE and _is_captured_film(dataset):
        kind = None
    if kind is None and "TOMO_PROJ" in _image_type(dataset):
        kind = "projection of a tomosynthesis"
    if kind is not None:
        return kind
    modality, part = _modality(dataset), element_text(dataset, "BodyPartExamined")
    if modality in PROJECTIONS and modality != "MG" and part and not shows_breast(part):
        return f"X-ray of the {part.lower()}"
    if not modality or modality in PROJECTIONS:
        return None
    return _OF_MODALITY.get(modality, f"image of modality {modality}")


def shows_breast(body_part: str) -> bool:
    """Whether a body part, as `BodyPartExamined` has it, is the breast."""
    return re.search("BREAST|MAMM", body_part.upper()) is not None


class HeaderFlags(NamedTuple):
    """What kind of mammogram a header describes.

    Attributes:
        flags: in the order of `QualityFlag`.
        supplemental: whether codes, the image type or the view position (and not a description
            alone) say that it shows a part of the breast, a specimen or a needle. Such an image
            does not decide about a breast that has standard views.
    """

    flags: tuple[QualityFlag, ...]
    supplemental: bool


def header_flags(dataset: Dataset) -> HeaderFlags:
    """Read quality flags from a header, see `QualityFlag`.

    Args:
        dataset: with the elements of `TAGS`.
    """
    stated = _stated_flags(dataset)
    flags = stated | _described_flags(dataset)
    body_part = element_text(dataset, "BodyPartExamined")
    sop_class = sop_class_of(dataset)
    modality = _modality(dataset)
    if "FOR PROCESSING" in (presentation_intent(dataset), sop_class_intent(sop_class)):
        flags.add(QualityFlag.FOR_PROCESSING)
    if _is_synthetic(dataset):
        flags.add(QualityFlag.SYNTHETIC_2D)
    if (
        _kind_of_class(sop_class) == SECONDARY_CAPTURE
        or modality == "RG"
        or element_text(dataset, "ConversionType").upper() == "DF"
        or element_text(dataset, "DetectorType").upper() == "FILM"
    ):
        flags.add(QualityFlag.DIGITIZED_FILM)
    # Other modalities of X-rays show any part of the body; a header that names no modality may be
    # of mammography by its class, or by an element that only mammograms have.
    by_class = sop_class.startswith(_MAMMOGRAPHY) or _kind_of_class(sop_class) == TOMOSYNTHESIS
    by_elements = "PartialView" in dataset or "BreastImplantPresent" in dataset
    says_so = modality == "MG" or (not modality and (by_class or by_elements))
    if not says_so and not shows_breast(body_part):
        flags.add(QualityFlag.NOT_MAMMOGRAM)
    if read_laterality(dataset).contradictory:
        flags.add(QualityFlag.LATERALITY_CONTRADICTORY)
    if read_view(dataset).contradictory:
        flags.add(QualityFlag.VIEW_CONTRADICTORY)
    return HeaderFlags(tuple(flag for flag in QualityFlag if flag in flags), bool(stated))


def presentation_intent(dataset: Dataset) -> str | None:
    """What the pixels are for: FOR PRESENTATION or FOR PROCESSING; the class tells it too."""
    words = re.findall("[A-Z]+", element_text(dataset, "PresentationIntentType").upper())
    return " ".join(words) or sop_class_intent(sop_class_of(dataset))


def sop_class_intent(sop_class: UID) -> str | None:
    """What a class says that its pixels are for (`... Storage - For Processing`)."""
    words = sop_class.name.rpartition(" - ")[2].upper()
    return words if words.startswith("FOR ") else None


def _stated_flags(dataset: Dataset) -> set[QualityFlag]:
    """Flags by codes of the view and its modifiers, image type, view position and specimen."""
    codes = sequence_items(dataset, "ViewCodeSequence")
    modifiers = view_modifiers(dataset)
    flags = {MODIFIER_FLAGS.get(element_text(code, "CodeValue").upper()) for code in modifiers}
    if (
        any(element_text(code, "CodeValue").upper() in SPECIMEN_CODES for code in codes)
        or sequence_items(dataset, "SpecimenDescriptionSequence")
        or "SPECIMEN" in element_text(dataset, "BodyPartExamined").upper()
    ):
        flags.add(QualityFlag.SPECIMEN)
    position = element_text(dataset, "ViewPosition")
    flags |= parse_view(position).flags
    texts = [position, *_image_type(dataset)[2:]]
    texts += [element_text(code, "CodeMeaning") for code in (*codes, *modifiers)]
    return {flag for flag in flags if flag} | _flags_in(texts)


def _described_flags(dataset: Dataset) -> set[QualityFlag]:
    """Flags by descriptions, which people type, by the paddle and by the geometry."""
    texts = [element_text(dataset, keyword) for keyword in _DESCRIPTIONS]
    flags = _flags_in(texts)
    for text in texts:
        flags |= parse_view(text, description=True).flags
    factor = element_text(dataset, "EstimatedRadiographicMagnificationFactor")
    if re.fullmatch(r"\d+(\.\d*)?", factor) and float(factor) >= _MAGNIFIED:
        flags.add(QualityFlag.MAGNIFICATION)
    return flags


def _flags_in(texts: list[str]) -> set[QualityFlag]:
    """Flags by words of a text."""
    words = [re.sub("[^A-Z0-9]+", " ", text.upper()) for text in texts if text]
    return {flag for flag, word in _WORDS.items() if any(word.search(text) for text in words)}


def _is_synthetic(dataset: Dataset) -> bool:
    """Whether the image was made from a tomosynthesis, as a flat image of it."""
    types = {"GENERATED_2D", "TOMOSYNTHESIS", "TOMOSYNTHESIS_2D"}
    return (
        bool(types & {*_image_type(dataset)})
        or _kind_of_class(sop_class_of(dataset)) == TOMOSYNTHESIS
        or any(
            _SYNTHETIC.search(element_text(dataset, keyword))
            for keyword in _DESCRIPTIONS
            if keyword != "StudyDescription"  # of exposed images as well
        )
    )


def _is_captured_film(dataset: Dataset) -> bool:
    """Whether a secondary capture is a mammogram on film, as those of CBIS-DDSM are."""
    part, modality = element_text(dataset, "BodyPartExamined"), _modality(dataset)
    series = element_text(dataset, "SeriesDescription").upper()
    if any("SCREEN" in value for value in _image_type(dataset)) or "MASK" in series:
        return False  # a screenshot, or where a lesion is
    if modality == "MG":
        return not part or shows_breast(part)
    return modality in PROJECTIONS and shows_breast(part)


@cache
def _kind_of_class(sop_class: UID) -> str | None:
    """What a class is instead of a projection; None where it may be one, or is unknown."""
    own = sop_class.removeprefix(_STORAGE) if sop_class.startswith(_STORAGE) else ""
    for beginning, kind in _KINDS.items():
        if own == beginning or own.startswith(f"{beginning}."):
            return kind
    return None


def _modality(dataset: Dataset) -> str:
    return element_text(dataset, "Modality").upper()


def _image_type(dataset: Dataset) -> list[str]:
    """The values of the image type, in capital letters."""
    return [v.strip() for v in element_text(dataset, "ImageType").upper().split("\\")]


Header = dict[str, str | int | float | None]

_OLDEST = 120  # years
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}

# What makes may append to the name of a model: a version of the software.
_VERSIONS = (
    r"[\s,;(]+(SOFTWARE|SW|VERSION|VERS?\.?|REV(ISION)?\.?|RELEASE|BUILD)[\s:.]+.*$",
    r"[\s,;(_-]+(ADS|SW)[\s_]?\d[\d.]*\)?$",  # GE: ADS_54.11.7
    r"[\s,;(_-]+V[A-Z]\d\d[A-Z]?\)?$",  # Siemens: VB30A
    r"[\s,;(_-]+V?\d+(\.\d+)+[A-Z]?\)?$",  # V1.8.3, 1.8
)

_TAGS = [
    *TAGS, "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Manufacturer",
    "ManufacturerModelName", "PatientID", "PatientAge", "Rows", "Columns",
    "PhotometricInterpretation", "BitsStored",
]  # fmt: skip


def read_header(path: Path) -> Header:
    """Read the header of a DICOM file with an image.

    Returns:
        `patient_id, image_id` (SOP Instance UID)`, laterality` (L, R), `view` (CC, MLO and others,
        see `read_view`), `view_header` (the header's own words for it), `age` (years), `implant`
        (0, 1), `machine` (model, see `machine_name`), `manufacturer, modality, kind` (what it is if
        no mammogram, see `foreign_kind`)`, body_part, presentation` (FOR PRESENTATION or FOR
        PROCESSING)`, synthetic` (1: made from a tomosynthesis, else 0)`, quality_flags` (see
        `header_flags`; joined)`, supplemental` (1: does not decide about a breast that has standard
        views)`, photometric, bits_stored, rows, columns` (pixels)`, frames, transfer_syntax,
        study_id, series_id`. What is absent, or cannot be understood, is None.

    Raises:
        ImageError: not a DICOM file, one without an image, or a damaged one.
    """
    with path.open("rb") as file, refusing_damaged_headers():
        try:
            dataset = parse_dicom(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        except (InvalidDicomError, EOFError) as error:
            raise ImageError("not a DICOM file") from error
        kind = foreign_kind(dataset)
        if not dataset.get("Rows") or not dataset.get("Columns"):
            named = kind or sop_class_of(dataset).name or "something without a class"
            raise ImageError(f"no image, but {named}")
        flags, supplemental = header_flags(dataset) if kind is None else HeaderFlags((), False)
        return {
            "patient_id": _text(dataset, "PatientID"),
            "image_id": _text(dataset, "SOPInstanceUID"),
            "laterality": read_laterality(dataset).value,
            "view": read_view(dataset).value,
            "view_header": view_header(dataset),
            "age": _age(dataset),
            "implant": {"YES": 1, "NO": 0}.get(
                element_text(dataset, "BreastImplantPresent").upper()
            ),
            "machine": machine_name(element_text(dataset, "ManufacturerModelName")),
            "manufacturer": _text(dataset, "Manufacturer"),
            "modality": _text(dataset, "Modality"),
            "kind": kind,
            "body_part": _text(dataset, "BodyPartExamined"),
            "presentation": presentation_intent(dataset),
            "synthetic": int(QualityFlag.SYNTHETIC_2D in flags),
            "quality_flags": join_flags(flags),
            "supplemental": int(supplemental),
            "photometric": _text(dataset, "PhotometricInterpretation"),
            "bits_stored": _number(dataset, "BitsStored"),
            "rows": int(dataset.Rows),
            "columns": int(dataset.Columns),
            "frames": int(dataset.get("NumberOfFrames") or 1),
            "transfer_syntax": str(dataset.file_meta.get("TransferSyntaxUID", "")) or None,
            "study_id": _text(dataset, "StudyInstanceUID"),
            "series_id": _text(dataset, "SeriesInstanceUID"),
        }


def machine_name(model: str) -> str | None:
    """The name of a machine's model as all its files have it, whatever software it runs.

    A version behind it goes, blanks and underscores are single blanks, and case is one: words
    begin with a capital letter (`Senographe Essential`), those of up to three letters are capitals
    (`DS`, `2000D`). The numbers of the competition stay as they are.

    Args:
        model: `ManufacturerModelName`.

    Returns:
        None where the model has no name.
    """
    whole = re.sub(r"[\s_]+", " ", re.sub(r"(?<![\d])_(?!\d)", " ", model)).strip()
    name = whole
    for _ in range(2):  # `VB30 SP 1.2`: one may hide another
        for version in _VERSIONS:
            name = re.sub(version, "", name, flags=re.IGNORECASE).strip() or name
    cased = re.sub(
        "[^\\W\\d]+", lambda w: w[0].capitalize() if len(w[0]) > 3 else w[0].upper(), name
    )
    return cased or None


def _text(dataset: Dataset, keyword: str) -> str | None:
    return element_text(dataset, keyword) or None


def _number(dataset: Dataset, keyword: str) -> int | None:
    value = dataset.get(keyword)
    return int(value) if isinstance(value, int) else None


def _age(dataset: Dataset) -> float | None:
    """Years from an age such as `052Y`, `732M` or `61` (PS3.5 6.2, AS); None beyond 0 to 120.

    So are `000Y` and `999Y`, which stand for an age that is not known.
    """
    age = re.fullmatch(r"(\d{1,4})\s*([DWMY]?)", element_text(dataset, "PatientAge").upper())
    years = 0.0 if age is None else int(age[1]) * _YEARS[age[2] or "Y"]
    return round(years, 2) if 0 < years <= _OLDEST else None
