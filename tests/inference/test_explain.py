"""Breasts, as the fold that held them out saw them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from fabricated_crops import HEIGHT, WIDTH, blank_path, save_crops
from hydra.utils import instantiate

from rsna_bcd._records import write_record
from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv
from rsna_bcd.imaging.crops import read_crop
from rsna_bcd.inference.saliency import Explainer, saliency_maps
from rsna_bcd.scoring.ensemble import Ensemble, Member
from rsna_bcd.tables.predictions import OOF_COLUMNS

IMAGES = {"_target_": "rsna_bcd.models.network.ImageClassifier", "backbone": "test_resnet"}
TRANSFORMER = {
    "_target_": "rsna_bcd.models.aggregators.Transformer", "_partial_": True,
    "width": 16, "depth": 1, "heads": 2,
}  # fmt: skip
BREASTS = {
    "_target_": "rsna_bcd.models.breast.BreastClassifier", "backbone": "test_resnet",
    "aggregator": TRANSFORMER,
}  # fmt: skip
METADATA = {"_target_": "rsna_bcd.tables.metadata.Metadata", "columns": ["site_id"]}


def save_run(output: Path, network: dict[str, Any], **settings: Any) -> Path:
    """Write a run `tiny` of two folds, its networks as they were at the start."""
    folds = pd.read_csv(output / "folds" / "rsna-stratified.csv", dtype={"patient_id": str})
    for fold in (0, 1):
        folder = output / "runs" / "tiny" / f"fold{fold}"
        record = {
            "name": "tiny", "fold": fold, "select": "last", "source": "dicom", "tta": "hflip",
            "crop": {
                "_target_": "rsna_bcd.preparation.crop.CropSettings", "name": "demo",
                "height": HEIGHT, "width": WIDTH, "box": "breast", "margin": 0.01, "orient": True,
                "fit": "pad", "algorithm": 2,
            },
            "network": network, **settings,
        }  # fmt: skip
        write_record(folder / "config.yaml", record)
        torch.manual_seed(fold)
        made = instantiate(network, pretrained=False)
        (folder / "checkpoints").mkdir()
        state = {f"network.{name}": value for name, value in made.state_dict().items()}
        torch.save({"state_dict": state}, folder / "checkpoints" / "last.ckpt")
        rows = pd.DataFrame({"patient_id": folds["patient_id"][folds["fold"] == fold]})
        rows = rows.merge(pd.DataFrame({"laterality": ["L", "R"]}), how="cross")
        rows["prediction_id"] = rows["patient_id"] + "_" + rows["laterality"]
        rows = rows.assign(fold=fold, label=0, logit=0.0, probability=0.5, unread=0)
        write_csv(rows[list(OOF_COLUMNS)], folder / "oof.csv")
        (folder / "metrics.json").write_text("{}")
    return output / "runs" / "tiny"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return save_crops(tmp_path)


def test_images_are_seen_by_the_fold_that_held_them_out(tmp_path: Path, prepared: Path) -> None:
    run = save_run(tmp_path, IMAGES)
    look = Explainer(run, prepared)
    folds = pd.read_csv(tmp_path / "folds" / "rsna-stratified.csv", dtype={"patient_id": str})
    for patient, fold in zip(folds["patient_id"], folds["fold"], strict=True):
        assert look.run_of(f"{patient}_R").folder == run / f"fold{fold}"
    seen = look("3_R")
    table = look.images[look.images["prediction_id"] == "3_R"]
    assert [image.image_id for image in seen] == table["image_id"].tolist()
    assert [image.view for image in seen] == ["CC", "MLO"]
    network = look.run_of("3_R").network
    for image, path in zip(seen, table["path"], strict=True):
        crop = read_crop(prepared / path)
        assert np.array_equal(image.crop, crop)
        batch = {"image": torch.from_numpy(crop)[None, None]}
        assert image.saliency is not None
        assert np.array_equal(image.saliency, saliency_maps(network, batch, "hflip")[0].numpy())


def test_images_that_could_not_be_read_are_left_out(tmp_path: Path, prepared: Path) -> None:
    blank_path(prepared, 0, 2, 3)  # one of the left breast of patient 0, both of the right one
    look = Explainer(save_run(tmp_path, IMAGES), prepared)
    assert [image.image_id for image in look("0_L")] == ["1"]
    assert look("0_R") == []


@pytest.mark.parametrize("other_breast", [False, True])
def test_a_breast_is_seen_at_once(tmp_path: Path, prepared: Path, other_breast: bool) -> None:
    views = {
        "_target_": "rsna_bcd.tables.views.Views", "policy": "one_per_view", "order": ["MLO"],
        "other_breast": other_breast,
    }  # fmt: skip
    look = Explainer(save_run(tmp_path, BREASTS, views=views), prepared)
    cc, mlo = look("3_L")
    assert cc.saliency is None  # it was not shown
    shown = [mlo.crop, *([look("3_R")[1].crop] if other_breast else [])]
    batch = {
        "image": torch.from_numpy(np.stack(shown))[None, :, None],
        "mask": torch.ones(1, len(shown), dtype=torch.bool),
        "view": torch.ones(1, len(shown), dtype=torch.int64),
        "other": torch.tensor([[False, True]])[:, : len(shown)],
    }
    expected = saliency_maps(look.run_of("3_L").network, batch, "hflip")[0, 0].numpy()
    assert mlo.saliency is not None
    assert np.array_equal(mlo.saliency, expected)


@pytest.mark.parametrize("network", [IMAGES, BREASTS])
def test_networks_are_given_their_metadata(
    tmp_path: Path, prepared: Path, network: dict[str, Any]
) -> None:
    run = save_run(tmp_path, {**network, "metadata": METADATA}, metadata=METADATA)
    seen = Explainer(run, prepared)("3_L")
    assert all(image.saliency is not None for image in seen)


def test_a_breast_that_was_not_predicted_is_refused(tmp_path: Path, prepared: Path) -> None:
    look = Explainer(save_run(tmp_path, IMAGES), prepared, folds=[0])
    folds = pd.read_csv(tmp_path / "folds" / "rsna-stratified.csv", dtype={"patient_id": str})
    other = folds["patient_id"][folds["fold"] == 1].iloc[0]
    with pytest.raises(InputError, match=f"no out-of-fold prediction of {other}_L"):
        look(f"{other}_L")


def test_crops_that_are_not_those_of_training_are_refused(tmp_path: Path, prepared: Path) -> None:
    look = Explainer(save_run(tmp_path, IMAGES), prepared)
    path = prepared / look.images.loc[look.images["prediction_id"] == "3_R", "path"].iloc[0]
    cv2.imwrite(str(path), np.zeros((HEIGHT, 2 * WIDTH), np.uint8))
    with pytest.raises(InputError, match="64 x 64, and .* was trained on 64 x 32"):
        look("3_R")
    (prepared / "train.csv").unlink()
    with pytest.raises(InputError, match="prepare dataset=rsna crop=demo"):
        Explainer(tmp_path / "runs" / "tiny", prepared)


def test_an_ensemble_is_shown_by_its_heaviest_member(tmp_path: Path, prepared: Path) -> None:
    run = save_run(tmp_path, IMAGES)
    members = tuple(
        Member(name, (0, 1), "rsna", "demo", "mean", "last", weight)
        for name, weight in (("light", 0.5), ("tiny", 2.0), ("late", 2.0))
    )
    ensemble = object.__new__(Ensemble)  # whatever else it holds
    object.__setattr__(ensemble, "members", members)
    look = Explainer.of_ensemble(ensemble, tmp_path)
    assert look.run_of("3_R").folder.parent == run
