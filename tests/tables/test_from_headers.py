"""Tables of images from DICOM headers and folder names."""

from typing import Any

import pandas as pd
import pytest

from rsna_bcd.tables.from_headers import UNKNOWN_SIDE, as_file_name, distinct, images_from_headers


def header(**known: Any) -> dict[str, Any]:
    nothing = ("patient_id", "study_id", "laterality", "view", "age", "implant", "machine",
               "supplemental")  # fmt: skip
    return {**dict.fromkeys(nothing), **known}


def headers_table(headers: dict[str, dict[str, Any]]) -> pd.DataFrame:
    return images_from_headers(headers, {file: file.split("/")[-2] for file in headers})


def breasts(headers: dict[str, dict[str, Any]]) -> list[str]:
    return headers_table(headers)["prediction_id"].tolist()


def test_images_from_headers_breast_is_one_side_of_one_study() -> None:
    table = headers_table(
        {
            "a/1": header(patient_id="7", study_id="old", laterality="L", view="CC", age=61.0),
            "a/2": header(
                patient_id="7", study_id="old", laterality="L", view="MLO", supplemental=1
            ),
            "a/3": header(patient_id="7", study_id="old", laterality="R", view="CC"),
            "b/1": header(patient_id="7", study_id="new", laterality="L", machine="Mammomat"),
            "b/2": header(patient_id="8", study_id="other", laterality="L", implant=1),
        }
    )
    assert table["prediction_id"].tolist() == ["7_L", "7_L", "7_R", "7_2_L", "8_L"]
    assert table["patient_id"].tolist() == ["7", "7", "7", "7_2", "8"]
    assert table["patient"].tolist() == ["7", "7", "7", "7", "8"]
    assert table["examination"].tolist() == [1, 1, 1, 2, 1]
    assert table["image_id"].tolist() == ["a/1", "a/2", "a/3", "b/1", "b/2"]
    assert table["view"].fillna("").tolist() == ["CC", "MLO", "CC", "", ""]
    assert table["age"].fillna(0).tolist() == [61, 0, 0, 0, 0]
    assert table["machine_id"].fillna("").tolist() == ["", "", "", "Mammomat", ""]
    assert table["site_id"].isna().all()
    assert table["supplemental"].tolist() == [False, True, False, False, False]


def test_images_from_headers_keeps_patients_apart() -> None:
    studies = {"a/1": ("7", "1"), "a/2": ("7", "2"), "a/3": ("7_2", "3")}
    headers = {
        file: header(patient_id=patient, study_id=study, laterality="L")
        for file, (patient, study) in studies.items()
    }
    assert breasts(headers) == ["7_L", "7_2_2_L", "7_2_L"]


def test_images_from_headers_takes_the_folder_without_patient() -> None:
    table = headers_table({f"x/{folder}/1.dcm": header(laterality="L") for folder in (10, 11)})
    assert table["prediction_id"].tolist() == ["10_L", "11_L"]
    assert not table["patient_named"].any()


def test_images_from_headers_unknown_side_is_a_breast() -> None:
    files = ("7/1-1.dcm", "7/b/1-1.dcm", "7/L.dcm")
    headers = {file: header(patient_id="7") for file in files}
    table = headers_table({**headers, "7/left.dcm": header(patient_id="7", laterality="L")})
    assert table["prediction_id"].tolist() == ["7_1-1", "7_1-1_2", "7_L_2", "7_L"]
    assert table["laterality"].tolist() == [UNKNOWN_SIDE] * 3 + ["L"]
    assert table["patient_id"].nunique() == 4  # none is the other breast of another


@pytest.mark.parametrize(
    "name", ["ANONYMOUS", "Anonymized", "0", "^^", "unknown", "XXXX", "De-Identified"]
)
def test_images_from_headers_placeholder_patients_by_folder(name: str) -> None:
    anonymous = header(patient_id=name, laterality="L")
    ids = breasts(dict.fromkeys(("a/x/1", "a/x/2", "b/x/1"), anonymous))
    assert ids[0] == ids[1] != ids[2]
    for same in (anonymous | {"study_id": "1"}, anonymous | {"patient_id": "D1-7"}):
        assert len(set(breasts(dict.fromkeys(("a/x/1", "b/x/1"), same)))) == 1


def test_distinct_and_as_file_name() -> None:
    assert distinct(["a", "a", "a_2", "b", "a"], taken={"b"}) == ["a", "a_2", "a_2_2", "b_2", "a_3"]
    assert as_file_name("Doe^Jane/../x 1") == "Doe-Jane-..-x-1"
    assert as_file_name("..") == "unnamed"
