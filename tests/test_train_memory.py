"""A training whose batch does not fit into memory says which would; the micro-batch is recorded."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fabricated_crops import HEIGHT, WIDTH, save_crops
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.stages.train import train

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

TINY = (
    "name=tiny", "crop=demo", f"crop.height={HEIGHT}", f"crop.width={WIDTH}",
    "network.backbone=test_efficientnet", "network.pretrained=false", "ema.decay=0.9",
    "epochs=1", "batch_size=6", "workers=0", "trainer=cpu", "~callbacks.progress",
    "+trainer.enable_progress_bar=false", "augment=none",
)  # fmt: skip


def run(output: Path, *overrides: str) -> Path:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", [f"paths.output={output}", *TINY, *overrides])
    train(cfg)
    return Path(cfg.run_dir)


def limit_memory(patch: pytest.MonkeyPatch, training: int, prediction: int) -> None:
    """Let networks run out of memory above so many images."""
    forward = ImageClassifier.forward

    def limited(self: ImageClassifier, image: torch.Tensor, *rest: Any, **more: Any) -> Any:
        if len(image) > (training if self.training else prediction):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, image, *rest, **more)

    patch.setattr(ImageClassifier, "forward", limited)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    save_crops(tmp_path)
    return tmp_path


def test_the_error_names_a_remedy_that_works(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, training=4, prediction=99)
    with pytest.raises(InputError, match="largest micro-batch that fits is 4") as caught:
        run(output)
    (remedy,) = re.findall(r"batch_size=\d+ trainer.accumulate_grad_batches=\d+", str(caught.value))
    assert remedy == "batch_size=3 trainer.accumulate_grad_batches=2"
    folder = run(output, *remedy.split(), "overwrite=true")
    assert (folder / "metrics.json").is_file()


def test_accumulated_batches_stay_so_many_samples(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, training=2, prediction=99)
    with pytest.raises(InputError, match="batch_size=2 trainer.accumulate_grad_batches=6"):
        run(output, "trainer.accumulate_grad_batches=2")


def test_what_does_not_fit_at_all_is_said(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, training=0, prediction=99)
    with pytest.raises(InputError, match=r"Not even one image fits.*grad_checkpointing=true"):
        run(output)


def test_predictions_are_made_in_parts(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pd.read_csv(run(output) / "oof.csv")
    limit_memory(monkeypatch, training=99, prediction=2)
    parts = pd.read_csv(run(output, "name=parts") / "oof.csv")
    pd.testing.assert_frame_equal(whole, parts, atol=1e-5)


def test_the_micro_batch_is_recorded(output: Path) -> None:
    record_file = run(output, "trainer.accumulate_grad_batches=2") / "config.yaml"
    record: Any = OmegaConf.load(record_file)
    assert (record.micro_batch, record.trainer.accumulate_grad_batches) == (6, 2)
    del record["micro_batch"]  # as runs of before have it
    OmegaConf.save(record, record_file)
    run(output, "trainer.accumulate_grad_batches=2")  # is finished, and not refused
