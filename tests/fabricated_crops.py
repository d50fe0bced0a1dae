"""A fabricated prepared folder."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from rsna_bcd._records import write_record
from rsna_bcd._stage import CONF
from rsna_bcd.tables.folds import stratified

HEIGHT, WIDTH = 64, 32


def save_crops(output: Path, n_patients: int = 8, n_folds: int = 2) -> Path:
    """Write crops, their table and folds for `dataset.name=rsna crop=demo`.

    Each patient has two breasts of two views; a bright square marks the left breast of every other
    patient as cancer.

    Returns:
        The prepared folder.
    """
    folder = output / "prepared" / "rsna" / "demo"
    generator = np.random.default_rng(0)
    rows: list[list[object]] = []
    for patient in range(n_patients):
        for laterality in "LR":
            cancer = int(laterality == "L" and patient % 2 == 0)
            for view in ("CC", "MLO"):
                pixels = generator.integers(0, 120, (HEIGHT, WIDTH), dtype=np.uint8)
                pixels[20:36, 8:20] += np.uint8(100 * cancer)
                path = f"train/{patient}/{len(rows)}.png"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / path), pixels)
                rows.append([1, str(patient), str(len(rows)), laterality, view, cancer, path])
    columns = ["site_id", "patient_id", "image_id", "laterality", "view", "cancer", "path"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(folder / "train.csv", index=False)
    crop = OmegaConf.load(Path(CONF) / "crop" / "demo.yaml")
    assert isinstance(crop, DictConfig)
    crop.height, crop.width = HEIGHT, WIDTH
    write_record(
        folder / "config.yaml",
        {"dataset": {"name": "rsna"}, "crop": OmegaConf.to_container(crop), "source": "dicom"},
    )
    (output / "folds").mkdir()
    folds = stratified(table, n_folds=n_folds, seed=0)
    folds.to_csv(output / "folds" / "rsna-stratified.csv", index=False)
    return folder


def blank_path(folder: Path, *rows: int) -> pd.DataFrame:
    """Make rows of the table unreadable: the preparation leaves their `path` empty."""
    table = pd.read_csv(folder / "train.csv", dtype=str)
    table.loc[list(rows), "path"] = None
    table.to_csv(folder / "train.csv", index=False)
    return table
