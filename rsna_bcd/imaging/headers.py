"""What the header of a DICOM file says about its image, read without the pixels."""

import re
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from rsna_bcd.imaging.kinds import foreign_kind, sop_class_of
from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.imaging.parsing import parse_dicom, refusing_damaged_headers

Header = dict[str, str | int | float | None]

# DICOM PS3.16 CID 4014, View for Mammography: codes of SNOMED CT and, in older files, SNOMED RT.
# Its other views (caudo-cranial, exaggerated cranio-caudal, ...) do not occur in the competition.
_VIEW_OF_CODE = {
    "399162004": "CC", "R-10242": "CC",
    "399368009": "MLO", "R-10226": "MLO",
    "399260004": "ML", "R-10224": "ML",
    "399352003": "LM", "R-10228": "LM",
    "399099002": "LMO", "R-10230": "LMO",
}  # fmt: skip
# The same in words, letters only, for files whose codes are private; and the abbreviations.
_VIEW_OF_WORDS = {
    "craniocaudal": "CC", "cc": "CC",
    "mediolateraloblique": "MLO", "mlo": "MLO",
    "mediolateral": "ML", "mediallateral": "ML", "ml": "ML",
    "lateromedial": "LM", "lm": "LM",
    "lateromedialoblique": "LMO", "lmo": "LMO",
    "axillarytail": "AT", "at": "AT",
}  # fmt: skip
# CID 4015, View Modifier for Mammography: here the axillary tail is a view of its own.
_AXILLARY_TAIL = ("399011000", "R-102D1")
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
    "PresentationIntentType", "Manufacturer", "ManufacturerModelName", "PatientID", "PatientAge",
    "ImageLaterality", "Laterality", "ViewPosition", "ViewCodeSequence", "Rows", "Columns",
    "NumberOfFrames", "PhotometricInterpretation", "BitsStored", "ImageType", "BodyPartExamined",
    "BreastImplantPresent",
]  # fmt: skip


def read_header(path: Path) -> Header:
    """Read the header of a DICOM file with an image.

    Returns:
        `patient_id, image_id` (SOP Instance UID)`, laterality` (L, R), `view` (as in the
        competition), `view_header` (the header's own words for it), `age` (years), `implant`
        (0, 1), `machine` (model), `manufacturer, modality, kind` (what it is if no mammogram, see
        `foreign_kind`)`, body_part, presentation` (FOR PRESENTATION or FOR PROCESSING)`,
        synthetic` (1: made from a tomosynthesis, else 0)`, photometric, bits_stored, rows, columns`
        (pixels)`, frames, transfer_syntax, study_id, series_id`. What is absent, or cannot be
        understood, is None.

    Raises:
        ImageError: not a DICOM file, one without an image, or a damaged one.
    """
    with path.open("rb") as file, refusing_damaged_headers():
        try:
            dataset = parse_dicom(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        except (InvalidDicomError, EOFError) as error:
            raise ImageError("not a DICOM file") from error
        if not dataset.get("Rows") or not dataset.get("Columns"):
            kind = foreign_kind(dataset) or sop_class_of(dataset).name
            raise ImageError(f"no image, but {kind or 'something without a class'}")
        return {
            "patient_id": _text(dataset, "PatientID"),
            "image_id": _text(dataset, "SOPInstanceUID"),
            "laterality": _laterality(dataset),
            "view": _view(dataset),
            "view_header": _view_in_words(dataset),
            "age": _age(dataset),
            "implant": {"YES": 1, "NO": 0}.get(_text(dataset, "BreastImplantPresent") or ""),
            "machine": _text(dataset, "ManufacturerModelName"),
            "manufacturer": _text(dataset, "Manufacturer"),
            "modality": _text(dataset, "Modality"),
            "kind": foreign_kind(dataset),
            "body_part": _text(dataset, "BodyPartExamined"),
            "presentation": _presentation(dataset),
            "synthetic": int(_is_synthetic(dataset)),
            "photometric": _text(dataset, "PhotometricInterpretation"),
            "bits_stored": dataset.get("BitsStored"),
            "rows": int(dataset.Rows),
            "columns": int(dataset.Columns),
            "frames": int(dataset.get("NumberOfFrames") or 1),
            "transfer_syntax": str(dataset.file_meta.get("TransferSyntaxUID", "")) or None,
            "study_id": _text(dataset, "StudyInstanceUID"),
            "series_id": _text(dataset, "SeriesInstanceUID"),
        }


def _text(dataset: Dataset, keyword: str) -> str | None:
    return str(dataset.get(keyword) or "").strip() or None


def _presentation(dataset: Dataset) -> str | None:
    """What the pixels are for; the class tells it too (`... Storage - For Processing`)."""
    of_class = sop_class_of(dataset).name.rpartition(" - ")[2].upper()
    said = _text(dataset, "PresentationIntentType")
    return said or (of_class if of_class.startswith("FOR ") else None)


def _is_synthetic(dataset: Dataset) -> bool:
    """Whether its type says that it was made from a tomosynthesis, as a flat image of it."""
    kinds = dataset.get("ImageType") or ()
    words = {kinds} if isinstance(kinds, str) else set(map(str, kinds))
    return bool(words & {"GENERATED_2D", "TOMOSYNTHESIS", "TOMOSYNTHESIS_2D"})


def _laterality(dataset: Dataset) -> str | None:
    """The image's side; that of the series where it has none. B, both, is no breast."""
    value = _text(dataset, "ImageLaterality") or _text(dataset, "Laterality")
    return value if value in ("L", "R") else None


def _view(dataset: Dataset) -> str | None:
    """The view by its code, which mammograms must have (PS3.3 C.8.11.7), else by its words."""
    for code in dataset.get("ViewCodeSequence") or []:
        modifiers = code.get("ViewModifierCodeSequence") or []
        if any(_text(modifier, "CodeValue") in _AXILLARY_TAIL for modifier in modifiers):
            return "AT"
        return _VIEW_OF_CODE.get(_text(code, "CodeValue") or "") or _view_of_words(
            _text(code, "CodeMeaning")
        )
    return _view_of_words(_text(dataset, "ViewPosition"))


def _view_of_words(words: str | None) -> str | None:
    return _VIEW_OF_WORDS.get(re.sub(r"[^a-z]", "", (words or "").lower()))


def _view_in_words(dataset: Dataset) -> str | None:
    """What the header calls the view, its modifiers (magnified, rolled, ...) included."""
    codes = list(dataset.get("ViewCodeSequence") or [])[:1]
    codes += [m for code in codes for m in code.get("ViewModifierCodeSequence") or []]
    words = [_text(code, "CodeMeaning") or _text(code, "CodeValue") for code in codes]
    return ", ".join(filter(None, words)) or _text(dataset, "ViewPosition")


def _age(dataset: Dataset) -> float | None:
    """Years from an age such as `052Y` or `624M` (PS3.5 6.2, AS)."""
    age = re.fullmatch(r"(\d{1,3})([DWMY])", _text(dataset, "PatientAge") or "")
    return None if age is None else round(int(age[1]) * _YEARS[age[2]], 2)
