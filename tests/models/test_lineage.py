"""Which runs weights come from, and what that forbids."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import save_safetensors
from rsna_bcd.models.checkpoint import check_unseen, is_optimistic, starts_from


def record(**changes: Any) -> dict[str, Any]:
    return {
        "name": "x", "fold": 0, "dataset": {"name": "rsna"}, "select": "last", "patience": None,
        "folds": {"strategy": "stratified", "sha256": "1"}, "network": {"checkpoint_path": "file"},
        **changes,
    }  # fmt: skip


def save(folder: Path, file: str, **changes: Any) -> Path:
    torch.save({"config": record(**changes), "state_dict": {}}, folder / file)
    return folder / file


def test_a_file_names_its_run_and_those_before(tmp_path: Path) -> None:
    first = starts_from(save(tmp_path, "best.ckpt", name="first", patience=3))
    (entry,) = first
    assert (entry["name"], entry["select"], entry["patience"]) == ("first", "best", 3)
    second = starts_from(save(tmp_path, "last.ckpt", name="second", starts_from=first))
    assert [(run["name"], run["select"]) for run in second] == [
        ("second", "last"), ("first", "best"),
    ]  # fmt: skip
    torch.save({"config": {"model": "theirs"}}, tmp_path / "foreign.ckpt")
    assert starts_from(tmp_path / "foreign.ckpt") == []
    assert starts_from(tmp_path / "nowhere.ckpt") == []


@pytest.mark.parametrize(
    "other", [{"fold": 1}, {"fold": "all"}, {"folds": {"strategy": "holdout", "sha256": "2"}}]
)
def test_only_the_same_fold_of_the_same_folds_is_unseen(other: dict[str, Any]) -> None:
    check_unseen(record(starts_from=[record()]))
    with pytest.raises(InputError, match="checkpoint_path=file has learnt from patients of rsna"):
        check_unseen(record(starts_from=[record(), record(**other)]))
    elsewhere = {"dataset": {"name": "vindr"}}
    check_unseen(record(starts_from=[record(**other, **elsewhere)]))
    check_unseen(record(fold="all", starts_from=[record(**other)]))


@pytest.mark.parametrize("choice", [{"select": "best"}, {"patience": 0}], ids=str)
def test_a_choice_on_the_held_out_patients_is_inherited(choice: dict[str, Any]) -> None:
    assert not is_optimistic(record(starts_from=[record()]))
    assert is_optimistic(record(**choice))
    assert is_optimistic(record(starts_from=[record(), record(**choice)]))
    elsewhere = record(**choice, dataset={"name": "vindr"})
    assert not is_optimistic(record(starts_from=[elsewhere]))
    assert not is_optimistic(record(fold="all", starts_from=[record(**choice)]))


def test_our_own_safetensors_have_seen_their_patients(tmp_path: Path) -> None:
    """As a bundle has them; their file may have any name."""
    run = record(select="best")
    file = tmp_path / "weights.safetensors"
    save_safetensors({"config": run, "state_dict": {"a": torch.zeros(1)}}, file)
    (entry,) = starts_from(file)
    assert (entry["name"], entry["fold"], entry["select"]) == ("x", 0, "best")
    with pytest.raises(InputError, match="has learnt from patients of rsna"):
        check_unseen(record(fold=1, starts_from=[entry]))
