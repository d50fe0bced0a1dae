"""Inputs of `submit`: images, a table, tiny networks, an ensemble."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from fabricated_networks import TinyBreasts, TinyImages
from fabricated_runs import fabricated_ensemble
from omegaconf import DictConfig
from saved_runs import save_run
from stage_settings import composed

from rsna_bcd.scoring.ensemble import Ensemble, Member, write_ensemble
from rsna_bcd.scoring.thresholds import Threshold

NAME = "best"
_MACHINES = (29, 49, 5)


def save_test_set(data: Path, n_patients: int, seed: int = 0) -> pd.DataFrame:
    """Write `test.csv`, `sample_submission.csv` and `test_images/`, for `source=image`.

    Each patient has both breasts, of two to four images each.

    Returns:
        The table.
    """
    generator = np.random.default_rng(seed)
    rows: list[list[Any]] = []
    for patient in map(str, range(100, 100 + n_patients)):
        for laterality in "LR":
            for view in ["CC", "MLO", "MLO", "CC"][: generator.integers(2, 5)]:
                pixels = np.zeros((128, 96), np.uint8)
                width = int(generator.integers(30, 60))
                pixels[20:100, :width] = generator.integers(60, 200, (80, width))
                image_id = f"{patient}{len(rows):04}"
                file = data / "test_images" / patient / f"{image_id}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(file), pixels)
                rows.append(
                    [1, patient, image_id, laterality, view, 40 + len(rows) % 40, 0,
                     _MACHINES[len(rows) % 3], f"{patient}_{laterality}"]
                )  # fmt: skip
    columns = [
        "site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id",
        "prediction_id",
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(data / "test.csv", index=False)
    breasts = table[["prediction_id"]].drop_duplicates()
    breasts.assign(cancer=0).to_csv(data / "sample_submission.csv", index=False)
    return table


def save_members(
    output: Path, images: int = 2, breasts: int = 1, *, threshold: float = 0.5
) -> Ensemble:
    """Write an ensemble of image level and breast level, so many folds of each; 0: no member.

    Its recall rate is high, so that few breasts are enough to keep it.
    """
    members: list[Member] = []
    for name, kind, folds in (("images", TinyImages, images), ("breasts", TinyBreasts, breasts)):
        for fold in range(folds):
            torch.manual_seed(fold)
            save_run(output / "runs" / name / f"fold{fold}", kind())
        if folds:
            members.append(Member(name, tuple(range(folds)), "rsna", "demo", "max", "last", 1.0))
    fitted = fabricated_ensemble(tuple(members), threshold, prior=0.1)
    fitted = replace(fitted, thresholds=Threshold(threshold, {}, recall_rate=0.8))
    write_ensemble(fitted, output / "ensembles" / NAME / "ensemble.json")
    return fitted


def overrides(data: Path, output: Path, *more: str) -> list[str]:
    """Overrides of `submit` for these."""
    return [
        f"name={NAME}", f"paths.data={data}", f"paths.output={output}", "source=image",
        "workers=0", "device=cpu", *more,
    ]  # fmt: skip


def configure(data: Path, output: Path, more: Sequence[str] = ()) -> DictConfig:
    """The settings of `submit` in this process."""
    return composed("submit", *overrides(data, output, *more))
