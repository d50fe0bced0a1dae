"""Make a table of images from DICOM headers and folder names."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from rsna_bcd.tables.images import LATERALITIES

UNKNOWN_SIDE = "unknown"
# Placeholders of programs for a patient's identifier.
_PLACEHOLDER = re.compile(
    r"(?i)\W*(anon\w*|unknown|unnamed|none|null|nil|no[ _-]?(name|id)|n/?a|x+|0+|1"
    r"|(test|dummy)?[ _-]?patient([ _-]?id)?|test|dummy|removed|deleted|redacted|de[ _-]?id\w*)?\W*"
)
_Header = Mapping[str, str | int | float | None]


def images_from_headers(headers: Mapping[str, _Header], folders: Mapping[str, str]) -> pd.DataFrame:
    """Make a table of images as inference wants it.

    The images of a patient belong together if they are of one study. Without a study, those of a
    patient with a placeholder for a name (`ANONYMOUS`, `0`, ...) belong together by folder. A
    breast is one side of one study; an image of unknown side is a breast of its own, and no other
    breast's other side.

    Args:
        headers: by file, as `imaging.headers.read_header` reads them.
        folders: by file, the name of its folder: the patient, where no header names one.

    Returns:
        One row per file, in the order of `headers`: `image_id` (the file), `prediction_id`,
        `patient_id` (an examination), `laterality` (L, R or `unknown`), `view` (None if unknown),
        `supplemental` (see `excluded_images`), `age, implant, machine_id, site_id` (NA where
        unknown), `patient` (as in the header, else the folder), `patient_named` (by the header),
        and `examination` (1, 2, ... of the patient).
    """
    patients = {
        file: str(header["patient_id"] or folders[file]) for file, header in headers.items()
    }
    studies: dict[str, dict[object, int]] = {}
    names = {(patient, 1): patient for patient in patients.values()}
    taken = set(names.values())
    rows = []
    for file, header in headers.items():
        patient = patients[file]
        numbers = studies.setdefault(patient, {})
        study = header["study_id"]
        if study is None and _PLACEHOLDER.fullmatch(patient):  # may be several patients
            study = f"folder {file.rpartition('/')[0]}"
        number = numbers.setdefault(study, len(numbers) + 1)
        if (patient, number) not in names:
            names[patient, number] = distinct([f"{patient}_{number}"], taken)[0]
        known = header["laterality"] in LATERALITIES
        rows.append(
            {
                "image_id": file,
                "patient_id": names[patient, number],
                "laterality": header["laterality"] if known else UNKNOWN_SIDE,
                "view": header["view"],
                "supplemental": bool(header.get("supplemental")),
                "age": header["age"],
                "implant": header["implant"],
                "machine_id": header["machine"],
                "site_id": None,
                "patient": patient,
                "patient_named": header["patient_id"] is not None,
                "examination": number,
            }
        )
    return _with_breasts(pd.DataFrame(rows))


def _with_breasts(table: pd.DataFrame) -> pd.DataFrame:
    """Add `prediction_id`; an image of unknown side is a breast, and a patient, of its own."""
    for column in ("age", "implant"):
        table[column] = pd.to_numeric(table[column]).astype("float64")
    table = table.astype({"machine_id": "string", "site_id": "string"})
    # None, not NA: breast-level networks compare views, and NA is not comparable.
    table["view"] = table["view"].astype(object).where(table["view"].notna(), None)
    sided = table["laterality"] != UNKNOWN_SIDE
    stem = table["image_id"].str.replace(r".*/|\.[^./]*$", "", regex=True)
    last = table["laterality"].where(sided, stem)
    breasts = table["patient_id"] + "_" + last
    table["prediction_id"] = breasts
    table.loc[~sided, "prediction_id"] = distinct(breasts[~sided], taken=set(breasts[sided]))
    alone = table["prediction_id"] + " (side unknown)"
    table["patient_id"] = table["patient_id"].where(sided, alone)
    return table


def distinct(names: Iterable[str], taken: set[str] | None = None) -> list[str]:
    """Number names that occur again, or are taken: `a, a, b` become `a, a_2, b`.

    `taken` gets the new names.
    """
    used: set[str] = set() if taken is None else taken
    result = []
    counts: Counter[str] = Counter()
    for name in names:
        new = name
        while new in used:
            counts[name] += 1
            new = f"{name}_{counts[name] + 1}"
        used.add(new)
        result.append(new)
    return result


def as_file_name(text: str) -> str:
    """The text of a header in letters, digits, `_`, `.` and `-`."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".-") or "unnamed"
