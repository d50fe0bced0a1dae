"""Runs are rebuilt from their records and checkpoints."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fabricated_crops import HEIGHT, WIDTH, save_crops
from timm import create_model
from tiny_training import run

from rsna_bcd.data.dataset import read_crop
from rsna_bcd.errors import InputError
from rsna_bcd.inference.predictor import Predictor
from rsna_bcd.inference.run import load_run
from rsna_bcd.models.checkpoint import find_checkpoint, read_checkpoint, save_safetensors

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

BACKBONE = "test_efficientnet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that started from local weights, which were deleted."""
    output = tmp_path_factory.mktemp("runs")
    table = save_crops(output) / "train.csv"
    images = pd.read_csv(table, dtype=str)
    images.assign(machine_id="m" + images["patient_id"]).to_csv(table, index=False)
    weights = output / "weights.pth"
    torch.save(create_model(BACKBONE, in_chans=3).state_dict(), weights)
    start = f"checkpoint_path={weights}"
    folder = run(output, start, "network.pooling=gem", "epochs=1", "tta=hflip")
    weights.unlink()
    return folder


@pytest.fixture
def record(folder: Path) -> Iterator[Path]:
    """`config.yaml`, which the test may change."""
    file = folder / "config.yaml"
    text = file.read_text()
    yield file
    file.write_text(text)


def test_load_run_repeats_the_out_of_fold_predictions(folder: Path) -> None:
    prepared = folder.parents[2] / "prepared" / "rsna" / "demo"
    table = pd.read_csv(prepared / "train.csv", dtype={"image_id": str}).set_index("image_id")
    oof = pd.read_csv(folder / "oof_images.csv", dtype={"image_id": str})
    images = np.stack([read_crop(prepared / table.loc[i, "path"]) for i in oof["image_id"]])
    loaded = load_run(folder)
    expected = oof["probability"].to_numpy()
    found, _ = Predictor(loaded, "float32").predict({"image": torch.from_numpy(images)[:, None]})
    assert found == pytest.approx(expected, abs=1e-6)
    assert found.dtype == np.float64


def test_load_run_reads_record_and_training_domain(folder: Path) -> None:
    loaded = load_run(folder)
    assert (loaded.crop.name, loaded.crop.height, loaded.crop.width) == ("demo", HEIGHT, WIDTH)
    assert (loaded.source, loaded.tta, loaded.record["fold"]) == ("dicom", ["hflip"], 0)
    assert not loaded.network.training
    folds = pd.read_csv(folder.parents[2] / "folds" / "rsna-stratified.csv", dtype=str)
    machines = sorted("m" + folds.loc[folds["fold"] != "0", "patient_id"])
    assert loaded.seen == {"machine_id": tuple(machines), "view": ("CC", "MLO")}


def test_load_run_of_an_older_version_has_no_training_domain(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "fold0"
    shutil.copytree(folder, old)
    (old / "seen.json").write_text("[]")
    with pytest.raises(InputError, match=r"seen\.json is damaged"):
        load_run(old)
    (old / "seen.json").unlink()
    assert load_run(old).seen == {}


def test_load_run_without_a_run_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)no run in .*rsna_bcd\.train .*name=b5 fold=3"):
        load_run(tmp_path / "b5" / "fold3")


@pytest.mark.parametrize(
    ("file", "message"),
    [("metrics.json", "not finished. Resume it"), ("checkpoints/last.ckpt", "is absent. Train")],
)
def test_load_run_refuses_an_incomplete_run(folder: Path, file: str, message: str) -> None:
    (folder / file).rename(folder / "elsewhere")
    with pytest.raises(InputError, match=message):
        load_run(folder)
    (folder / "elsewhere").rename(folder / file)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (BACKBONE, "test_resnet", f"network.backbone: {BACKBONE} -> test_resnet"),
        ("fit: pad", "fit: stretch", "crop.fit: pad -> stretch"),
        ("tta:\n- hflip\n", "tta: none\n", r"tta: \['hflip'\] -> \[\]"),
    ],
)
def test_load_run_refuses_a_changed_record(
    folder: Path, record: Path, before: str, after: str, said: str
) -> None:
    text = record.read_text()
    assert before in text
    record.write_text(text.replace(before, after))
    with pytest.raises(InputError, match=rf"(?s)not what .*last.ckpt was trained with.*{said}"):
        load_run(folder)


def test_load_run_completes_the_record_from_the_checkpoint(folder: Path, record: Path) -> None:
    record.write_text(record.read_text().replace("tta:\n- hflip\n", ""))
    assert load_run(folder).tta == ["hflip"]
    record.write_text(f"{record.read_text()}tta: hflip\n")  # of an earlier version
    assert load_run(folder).tta == ["hflip"]


def test_load_run_of_a_checkpoint_without_a_record(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "tiny" / "fold0"
    shutil.copytree(folder, copied)
    weights = copied / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(weights)
    del checkpoint["config"]
    torch.save(checkpoint, weights)
    assert load_run(copied).tta == ["hflip"]
    record = copied / "config.yaml"
    record.write_text(record.read_text().replace(BACKBONE, "test_resnet"))
    with pytest.raises(InputError, match="does not fit the network"):
        load_run(copied)


RECORD = {"fold": 0, "rate": 1e-3, "crop": {"bits": 8, "clahe": None}, "views": ["CC"]}


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    torch.manual_seed(0)
    weights = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    state = {"a": weights, "tied": weights, "part": weights[1:, :2], "odd": odd}
    state |= {"half": odd.half(), "count": torch.tensor(7)}
    return {"state_dict": state, "config": RECORD, "optimizer_states": [1]}


def test_save_safetensors_keeps_bits_and_record(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "last.safetensors"
    save_safetensors(checkpoint, file)
    read = read_checkpoint(file)
    assert read.keys() == {"state_dict", "config"}
    assert read["config"] == RECORD
    assert read["state_dict"].keys() == checkpoint["state_dict"].keys()
    for name, values in checkpoint["state_dict"].items():
        back = read["state_dict"][name]
        assert (back.dtype, back.shape) == (values.dtype, values.shape)
        assert back.numpy().tobytes() == values.contiguous().numpy().tobytes()
    del checkpoint["config"]
    save_safetensors(checkpoint, tmp_path / "last.safetensors")
    assert "config" not in read_checkpoint(tmp_path / "last.safetensors")


def test_find_checkpoint_prefers_torch(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    ckpt = tmp_path / "checkpoints" / "last.ckpt"
    assert find_checkpoint(tmp_path, "last") is None
    ckpt.parent.mkdir()
    torch.save(checkpoint, ckpt)
    save_safetensors(read_checkpoint(ckpt), ckpt.with_suffix(".safetensors"))
    assert find_checkpoint(tmp_path, "last") == ckpt
    ckpt.unlink()
    assert find_checkpoint(tmp_path, "last") == ckpt.with_suffix(".safetensors")
    assert find_checkpoint(tmp_path, "best") is None


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_read_checkpoint_names_damage(
    checkpoint: dict[str, Any], tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"last{suffix}"
    torch.save(checkpoint, file) if suffix == ".ckpt" else save_safetensors(checkpoint, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"last{suffix} is damaged"):
        read_checkpoint(file)
