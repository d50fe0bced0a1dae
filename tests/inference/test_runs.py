"""A run rebuilt from its own record predicts what it predicted out of fold."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fabricated_crops import HEIGHT, WIDTH, save_crops
from hydra import compose, initialize_config_dir
from timm import create_model

from rsna_bcd._stage import CONF
from rsna_bcd.data.dataset import read_crop
from rsna_bcd.errors import InputError
from rsna_bcd.inference.runs import load_run
from rsna_bcd.train import train

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

BACKBONE = "test_efficientnet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with local weights, which are gone since."""
    output = tmp_path_factory.mktemp("runs")
    save_crops(output)
    weights = output / "weights.pth"
    torch.save(create_model(BACKBONE, in_chans=3).state_dict(), weights)
    overrides = (
        f"paths.output={output}", "name=tiny", "crop=demo", f"crop.height={HEIGHT}",
        f"crop.width={WIDTH}", f"network.backbone={BACKBONE}", "network.pooling=gem",
        f"checkpoint_path={weights}", "epochs=1", "batch_size=4", "workers=0", "tta=hflip",
        "trainer=cpu", "~callbacks.progress", "+trainer.enable_progress_bar=false",
    )  # fmt: skip
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", list(overrides))
    train(cfg)
    weights.unlink()
    return Path(cfg.run_dir)


def test_it_predicts_what_was_predicted_out_of_fold(folder: Path) -> None:
    prepared = folder.parents[2] / "prepared" / "rsna" / "demo"
    table = pd.read_csv(prepared / "train.csv", dtype={"image_id": str}).set_index("image_id")
    oof = pd.read_csv(folder / "oof_images.csv", dtype={"image_id": str})
    images = np.stack([read_crop(prepared / table.loc[i, "path"]) for i in oof["image_id"]])
    run = load_run(folder)
    expected = oof["probability"].to_numpy()
    assert run.predict(images) == pytest.approx(expected, abs=1e-6)
    alone = np.concatenate([run.predict(image[None]) for image in images])
    assert alone == pytest.approx(expected, abs=1e-6)
    assert alone.dtype == np.float64


def test_it_knows_how_its_images_were_prepared(folder: Path) -> None:
    run = load_run(folder)
    assert (run.crop.name, run.crop.height, run.crop.width) == ("demo", HEIGHT, WIDTH)
    assert run.source == "dicom"
    assert run.tta == "hflip"
    assert run.record["fold"] == 0
    assert not run.network.training


def test_a_missing_run_is_answered_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)no run in .*rsna_bcd\.train .*name=b5 fold=3"):
        load_run(tmp_path / "b5" / "fold3")


def test_an_unfinished_run_is_answered_with_the_command(folder: Path) -> None:
    finished = folder / "metrics.json"
    finished.rename(folder / "hidden")
    with pytest.raises(InputError, match="not finished.*resume=true|resume=true"):
        load_run(folder)
    (folder / "hidden").rename(finished)


def test_another_network_in_the_record_is_refused(folder: Path) -> None:
    record = folder / "config.yaml"
    text = record.read_text()
    record.write_text(text.replace(BACKBONE, "test_resnet"))
    with pytest.raises(InputError, match="does not fit the network"):
        load_run(folder)
    record.write_text(text)


def test_an_absent_checkpoint_is_named(folder: Path) -> None:
    weights = folder / "checkpoints" / "last.ckpt"
    weights.rename(folder / "hidden")
    with pytest.raises(InputError, match=r"last\.ckpt is absent"):
        load_run(folder)
    (folder / "hidden").rename(weights)
