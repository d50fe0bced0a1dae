"""What the `kaggle` client would be told; it is never run."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from rsna_bcd.bundling import push as module
from rsna_bcd.bundling.notebook import write_dataset_metadata, write_kernel_metadata
from rsna_bcd.bundling.push import NOBODY, check_push, push
from rsna_bcd.errors import InputError


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))


def test_credentials_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"No credentials .*kaggle\.json, or set KAGGLE_USERNAME"):
        check_push("create", "me")
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    with pytest.raises(InputError, match="No credentials"):
        check_push("create", "me")
    (tmp_path / "kaggle.json").touch()
    assert check_push("create", "me") == "create"
    (tmp_path / "kaggle.json").unlink()
    monkeypatch.setenv("KAGGLE_KEY", "key")
    assert check_push("version", "me") == "version"
    with pytest.raises(InputError, match="Whose is it"):
        check_push("version", NOBODY)
    with pytest.raises(InputError, match="push is create or version, not 'replace'"):
        check_push("replace", "me")


@pytest.mark.parametrize(
    ("how", "more"), [("create", []), ("version", ["--message", "rsna_bcd.bundle"])]
)
def test_the_notebook_waits_for_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: module.How, more: list[str]
) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0)
    write_dataset_metadata(tmp_path, owner="me", title="bundle", licence="other")
    write_kernel_metadata(
        tmp_path, owner="me", title="notebook", dataset="bundle", competition="c", accelerator="T4"
    )
    told: list[list[str]] = []
    answers = iter(["", "pending", "pending", "ready", ""])

    def run(arguments: Sequence[str]) -> str:
        told.append(list(arguments))
        return next(answers)

    push(tmp_path, tmp_path, how, run)
    status = ["datasets", "status", "me/bundle"]
    assert told == [
        ["datasets", how, "--path", str(tmp_path), "--dir-mode", "zip", *more],
        status, status, status,
        ["kernels", "push", "--path", str(tmp_path), "--accelerator", "T4"],
    ]  # fmt: skip
