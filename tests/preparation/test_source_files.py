"""Finding the files of a table: by identifiers, by path, by pattern."""

import os
import socket
from pathlib import Path

import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.preparation.dicom_folder import list_files
from rsna_bcd.preparation.source_files import expected_file, find_files


def images(**columns: list[str]) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    table = {"patient_id": ["7"] * n, "image_id": [str(i) for i in range(n)], **columns}
    return pd.DataFrame(table, dtype="string")


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def test_without_a_column_file_they_are_named_by_their_identifiers(tmp_path: Path) -> None:
    touch(tmp_path, "7/0.dcm", "7/1.png", "7/1.jpg", "7/2.tif", "8/3.dcm")
    table = images(patient_id=["7", "7", "7", "7", "9"])
    assert find_files(tmp_path, table, "dicom") == {"0": tmp_path / "7/0.dcm"}
    assert find_files(tmp_path, table, "image") == {
        "1": tmp_path / "7/1.png",
        "2": tmp_path / "7/2.tif",
    }


def test_a_path_or_a_pattern_says_where(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a/1.dicom",
        "Mass_1/01-01-2010-NA/1.0-full [2]/1-1.dcm",
        "Mass_1/01-01-2010-NA/1.0-full [2]/._1-1.dcm",  # of a Mac
        "Mass_1_1/x/y/1-1.dcm",
        "b[1]/x.dcm",
        "b1/x.dcm",
        "top.dcm",
    )
    table = images(
        file=["a/1.dicom", "Mass_1/*/*/*.dcm", "b[1]/x.dcm", "top.dcm", "a/?.dcm", "none/*/1.dcm"]
    )
    assert find_files(tmp_path, table, "dicom") == {
        "0": tmp_path / "a/1.dicom",
        "1": tmp_path / "Mass_1/01-01-2010-NA/1.0-full [2]/1-1.dcm",
        "2": tmp_path / "b[1]/x.dcm",  # what is called so comes before what the pattern matches
        "3": tmp_path / "top.dcm",
    }


def test_a_pattern_must_match_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.dcm", "a/2.dcm")
    with pytest.raises(InputError, match=r"a/\*.dcm .*image 0.* 2: .*a/1.dcm and .*a/2.dcm"):
        find_files(tmp_path, images(file=["a/*.dcm"]), "dicom")


def test_images_do_not_share_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.dcm")
    with pytest.raises(InputError, match=r"a/1\.dcm is the file of two images, 0 and 1\."):
        find_files(tmp_path, images(file=["a/1.dcm", "a/*.dcm"]), "dicom")


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"{patient}/{image}.dcm" for patient in range(3) for image in range(4)))
    table = images(file=[f"{patient}/{image}.dcm" for patient in range(4) for image in range(4)])
    listdir, listed = os.listdir, []

    def count(folder: Path) -> list[str]:
        listed.append(str(folder))
        return listdir(folder)

    monkeypatch.setattr("rsna_bcd.files.os.listdir", count)
    assert len(find_files(tmp_path, table, "dicom")) == 12
    assert sorted(listed) == sorted(map(str, [tmp_path, *(tmp_path / str(p) for p in range(3))]))


def test_the_expected_file_is_named(tmp_path: Path) -> None:
    row = images(patient_id=["7"]).iloc[0]
    assert expected_file(tmp_path, row, "dicom") == f"{tmp_path}/7/0.dcm (or .dicom, no suffix)"
    assert (
        expected_file(tmp_path, row, "image") == f"{tmp_path}/7/0.png (or .jpg, .jpeg, .tif, .tiff)"
    )
    row = images(file=["a/*/1.dcm"]).iloc[0]
    assert expected_file(tmp_path, row, "image") == str(tmp_path / "a/*/1.dcm")


def test_files_of_other_suffixes_and_flat_folders_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "7/0.DCM", "8/1.dicom", "9/2", "3.dcm", "4", "10/5.Dicom", "10/5.dcm")
    table = images(patient_id=["7", "8", "9", "9", "9", "10"])
    names = ["7/0.DCM", "8/1.dicom", "9/2", "3.dcm", "4", "10/5.dcm"]
    assert find_files(tmp_path, table, "dicom") == {
        str(i): tmp_path / name for i, name in enumerate(names)
    }
    touch(tmp_path, "7/0.PNG")
    assert find_files(tmp_path, table, "image") == {"0": tmp_path / "7/0.PNG"}


def test_a_folder_with_the_name_of_an_image_is_no_file(tmp_path: Path) -> None:
    touch(tmp_path, "0/1.dcm")
    assert find_files(tmp_path, images(patient_id=["7", "0"]), "dicom") == {
        "1": tmp_path / "0/1.dcm"
    }


def test_a_folder_that_cannot_be_listed_costs_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "7/0.dcm", "8/1.dcm")
    listdir = os.listdir

    def refuse(folder: Path) -> list[str]:
        if Path(folder).name == "8":
            raise OSError(5, "Input/output error", str(folder))
        return listdir(folder)

    monkeypatch.setattr("rsna_bcd.files.os.listdir", refuse)
    unlistable: dict[str, str] = {}
    found = find_files(tmp_path, images(patient_id=["7", "8"]), "dicom", unlistable)
    assert found == {"0": tmp_path / "7/0.dcm"}
    assert unlistable == {"1": f"{tmp_path}/8: Input/output error"}


def test_list_files_lists_in_order_and_leaves_out_what_is_hidden(tmp_path: Path) -> None:
    touch(tmp_path, "b", "a/2.DCM", "a/1", ".hidden", ".folder/3")
    assert list_files(tmp_path) == (["b", "a/1", "a/2.DCM"], {})


def test_list_files_follows_links_and_notices_loops(tmp_path: Path) -> None:
    touch(tmp_path, "root/a/1", "elsewhere/c/2")
    root = tmp_path / "root"
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "file").symlink_to(tmp_path / "elsewhere/c/2")
    (root / "a/up").symlink_to(root)
    (root / "a/self").symlink_to(root / "a")
    (root / "nowhere").symlink_to(tmp_path / "none")
    found, skipped = list_files(root)
    assert found == ["file", "a/1", "link/c/2"]
    assert skipped.keys() == {"a/up", "a/self", "nowhere"}
    assert "back to a folder above" in skipped["a/up"]
    assert "leads nowhere" in skipped["nowhere"]


def test_list_files_skips_pipes_and_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "1")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        found, skipped = list_files(tmp_path)
    assert found == ["1"]
    assert skipped.keys() == {"pipe", "socket"}


def test_list_files_names_folders_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/1", "b/2")
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("rsna_bcd.preparation.dicom_folder.os.scandir", refuse)
    assert list_files(tmp_path) == (["b/2"], {"a": "cannot be listed: Permission denied"})
