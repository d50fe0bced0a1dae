"""Records that were saved before an object moved: loaded, resumed and submitted all the same."""

import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fabricated_crops import save_crops
from omegaconf import OmegaConf
from submission_inputs import NAME, configure, save_members, save_test_set
from tiny_training import interrupt, run

from rsna_bcd.inference.run import load_run
from rsna_bcd.stages.submit import submit
from rsna_bcd.targets import OLD_TARGETS, with_current_targets

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")


@pytest.fixture(autouse=True)
def _undo_moves() -> Iterator[None]:
    """Forget the moves that a test has made up."""
    known = dict(OLD_TARGETS)
    yield
    OLD_TARGETS.clear()
    OLD_TARGETS.update(known)


def before_the_move(value: Any) -> Any:
    """A record as it was when objects were elsewhere and `tta` a word; notes where they are now."""
    if isinstance(value, list):
        return [before_the_move(item) for item in value]
    if not isinstance(value, dict):
        return value
    aged = {key: before_the_move(item) for key, item in value.items()}
    target = aged.get("_target_")
    if isinstance(target, str) and not target.startswith("torch"):
        aged["_target_"] = f"moved.{target}"
        OLD_TARGETS[f"moved.{target}"] = target
    if aged.get("tta") == []:
        aged["tta"] = "none"
    return aged


def age(folder: Path) -> None:
    """Rewrite the records in a folder, those inside checkpoints included."""
    for file in folder.rglob("config.yaml"):
        OmegaConf.save(before_the_move(OmegaConf.to_container(OmegaConf.load(file))), file)
    for file in folder.rglob("*.ckpt"):
        content = torch.load(file, weights_only=True)
        if "config" in content:
            content["config"] = before_the_move(content["config"])
            torch.save(content, file)


def test_with_current_targets_rewrites_at_any_depth() -> None:
    OLD_TARGETS["a.Old"] = "b.New"
    record = {"network": {"_target_": "a.Old", "parts": [{"_target_": "a.Old"}]}, "name": "a.Old"}
    current = {"network": {"_target_": "b.New", "parts": [{"_target_": "b.New"}]}, "name": "a.Old"}
    assert with_current_targets(record) == current


@pytest.mark.parametrize(
    ("tta", "now"), [("none", []), ("hflip", ["hflip"]), (["vflip"], ["vflip"])]
)
def test_with_current_targets_makes_tta_a_list(tta: Any, now: list[str]) -> None:
    assert with_current_targets({"tta": tta}) == {"tta": now}


def test_old_targets_lead_to_something() -> None:
    for old, new in OLD_TARGETS.items():
        assert new not in OLD_TARGETS, f"{old} -> {new}, which has moved as well"
        pkgutil.resolve_name(new)


def test_train_resumes_and_loads_a_run_with_old_targets(tmp_path: Path) -> None:
    save_crops(tmp_path)
    interrupt(tmp_path)
    age(tmp_path)
    folder = run(tmp_path)
    assert pd.read_csv(folder / "metrics.csv")["epoch"].tolist() == [0, 1]
    age(folder)
    load_run(folder)


def test_submit_takes_runs_with_old_targets(tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "output"
    save_test_set(data, 2)
    save_members(output)
    submit(configure(data, output))
    submission = output / "submissions" / NAME / "submission.csv"
    before = submission.read_bytes()
    age(output / "runs")
    submit(configure(data, output, ["overwrite=true"]))
    assert submission.read_bytes() == before
