"""What the header of a DICOM file says about its image, read without the pixels."""

import re
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from rsna_bcd.imaging.elements import element_text
from rsna_bcd.imaging.kinds import (
    TAGS,
    HeaderFlags,
    foreign_kind,
    header_flags,
    presentation_intent,
    sop_class_of,
)
from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.imaging.parsing import parse_dicom, refusing_damaged_headers
from rsna_bcd.imaging.positioning import read_laterality, read_view, view_header
from rsna_bcd.imaging.quality import QualityFlag, join_flags

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
