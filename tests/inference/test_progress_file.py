"""The progress file: the rows kept of a damaged or interrupted one."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.inference.progress import open_progress
from rsna_bcd.inference.stream import Prediction

INPUTS = {"table": "a", "networks": "b"}


def write_predictions(file: Path, n: int = 5) -> list[bytes]:
    with open_progress(file, INPUTS) as progress:
        for i in range(n):
            progress.add(Prediction(str(i), np.array([i / 10, np.nan]), None))
    return file.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("kept", [0, 2, 4])
@pytest.mark.parametrize("damage", [b'{"image": "9", "pro{"image": 1}\n', b"\x00\xff\n", b"[1]\n"])
def test_progress_keeps_what_precedes_a_damaged_line(
    tmp_path: Path, kept: int, damage: bytes
) -> None:
    lines = write_predictions(tmp_path / "journal.jsonl")
    file = tmp_path / "journal.jsonl"
    file.write_bytes(b"".join([*lines[: 1 + kept], damage, *lines[1 + kept :]]))
    with open_progress(file, INPUTS) as progress:
        assert list(progress.by_image) == [str(i) for i in range(kept)]
        assert not progress.is_new
        progress.add(Prediction("new", None, "unreadable"))
    with open_progress(file, INPUTS) as progress:
        assert list(progress.by_image) == [*map(str, range(kept)), "new"]


def test_progress_of_other_inputs_is_refused_and_replaced_by_the_first_new_prediction(
    tmp_path: Path,
) -> None:
    file, others = tmp_path / "journal.jsonl", {**INPUTS, "table": "c"}
    lines = write_predictions(file)
    with pytest.raises(InputError, match=r"table: a -> c\n.*submission_dir=.*overwrite=true"):
        open_progress(file, others).__enter__()
    for inputs in (INPUTS, others):
        with open_progress(file, inputs, overwrite=True) as progress:
            assert progress.is_new
            assert progress.by_image == {}
        assert file.read_bytes() == b"".join(lines)
    with open_progress(file, others, overwrite=True) as progress:
        progress.add(Prediction("new", None, "unreadable"))
    with open_progress(file, others) as progress:
        assert list(progress.by_image) == ["new"]


def test_progress_of_another_program_is_new(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_text("not ours\n")
    with open_progress(file, INPUTS) as progress:
        assert progress.is_new
        assert progress.by_image == {}


def test_progress_reports_a_write_that_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def short(handle: int, content: Any) -> int:
        return write(handle, bytes(content)[:7])

    with open_progress(tmp_path / "journal.jsonl", INPUTS) as progress:
        monkeypatch.setattr(os, "write", short)
        with pytest.raises(StorageError, match="No space left"):
            progress.add(Prediction("0", None, "unreadable"))
