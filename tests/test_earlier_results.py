"""Results that `train overwrite=true` puts aside: stopped anywhere, none is lost."""

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.stages import _earlier_results
from rsna_bcd.stages._earlier_results import (
    DeleteEarlier,
    put_aside,
    restore,
    wait_until_restored,
)

NAMES = ("checkpoints", "oof.csv", "metrics.json")
TRAINER: Any = SimpleNamespace(is_global_zero=True)


def write_run(folder: Path, text: str) -> None:
    for name in ("config.yaml", "oof.csv", "metrics.json", "checkpoints/a.ckpt", "checkpoints/b"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}


def put_run_aside(folder: Path) -> None:
    put_aside(folder, [folder / name for name in NAMES])


def begin_new_run(folder: Path) -> None:
    put_run_aside(folder)
    write_run(folder, "new")


def stop_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise KeyboardInterrupt in place of the n-th change of a file or folder."""
    changes = count()

    def stopping(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> Any:
            if next(changes) == number:
                raise KeyboardInterrupt
            return change(*args, **kwargs)

        return changed

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(Path, name, stopping(getattr(Path, name)))
    for module, name in ((shutil, "rmtree"), (_earlier_results, "write_file")):
        monkeypatch.setattr(module, name, stopping(getattr(module, name)))


@pytest.mark.parametrize(
    ("is_begun", "number"), [*((False, n) for n in range(6)), *((True, n) for n in range(10))]
)
def test_a_stop_while_results_are_put_aside_or_back(
    is_begun: bool, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, "earlier")
    before = texts(tmp_path)
    if is_begun:
        begin_new_run(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(number, patch)
        with pytest.raises(KeyboardInterrupt):
            restore(tmp_path, NAMES) if is_begun else put_run_aside(tmp_path)
    restore(tmp_path, NAMES)
    assert texts(tmp_path) == before


@pytest.mark.parametrize("is_deleted", [True, False])
def test_after_the_first_step_nothing_is_put_back(
    is_deleted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the files cannot be deleted: NFS keeps those that a process has open."""
    write_run(tmp_path, "earlier")
    begin_new_run(tmp_path)
    callback = DeleteEarlier(tmp_path)
    if not is_deleted:
        monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    callback.on_train_batch_end(TRAINER)
    restore(tmp_path, NAMES)
    new = {name: text for name, text in texts(tmp_path).items() if "deleted" not in name}
    assert set(new.values()) == {"new"}
    assert any(tmp_path.glob("earlier*")) != is_deleted


def test_a_stop_before_the_deletion_keeps_the_earlier_run_and_one_within_it_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, "earlier")
    before = texts(tmp_path)
    begin_new_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            DeleteEarlier(tmp_path).on_train_batch_end(TRAINER)
    restore(tmp_path, NAMES)
    assert {name: text for name, text in texts(tmp_path).items() if name in before} == before
    begin_new_run(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(2, patch)  # mkdir of the renamed folder is Python's own
        with pytest.raises(KeyboardInterrupt):
            DeleteEarlier(tmp_path).on_train_batch_end(TRAINER)
    restore(tmp_path, NAMES)
    assert (tmp_path / "oof.csv").read_text() == "new"


def test_other_ranks_wait_for_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until_restored(tmp_path)
    write_run(tmp_path, "earlier")
    put_run_aside(tmp_path)
    monkeypatch.setattr(_earlier_results, "_PATIENCE", 0.2)
    with pytest.raises(InputError, match="the first rank has not put them back"):
        wait_until_restored(tmp_path)
