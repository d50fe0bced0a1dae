"""The notebook is valid, short, and does what it says with what Kaggle attaches."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from rsna_bcd.bundling.notebook import (
    slug_of,
    write_dataset_metadata,
    write_kernel_metadata,
    write_notebook,
)
from rsna_bcd.errors import InputError


@pytest.fixture
def notebook(tmp_path: Path) -> Any:
    file = write_notebook(
        tmp_path / "kernel", name="a+b", dataset="rsna-bcd-a-b", competition="comp", hours=8.5
    )
    return nbformat.read(file, as_version=4)


def code(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_valid_short_and_the_same_again(notebook: Any, tmp_path: Path) -> None:
    nbformat.validate(notebook)
    assert sum(len(source.splitlines()) for source in code(notebook)) < 45
    first = (tmp_path / "kernel" / "notebook.ipynb").read_bytes()
    again = write_notebook(
        tmp_path / "again", name="a+b", dataset="rsna-bcd-a-b", competition="comp", hours=8.5
    )
    assert again.read_bytes() == first
    assert "\nHOURS = 8.5 " in code(notebook)[0]


@pytest.mark.parametrize("below", ["", "competitions", "datasets/someone"])
def test_it_finds_what_is_attached(
    notebook: Any, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_ROOT", str(tmp_path))
    for slug in ("rsna-bcd-a-b", "comp"):
        (tmp_path / "input" / below / slug).mkdir(parents=True)
    names: dict[str, Any] = {}
    exec(code(notebook)[0], names)
    assert names["bundle"] == tmp_path / "input" / below / "rsna-bcd-a-b"
    assert names["competition"] == tmp_path / "input" / below / "comp"
    shutil.rmtree(names["competition"])
    with pytest.raises(AssertionError, match="comp is not attached"):
        exec(code(notebook)[0], names)


@pytest.fixture
def begun(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the notebook after its first cell; a program in the place of Python."""
    monkeypatch.setenv("KAGGLE_ROOT", str(tmp_path))
    for slug in ("rsna-bcd-a-b", "comp"):
        (tmp_path / "input" / slug).mkdir(parents=True)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n. {tmp_path}/then\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    names: dict[str, Any] = {}
    exec(code(notebook)[0], names)
    return names


def test_it_fails_where_a_command_fails(
    notebook: Any, begun: dict[str, Any], tmp_path: Path
) -> None:
    """`!command` in a notebook would go on, and hand in what lies about."""
    (tmp_path / "then").write_text("exit 1")
    for source in code(notebook)[1:3]:
        with pytest.raises(subprocess.CalledProcessError):
            exec(source, begun)
    assert len((tmp_path / "said").read_text().splitlines()) == 2
    assert not (tmp_path / "working").exists()


def test_it_goes_on_where_it_was_killed_in_what_time_is_left(
    notebook: Any, begun: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "then").write_text(f"[ $(wc -l < {tmp_path}/said) = 3 ] || kill -9 $$")
    begun["STARTED"] -= 3600
    exec(code(notebook)[2], begun)
    said = (tmp_path / "said").read_text().splitlines()
    data, models = tmp_path / "input" / "comp", tmp_path / "input" / "rsna-bcd-a-b"
    assert len(said) == 3
    assert said[0] == (
        f"-m rsna_bcd.submit paths=kaggle name='a+b' paths.data='{data}' paths.models='{models}' "
        "budget.hours=7.500"
    )
    (tmp_path / "said").unlink()
    (tmp_path / "then").write_text("kill -9 $$")
    begun["STARTED"] -= 36000
    with pytest.raises(subprocess.CalledProcessError):
        exec(code(notebook)[2], begun)
    said = (tmp_path / "said").read_text().splitlines()
    assert [line.split("=")[-1] for line in said] == ["0.100"] * 3


def test_it_hands_in_and_shows_what_was_made(
    notebook: Any, begun: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "working" / "output" / "submissions" / "a+b"
    made.mkdir(parents=True)
    (made / "submission.csv").write_text("prediction_id,cancer\n1_L,0\n1_R,1\n")
    (made / "failures.csv").write_text("prediction_id,reason\n")
    (made / "summary.json").write_text('{"shed": "TTA", "asked": {}}')
    exec(code(notebook)[3], begun)
    handed_in = (tmp_path / "working" / "submission.csv").read_text()
    assert handed_in == (made / "submission.csv").read_text()
    shown = capsys.readouterr().out
    assert "{'shed': 'TTA'}" in shown
    assert "submission.csv: 2 rows" in shown
    assert "failures.csv: 0 rows" in shown


def test_kaggle_is_told_everything_it_asks_for(tmp_path: Path) -> None:
    write_dataset_metadata(tmp_path, owner="me", title="rsna bcd A_1", licence="other")
    write_kernel_metadata(
        tmp_path,
        owner="me",
        title="rsna bcd A_1 submit",
        dataset="rsna-bcd-a-1",
        competition="comp",
        accelerator="NvidiaTeslaT4",
    )
    dataset = json.loads((tmp_path / "dataset-metadata.json").read_text())
    assert dataset == {
        "id": "me/rsna-bcd-a-1", "title": "rsna bcd A_1", "licenses": [{"name": "other"}],
    }  # fmt: skip
    kernel = json.loads((tmp_path / "kernel-metadata.json").read_text())
    assert kernel == {
        "id": "me/rsna-bcd-a-1-submit", "title": "rsna bcd A_1 submit",
        "code_file": "notebook.ipynb", "language": "python", "kernel_type": "notebook",
        "is_private": True, "enable_gpu": True, "machine_shape": "NvidiaTeslaT4",
        "enable_internet": False, "dataset_sources": ["me/rsna-bcd-a-1"],
        "competition_sources": ["comp"], "kernel_sources": [], "model_sources": [],
    }  # fmt: skip


@pytest.mark.parametrize("title", ["short", "x" * 51, "+ + + + + +"])
def test_a_title_that_kaggle_refuses_is_refused(title: str) -> None:
    with pytest.raises(InputError, match="Choose another title="):
        slug_of(title)
