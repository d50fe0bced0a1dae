"""Exported networks agree with torch, and the faster engine is chosen."""

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
from fabricated_networks import TinyBreasts, TinyImages
from omegaconf import DictConfig
from saved_runs import save_run, spread_network
from stage_settings import composed

import rsna_bcd.stages.train  # noqa: F401  (albumentations is silenced before Hydra imports it)
from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import read_crop
from rsna_bcd.inference import export
from rsna_bcd.inference.export import (
    ONNX_FILE,
    Engine,
    OnnxNetwork,
    choose_engines,
    engine_names,
    load_program,
    measure_parity,
    prepared_crops,
    with_engine,
)
from rsna_bcd.inference.predictor import Predictor
from rsna_bcd.inference.run import Run, load_run
from rsna_bcd.models.checkpoint import weights_sha256
from rsna_bcd.models.exporting import (
    Input,
    capture,
    network_inputs,
    random_batch,
    save_onnx,
    save_torch,
)

EXPERIMENTS = sorted(path.stem for path in (Path(CONF) / "experiment").glob("*.yaml"))
NETWORKS = sorted(path.stem for path in (Path(CONF) / "network").glob("*.yaml"))
SMALLER = {"global_local": ["network.patch=32"]}
METADATA = "metadata={_target_: rsna_bcd.tables.metadata.Metadata, columns: [age, implant]}"
AGGREGATOR = "network.aggregator._target_=rsna_bcd.models.aggregators"


def configure(output: Path, *overrides: str) -> DictConfig:
    """The configuration of `train` for crops of 64 x 32 pixels, without weights."""
    small = ["crop.height=64", "crop.width=32", "network.pretrained=false", "checkpoint_path=null"]
    return composed("train", f"paths.output={output}", *small, *overrides)


def check_parities(network: Any, inputs: tuple[Input, ...], folder: Path) -> None:
    """Write both formats, and compare each with the network."""
    description = f'{{"unit": "{network.unit}"}}'
    program = capture(network, inputs)
    save_torch(program, folder / "model.pt2", description)
    save_onnx(program, inputs, folder / "model.onnx", description)
    for exported in (load_program(folder / "model.pt2"), OnnxNetwork(folder / "model.onnx")):
        parity = measure_parity(network, exported, inputs)
        assert parity.holds
        assert parity.highest - parity.lowest > 0.2  # or agreement would mean nothing


@pytest.mark.slow  # 10 to 20 seconds each; with a small backbone below
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_exported_experiment_agrees_with_its_network(name: str, tmp_path: Path) -> None:
    cfg = configure(tmp_path, f"experiment={name}", *SMALLER.get(name, []))
    check_parities(*spread_network(cfg), tmp_path)


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_configured_network_agrees_with_its_network(name: str, tmp_path: Path) -> None:
    cfg = configure(tmp_path, "name=x", f"network={name}", *SMALLER.get(name, []))
    check_parities(*spread_network(cfg), tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ["network=effnetv2_s_attention", METADATA, "+auxiliary.density=0.1"],
        *(
            pytest.param(overrides, marks=pytest.mark.slow)
            for overrides in (
                ["network=tf_efficientnet_lite0", METADATA, "+auxiliary.biopsy=0.1"],
                ["network=global_local", "network.global_backbone=test_resnet",
                 "network.patch=16", METADATA],
                ["network=convnext_small_two_view", METADATA],
                ["network=convnext_small_four_view"],
                ["network=effnetv2_s_bilateral"],
                *(
                    ["network=effnetv2_s_attention", f"{AGGREGATOR}.{name}",
                     "~network.aggregator.hidden"]
                    for name in ("Mean", "Max", "MeanProbability", "MaxProbability")
                ),
            )
        ),
    ],
    ids=lambda overrides: overrides[0].removeprefix("network="),
)  # fmt: skip
def test_exported_network_of_each_kind_agrees_with_its_network(
    overrides: list[str], tmp_path: Path
) -> None:
    small = ["name=x", *overrides, "network.backbone=test_resnet", "network.pooling=avg"]
    network, inputs = spread_network(configure(tmp_path, *small))
    assert {"image", *network.inputs} == {entry.name for entry in inputs}
    check_parities(network, inputs, tmp_path)


