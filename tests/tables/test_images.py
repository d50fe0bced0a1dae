"""The schema of the table of images: accepted tables, and the cells that a refusal names."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.tables.images import breast_sites, read_images

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
IDS = ["007_L", "007_L", "007_R", "8_L"]
TEST = ROWS.drop(columns="cancer").assign(prediction_id=IDS)


def write(folder: Path, frame: pd.DataFrame, name: str = "train.csv") -> Path:
    frame.to_csv(folder / name, index=False)
    return folder / name


def test_read_images_keeps_identifiers_and_adds_prediction_ids(tmp_path: Path) -> None:
    images = read_images(write(tmp_path, ROWS), "train")
    assert images["patient_id"].tolist() == ["007", "007", "007", "8"]
    assert images["prediction_id"].tolist() == IDS
    assert list(images.columns) == [*ROWS.columns, "prediction_id"]


@pytest.mark.parametrize(
    ("split", "row", "column", "value", "key"),
    [
        ("train", 1, "image_id", "11", r"image_id occurs more than once in line\(s\) 2, 3"),
        ("train", 2, "laterality", "B", r"laterality 'B' in line\(s\) 4 .*must be L or R"),
        ("test", 2, "laterality", None, r"laterality None in line\(s\) 4"),
        ("train", 3, "view", "XCCL", r"view 'XCCL' in line\(s\) 5 \(first: image 14\)"),
        ("train", 0, "patient_id", None, r"patient_id is missing in line\(s\) 2"),
        ("train", 0, "patient_id", "../up", r"unfit for a file name in line\(s\) 2"),
        ("train", 3, "cancer", 2, r"neither 0 nor 1 but '2' in line\(s\) 5"),
        ("train", 3, "cancer", "unknown", r"but 'unknown' in line\(s\) 5 \("),
        ("train", 3, "cancer", None, r"missing in line\(s\) 5 .* dataset\.rows\.unlabelled=drop"),
        ("train", 1, "cancer", 0, r"different labels in line\(s\) 2, 3"),
        ("test", 1, "prediction_id", "other", "exactly one breast"),
        ("test", 3, "prediction_id", "007_R", "exactly one breast"),
        ("test", 3, "prediction_id", None, "exactly one breast"),
        ("train", 3, "file", "/data/1.dcm", r"out of the folder of images in line\(s\) 5"),
        ("train", 3, "file", "a/../../1.dcm", "out of the folder of images"),
        ("train", 3, "file", "a\\1.dcm", "out of the folder of images"),
        ("train", 3, "file", None, "file is missing"),
        ("train", 3, "file", "a/..1.dcm", r"file occurs more than once in line\(s\) 2, 5 "),
    ],
)
def test_read_images_names_an_invalid_cell(
    split: Any, row: int, column: str, value: Any, key: str, tmp_path: Path
) -> None:
    files = ["a/..1.dcm", "c*/?.dcm", "c*/?.dcm", "d.dcm"]  # images may share a pattern
    frame = (ROWS if split == "train" else TEST).assign(file=files).astype({column: object})
    path = write(tmp_path, frame)
    assert read_images(path, split)["file"].tolist() == files
    frame.loc[row, column] = value
    write(tmp_path, frame)
    with pytest.raises(InputError, match=key) as error:
        read_images(path, split)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("labels", ["1.0 1.0 0.0 0.0", "TRUE TRUE FALSE FALSE"])
def test_read_images_reads_labels_as_integers(labels: str, tmp_path: Path) -> None:
    images = read_images(write(tmp_path, ROWS.assign(cancer=labels.split())), "train")
    assert images["cancer"].dtype == "int64"
    assert images["cancer"].tolist() == [1, 1, 0, 0]


def test_read_images_refuses_an_absent_file_or_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_images(tmp_path / "absent.csv", "train")
    (tmp_path / "rsna.zip").touch()
    with pytest.raises(InputError, match=r"without unpacking: paths.data=.*/rsna\.zip"):
        read_images(tmp_path / "rsna" / "train.csv", "train")
    path = write(tmp_path, ROWS.drop(columns=["view", "cancer"]))
    with pytest.raises(InputError, match=r"view, cancer; it has site_id.*dataset=generic"):
        read_images(path, "train")


def test_read_images_joins_several_files(tmp_path: Path) -> None:
    parts = [write(tmp_path, ROWS[:2], "a.csv"), write(tmp_path, ROWS[2:], "b.csv")]
    whole = read_images(write(tmp_path, ROWS), "train")
    pd.testing.assert_frame_equal(read_images(parts, "train"), whole)
    write(tmp_path, ROWS[1:2], "b.csv")
    with pytest.raises(InputError, match=r"a.csv with .*b.csv: image_id .* image\(s\) 12, 12\."):
        read_images([str(part) for part in parts], "train")


def test_read_images_reads_excel_as_csv(tmp_path: Path) -> None:
    file, rows = tmp_path / "train.xlsx", ROWS.drop(columns="age")
    rows.to_excel(file, index=False)
    csv = read_images(write(tmp_path, rows), "train")
    pd.testing.assert_frame_equal(read_images(file, "train"), csv)
    file.write_text("image_id,cancer")
    with pytest.raises(InputError, match="train.xlsx is not an Excel table"):
        read_images(file, "train")


def test_read_images_with_a_mapping_names_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS.assign(image_id=["11", "12", "13", "a/b"]))
    with pytest.raises(InputError, match=r"train.csv: image_id is unfit .* line\(s\) 5 "):
        read_images(path, "train", rows=lambda tables, split: tables[0][2:])

    def refuse(tables: object, split: str) -> pd.DataFrame:
        raise InputError("no such column")

    with pytest.raises(InputError, match=r"train.csv: no such column") as error:
        read_images(path, "train", rows=refuse)
    assert error.value.__cause__ is None  # the stage would show that instead


@pytest.mark.parametrize(
    ("site_id", "expected"),
    [
        ([1, 1, 2, 2], ["1", "2"]),
        ([1.0, np.nan, 2.0, 2.0], ["1", "2"]),
        (["north", "north", "1.0", "1.0"], ["north", "1"]),
        ([np.nan, np.nan, 2.0, 2.0], ["", "2"]),
        ([1, 2, 2, 2], ["", "2"]),  # of two sites at once: unknown
        (None, ["", ""]),
    ],
)
def test_breast_sites(site_id: list[Any] | None, expected: list[str]) -> None:
    images = pd.DataFrame({"prediction_id": ["b_L", "b_L", "a_R", "a_R"]})
    sites = breast_sites(images if site_id is None else images.assign(site_id=site_id))
    assert sites.index.tolist() == ["b_L", "a_R"]
    assert sites.tolist() == expected
