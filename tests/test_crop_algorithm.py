"""Crops of another `crop.algorithm` are neither mixed with ours, nor trained on, nor predicted."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from breast_shapes import breast_image
from fabricated_crops import save_crops
from omegaconf import OmegaConf
from saved_runs import CROP
from stage_settings import composed
from submission_inputs import configure, save_members, save_test_set

from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import check_crop_algorithm, check_prepared_crops, load_run
from rsna_bcd.preparation.crop import ALGORITHM
from rsna_bcd.stages.prepare import prepare
from rsna_bcd.stages.submit import submit
from rsna_bcd.stages.train import train


def remove_algorithm(record_file: Path) -> None:
    """Make a record one from before the key existed."""
    record = OmegaConf.load(record_file)
    del record.crop.algorithm
    OmegaConf.save(record, record_file)


def test_prepare_does_not_mix_algorithms(tmp_path: Path) -> None:
    rows = []
    for patient in range(4):
        file = tmp_path / f"train_images/{patient}/{patient}.png"
        file.parent.mkdir(parents=True)
        cv2.imwrite(str(file), np.rint(breast_image(100, 80) * 255).astype(np.uint8))
        rows.append((str(patient), file.stem, "L", "CC", patient % 2))
    columns = ["patient_id", "image_id", "laterality", "view", "cancer"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "train.csv", index=False)
    images = (
        f"paths.data={tmp_path}", f"paths.output={tmp_path / 'out'}", "source=image", "crop=demo",
        "workers=0", "splits=[train]", "folds.assign.n_folds=2",
    )  # fmt: skip
    cfg = composed("prepare", *images)
    for override in ("crop.algorithm=1", "~crop.algorithm"):
        with pytest.raises(InputError, match=r"crop.algorithm=1, .*Set crop.algorithm="):
            prepare(composed("prepare", *images, override))
        assert not Path(cfg.prepared_dir).exists()
    prepare(cfg)
    record = Path(cfg.prepared_dir) / "config.yaml"
    assert OmegaConf.load(record).crop.algorithm == ALGORITHM
    remove_algorithm(record)
    changed = rf"(?s)crop.algorithm: \(absent\) -> {ALGORITHM}.*overwrite=true"
    with pytest.raises(InputError, match=changed):
        prepare(cfg)
    prepare(composed("prepare", *images, "overwrite=true"))
    assert OmegaConf.load(record).crop.algorithm == ALGORITHM


@pytest.mark.parametrize("override", [(), ("crop.algorithm=1",)])
def test_train_refuses_crops_of_another_algorithm(tmp_path: Path, override: tuple) -> None:
    folder = save_crops(tmp_path)
    remove_algorithm(folder / "config.yaml")
    overrides = ("name=a", "crop=demo", f"paths.output={tmp_path}", "network=test_resnet")
    cfg = composed("train", *overrides, *override)
    with pytest.raises(InputError, match=r"crop.algorithm: (\(absent\)|1) -> 2|crop.algorithm=1"):
        train(cfg)
    assert not Path(cfg.run_dir).exists()


def test_submit_refuses_runs_of_another_algorithm(tmp_path: Path) -> None:
    save_test_set(tmp_path / "data", 2)
    output = tmp_path / "output"
    save_members(output, 1, 0)
    run = load_run(output / "runs/images/fold0")
    check_crop_algorithm([run])
    assert run.crop.algorithm == CROP["algorithm"]
    prepared = save_crops(output)
    check_prepared_crops(run, prepared)
    remove_algorithm(prepared / "config.yaml")
    with pytest.raises(InputError, match="are of crop.algorithm=1, .*: train again"):
        check_prepared_crops(run, prepared)
    remove_algorithm(output / "runs/images/fold0/config.yaml")
    refused = r"fold0 was trained on crops of crop.algorithm=1.*: prepare again and train again"
    with pytest.raises(InputError, match=refused) as error:
        submit(configure(tmp_path / "data", output))
    assert "\n" not in str(error.value)
    assert not list(output.rglob("submission.csv"))
