"""Exported files say what networks say: every experiment's, and all kinds of ours."""

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fabricated_crops import blank_path, save_crops
from fabricated_exports import lively, save_network
from fabricated_networks import TinyBreasts
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import rsna_bcd.stages.train  # noqa: F401  (albumentations is silenced before Hydra imports it)
from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import read_crop
from rsna_bcd.inference.export import (
    OnnxNetwork,
    Parity,
    load_program,
    measure_parity,
    prepared_crops,
    with_engine,
)
from rsna_bcd.inference.predictor import Predictor
from rsna_bcd.inference.run import Run, load_run
from rsna_bcd.models.exporting import (
    Input,
    capture,
    fingerprint,
    network_inputs,
    random_batch,
    save_onnx,
    save_torch,
)

EXPERIMENTS = sorted(path.stem for path in (Path(CONF) / "experiment").glob("*.yaml"))
QUICK = {"demo"}  # the others take 10 to 20 seconds each; all kinds are below, with less backbone
SMALLER = {"global_local": ["network.patch=32"]}
METADATA = "metadata={_target_: rsna_bcd.tables.metadata.Metadata, columns: [age, implant]}"
AGGREGATOR = "network.aggregator._target_=rsna_bcd.models.aggregators"


def configure(output: Path, *overrides: str) -> DictConfig:
    """The configuration of `train` for crops of 64 x 32 pixels, without weights."""
    small = ["crop.height=64", "crop.width=32", "network.pretrained=false", "checkpoint_path=null"]
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", [f"paths.output={output}", *small, *overrides])


def parities(network: Any, inputs: tuple[Input, ...], folder: Path) -> dict[str, Parity]:
    """Write both files, and compare each with the network."""
    description = f'{{"unit": "{network.unit}"}}'
    program = capture(network, inputs)
    save_torch(program, folder / "model.pt2", description)
    save_onnx(program, inputs, folder / "model.onnx", description)
    return {
        "torch": measure_parity(network, load_program(folder / "model.pt2"), inputs),
        "onnx": measure_parity(network, OnnxNetwork(folder / "model.onnx"), inputs),
    }


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in EXPERIMENTS]
)
def test_what_is_exported_of_an_experiment_says_what_its_network_says(
    name: str, tmp_path: Path
) -> None:
    cfg = configure(tmp_path, f"experiment={name}", *SMALLER.get(name, []))
    network, inputs = lively(cfg)
    for parity in parities(network, inputs, tmp_path).values():
        assert parity.holds
        assert parity.highest - parity.lowest > 0.2  # or agreement would mean nothing


@pytest.mark.parametrize(
    "overrides",
    [
        ["network=effnetv2_s_attention", METADATA, "+auxiliary.density=0.1"],
        ["network=effnetv2_s_attention", f"{AGGREGATOR}.MeanProbability",
         "~network.aggregator.hidden", METADATA],
        ["network=convnext_small_two_view", METADATA],
        ["network=convnext_small_four_view"],
        ["network=global_local", "network.global_backbone=test_resnet", "network.patch=16",
         METADATA],
        *(
            pytest.param(overrides, marks=pytest.mark.slow)
            for overrides in (
                ["network=tf_efficientnet_lite0", METADATA, "+auxiliary.biopsy=0.1"],
                *(
                    ["network=effnetv2_s_attention", f"{AGGREGATOR}.{name}",
                     "~network.aggregator.hidden"]
                    for name in ("Mean", "Max", "MaxProbability")
                ),
            )
        ),
    ],
    ids=lambda overrides: overrides[0].removeprefix("network="),
)  # fmt: skip
def test_every_kind_of_network_is_exported_with_what_it_is_given(
    overrides: list[str], tmp_path: Path
) -> None:
    small = ["name=x", *overrides, "network.backbone=test_resnet", "network.pooling=avg"]
    network, inputs = lively(configure(tmp_path, *small))
    assert {"image", *network.inputs} == {entry.name for entry in inputs}
    for parity in parities(network, inputs, tmp_path).values():
        assert parity.holds
        assert parity.highest - parity.lowest > 0.2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the demo's network, with TTA, and its ONNX file beside it."""
    output = tmp_path_factory.mktemp("run")
    cfg = configure(output, "experiment=demo", "tta=hflip")
    network, inputs = lively(cfg)
    folder = save_network(cfg, network)
    description = f'{{"unit": "image", "weights_sha256": "{fingerprint(network)}"}}'
    save_onnx(capture(network, inputs), inputs, folder / "model.onnx", description)
    return load_run(folder)


