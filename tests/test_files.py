"""Atomic writes, locks and hashes; archives are in test_archives."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.files import (
    atomic_file,
    file_sha256,
    locked,
    parts_sha256,
    tree_sha256,
    write_csv,
    write_file,
)


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


@pytest.mark.parametrize("sync", [False, True])
def test_atomic_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path, sync: bool) -> None:
    file = tmp_path / "new" / "a.txt"
    for content in ("old", "new"):
        with atomic_file(file, "w", sync=sync) as opened:
            opened.write(content)
            assert not file.exists() or file.read_text() == "old"
    assert file.read_text() == "new"
    with pytest.raises(ZeroDivisionError), atomic_file(file, "w") as opened:
        opened.write(f"half{1 / 0}")
    assert file.read_text() == "new"
    assert names(file.parent) == ["a.txt"]


def test_atomic_file_overwrites_what_a_killed_process_left(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from rsna_bcd.files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as file: os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a"], check=False)
    assert names(tmp_path) == ["a.part"]
    with atomic_file(tmp_path / "a") as file:
        file.write(b"whole")
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("a", b"whole")]


@pytest.mark.parametrize("broken", ["replace", "write_bytes"])
def test_write_file_keeps_the_old_file_if_the_disk_is_full(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    write_file(file, "old, also ü")
    with monkeypatch.context() as patch:
        patch.setattr(Path, broken, Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(StorageError, match=r"a\.txt cannot be written: No space .*Make room"):
            write_file(file, b"new")
    assert file.read_bytes() == "old, also ü".encode()
    assert names(tmp_path) == ["a.txt"]


def test_write_file_of_two_processes_at_once_uses_two_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = set()
    monkeypatch.setattr(Path, "replace", lambda unfinished, file: used.add(unfinished.name))
    for process in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        write_file(tmp_path / "a", b"")
    assert len(used) == 2
    assert all(name.startswith("a.") and name.endswith(".part") for name in used)


def test_write_csv_keeps_every_digit(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "value": [0.1 + 0.2, 1e-17]})
    write_csv(frame, tmp_path / "new" / "a.csv")
    text = (tmp_path / "new" / "a.csv").read_text()
    assert text == "id,value\na,0.30000000000000004\nb,1e-17\n"


def test_locked_keeps_others_out_and_leaves_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    refused = pytest.raises(InputError, match=r"at work on .*new.*choose another name=")
    with locked(folder, "choose another name="), refused, locked(folder, "choose another name="):
        pass
    assert names(folder) == ["lock"]
    with locked(folder, "choose another name="):
        pass


def test_locked_file_can_be_appended_to(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("one\n")
    with locked(tmp_path, "wait", "journal") as handle:
        os.write(handle, b"two\n")
    assert (tmp_path / "journal").read_text() == "one\ntwo\n"


def test_locked_ends_with_the_process_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from rsna_bcd.files import locked\n"
        "with locked(Path(sys.argv[1]), 'wait'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    with locked(tmp_path, "wait") as handle:
        assert os.fstat(handle)


def test_tree_sha256_changes_with_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.py", "sub/c.py", "a.txt"):
        (tmp_path / name).write_text("text")
    before = tree_sha256(tmp_path, "*.py")
    (tmp_path / "a.txt").write_text("not hashed")
    assert tree_sha256(tmp_path, "*.py") == before
    hashes = {before}
    (tmp_path / "a.py").write_text("other")
    hashes.add(tree_sha256(tmp_path, "*.py"))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    hashes.add(tree_sha256(tmp_path, "*.py"))
    (tmp_path / "sub" / "c.py").unlink()
    assert tree_sha256(tmp_path, "*.py") not in hashes
    assert len(hashes) == 3


def test_sha256_is_that_of_hashlib(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()
    assert parts_sha256(b"a", b"b") == hashlib.sha256(b"a\0b\0").hexdigest()
