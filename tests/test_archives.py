"""Files on disk and in zip archives are read alike."""

import os
import zipfile
from multiprocessing import get_context
from pathlib import Path

import pytest

from rsna_bcd.files import ArchiveError, is_file, list_names, read_bytes, version_stamp


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {"train.csv": b"a,b\n", "images/1/2.dcm": b"DICM" * 99}.items():
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "data"


@pytest.fixture(params=["plain", "backslashes", "dot", "stored"])
def archive(request: pytest.FixtureRequest, folder: Path) -> Path:
    path = folder.parent / "data.zip"
    method = zipfile.ZIP_STORED if request.param == "stored" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", method) as target:
        for file in folder.rglob("*"):
            name = file.relative_to(folder).as_posix()
            if request.param == "backslashes":
                name = name.replace("/", "\\")
            elif request.param == "dot":
                name = f"./{name}"
            if file.is_file():
                target.writestr(name, file.read_bytes())
    return path


def test_read_bytes_and_the_like_treat_an_archive_like_its_folder(
    folder: Path, archive: Path
) -> None:
    for inside in ("train.csv", "images/1/2.dcm", "images/1", "images", ".", "none", "images/2/1"):
        there, here = folder / inside, archive / inside
        assert is_file(here) == (there.is_file() or inside == ".")  # the archive is a file too
        names = {p.name for p in there.iterdir()} if there.is_dir() else set()
        assert list_names(here) == names
        if there.is_file():
            assert read_bytes(here) == read_bytes(there) == there.read_bytes()
            assert version_stamp(here, "x").startswith(f"x {there.stat().st_size} ")


def test_read_bytes_of_absent_files_raises_the_exception_of_the_system(
    folder: Path, archive: Path
) -> None:
    for path in (folder / "none.csv", archive / "none.csv"):
        with pytest.raises(FileNotFoundError):
            read_bytes(path)
        with pytest.raises(FileNotFoundError):
            version_stamp(path, "x")
    with pytest.raises(NotADirectoryError):
        read_bytes(folder / "train.csv" / "no archive")


def test_read_bytes_notices_a_replaced_archive(archive: Path) -> None:
    assert read_bytes(archive / "train.csv") == b"a,b\n"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("train.csv", b"new\n")
    os.utime(archive, ns=(1, 1))
    assert read_bytes(archive / "train.csv") == b"new\n"


def test_read_bytes_names_damaged_archives(folder: Path) -> None:
    path = folder.parent / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        target.writestr("train.csv", b"a,b\n" * 1000)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"a,b\n", b"a;b\n", 1))
    with pytest.raises(ArchiveError, match=r"damaged in the archive\. Download data.zip again"):
        read_bytes(path / "train.csv")
    path.write_bytes(whole[:2000])
    os.utime(path, ns=(2, 2))
    with pytest.raises(ArchiveError, match="was cut short"):
        read_bytes(path / "train.csv")


def _read(path: Path) -> bytes:
    return b"".join(read_bytes(path / "images/1/2.dcm") for _ in range(50))


def test_read_bytes_in_forked_processes_shares_no_position(folder: Path) -> None:
    path = folder.parent / "data.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("images/1/2.dcm", b"DICM" * 99)
    expected = _read(path)  # opens the archive before the processes are forked
    with get_context("fork").Pool(4) as pool:
        assert pool.map(_read, [path] * 8) == [expected] * 8
