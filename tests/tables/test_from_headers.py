"""Breasts out of headers, and of what there is where these say nothing."""

from typing import Any

import pandas as pd

from rsna_bcd.tables.from_headers import UNKNOWN_SIDE, as_file_name, distinct, images_from_headers


def header(**known: Any) -> dict[str, Any]:
    nothing = ("patient_id", "study_id", "laterality", "view", "age", "implant", "machine",
               "supplemental")  # fmt: skip
    return {**dict.fromkeys(nothing), **known}


def headers_table(headers: dict[str, dict[str, Any]]) -> pd.DataFrame:
    return images_from_headers(headers, {file: file.split("/")[-2] for file in headers})


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
    table = headers_table(
        {
            "a/1": header(patient_id="7", study_id="1", laterality="L"),
            "a/2": header(patient_id="7", study_id="2", laterality="L"),
            "a/3": header(patient_id="7_2", study_id="3", laterality="L"),
        }
    )
    assert table["prediction_id"].tolist() == ["7_L", "7_2_2_L", "7_2_L"]


def test_images_from_headers_takes_the_folder_without_patient() -> None:
    table = headers_table(
        {"x/10/1.dcm": header(laterality="L"), "x/11/1.dcm": header(laterality="L")}
    )
    assert table["prediction_id"].tolist() == ["10_L", "11_L"]
    assert not table["patient_named"].any()


def test_images_from_headers_unknown_side_is_a_breast() -> None:
    table = headers_table(
        {
            "7/1-1.dcm": header(patient_id="7"),
            "7/b/1-1.dcm": header(patient_id="7"),
            "7/L.dcm": header(patient_id="7"),
            "7/left.dcm": header(patient_id="7", laterality="L"),
        }
    )
    assert table["prediction_id"].tolist() == ["7_1-1", "7_1-1_2", "7_L_2", "7_L"]
    assert table["laterality"].tolist() == [UNKNOWN_SIDE] * 3 + ["L"]
    # No network that looks at both breasts is shown one as another's.
    assert table["patient_id"].nunique() == 4


def test_distinct_and_as_file_name() -> None:
    assert distinct(["a", "a", "a_2", "b", "a"], taken=["b"]) == ["a", "a_2", "a_2_2", "b_2", "a_3"]
    assert as_file_name("Doe^Jane/../x 1") == "Doe-Jane-..-x-1"
    assert as_file_name("..") == "unnamed"


def test_images_from_headers_placeholder_patients_by_folder() -> None:
    for name in ("ANONYMOUS", "Anonymized", "0", "^^", "unknown", "XXXX", "De-Identified"):
        headers = {
            file: header(patient_id=name, laterality="L") for file in ("a/x/1", "a/x/2", "b/x/1")
        }
        ids = headers_table(headers)["prediction_id"].tolist()
        assert ids[0] == ids[1] != ids[2]
    named = {file: header(patient_id="D1-7", laterality="L") for file in ("a/x/1", "b/x/1")}
    assert headers_table(named)["prediction_id"].nunique() == 1
    study = {file: header(patient_id="0", study_id="1", laterality="L") for file in ("a/1", "b/1")}
    assert headers_table(study)["prediction_id"].nunique() == 1
