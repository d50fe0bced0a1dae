"""Prepared crops to measure with, where there are no others."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from commands import run_command
from omegaconf import OmegaConf

from rsna_bcd._records import write_record
from rsna_bcd._stage import CONF
from rsna_bcd.tables.folds import stratified


def prepared(folder: Path, crop: str, patients: int) -> Path:
    """Make crops of a synthetic competition below `folder`, which may hold other crops of it.

    Args:
        folder: where to.
        crop: of `conf/crop/`.
        patients: of four images and more each, of about 1,300 x 1,000 pixels.

    Returns:
        The folder to give as `paths.output`.
    """
    data, output = folder / "data", folder / "output"
    if not data.exists():
        sizes = [f"size.train_patients={patients}", "size.test_patients=1", "size.prevalence=0.5"]
        run_command("synthesize", f"paths.data={data}", *sizes, "appearance.pixel_mm=0.2")
    run_command(
        "prepare", f"paths.data={data}", f"paths.output={output}", f"crop={crop}", "splits=[train]"
    )
    return output


def synthetic_crops(
    output: Path,
    dataset: str,
    crop: dict[str, Any],
    patients: int,
    *,
    distinct: int = 32,
    n_folds: int = 4,
) -> Path:
    """Write crops of smooth noise, their table and folds, without any DICOM file.

    They compress about as mammograms do. Each patient has CC and MLO of both breasts; every other
    patient has a cancer on the left, brighter in the middle.

    Args:
        output: the folder to give as `paths.output`.
        dataset: name of the data set.
        crop: settings as in `conf/crop/*.yaml`.
        patients: how many.
        distinct: crops that differ; the others repeat them.
        n_folds: of the patients.

    Returns:
        The prepared folder; one that is there already is left alone.
    """
    folder = output / "prepared" / dataset / crop["name"]
    if (folder / "config.yaml").is_file():
        return folder
    generator = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for number in range(distinct):
        pixels = smooth_noise(generator, crop["height"], crop["width"])
        if number % 2:
            top, height = crop["height"] // 2, crop["height"] // 8
            pixels[top : top + height] = np.minimum(pixels[top : top + height], 195) + np.uint8(60)
        file = folder / "train" / f"{number}.png"
        cv2.imwrite(str(file), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    rows = []
    for patient in range(patients):
        for place, (laterality, view) in enumerate(
            [("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]
        ):
            cancer = int(patient % 2 and laterality == "L")
            number = 2 * int(generator.integers(distinct // 2)) + cancer
            rows.append(
                {
                    "site_id": 1, "patient_id": str(patient), "image_id": str(4 * patient + place),
                    "laterality": laterality, "view": view, "age": 40 + patient % 40,
                    "implant": 0, "machine_id": 49, "cancer": cancer, "biopsy": cancer,
                    "invasive": cancer, "density": "ABCD"[patient % 4],
                    "prediction_id": f"{patient}_{laterality}", "path": f"train/{number}.png",
                }
            )  # fmt: skip
    table = pd.DataFrame(rows)
    table.to_csv(folder / "train.csv", index=False)
    (output / "folds").mkdir(exist_ok=True)
    folds = stratified(table, n_folds=n_folds, seed=0)
    folds.to_csv(output / "folds" / f"{dataset}-stratified.csv", index=False)
    write_record(
        folder / "config.yaml", {"dataset": {"name": dataset}, "crop": crop, "source": "dicom"}
    )
    return folder


def crop_settings(name: str, **changes: Any) -> dict[str, Any]:
    """The settings of `conf/crop/<name>.yaml`, some of them changed."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(Path(CONF) / "crop" / f"{name}.yaml"))
    return {**settings, **changes}


def smooth_noise(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Texture of about the scale and compressibility of a mammogram: uint8, (height, width)."""
    total = np.zeros((height, width), np.float32)
    for cells, weight in ((4, 1.0), (24, 0.4), (96, 0.2)):
        coarse = generator.random((2 * cells, cells), np.float32)
        total += weight * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    total += 0.015 * generator.standard_normal((height, width), np.float32)
    total[:, 3 * width // 4 :] = 0  # background
    return np.clip(110 * total, 0, 255).astype(np.uint8)
