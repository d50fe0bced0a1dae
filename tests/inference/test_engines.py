"""ONNX Runtime executes a network where it is faster and says the same; torch wherever not."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from fabricated_exports import lively, save_network
from hydra import compose, initialize_config_dir

from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.inference import export
from rsna_bcd.inference.export import ONNX_FILE, Engine, OnnxNetwork, choose_engines, engines_of
from rsna_bcd.inference.run import Run, load_run

pytest.importorskip("onnxruntime")
timed = export._timed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    overrides = [
        "experiment=demo", "network.pretrained=false", "crop.height=64", "crop.width=32",
        f"paths.output={tmp_path_factory.mktemp('run')}",
    ]  # fmt: skip
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides)
    return load_run(save_network(cfg, lively(cfg)[0]))


@pytest.fixture(scope="module")
def made(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run's file, made on the way."""
    folder = tmp_path_factory.mktemp("made")
    choose(run, "auto", folder, images=10**9)
    assert [file.name for file in folder.rglob("*") if file.is_file()] == [ONNX_FILE]
    return folder


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[type, float]:
    """How long networks take by their class; what they say is their own."""
    by_class: dict[type, float] = {OnnxNetwork: 1.0}

    def chosen(run: Run, batch: Any) -> tuple[torch.Tensor, float]:
        return timed(run, batch)[0], by_class.get(type(run.network), 2.0)

    monkeypatch.setattr(export, "_timed", chosen)
    return by_class


def choose(
    run: Run,
    engine: Engine,
    own_exports: Path,
    *,
    exports: Path = Path("absent"),
    images: int = 1,
    before: tuple[Engine, ...] = (),
    messages: list[str] | None = None,
) -> Engine:
    log = ([] if messages is None else messages).append
    runs = choose_engines(
        [run],
        engine,
        exports=exports,
        own_exports=own_exports,
        images=images,
        before=before,
        log=log,
    )
    return engines_of(runs)[0]


def test_a_little_work_is_not_worth_a_file(
    run: Run, tmp_path: Path, seconds: dict[type, float]
) -> None:
    seconds[type(run.network)] = 0.01  # of two images: 119 s of 23,800
    assert choose(run, "auto", tmp_path, images=23_800) == "torch"
    assert list(tmp_path.iterdir()) == []


def test_the_faster_one_is_taken(run: Run, made: Path, seconds: dict[type, float]) -> None:
    assert choose(run, "auto", made) == "onnx"
    assert choose(run, "torch", made) == "torch"
    seconds[OnnxNetwork] = 3.0
    assert choose(run, "auto", made) == "torch"


@pytest.mark.usefixtures("seconds")
def test_what_says_something_else_is_not_taken(run: Run, made: Path) -> None:
    other = copy.deepcopy(run.network)
    with torch.no_grad():
        other.get_parameter("head.bias").add_(1e-3)
    exported = dataclasses.replace(run, network=OnnxNetwork(next(made.rglob(ONNX_FILE))))
    changed = dataclasses.replace(run, network=other)
    assert export._faster(run, exported) is exported
    assert export._faster(changed, exported) is changed
    with torch.no_grad():
        other.get_parameter("head.bias").mul_(torch.nan)
    assert export._faster(changed, exported) is changed


def test_an_earlier_choice_stands(
    run: Run, made: Path, tmp_path: Path, seconds: dict[type, float]
) -> None:
    seconds[OnnxNetwork] = 3.0
    assert choose(run, "auto", made, before=("onnx",)) == "onnx"
    assert choose(run, "auto", tmp_path, before=("onnx",)) == "torch"  # the file is gone
    seconds[OnnxNetwork] = 1.0
    assert choose(run, "auto", made, before=("torch",)) == "torch"


@pytest.mark.usefixtures("seconds")
def test_exported_files_are_found_and_damaged_ones_cost_nothing(
    run: Run, made: Path, tmp_path: Path
) -> None:
    file = tmp_path / run.folder.parent.name / run.folder.name / ONNX_FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(next(made.rglob(ONNX_FILE)).read_bytes())
    empty = tmp_path / "empty"
    assert choose(run, "auto", empty, exports=tmp_path) == "onnx"
    assert choose(run, "onnx", empty, exports=tmp_path) == "onnx"
    file.write_bytes(b"no network")
    messages: list[str] = []
    assert choose(run, "auto", empty, exports=tmp_path, messages=messages) == "torch"
    assert "stays with torch" in messages[0]
    with pytest.raises(InputError, match="rsna_bcd.export"):
        choose(run, "onnx", empty, exports=tmp_path / "elsewhere")
