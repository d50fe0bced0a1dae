"""Options of training: the effect of each on the run, and micro-batches that fit into memory."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fabricated_crops import save_crops
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from tiny_training import run, saved

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import read_crop
from rsna_bcd.inference.predictor import Predictor
from rsna_bcd.inference.run import load_run
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.tables.predictions import read_oof

pytestmark = pytest.mark.filterwarnings("ignore")

BREASTS = (
    "network=effnetv2_s_attention", "network.backbone=test_efficientnet",
    "network.drop_path_rate=null",
)  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    save_crops(folder)
    return folder


@pytest.fixture(scope="module")
def plain(output: Path) -> Path:
    """The run that others are compared with."""
    return run(output, "ema.decay=0.5", "ema.start=2")


def test_a_breast_network_is_scored_on_breasts(output: Path) -> None:
    inputs = "metadata={_target_: rsna_bcd.tables.metadata.Metadata, columns: [site_id]}"
    folder = run(output, "name=breasts", *BREASTS, inputs, "+auxiliary.site_id=0.1")
    oof = read_oof(folder / "oof.csv")
    assert len(oof) == 8
    assert oof["unread"].sum() == 0
    assert not (folder / "oof_images.csv").exists()
    history = pd.read_csv(folder / "metrics.csv")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["auroc"] == pytest.approx(history["auroc"].iloc[-1])
    assert metrics["held_out_breasts"] == 8
    total = history["train_loss_label"] + 0.1 * history["train_loss_site_id"]
    assert total.to_numpy() == pytest.approx(history["train_loss"].to_numpy())
    record = OmegaConf.load(folder / "config.yaml")
    assert record.auxiliary == {"site_id": 0.1}
    assert record.metadata.columns == ["site_id"]


def test_cutmix_of_breasts_is_refused(output: Path) -> None:
    with pytest.raises(InstantiationException, match="mix.kind=mixup"):
        run(output, "name=cut", *BREASTS, "mix.kind=cutmix", "mix.probability=1")


def test_a_run_is_predicted_with_the_average(output: Path, plain: Path) -> None:
    checkpoint = saved(plain)
    kept = checkpoint["state_dict"]["network.head.weight"]
    assert not torch.equal(kept, checkpoint["current_model_state"]["network.head.weight"])
    loaded = load_run(plain)
    assert torch.equal(loaded.network.state_dict()["head.weight"], kept)
    images = pd.read_csv(plain / "oof_images.csv", dtype={"image_id": str, "patient_id": str})
    prepared = output / "prepared" / "rsna" / "demo" / "train"
    names = images["patient_id"] + "/" + images["image_id"] + ".png"
    crops = np.stack([read_crop(prepared / name) for name in names])
    found, _ = Predictor(loaded, "float32").predict({"image": torch.from_numpy(crops)[:, None]})
    assert found == pytest.approx(images["probability"].to_numpy(), abs=1e-6)


def test_compiled_training_leaves_the_same_run(
    output: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, compiled = torch.compile, []

    def without_a_compiler(network: Any) -> Any:
        compiled.append(network)
        return compiler(network, backend="eager")

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    other = run(output, "name=compiled", "compile=true", "ema.decay=0.5", "ema.start=2")
    assert len(compiled) == 1
    assert saved(plain)["state_dict"].keys() == saved(other)["state_dict"].keys()
    a, b = (pd.read_csv(folder / "oof.csv")["probability"].to_numpy() for folder in (plain, other))
    assert a == pytest.approx(b, abs=1e-3)


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.precision=bf16-mixed", "mix.kind=cutmix", "mix.probability=1", "loss=soft_f1"],
        ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=null", "loss=ranking",
         "rates.reference_batch=32", "rates.decay_all=true"],
    ],
    ids=["mixed", "accumulated"],
)  # fmt: skip
def test_options_train(overrides: list[str], output: Path) -> None:
    folder = run(output, f"name={len(overrides)}", "epochs=1", *overrides)
    assert pd.read_csv(folder / "metrics.csv")["train_loss"].notna().all()
    assert json.loads((folder / "metrics.json").read_text())["auroc"] is not None


def limit_memory(patch: pytest.MonkeyPatch, training: int, prediction: int = 99) -> None:
    """Let networks run out of memory above so many images."""
    forward = ImageClassifier.forward

    def limited(self: ImageClassifier, image: torch.Tensor, *rest: Any, **more: Any) -> Any:
        if len(image) > (training if self.training else prediction):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, image, *rest, **more)

    patch.setattr(ImageClassifier, "forward", limited)


def test_out_of_memory_names_a_remedy_that_works(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, training=4)
    settings = ("name=large", "epochs=1", "overwrite=true")
    with pytest.raises(InputError, match="largest micro-batch that fits is 4") as caught:
        run(output, *settings, "batch_size=6")
    (remedy,) = re.findall(r"batch_size=\d+ trainer.accumulate_grad_batches=\d+", str(caught.value))
    assert remedy == "batch_size=3 trainer.accumulate_grad_batches=2"
    file = run(output, *settings, *remedy.split()) / "config.yaml"
    record: Any = OmegaConf.load(file)
    assert (record.micro_batch, record.trainer.accumulate_grad_batches) == (3, 2)
    del record["micro_batch"]  # as records of earlier versions
    OmegaConf.save(record, file)
    run(output, *settings[:2], *remedy.split())  # is finished, and not refused


@pytest.mark.parametrize(
    ("training", "message"),
    [(2, "batch_size=2 trainer.accumulate_grad_batches=4"),
     (0, r"Not even one image fits.*grad_checkpointing=true")],
)  # fmt: skip
def test_out_of_memory_keeps_the_samples_per_step(
    training: int, message: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, training)
    with pytest.raises(InputError, match=message):
        run(output, "name=large", "trainer.accumulate_grad_batches=2", "overwrite=true")


def test_predictions_that_do_not_fit_are_made_in_parts(
    output: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, training=99, prediction=2)
    parts = run(output, "name=parts", "ema.decay=0.5", "ema.start=2") / "oof.csv"
    pd.testing.assert_frame_equal(pd.read_csv(plain / "oof.csv"), pd.read_csv(parts), atol=1e-5)
