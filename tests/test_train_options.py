"""Options of training: each does what it says to the run that is left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fabricated_crops import HEIGHT, WIDTH, save_crops
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from rsna_bcd._stage import CONF
from rsna_bcd.imaging.crops import read_crop
from rsna_bcd.inference.predictor import Predictor
from rsna_bcd.inference.run import load_run
from rsna_bcd.stages.train import train
from rsna_bcd.tables.predictions import read_oof

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = [
    "crop=demo", f"crop.height={HEIGHT}", f"crop.width={WIDTH}", "network.pretrained=false",
    "epochs=2", "batch_size=4", "workers=0", "trainer=cpu", "~callbacks.progress",
    "+trainer.enable_progress_bar=false",
]  # fmt: skip
BACKBONE = "network.backbone=test_efficientnet"
BREASTS = ["network=effnetv2_s_attention", BACKBONE, "network.drop_path_rate=null"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    save_crops(folder)
    return folder


def run(output: Path, name: str, *overrides: str) -> Path:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", [f"paths.output={output}", f"name={name}", *TINY, *overrides])
    train(cfg)
    return Path(cfg.run_dir)


def saved(run: Path) -> Any:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_network_of_breasts_is_scored_on_breasts(output: Path) -> None:
    inputs = "metadata={_target_: rsna_bcd.tables.metadata.Metadata, columns: [site_id]}"
    folder = run(output, "breasts", *BREASTS, inputs, "+auxiliary.site_id=0.1", "ema.decay=0.9")
    oof = read_oof(folder / "oof.csv")
    assert len(oof) == 8
    assert oof["unread"].sum() == 0
    assert not (folder / "oof_images.csv").exists()
    history = pd.read_csv(folder / "metrics.csv")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["auroc"] == pytest.approx(history["auroc"].iloc[-1])
    assert metrics["held_out_breasts"] == 8
    parts = {"train_loss", "train_loss_label", "train_loss_site_id"}
    assert parts <= set(history)
    total = history["train_loss_label"] + 0.1 * history["train_loss_site_id"]
    assert total.to_numpy() == pytest.approx(history["train_loss"].to_numpy())
    record = OmegaConf.load(folder / "config.yaml")
    assert record.auxiliary == {"site_id": 0.1}
    assert record.metadata.columns == ["site_id"]
    assert record.ema.decay == 0.9


def test_a_breast_cannot_be_cut(output: Path) -> None:
    with pytest.raises(InstantiationException, match="mix.kind=mixup"):
        run(output, "cut", *BREASTS, "mix.kind=cutmix", "mix.probability=1")


def test_the_average_is_what_is_predicted_with(output: Path) -> None:
    folder = run(output, "averaged", BACKBONE, "ema.decay=0.5", "ema.start=2", "mix.probability=1")
    checkpoint = saved(folder)
    current = checkpoint["current_model_state"]
    assert not torch.equal(checkpoint["state_dict"]["network.head.weight"],
                           current["network.head.weight"])  # fmt: skip
    loaded = load_run(folder)
    kept = checkpoint["state_dict"]["network.head.weight"]
    assert torch.equal(loaded.network.state_dict()["head.weight"], kept)
    images = pd.read_csv(folder / "oof_images.csv", dtype={"image_id": str, "patient_id": str})
    prepared = output / "prepared" / "rsna" / "demo" / "train"
    names = images["patient_id"] + "/" + images["image_id"] + ".png"
    crops = np.stack([read_crop(prepared / name) for name in names])
    found, _ = Predictor(loaded, "float32").predict({"image": torch.from_numpy(crops)[:, None]})
    assert found == pytest.approx(images["probability"].to_numpy(), abs=1e-6)


def test_compiled_training_leaves_the_same_run(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(output, "plain", BACKBONE)
    compiler, compiled = torch.compile, []

    def without_a_compiler(network: Any) -> Any:
        compiled.append(network)
        return compiler(network, backend="eager")

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    other = run(output, "compiled", BACKBONE, "compile=true", "ema.decay=0.0")
    assert len(compiled) == 1
    assert saved(plain)["state_dict"].keys() == saved(other)["state_dict"].keys()
    a, b = (pd.read_csv(folder / "oof.csv")["probability"].to_numpy() for folder in (plain, other))
    assert a == pytest.approx(b, abs=1e-3)


def test_training_that_ends_early_is_marked_as_optimistic(output: Path) -> None:
    folder = run(output, "early", BACKBONE, "patience=1", "epochs=20", "learning_rate=0.0")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["epochs"] < 20
    assert metrics["epochs"] == len(pd.read_csv(folder / "metrics.csv"))
    assert metrics["optimistic"] is True


def test_a_second_stage_begins_with_the_first_ones_weights(output: Path) -> None:
    first = run(output, "first", BACKBONE, "ema.decay=0.9", "epochs=1")
    path = first / "checkpoints" / "last.ckpt"
    second = run(
        output, "second", *BREASTS, f"checkpoint_path={path}", "network.freeze_backbone=true",
        "epochs=1", "rates.layer_decay=0.8",
    )  # fmt: skip
    averaged, found = saved(first)["state_dict"], saved(second)["state_dict"]
    stem = "network.backbone.conv_stem.weight"
    assert torch.equal(averaged[stem], found[stem])
    assert OmegaConf.load(second / "config.yaml").checkpoint_path == str(path)


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.precision=bf16-mixed"],
        ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=null"],
        ["mix.kind=cutmix", "mix.probability=1", "loss=soft_f1"],
        ["loss=ranking", "rates.reference_batch=32", "rates.decay_all=true"],
    ],
    ids=" ".join,
)
def test_an_option_trains(overrides: list[str], output: Path) -> None:
    name = "".join(c for c in "".join(overrides) if c.isalnum())
    folder = run(output, name, BACKBONE, "epochs=1", *overrides)
    history = pd.read_csv(folder / "metrics.csv")
    assert history["train_loss"].notna().all()
    assert json.loads((folder / "metrics.json").read_text())["auroc"] is not None
