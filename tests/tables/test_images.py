"""The schema check of the image table: what is accepted, and what each refusal names."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.tables.images import (
    LABEL_ONLY_COLUMNS,
    TEST_COLUMNS,
    TRAIN_COLUMNS,
    breast_sites,
    read_images,
)

ROWS = pd.DataFrame(
    {
        "site_id": 1,
        "patient_id": ["007", "007", "007", "8"],
        "image_id": ["11", "12", "13", "14"],
        "laterality": ["L", "L", "R", "L"],
        "view": ["CC", "MLO", "CC", "MLO"],
        "age": [61.0, 61.0, 61.0, None],
        "cancer": [1, 1, 0, 0],
    }
)


def write(folder: Path, frame: pd.DataFrame, name: str = "train.csv") -> Path:
    path = folder / name
    frame.to_csv(path, index=False)
    return path


def test_identifiers_keep_their_zeros_and_breasts_get_their_id(tmp_path: Path) -> None:
    images = read_images(write(tmp_path, ROWS), "train")
    assert images["patient_id"].tolist() == ["007", "007", "007", "8"]
    assert images["prediction_id"].tolist() == ["007_L", "007_L", "007_R", "8_L"]
    assert list(images.columns) == [*ROWS.columns, "prediction_id"]


def test_what_the_test_set_lacks_is_named() -> None:
    expected = {"cancer", "biopsy", "invasive", "BIRADS", "density", "difficult_negative_case"}
    assert set(LABEL_ONLY_COLUMNS) == expected
    assert len(TRAIN_COLUMNS) == 14
    assert len(TEST_COLUMNS) == 9


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (1, "image_id", "11", r"image_id occurs more than once in line\(s\) 2, 3"),
        (2, "laterality", "B", r"unknown laterality 'B' in line\(s\) 4 .*must be L or R"),
        (2, "laterality", None, r"unknown laterality None in line\(s\) 4"),
        (3, "view", "XCCL", r"unknown view 'XCCL' in line\(s\) 5 \(first: image 14\)"),
        (0, "patient_id", None, r"patient_id is missing in line\(s\) 2"),
        (0, "patient_id", "../up", r"unfit for a file name in line\(s\) 2"),
        (3, "cancer", 2, r"cancer is neither 0 nor 1 but '2' in line\(s\) 5"),
        (3, "cancer", "unknown", r"neither 0 nor 1 but 'unknown' in line\(s\) 5 \("),
        (0, "cancer", None, r"neither 0 nor 1 but None in line\(s\) 2 \("),
        (1, "cancer", 0, r"different labels in line\(s\) 2, 3"),
    ],
)
def test_a_bad_row_is_named(
    row: int, column: str, value: str | int | None, message: str, tmp_path: Path
) -> None:
    frame = ROWS.astype({column: object})
    frame.loc[row, column] = value
    path = write(tmp_path, frame)
    with pytest.raises(InputError, match=message) as error:
        read_images(path, "train")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("labels", ["1 1 0 0", "1.0 1.0 0.0 0.0", "TRUE TRUE FALSE FALSE"])
def test_labels_are_integers_however_they_are_written(labels: str, tmp_path: Path) -> None:
    images = read_images(write(tmp_path, ROWS.assign(cancer=labels.split())), "train")
    assert images["cancer"].dtype == "int64"
    assert images["cancer"].tolist() == [1, 1, 0, 0]


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS.drop(columns=["view", "cancer"]))
    with pytest.raises(InputError, match=r"lacks the column\(s\) view, cancer; it has site_id"):
        read_images(path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("patient_id,image_id,laterality,view,cancer\n", "no rows")],
)
def test_an_empty_table_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_images(path, "train")
    with pytest.raises(InputError, match="does not exist"):
        read_images(tmp_path / "absent.csv", "train")


def test_a_prediction_id_stands_for_one_breast(tmp_path: Path) -> None:
    test = ROWS.drop(columns="cancer").assign(prediction_id=["007_L", "007_L", "007_R", "8_L"])
    assert len(read_images(write(tmp_path, test, "test.csv"), "test")) == 4
    for row, wrong in [(1, "other"), (3, "007_R"), (3, None)]:
        bad = test.copy()
        bad.loc[row, "prediction_id"] = wrong
        with pytest.raises(InputError, match="prediction_id does not stand for exactly one breast"):
            read_images(write(tmp_path, bad, "test.csv"), "test")


def test_a_dataset_maps_its_own_names(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS.rename(columns={"view": "Projection"}))
    images = read_images(
        path, "train", rows=lambda tables, split: tables[0].rename(columns={"Projection": "view"})
    )
    assert images["view"].tolist() == ROWS["view"].tolist()


def test_a_test_may_have_views_that_nobody_knows(tmp_path: Path) -> None:
    test = ROWS.drop(columns="cancer").assign(
        prediction_id=["007_L", "007_L", "007_R", "8_L"],
        view=pd.Series(["CC", "XCCL", None, "?"]),
    )
    images = read_images(write(tmp_path, test, "test.csv"), "test")
    assert images["view"].fillna("").tolist() == ["CC", "XCCL", "", "?"]
    sided = test.assign(laterality="B")
    with pytest.raises(InputError, match="unknown laterality 'B'"):
        read_images(write(tmp_path, sided, "test.csv"), "test")


def test_several_files_are_parts_of_one_table(tmp_path: Path) -> None:
    parts = [write(tmp_path, ROWS[:2], "a.csv"), write(tmp_path, ROWS[2:], "b.csv")]
    whole = read_images(write(tmp_path, ROWS), "train")
    pd.testing.assert_frame_equal(read_images(parts, "train"), whole)
    pd.testing.assert_frame_equal(read_images([str(p) for p in parts], "train"), whole)
    bad = write(tmp_path, ROWS[1:2], "b.csv")
    with pytest.raises(InputError, match=r"a.csv with .*b.csv: image_id .* image\(s\) 12, 12\."):
        read_images([parts[0], bad], "train")


def test_an_excel_sheet_reads_like_a_csv(tmp_path: Path) -> None:
    ROWS.to_excel(tmp_path / "train.xlsx", index=False)
    sheet = read_images(tmp_path / "train.xlsx", "train")
    pd.testing.assert_frame_equal(sheet, read_images(write(tmp_path, ROWS), "train"))
    (tmp_path / "train.xlsx").write_text("image_id,cancer")
    with pytest.raises(InputError, match="train.xlsx is not an Excel table"):
        read_images(tmp_path / "train.xlsx", "train")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("/data/1.dcm", "file leads out of the folder of images"),
        ("../1.dcm", "file leads out of the folder of images"),
        ("a/../../1.dcm", "file leads out of the folder of images"),
        ("a\\1.dcm", "file leads out of the folder of images"),
        (None, "file is missing"),
    ],
)
def test_a_file_stays_in_the_folder_of_images(
    file: str | None, message: str, tmp_path: Path
) -> None:
    table = ROWS.assign(file=pd.Series(["a/..1.dcm", "b.dcm", "c*/?.dcm", file]))
    with pytest.raises(InputError, match=rf"{message} in line\(s\) 5"):
        read_images(write(tmp_path, table), "train")
    kept = read_images(write(tmp_path, table[:3]), "train")
    assert kept["file"].tolist() == ["a/..1.dcm", "b.dcm", "c*/?.dcm"]


def test_images_do_not_share_a_file(tmp_path: Path) -> None:
    table = ROWS.assign(file=["a.dcm", "a*.dcm", "a*.dcm", "a.dcm"])
    with pytest.raises(InputError, match=r"file occurs more than once in line\(s\) 2, 5 "):
        read_images(write(tmp_path, table), "train")


def test_lines_are_those_of_the_file_when_a_mapping_drops_rows(tmp_path: Path) -> None:
    table = ROWS.assign(image_id=["11", "12", "13", "a/b"])
    with pytest.raises(InputError, match=r"train.csv: image_id is unfit .* line\(s\) 5 "):
        read_images(write(tmp_path, table), "train", rows=lambda tables, split: tables[0][2:])


def test_what_a_mapping_refuses_is_said_of_its_file(tmp_path: Path) -> None:
    def refuse(tables: object, split: str) -> pd.DataFrame:
        raise InputError("no such column")

    with pytest.raises(InputError, match=r"train.csv: no such column") as error:
        read_images(write(tmp_path, ROWS), "train", rows=refuse)
    assert error.value.__cause__ is None  # the stage would show that instead


@pytest.mark.parametrize(
    ("site_id", "expected"),
    [
        ([1, 1, 2, 2], ["1", "2"]),
        ([1.0, np.nan, 2.0, 2.0], ["1", "2"]),
        (["north", "north", "1.0", "1.0"], ["north", "1"]),
        ([np.nan, np.nan, 2.0, 2.0], ["", "2"]),
        ([1, 2, 2, 2], ["", "2"]),  # of two sites at once: unknown
    ],
)
def test_breast_sites_are_one_string_per_breast(site_id: list, expected: list[str]) -> None:
    images = pd.DataFrame({"prediction_id": ["b_L", "b_L", "a_R", "a_R"], "site_id": site_id})
    sites = breast_sites(images)
    assert sites.index.tolist() == ["b_L", "a_R"]
    assert sites.tolist() == expected


def test_breast_sites_of_a_table_without_sites() -> None:
    assert breast_sites(pd.DataFrame({"prediction_id": ["b_L", "b_L", "a_R"]})).tolist() == ["", ""]
