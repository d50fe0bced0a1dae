"""What a DICOM file is, by its class and modality, where it is no mammogram."""

from pydicom.dataset import Dataset
from pydicom.uid import UID

PROJECTIONS = ("MG", "DX", "CR")  # some archives call their mammograms so
SECONDARY_CAPTURE = "secondary capture (a screenshot or a scan)"

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
    "13.1.3": "breast tomosynthesis",
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


def sop_class_of(dataset: Dataset) -> UID:
    """The class of a file (SOP Class UID), of its meta information where it has none; or empty."""
    meta = getattr(dataset, "file_meta", {})
    return UID(str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""))


def foreign_kind(dataset: Dataset) -> str | None:
    """Name what a file is instead of a mammogram: `CT image`, `structured report`, ...

    Args:
        dataset: with its class and its modality; a file that has neither may be a mammogram (those
            of the competition say little).

    Returns:
        None where it may be a mammogram: by class a digital mammogram, a digital X-ray, a computed
        radiograph, or unknown, and by modality nothing else. Tomosyntheses that are stored under
        another class have several frames.
    """
    sop_class = sop_class_of(dataset)
    if sop_class == _MEDIA_DIRECTORY:
        return "DICOMDIR (the contents of a disc)"
    if sop_class.startswith(_STORAGE):
        own = sop_class.removeprefix(_STORAGE)
        for beginning, kind in _KINDS.items():
            if own == beginning or own.startswith(f"{beginning}."):
                return kind
    modality = str(dataset.get("Modality") or "").strip()
    if not modality or modality in PROJECTIONS:
        return None
    return _OF_MODALITY.get(modality, f"image of modality {modality}")


def may_be_a_digitised_film(dataset: Dataset) -> bool:
    """Whether a secondary capture says that it is a mammogram, as those of CBIS-DDSM do."""
    return foreign_kind(dataset) == SECONDARY_CAPTURE and dataset.get("Modality") in PROJECTIONS
