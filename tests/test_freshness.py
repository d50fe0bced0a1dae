"""An ensemble whose members were trained again is refused, with the command that mends it."""

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
from hydra import compose, initialize_config_dir

from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import check_current, read_checkpoint, save_safetensors
from rsna_bcd.scoring.ensemble import FILE_NAME, Ensemble, read_ensemble
from rsna_bcd.stages.ensemble import ensemble


def save_weights(run: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    state = {f"network.{k}": v for k, v in TinyImages().state_dict().items()}
    file = run / "checkpoints" / "last.ckpt"
    file.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": state, "epoch": seed}, file)
    return file


def fit(output: Path, *overrides: str) -> Ensemble:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("ensemble", [f"paths.output={output}", "resamples=20", *overrides])
    return ensemble(cfg)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two folds of a run, and its ensemble."""
    run = save_run(tmp_path / "runs" / "b5", oof(range(60), 0), oof(range(60, 120), 1))
    for fold in (0, 1):
        save_weights(run / f"fold{fold}", fold)
    fit(tmp_path, "name=demo", "members=[b5]", "threshold=recall_rate", "recall_rate=0.2")
    return tmp_path


def new_predictions(output: Path) -> None:
    save_run(output / "runs" / "b5", oof(range(60, 120), 1, seed=7))


def new_weights(output: Path) -> None:
    save_weights(output / "runs" / "b5" / "fold1", 9)


STAGES = {
    "submit": ["name=demo"],
    "predict": ["name=demo", "inputs=nowhere"],
    "report": ["name=demo", "cases=0"],
    "bundle": ["name=demo"],
    "evaluate": ["name=demo"],
}


@pytest.mark.parametrize(
    ("change", "part"), [(new_predictions, "predictions"), (new_weights, "weights")]
)
@pytest.mark.parametrize("stage", STAGES)
def test_stages_refuse_a_stale_ensemble(
    stage: str, change: Callable[[Path], None], part: str, output: Path
) -> None:
    change(output)
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(stage, [f"paths.output={output}", *STAGES[stage]])
    run: Callable[[Any], Any] = getattr(importlib.import_module(f"rsna_bcd.stages.{stage}"), stage)
    with pytest.raises(InputError) as error:
        run(cfg)
    message = str(error.value)
    assert f"b5, fold 1: {part}" in message
    assert "fold 0" not in message
    command = message.splitlines()[-1]
    assert command.split()[:3] == ["python", "-m", "rsna_bcd.ensemble"]
    # The command that is printed mends it.
    fit(output, *shlex.split(command)[3:])
    check_current(read_ensemble(output / "ensembles" / "demo" / FILE_NAME), output)


def test_check_current_accepts_the_same_training(output: Path) -> None:
    fitted = read_ensemble(output / "ensembles" / "demo" / FILE_NAME)
    save_weights(output / "runs" / "b5" / "fold1", 1)
    save_run(output / "runs" / "b5", oof(range(60, 120), 1))
    check_current(fitted, output)


def test_check_current_of_a_bundle(output: Path, tmp_path: Path) -> None:
    """Its weights are in another format, and it has no predictions."""
    fitted = read_ensemble(output / "ensembles" / "demo" / FILE_NAME)
    bundle = tmp_path / "bundle"
    for fold in (0, 1):
        source = output / "runs" / "b5" / f"fold{fold}" / "checkpoints" / "last.ckpt"
        copy = bundle / "runs" / "b5" / f"fold{fold}" / "checkpoints" / "last.safetensors"
        save_safetensors(read_checkpoint(source), copy)
    check_current(fitted, bundle)
    shutil.copy(copy, bundle / "runs" / "b5" / "fold0" / "checkpoints" / "last.safetensors")
    with pytest.raises(InputError, match="b5, fold 0: weights"):
        check_current(fitted, bundle)


def test_check_current_accepts_ensembles_without_hashes(output: Path) -> None:
    file = output / "ensembles" / "demo" / FILE_NAME
    record = json.loads(file.read_text())
    del record["command"], record["members"][0]["hashes"]
    file.write_text(json.dumps(record))
    new_weights(output)
    check_current(read_ensemble(file), output)


def test_evaluate_refuses_a_submission_of_an_earlier_ensemble(output: Path) -> None:
    folder = output / "submissions" / "demo"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"asked": {"ensemble": "0" * 64}}))
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("evaluate", [f"paths.output={output}", "name=demo"])
    evaluate = importlib.import_module("rsna_bcd.stages.evaluate").evaluate
    with pytest.raises(InputError, match=r"predicted before[\s\S]*rsna_bcd.submit name=demo"):
        evaluate(cfg)


def test_ensemble_names_a_fold_without_a_record(output: Path) -> None:
    (output / "runs" / "b5" / "fold1" / "config.yaml").unlink()
    with pytest.raises(InputError, match="fold1 has no config.yaml"):
        fit(output, "name=other", "members=[b5]")
