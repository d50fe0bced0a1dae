"""Folders of other people's making: links, loops, pipes."""

import os
import socket
from pathlib import Path

import pytest

from rsna_bcd.preparation.folders import files_below


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_below_lists_in_order_and_leaves_out_what_is_hidden(tmp_path: Path) -> None:
    touch(tmp_path, "b", "a/2.DCM", "a/1", ".hidden", ".folder/3")
    assert files_below(tmp_path) == (["b", "a/1", "a/2.DCM"], {})


def test_files_below_follows_links_and_notices_loops(tmp_path: Path) -> None:
    touch(tmp_path, "root/a/1", "elsewhere/c/2")
    root = tmp_path / "root"
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "file").symlink_to(tmp_path / "elsewhere/c/2")
    (root / "a/up").symlink_to(root)
    (root / "a/self").symlink_to(root / "a")
    (root / "nowhere").symlink_to(tmp_path / "none")
    found, skipped = files_below(root)
    assert found == ["file", "a/1", "link/c/2"]
    assert skipped.keys() == {"a/up", "a/self", "nowhere"}
    assert "back to a folder above" in skipped["a/up"]
    assert "leads nowhere" in skipped["nowhere"]


def test_files_below_skips_pipes_and_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "1")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        found, skipped = files_below(tmp_path)
    assert found == ["1"]
    assert skipped.keys() == {"pipe", "socket"}


def test_files_below_names_folders_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/1", "b/2")
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("rsna_bcd.preparation.folders.os.scandir", refuse)
    assert files_below(tmp_path) == (["b/2"], {"a": "cannot be listed: Permission denied"})