@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "test_vit"))
        for name in ("test_vit", "test_maxvit", "test_mambaout", "vit_tiny_patch16_dinov3_qkvb",
                     "swin_tiny_patch4_window7_224")
    ],
)  # fmt: skip
def test_exported_transformer_agrees_with_its_network(backbone: str, tmp_path: Path) -> None:
    overrides = ["name=x", "network=maxvit_tiny", f"network.backbone={backbone}"]
    check_parities(*spread_network(configure(tmp_path, *overrides)), tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with TTA and an ONNX file in its folder."""
    torch.manual_seed(0)
    network = TinyImages().eval()
    with torch.no_grad():  # so that images differ in the first digits
        network.head.weight.mul_(10)
    folder = save_run(tmp_path_factory.mktemp("run") / "tiny" / "fold0", network)
    inputs = network_inputs(network, 64, 32)
    description = f'{{"unit": "image", "weights_sha256": "{weights_sha256(network.state_dict())}"}}'
    save_onnx(capture(network, inputs), inputs, folder / ONNX_FILE, description)
    return load_run(folder)


def test_onnx_network_agrees_with_torch(run: Run) -> None:
    inputs = network_inputs(run.network, 64, 32)
    image = random_batch(inputs, 5, 1, torch.Generator().manual_seed(0))["image"]
    batch = {"image": (255 * image).byte()}
    other = with_engine(run, "onnx", run.folder / "model.onnx", threads=1)
    assert isinstance(other.network, OnnxNetwork)
    assert other.level == "image"
    expected, _ = Predictor(run, "float32").predict(batch)
    assert Predictor(other, "float32").predict(batch)[0] == pytest.approx(expected, abs=1e-6)
    assert np.ptp(expected) > 0.1
    without, _ = Predictor(dataclasses.replace(run, tta=()), "float32").predict(batch)
    assert np.abs(without - expected).max() > 1e-4  # TTA was used
    assert with_engine(run, "torch", run.folder / "model.onnx") is run


def test_with_engine_auto_takes_a_file_of_the_same_weights(run: Run) -> None:
    file = run.folder / "model.onnx"
    assert isinstance(with_engine(run, "auto", file).network, OnnxNetwork)
    assert with_engine(run, "auto", run.folder / "absent.onnx") is run
    changed = dataclasses.replace(run, network=torch.nn.Linear(2, 1))
    assert with_engine(changed, "auto", file) is changed


def test_with_engine_names_the_fault(run: Run, tmp_path: Path) -> None:
    file = run.folder / "model.onnx"
    with pytest.raises(InputError, match=r"name=b5 fold=3 format=onnx"):
        with_engine(run, "onnx", tmp_path / "b5" / "fold3" / "model.onnx")
    changed = dataclasses.replace(run, network=torch.nn.Linear(2, 1))
    with pytest.raises(InputError, match="other weights than the run"):
        with_engine(changed, "onnx", file)
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        OnnxNetwork(damaged)
    (tmp_path / "model.pt2").write_bytes(b"PK no archive")
    with pytest.raises(InputError, match="cannot be read by torch.export.load"):
        load_program(tmp_path / "model.pt2")


def test_onnx_without_the_extra_names_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'rsna_bcd\[export\]'"):
        OnnxNetwork(run.folder / "model.onnx")
    inputs = network_inputs(run.network, 64, 32)
    with pytest.raises(InputError, match=r"format=onnx needs .*pip install 'rsna_bcd\[export\]'"):
        save_onnx(capture(run.network, inputs), inputs, tmp_path / "model.onnx", "{}")


def test_measure_parity_finds_a_difference(run: Run) -> None:
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


def test_weights_sha256_depends_on_the_weights(run: Run) -> None:
    other: Any = copy.deepcopy(run.network)
    assert weights_sha256(other.state_dict()) == weights_sha256(run.network.state_dict())
    other.head.bias.data += 1e-6
    assert weights_sha256(other.state_dict()) != weights_sha256(run.network.state_dict())


def test_random_batch_gives_each_breast_an_image_of_its_own() -> None:
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


def test_network_inputs_refuses_unknown_inputs() -> None:
    network = TinyBreasts()
    network.inputs = (*network.inputs, "weather")
    with pytest.raises(InputError, match="looks at weather, which cannot be exported"):
        network_inputs(network, 64, 32)


def test_prepared_crops_have_the_size(tmp_path: Path) -> None:
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


@pytest.fixture(scope="module")
def own_exports(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of the run, as `auto` makes it."""
    folder = tmp_path_factory.mktemp("made")
    assert choose(run, "auto", folder, images=10**12) in ("onnx", "torch")
    assert [file.name for file in folder.rglob("*") if file.is_file()] == [ONNX_FILE]
    return folder


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[type, float]:
    """Seconds of networks by class; their predictions are their own."""
    by_class: dict[type, float] = {OnnxNetwork: 1.0}
    timed = export._timed

    def chosen(run: Run, batch: Any) -> tuple[torch.Tensor, float]:
        return timed(run, batch)[0], by_class.get(type(run.network), 2.0)

    monkeypatch.setattr(export, "_timed", chosen)
    return by_class


def choose(
    run: Run, engine: Engine, own_exports: Path, *, exports: Path = Path("absent"),
    images: int = 1, before: tuple[Engine, ...] = (), messages: list[str] | None = None,
) -> Engine:  # fmt: skip
    log = ([] if messages is None else messages).append
    folders = {"exports": exports, "own_exports": own_exports}
    runs = choose_engines([run], engine, images=images, before=before, log=log, **folders)
    return engine_names(runs)[0]


def test_choose_engines_auto_makes_no_file_for_little_work(
    run: Run, tmp_path: Path, seconds: dict[type, float]
) -> None:
    seconds[type(run.network)] = 0.01  # of two images: 119 s of 11,900 in two passes
    assert choose(run, "auto", tmp_path, images=11_900) == "torch"
    assert list(tmp_path.iterdir()) == []


def test_choose_engines_auto_takes_the_faster(
    run: Run, own_exports: Path, seconds: dict[type, float]
) -> None:
    assert choose(run, "auto", own_exports) == "onnx"
    assert choose(run, "torch", own_exports) == "torch"
    seconds[OnnxNetwork] = 3.0
    assert choose(run, "auto", own_exports) == "torch"


@pytest.mark.usefixtures("seconds")
def test_choose_engines_auto_takes_no_engine_that_disagrees(run: Run, own_exports: Path) -> None:
    other = copy.deepcopy(run.network)
    with torch.no_grad():
        other.get_parameter("head.bias").add_(0.1)
    exported = dataclasses.replace(run, network=OnnxNetwork(next(own_exports.rglob(ONNX_FILE))))
    changed = dataclasses.replace(run, network=other)
    assert export._faster(run, exported) is exported
    assert export._faster(changed, exported) is changed
    with torch.no_grad():
        other.get_parameter("head.bias").mul_(torch.nan)
    assert export._faster(changed, exported) is changed


def test_choose_engines_auto_keeps_an_earlier_choice(
    run: Run, own_exports: Path, tmp_path: Path, seconds: dict[type, float]
) -> None:
    seconds[OnnxNetwork] = 3.0
    assert choose(run, "auto", own_exports, before=("onnx",)) == "onnx"
    assert choose(run, "auto", tmp_path, before=("onnx",)) == "torch"  # the file is gone
    seconds[OnnxNetwork] = 1.0
    assert choose(run, "auto", own_exports, before=("torch",)) == "torch"


@pytest.mark.usefixtures("seconds")
def test_choose_engines_auto_finds_exported_files_and_ignores_damaged_ones(
    run: Run, own_exports: Path, tmp_path: Path
) -> None:
    file = tmp_path / run.folder.parent.name / run.folder.name / ONNX_FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(next(own_exports.rglob(ONNX_FILE)).read_bytes())
    empty = tmp_path / "empty"
    assert choose(run, "auto", empty, exports=tmp_path) == "onnx"
    assert choose(run, "onnx", empty, exports=tmp_path) == "onnx"
    file.write_bytes(b"no network")
    messages: list[str] = []
    assert choose(run, "auto", empty, exports=tmp_path, messages=messages) == "torch"
    assert "stays with torch" in messages[0]
    with pytest.raises(InputError, match="rsna_bcd.export"):
        choose(run, "onnx", empty, exports=tmp_path / "elsewhere")
