"""Text tables of other programs: read in one way, or refused with the reason."""

from pathlib import Path

import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.tables.delimited import decode_text, parse_lines
from rsna_bcd.tables.folds import read_folds
from rsna_bcd.tables.images import read_images
from rsna_bcd.tables.test_set import read_test_tables

TEXT = """patient_id,image_id,laterality,view,age,cancer
007,1,L,CC,61,1
007,2,L,MLO,61,1
NA,3,R,CC,50.5,0
"""
EXPECTED = {
    "patient_id": ["007", "007", "NA"],
    "image_id": ["1", "2", "3"],
    "laterality": ["L", "L", "R"],
    "view": ["CC", "MLO", "CC"],
    "age": [61.0, 61.0, 50.5],
    "cancer": [1, 1, 0],
    "prediction_id": ["007_L", "007_L", "NA_R"],
}
SEMICOLONS = TEXT.replace(",", ";").replace("50.5", "50,5")


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace(",", "\t").encode(),
        SEMICOLONS.encode(),
        TEXT.replace("\n", ",\n").encode(),
        TEXT.replace("\n", ",\n").replace("cancer,\n", "cancer\n").encode(),
        TEXT.replace("\n", "\n\n").encode(),
        TEXT.replace(",", " , ").encode(),
        TEXT.replace("L", "left").replace("MleftO", "MLO").replace("R", "Right").encode(),
        TEXT.replace("CC", "cc").replace("MLO", "mlo").encode(),
        TEXT.replace("patient_id,image_id", "PatientID,Image Id").encode(),
        TEXT.upper().encode(),
        TEXT.replace(",1,L", ",1.0,L").replace(",2,L", ",2.0,L").replace(",3,R", ",3.0,R").encode(),
        TEXT.replace("61", "061Y").replace("50.5", "606M").encode(),
        TEXT.replace("61", "61+").encode(),
        TEXT.replace("007,1", '"007","1"').encode(),
    ],
)
def test_read_images_reads_each_spelling(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_bytes(content)
    images = read_images(file, "train")
    assert images.to_dict("list") == EXPECTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("61", "old", 1), r"age is no number but 'old' in line\(s\) 2 .*Write years"),
        (TEXT.replace("L,CC", "L,CC,7", 1), r"line\(s\) 2 have more cells than the header's 6"),
        (TEXT.replace("view,", "age,"), r"column\(s\) age more than once"),
        ("", r"is empty\. Check that it was copied"),
        (TEXT.replace("MLO", "xccl"), r"unknown view 'xccl' in"),
        (TEXT[: TEXT.index("\n")], r"has a header but no rows"),
        (TEXT.replace("007", "nan"), r"patient_id is missing in line\(s\) 2, 3"),
        # Lines are numbered as an editor does.
        ("\n" + TEXT.replace("R,CC", "B,CC").replace("NA", "\nNA"), r"'B' in line\(s\) 6"),
        ("PK\x03\x04" + TEXT, r"spreadsheet or archive\. Save it as CSV"),
    ],
)
def test_read_images_names_the_fault(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_images(file, "train")


def test_read_images_names_an_absent_archive(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    with pytest.raises(InputError, match=f"^{archive} does not exist. Point paths.data="):
        read_images(archive / "train.csv", "train")


def test_read_test_tables_reads_the_same_spellings(tmp_path: Path) -> None:
    file, sample = tmp_path / "test.csv", tmp_path / "sample_submission.csv"
    test = TEXT.replace("cancer", "prediction_id").replace("61,1", "61,007_L")
    file.write_bytes(test.replace("50.5,0", "50.5,NA_R").replace(",", ";").encode("utf-16"))
    sample.write_text("prediction_id,cancer\n007_L,0\nNA_R,0\n")
    tables = read_test_tables(file, sample)
    assert {f.kind for f in tables.failures} <= {"missing view"}
    assert tables.images["patient_id"].tolist() == ["007", "007", "NA"]
    assert tables.breasts["prediction_id"].tolist() == ["007_L", "NA_R"]
    file.write_bytes(b"PK\x03\x04" + bytes(range(256)))
    with pytest.raises(InputError, match="Save it as CSV"):
        read_test_tables(file, sample)


def test_read_folds_keeps_a_patient_called_na(tmp_path: Path) -> None:
    (tmp_path / "folds.csv").write_text("patient_id,fold\n007,0\nNA,1\n")
    assert read_folds(tmp_path / "folds.csv")["patient_id"].tolist() == ["007", "NA"]


def test_decode_text_without_utf_8() -> None:
    assert decode_text(b"8\xff4", errors="replace") == "8\N{REPLACEMENT CHARACTER}4"
    assert decode_text(b"8\xe44") == "8\N{LATIN SMALL LETTER A WITH DIAERESIS}4"


def test_parse_lines_keeps_a_delimiter_in_quotation_marks() -> None:
    assert parse_lines('a,b\n"1,5",2\n') == [(1, ["a", "b"]), (2, ["1,5", "2"])]
