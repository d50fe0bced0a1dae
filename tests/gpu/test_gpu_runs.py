"""Whole runs: resumed to the bit, on one rank, beyond the memory; and `submit` on the GPU."""

import gc
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import composed
from crops import crop_settings, synthetic_crops
from fabricated_crops import HEIGHT, WIDTH, save_crops
from submission_inputs import configure as configure_submit
from submission_inputs import save_members, save_test_set

from rsna_bcd.errors import InputError
from rsna_bcd.models.classifier import Classifier
from rsna_bcd.stages.submit import submit
from rsna_bcd.stages.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

TINY = (
    "name=x", "network.pretrained=false", "workers=0", "augment=none", "~callbacks.progress",
    "+trainer.enable_progress_bar=false", "epochs=2", "negatives_per_positive=1",
)  # fmt: skip
DEMO = ("crop=demo", f"crop.height={HEIGHT}", f"crop.width={WIDTH}", "batch_size=4")


def run(output: Path, device: torch.device, *overrides: str) -> Path:
    trainer = (
        []
        if any(o.startswith("trainer=") for o in overrides)
        else ["trainer=gpu" if device.type == "cuda" else "trainer=cpu"]
    )
    backbone = "tf_efficientnet_lite0" if device.type == "cuda" else "test_efficientnet"
    network = f"network.backbone={backbone}"
    cfg = composed(f"paths.output={output}", *TINY, network, *trainer, *overrides)
    train(cfg)
    return Path(cfg.run_dir)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    save_crops(tmp_path, n_patients=16)
    return tmp_path


def test_a_resumed_run_equals_a_straight_one(
    output: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = [
        *DEMO, "+trainer.deterministic=true", "network.dropout=0.3", "mix.probability=0.5",
        "ema.decay=0.9", "network.pooling=gem",
    ]  # fmt: skip
    straight = run(output, device, *chance)

    def stop(self: Classifier, *_: Any) -> None:
        if self.current_epoch == 1:
            raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_end", stop)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            run(output, device, *chance, "name=resumed")
    resumed = run(output, device, *chance, "name=resumed", "resume=true")
    torch.use_deterministic_algorithms(False)
    files = [folder / "checkpoints" / "last.ckpt" for folder in (straight, resumed)]
    a, b = (torch.load(f, map_location="cpu", weights_only=True)["state_dict"] for f in files)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert (straight / "oof.csv").read_bytes() == (resumed / "oof.csv").read_bytes()


def test_one_rank_trains_as_one_process(output: Path, device: torch.device) -> None:
    """On a GPU by way of NCCL and SyncBatchNorm."""
    plain = [
        *DEMO, "trainer.precision=32-true", "network.dropout=0", "learning_rate=1e-4",
        "+trainer.deterministic=warn",  # BatchNorm over few values amplifies a kernel's chance
    ]  # fmt: skip
    single = pd.read_csv(run(output, device, *plain) / "oof.csv")
    processor = ["trainer.accelerator=cpu", "trainer.sync_batchnorm=false"]
    more = [] if device.type == "cuda" else processor
    ddp = ["trainer=ddp", "trainer.devices=1", *plain, *more, "name=rank"]
    rank = pd.read_csv(run(output, device, *ddp) / "oof.csv")
    assert rank["prediction_id"].tolist() == single["prediction_id"].tolist()
    assert np.abs(rank["probability"] - single["probability"]).max() < 0.02


def test_memory_that_runs_out_in_training_names_what_fits(
    tmp_path: Path, cuda: torch.device
) -> None:
    crop = crop_settings("h512_wide")
    synthetic_crops(tmp_path, "rsna", crop, patients=48)
    settings = ["crop=h512_wide", "epochs=1", "negatives_per_positive=null"]
    total = torch.cuda.get_device_properties(cuda).total_memory
    torch.cuda.empty_cache()
    cap = torch.cuda.memory_reserved() + 3 * 2**29
    torch.cuda.set_per_process_memory_fraction(cap / total)
    try:
        with pytest.raises(InputError, match=r"largest micro-batch that fits is \d+") as caught:
            run(tmp_path, cuda, *settings, "batch_size=96")
        pattern = r"batch_size=\d+ trainer.accumulate_grad_batches=\d+"
        (remedy,) = re.findall(pattern, str(caught.value))
        del caught  # its traceback holds the first training
        gc.collect()
        folder = run(tmp_path, cuda, *settings, *remedy.split(), "overwrite=true")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (folder / "metrics.json").is_file()


def test_submit_decides_as_the_processor_does(tmp_path: Path, device: torch.device) -> None:
    save_test_set(tmp_path / "data", n_patients=12)

    def submitted(name: str, kind: str, threshold: float) -> pd.DataFrame:
        save_members(tmp_path / name, threshold=threshold)
        more = [f"device={kind}", "engine=torch"]
        cfg = configure_submit(tmp_path / "data", tmp_path / name, more)
        cancer = submit(cfg)["cancer"]
        folder = tmp_path / name / "submissions" / "best"
        return pd.read_csv(folder / "predictions.csv").assign(cancer=cancer)

    values = np.sort(submitted("all", "cpu", 0.5)["probability"].to_numpy())
    place = 6 + int(np.diff(values)[6:-6].argmax())  # a wide gap: no matter of rounding
    threshold = float(values[place : place + 2].mean())
    expected, found = (
        submitted(f"{i}_on_{kind}", kind, threshold) for i, kind in enumerate(("cpu", device.type))
    )
    assert np.abs(expected["probability"] - found["probability"]).max() < 5e-3
    assert 6 <= expected["cancer"].sum() <= len(expected) - 6
    assert expected["cancer"].equals(found["cancer"])
