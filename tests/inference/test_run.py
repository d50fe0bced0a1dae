"""A run rebuilt from its own record predicts what it predicted out of fold."""

import shutil
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
from rsna_bcd.inference.predictor import Predictor
from rsna_bcd.inference.run import load_run
from rsna_bcd.stages.train import train

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

BACKBONE = "test_efficientnet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with local weights, which are gone since."""
    output = tmp_path_factory.mktemp("runs")
    table = save_crops(output) / "train.csv"
    images = pd.read_csv(table, dtype=str)
    images.assign(machine_id="m" + images["patient_id"]).to_csv(table, index=False)
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
    found, _ = Predictor(run, "float32").predict({"image": torch.from_numpy(images)[:, None]})
    assert found == pytest.approx(expected, abs=1e-6)
    assert found.dtype == np.float64


def test_it_knows_what_its_training_saw_and_not_what_it_held_out(folder: Path) -> None:
    folds = pd.read_csv(folder.parents[2] / "folds" / "rsna-stratified.csv", dtype=str)
    trained_on = folds.loc[folds["fold"] != "0", "patient_id"]
    assert load_run(folder).seen == {
        "machine_id": tuple(sorted("m" + trained_on)),
        "view": ("CC", "MLO"),
    }


def test_a_run_of_before_says_nothing_of_what_it_saw(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "fold0"
    shutil.copytree(folder, old)
    (old / "seen.json").write_text("[]")
    with pytest.raises(InputError, match=r"seen\.json is damaged"):
        load_run(old)
    (old / "seen.json").unlink()
    assert load_run(old).seen == {}


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
    with pytest.raises(InputError, match="not finished. Resume it"):
        load_run(folder)
    (folder / "hidden").rename(finished)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (BACKBONE, "test_resnet", f"network.backbone: {BACKBONE} -> test_resnet"),
        ("fit: pad", "fit: stretch", "crop.fit: pad -> stretch"),
        ("tta: hflip", "tta: none", "tta: hflip -> none"),
    ],
)
def test_a_record_that_was_changed_is_refused_with_the_difference(
    folder: Path, before: str, after: str, said: str
) -> None:
    record = folder / "config.yaml"
    text = record.read_text()
    assert before in text
    record.write_text(text.replace(before, after))
    try:
        with pytest.raises(InputError, match=rf"(?s)not what .*last.ckpt was trained with.*{said}"):
            load_run(folder)
    finally:
        record.write_text(text)


def test_what_a_record_lacks_is_taken_from_the_checkpoint(folder: Path) -> None:
    record = folder / "config.yaml"
    text = record.read_text()
    record.write_text(text.replace("tta: hflip\n", ""))
    try:
        assert load_run(folder).tta == "hflip"
    finally:
        record.write_text(text)


def test_a_checkpoint_without_a_record_must_still_fit(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "tiny" / "fold0"
    shutil.copytree(folder, copied)
    weights = copied / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(weights)
    del checkpoint["config"]
    torch.save(checkpoint, weights)
    assert load_run(copied).tta == "hflip"
    record = copied / "config.yaml"
    record.write_text(record.read_text().replace(BACKBONE, "test_resnet"))
    with pytest.raises(InputError, match="does not fit the network"):
        load_run(copied)


def test_an_absent_checkpoint_is_named(folder: Path) -> None:
    weights = folder / "checkpoints" / "last.ckpt"
    weights.rename(folder / "hidden")
    with pytest.raises(InputError, match=r"last\.ckpt is absent"):
        load_run(folder)
    (folder / "hidden").rename(weights)
