"""Crops of another `crop.algorithm` are neither mixed with ours, nor trained on, nor predicted."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from breast_shapes import breast_image
from fabricated_crops import save_crops
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from saved_runs import CROP
from submission_inputs import configure, save_members, save_test_set

from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import check_crop_algorithm, check_prepared_crops, load_run
from rsna_bcd.preparation.crop import ALGORITHM
from rsna_bcd.stages.prepare import prepare
from rsna_bcd.stages.submit import submit
from rsna_bcd.stages.train import train


def settings(stage: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(stage, list(overrides))


def forget_algorithm(record_file: Path) -> None:
    """Make a record one from before the key existed."""
    record = OmegaConf.load(record_file)
    del record.crop.algorithm
    OmegaConf.save(record, record_file)


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, ...]:
    """Overrides that prepare eight pictures."""
    rows = []
    for patient in range(4):
        for side in "LR":
            file = tmp_path / f"train_images/{patient}/{patient}{side}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), np.rint(breast_image(100, 80) * 255).astype(np.uint8))
            rows.append((str(patient), file.stem, side, "CC", int(patient == 0)))
    columns = ["patient_id", "image_id", "laterality", "view", "cancer"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "train.csv", index=False)
    return (
        f"paths.data={tmp_path}", f"paths.output={tmp_path / 'out'}", "source=image", "crop=demo",
        "workers=0", "splits=[train]", "folds.assign.n_folds=2",
    )  # fmt: skip


def test_prepare_does_not_mix_algorithms(images: tuple[str, ...]) -> None:
    cfg = settings("prepare", *images)
    prepare(cfg)
    record = Path(cfg.prepared_dir) / "config.yaml"
    assert OmegaConf.load(record).crop.algorithm == ALGORITHM
    forget_algorithm(record)
    with pytest.raises(InputError, match=rf"crop.algorithm: \(absent\) -> {ALGORITHM}") as error:
        prepare(cfg)
    assert "overwrite=true" in str(error.value)
    prepare(settings("prepare", *images, "overwrite=true"))
    assert OmegaConf.load(record).crop.algorithm == ALGORITHM


@pytest.mark.parametrize("override", ["crop.algorithm=1", "~crop.algorithm"])
def test_prepare_makes_no_crops_of_another_algorithm(
    images: tuple[str, ...], override: str
) -> None:
    cfg = settings("prepare", *images, override)
    with pytest.raises(InputError, match=r"crop.algorithm=1, .*Set crop.algorithm="):
        prepare(cfg)
    assert not Path(cfg.prepared_dir).exists()


@pytest.mark.parametrize("override", [(), ("crop.algorithm=1",)])
def test_train_refuses_crops_of_another_algorithm(tmp_path: Path, override: tuple) -> None:
    folder = save_crops(tmp_path)
    forget_algorithm(folder / "config.yaml")
    overrides = ("name=a", "crop=demo", f"paths.output={tmp_path}", "network=test_resnet")
    cfg = settings("train", *overrides, *override)
    with pytest.raises(InputError, match=r"crop.algorithm: (\(absent\)|1) -> 2|crop.algorithm=1"):
        train(cfg)
    assert not Path(cfg.run_dir).exists()


def test_runs_of_another_algorithm_predict_nothing(tmp_path: Path) -> None:
    save_test_set(tmp_path / "data", 2)
    output = tmp_path / "output"
    save_members(output, 1, 0)
    run = load_run(output / "runs/images/fold0")
    check_crop_algorithm([run])
    assert run.crop.algorithm == CROP["algorithm"]
    prepared = save_crops(output)
    check_prepared_crops(run, prepared)
    forget_algorithm(prepared / "config.yaml")
    with pytest.raises(InputError, match="are of crop.algorithm=1, .*: train again"):
        check_prepared_crops(run, prepared)
    forget_algorithm(output / "runs/images/fold0/config.yaml")
    with pytest.raises(InputError) as error:
        submit(configure(tmp_path / "data", output))
    assert "fold0 was trained on crops of crop.algorithm=1" in str(error.value)
    assert "prepare again and train again, or install the older version" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(output.rglob("submission.csv"))