def test_a_run_predicts_with_onnx_runtime_what_it_predicts_with_torch(run: Run) -> None:
    inputs = network_inputs(run.network, 64, 32)
    shown = random_batch(inputs, 5, 1, torch.Generator().manual_seed(0))["image"][:, 0]
    batch = {"image": (255 * shown).byte()[:, None]}
    other = with_engine(run, "onnx", run.folder / "model.onnx", threads=1)
    assert isinstance(other.network, OnnxNetwork)
    assert other.unit == "image"
    expected, _ = Predictor(run, "float32").predict(batch)
    assert Predictor(other, "float32").predict(batch)[0] == pytest.approx(expected, abs=1e-6)
    assert np.ptp(expected) > 0.1
    without, _ = Predictor(dataclasses.replace(run, tta="none"), "float32").predict(batch)
    assert np.abs(without - expected).max() > 1e-4  # TTA was used
    assert with_engine(run, "torch", run.folder / "model.onnx") is run


def test_auto_takes_onnx_runtime_where_it_can(run: Run) -> None:
    file = run.folder / "model.onnx"
    assert isinstance(with_engine(run, "auto", file).network, OnnxNetwork)
    assert with_engine(run, "auto", run.folder / "absent.onnx") is run
    changed = dataclasses.replace(run, network=torch.nn.Linear(2, 1))
    assert with_engine(changed, "auto", file) is changed


def test_what_onnx_runtime_cannot_have_is_said(run: Run, tmp_path: Path) -> None:
    file = run.folder / "model.onnx"
    with pytest.raises(InputError, match=r"name=b5 fold=3 format=onnx"):
        with_engine(run, "onnx", tmp_path / "b5" / "fold3" / "model.onnx")
    changed = dataclasses.replace(run, network=torch.nn.Linear(2, 1))
    with pytest.raises(InputError, match="other weights than the run"):
        with_engine(changed, "onnx", file)
    with pytest.raises(InputError, match="engine is torch or onnx or auto, not 'tensorrt'"):
        with_engine(run, "tensorrt", file)  # type: ignore[arg-type]
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        OnnxNetwork(damaged)
    (tmp_path / "model.pt2").write_bytes(b"PK no archive")
    with pytest.raises(InputError, match="cannot be read by torch.export.load"):
        load_program(tmp_path / "model.pt2")


def test_a_missing_extra_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'rsna_bcd\[export\]'"):
        OnnxNetwork(run.folder / "model.onnx")
    inputs = network_inputs(run.network, 64, 32)
    with pytest.raises(InputError, match=r"format=onnx needs .*pip install 'rsna_bcd\[export\]'"):
        save_onnx(capture(run.network, inputs), inputs, tmp_path / "model.onnx", "{}")


def test_a_difference_is_seen(run: Run) -> None:
    inputs = network_inputs(run.network, 64, 32)
    other: Any = copy.deepcopy(run.network)

    def exported(image: torch.Tensor) -> dict[str, torch.Tensor]:
        logit = other(image)["logit"]
        return {"logit": logit, "probability": logit.sigmoid()}

    same = measure_parity(run.network, exported, inputs)
    assert same.logit == 0
    assert same.holds
    other.head.bias.data += 0.001
    parity = measure_parity(run.network, exported, inputs)
    assert parity.logit == pytest.approx(0.001, rel=1e-2)
    assert not parity.holds
    other.head.bias.data.fill_(torch.nan)
    assert not measure_parity(run.network, exported, inputs).holds


def test_the_fingerprint_is_of_names_and_values(run: Run) -> None:
    other: Any = copy.deepcopy(run.network)
    assert fingerprint(other) == fingerprint(run.network)
    other.head.bias.data += 1e-6
    assert fingerprint(other) != fingerprint(run.network)


def test_random_breasts_have_an_image_of_their_own() -> None:
    network = TinyBreasts(metadata_width=2)
    batch = random_batch(network_inputs(network, 64, 32, 2), 50, 3, torch.Generator())
    assert {name: tuple(x.shape) for name, x in batch.items()} == {
        "image": (50, 3, 1, 64, 32), "mask": (50, 3), "view": (50, 3), "other": (50, 3),
        "metadata": (50, 2),
    }  # fmt: skip
    assert (batch["mask"] & ~batch["other"]).any(dim=1).all()
    assert batch["mask"].unique().tolist() == batch["other"].unique().tolist() == [False, True]
    assert batch["view"].unique().tolist() == [0, 1, 2]
    assert 0 <= batch["image"].min() < 0.2 < 0.8 < batch["image"].max() <= 1


def test_what_no_batch_holds_is_refused() -> None:
    network = TinyBreasts()
    network.inputs = (*network.inputs, "weather")
    with pytest.raises(InputError, match="looks at weather, which cannot be exported"):
        network_inputs(network, 64, 32)


def test_crops_are_taken_where_they_fit(tmp_path: Path) -> None:
    folder = save_crops(tmp_path)
    blank_path(folder, 3)
    table = pd.read_csv(folder / "train.csv", dtype=str)
    (folder / table["path"][0]).unlink()
    crops = prepared_crops(folder, 64, 32, most=31)
    assert crops is not None
    assert crops.shape == (30, 64, 32)
    assert torch.equal(crops[0], torch.from_numpy(read_crop(folder / table["path"][1])) / 255)
    assert prepared_crops(folder, 64, 64) is None
    assert prepared_crops(tmp_path / "absent", 64, 32) is None
