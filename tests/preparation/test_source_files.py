"""Finding the files of a table, and those below a folder."""

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


PATTERNS = ["a/1.dicom", "Mass_1/*/*/*.dcm", "b[1]/x.dcm", "top.dcm", "a/?.dcm", "none/*/1.dcm"]


@pytest.mark.parametrize(
    ("source", "table", "files", "expected"),
    [
        pytest.param(
            "dicom", images(patient_id=["7", "8", "9", "9", "9", "10", "11"]),
            ["7/0.DCM", "8/1.dicom", "9/2", "3.dcm", "4", "10/5.Dicom", "10/5.dcm", "12/6.dcm"],
            ["7/0.DCM", "8/1.dicom", "9/2", "3.dcm", "4", "10/5.dcm"],
            id="suffixes_and_flat_folders",
        ),
        pytest.param(
            "image", images(patient_id=["7"] * 4), ["7/0.dcm", "7/1.png", "7/1.jpg", "7/2.TIF"],
            [None, "7/1.png", "7/2.TIF"], id="pictures",
        ),
        pytest.param(
            "dicom", images(patient_id=["7", "0"]), ["0/1.dcm"], [None, "0/1.dcm"],
            id="folder_with_the_name_of_an_image",
        ),
        pytest.param(
            "dicom", images(file=PATTERNS),
            ["a/1.dicom", "Mass_1/01-01-2010-NA/1.0-full [2]/1-1.dcm",
             "Mass_1/01-01-2010-NA/1.0-full [2]/._1-1.dcm",  # of a Mac
             "Mass_1_1/x/y/1-1.dcm", "b[1]/x.dcm", "b1/x.dcm", "top.dcm"],
            ["a/1.dicom", "Mass_1/01-01-2010-NA/1.0-full [2]/1-1.dcm",
             "b[1]/x.dcm",  # a name comes before the matches of a pattern
             "top.dcm"],
            id="column_file_with_patterns",
        ),
    ],
)  # fmt: skip
def test_find_files(
    source: str, table: pd.DataFrame, files: list[str], expected: list[str | None], tmp_path: Path
) -> None:
    touch(tmp_path, *files)
    assert find_files(tmp_path, table, source) == {  # type: ignore[arg-type]
        str(i): tmp_path / name for i, name in enumerate(expected) if name is not None
    }


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["a/*.dcm"], r"a/\*.dcm .*image 0.* 2: .*a/1.dcm and .*a/2.dcm"),
        (["a/1.dcm", "a/1*"], r"a/1\.dcm is the file of two images, 0 and 1\."),
    ],
)
def test_find_files_refuses_ambiguous_patterns(
    patterns: list[str], message: str, tmp_path: Path
) -> None:
    touch(tmp_path, "a/1.dcm", "a/2.dcm")
    with pytest.raises(InputError, match=message):
        find_files(tmp_path, images(file=patterns), "dicom")


def test_find_files_lists_each_folder_once_and_names_those_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *(f"{patient}/{image}.dcm" for patient in range(3) for image in range(4)))
    table = images(file=[f"{patient}/{image}.dcm" for patient in range(4) for image in range(4)])
    listdir, listed = os.listdir, []

    def list_or_refuse(folder: Path) -> list[str]:
        listed.append(str(folder))
        if Path(folder).name == "2":
            raise OSError(5, "Input/output error", str(folder))
        return listdir(folder)

    monkeypatch.setattr("rsna_bcd.files.os.listdir", list_or_refuse)
    unlistable: dict[str, str] = {}
    assert len(find_files(tmp_path, table, "dicom", unlistable)) == 8
    assert unlistable == {str(i): f"{tmp_path}/2: Input/output error" for i in range(8, 12)}
    assert {*listed} == {str(tmp_path), *(f"{tmp_path}/{p}" for p in range(3))}
    assert len([folder for folder in listed if not folder.endswith("/2")]) == 3


@pytest.mark.parametrize(
    ("columns", "source", "expected"),
    [
        ({"patient_id": ["7"]}, "dicom", "7/0.dcm (or .dicom, no suffix)"),
        ({"patient_id": ["7"]}, "image", "7/0.png (or .jpg, .jpeg, .tif, .tiff)"),
        ({"file": ["a/*/1.dcm"]}, "image", "a/*/1.dcm"),
    ],
)
def test_expected_file(columns: dict, source: str, expected: str, tmp_path: Path) -> None:
    row = images(**columns).iloc[0]
    assert expected_file(tmp_path, row, source) == f"{tmp_path}/{expected}"  # type: ignore[arg-type]


def test_list_files_is_ordered_and_has_reasons_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    touch(root, "b", "a/2.DCM", "a/1", "closed/3", ".hidden", ".folder/3")
    touch(tmp_path, "elsewhere/c/2")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "file").symlink_to(tmp_path / "elsewhere/c/2")
    (root / "a/up").symlink_to(root)
    (root / "a/self").symlink_to(root / "a")
    (root / "nowhere").symlink_to(tmp_path / "none")
    os.mkfifo(root / "pipe")
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("rsna_bcd.preparation.dicom_folder.os.scandir", refuse)
    monkeypatch.chdir(root)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        found, skipped = list_files(root)
    assert found == ["b", "file", "a/1", "a/2.DCM", "link/c/2"]
    assert {name: reason.split(":")[0] for name, reason in skipped.items()} == {
        "a/self": "a link back to a folder above it",
        "a/up": "a link back to a folder above it",
        "closed": "cannot be listed",
        "nowhere": "a link that leads nowhere",
        "pipe": "no file but a pipe, a socket or a device",
        "socket": "no file but a pipe, a socket or a device",
    }
