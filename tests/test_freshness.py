"""An ensemble whose members were trained again is refused, with the command that fits it again."""

import importlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fabricated_networks import TinyImages
from fabricated_runs import oof, save_run
from stage_settings import composed

from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import check_current
from rsna_bcd.models.checkpoint import read_checkpoint, save_safetensors
from rsna_bcd.scoring.ensemble import FILE_NAME, read_ensemble


def save_weights(run: Path, seed: int) -> None:
    torch.manual_seed(seed)
    state = {f"network.{k}": v for k, v in TinyImages().state_dict().items()}
    file = run / "checkpoints" / "last.ckpt"
    file.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": state, "epoch": seed}, file)


def run_stage(stage: str, output: Path, *overrides: str) -> Any:
    cfg = composed(stage, f"paths.output={output}", *overrides)
    return getattr(importlib.import_module(f"rsna_bcd.stages.{stage}"), stage)(cfg)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of a run, and its ensemble."""
    output = tmp_path_factory.mktemp("trained")
    run = save_run(output / "runs" / "b5", oof(range(60), 0), oof(range(60, 120), 1))
    for fold in (0, 1):
        save_weights(run / f"fold{fold}", fold)
    threshold = ("threshold=recall_rate", "recall_rate=0.2", "resamples=20")
    run_stage("ensemble", output, "name=demo", "members=[b5]", *threshold)
    return output


@pytest.fixture
def output(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def file(output: Path) -> Path:
    return output / "ensembles" / "demo" / FILE_NAME


def change_predictions(output: Path) -> None:
    save_run(output / "runs" / "b5", oof(range(60, 120), 1, seed=7))


def change_weights(output: Path) -> None:
    save_weights(output / "runs" / "b5" / "fold1", 9)


@pytest.mark.parametrize(
    ("stage", "override", "change", "part"),
    [
        ("submit", "name=demo", change_weights, "weights"),
        ("predict", "inputs=nowhere", change_weights, "weights"),
        ("report", "cases=0", change_predictions, "predictions"),
        ("bundle", "owner=me", change_weights, "weights"),
        ("evaluate", "resamples=20", change_predictions, "predictions"),
    ],
)
def test_stage_refuses_a_stale_ensemble_with_the_command_that_fits_it_again(
    stage: str, override: str, change: Callable[[Path], None], part: str, output: Path, file: Path
) -> None:
    change(output)
    with pytest.raises(InputError) as error:
        run_stage(stage, output, "name=demo", override)
    message = str(error.value)
    assert f"b5, fold 1: {part}" in message
    assert "fold 0" not in message
    *program, overrides = message.splitlines()[-1].split(maxsplit=3)
    assert program == ["python", "-m", "rsna_bcd.ensemble"]
    run_stage("ensemble", output, "resamples=20", *shlex.split(overrides))
    check_current(read_ensemble(file), output)


def test_check_current_accepts_the_same_training(output: Path, file: Path) -> None:
    save_weights(output / "runs" / "b5" / "fold1", 1)
    save_run(output / "runs" / "b5", oof(range(60, 120), 1))
    check_current(read_ensemble(file), output)


def test_check_current_of_a_bundle_compares_its_safetensors(
    output: Path, file: Path, tmp_path: Path
) -> None:
    fitted, bundle = read_ensemble(file), tmp_path / "bundle"
    place = "runs/b5/fold{}/checkpoints/last.{}"
    for fold in (0, 1):
        checkpoint = read_checkpoint(output / place.format(fold, "ckpt"))
        save_safetensors(checkpoint, bundle / place.format(fold, "safetensors"))
    check_current(fitted, bundle)
    shutil.copy(*(bundle / place.format(fold, "safetensors") for fold in (1, 0)))
    with pytest.raises(InputError, match="b5, fold 0: weights"):
        check_current(fitted, bundle)


def test_check_current_accepts_ensembles_without_hashes(output: Path, file: Path) -> None:
    record = json.loads(file.read_text())
    del record["command"], record["members"][0]["hashes"]
    file.write_text(json.dumps(record))
    change_weights(output)
    check_current(read_ensemble(file), output)


def test_evaluate_refuses_a_submission_of_an_earlier_ensemble(output: Path) -> None:
    folder = output / "submissions" / "demo"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"asked": {"ensemble": "0" * 64}}))
    with pytest.raises(InputError, match=r"predicted before[\s\S]*rsna_bcd.submit name=demo"):
        run_stage("evaluate", output, "name=demo")
    (folder / "summary.json").unlink()
    (folder / "journal.jsonl").touch()
    with pytest.raises(InputError, match=r"is not finished[\s\S]*rsna_bcd.submit name=demo"):
        run_stage("evaluate", output, "name=demo")


def test_ensemble_names_a_fold_without_a_record(output: Path) -> None:
    (output / "runs" / "b5" / "fold1" / "config.yaml").unlink()
    with pytest.raises(InputError, match="fold1 has no config.yaml"):
        run_stage("ensemble", output, "name=other", "members=[b5]")
