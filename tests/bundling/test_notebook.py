"""The notebook: valid, its cells run against stubs; metadata; the calls of the client."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest

from rsna_bcd.bundling import notebook as module
from rsna_bcd.bundling.notebook import check_credentials, kaggle_slug, write_dataset_metadata
from rsna_bcd.errors import InputError

SETTINGS: dict[str, Any] = {
    "name": "a+b", "owner": "me", "title": "rsna bcd A_B", "competition": "comp", "hours": 8.5,
    "accelerator": "NvidiaTeslaT4",
}  # fmt: skip


@pytest.fixture
def notebook(tmp_path: Path) -> Any:
    module.write_notebook(tmp_path / "kernel", **SETTINGS)
    return nbformat.read(tmp_path / "kernel" / "notebook.ipynb", as_version=4)


def code(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_write_notebook_is_valid_and_reproducible(notebook: Any, tmp_path: Path) -> None:
    nbformat.validate(notebook)
    module.write_notebook(tmp_path / "again", **SETTINGS)
    first, second = (tmp_path / k / "notebook.ipynb" for k in ("kernel", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert "\nHOURS = 8.5 " in code(notebook)[0]


def run_first_cell(
    notebook: Any, below: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Attach the folders below `input/` and run the cell; returns its names."""
    monkeypatch.setenv("KAGGLE_ROOT", str(root))
    for slug in ("rsna-bcd-a-b", "comp"):
        (root / "input" / below / slug).mkdir(parents=True)
    names: dict[str, Any] = {}
    exec(code(notebook)[0], names)
    return names


@pytest.mark.parametrize("below", ["", "competitions", "datasets/someone"])
def test_notebook_finds_attached_folders(
    notebook: Any, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = run_first_cell(notebook, below, tmp_path, monkeypatch)
    assert names["bundle"] == tmp_path / "input" / below / "rsna-bcd-a-b"
    assert names["competition"] == tmp_path / "input" / below / "comp"
    shutil.rmtree(names["competition"])
    with pytest.raises(AssertionError, match="comp is not attached"):
        exec(code(notebook)[0], names)


@pytest.fixture
def begun(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the notebook after its first cell; a program in the place of Python."""
    names = run_first_cell(notebook, "", tmp_path, monkeypatch)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n. {tmp_path}/then\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return names


def test_notebook_fails_when_a_command_fails(
    notebook: Any, begun: dict[str, Any], tmp_path: Path
) -> None:
    """`!command` in a notebook would continue, and submit old files."""
    (tmp_path / "then").write_text("exit 1")
    for source in code(notebook)[1:3]:
        with pytest.raises(subprocess.CalledProcessError):
            exec(source, begun)
    assert len((tmp_path / "said").read_text().splitlines()) == 2
    assert not (tmp_path / "working").exists()


def test_notebook_restarts_a_killed_submission_in_the_remaining_time(
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


def test_notebook_copies_and_shows_the_submission(
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


def test_write_metadata_has_the_fields_of_kaggle(notebook: Any, tmp_path: Path) -> None:
    write_dataset_metadata(tmp_path, owner="me", title="rsna bcd A_B", licence="other")
    assert json.loads((tmp_path / "dataset-metadata.json").read_text()) == {
        "id": "me/rsna-bcd-a-b", "title": "rsna bcd A_B", "licenses": [{"name": "other"}],
    }  # fmt: skip
    assert json.loads((tmp_path / "kernel" / "kernel-metadata.json").read_text()) == {
        "id": "me/rsna-bcd-a-b-submit", "title": "rsna bcd A_B submit",
        "code_file": "notebook.ipynb", "language": "python", "kernel_type": "notebook",
        "is_private": True, "enable_gpu": True, "machine_shape": "NvidiaTeslaT4",
        "enable_internet": False, "dataset_sources": ["me/rsna-bcd-a-b"],
        "competition_sources": ["comp"], "kernel_sources": [], "model_sources": [],
    }  # fmt: skip


@pytest.mark.parametrize("title", ["short", "x" * 51, "+ + + + + +"])
def test_kaggle_slug_refuses_titles_that_kaggle_refuses(title: str) -> None:
    with pytest.raises(InputError, match="Choose another title="):
        kaggle_slug(title)


def test_check_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    with pytest.raises(InputError, match=r"kaggle\.json, or set KAGGLE_USERNAME"):
        check_credentials("me")
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    with pytest.raises(InputError, match="No credentials"):
        check_credentials("me")
    (tmp_path / "kaggle.json").touch()
    check_credentials("me")
    (tmp_path / "kaggle.json").unlink()
    monkeypatch.setenv("KAGGLE_KEY", "key")
    check_credentials("me")
    with pytest.raises(InputError, match="owner="):
        check_credentials(module.UNKNOWN_OWNER)


@pytest.mark.parametrize(
    ("mode", "more"), [("create", []), ("version", ["--message", "rsna_bcd.bundle"])]
)
def test_push_starts_the_notebook_when_the_dataset_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: module.Mode, more: list[str]
) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0)
    write_dataset_metadata(tmp_path, owner="me", title="bundle", licence="other")
    module.write_notebook(tmp_path, **{**SETTINGS, "title": "bundle"})
    calls: list[list[str]] = []
    outputs = iter(["", "pending", "pending", "ready", ""])

    def run(arguments: Sequence[str]) -> str:
        calls.append(list(arguments))
        return next(outputs)

    module.push(tmp_path, tmp_path, mode, run)
    status = ["datasets", "status", "me/bundle"]
    assert calls == [
        ["datasets", mode, "--path", str(tmp_path), "--dir-mode", "zip", *more],
        status, status, status,
        ["kernels", "push", "--path", str(tmp_path), "--accelerator", "NvidiaTeslaT4"],
    ]  # fmt: skip
