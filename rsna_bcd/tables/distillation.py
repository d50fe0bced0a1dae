"""Self-distillation: out-of-fold predictions of earlier runs as soft targets.

A teacher of a run that holds out fold k is trained with `fold=j left_out_folds=[k]`, and predicts
the patients of fold j: it has learnt from neither. The teachers of all j cover the training folds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.files import file_sha256
from rsna_bcd.tables.folds import unseen_folds
from rsna_bcd.tables.images import some
from rsna_bcd.tables.predictions import read_oof, read_oof_images
from rsna_bcd.tables.views import Level
from rsna_bcd.targets import read_record


class SoftTargets:
    """Probabilities of the teachers, and their weight beside the label.

    Args:
        probability: indexed by `image_id`, or by `prediction_id` (of the image's breast).
        weight: in (0, 1].
    """

    def __init__(self, probability: pd.Series, weight: float) -> None:
        self.probability = probability
        self.weight = weight

    def blend(self, samples: pd.DataFrame) -> NDArray[np.float64]:
        """(1 - weight) * label + weight * probability, (N,).

        Args:
            samples: `label`, and the column that `probability` is indexed by.

        Raises:
            InputError: a sample has no probability.
        """
        ids = samples[str(self.probability.index.name)]
        probability = self.probability.reindex(ids).to_numpy()
        lacking = ids[np.isnan(probability)]
        if len(lacking):
            raise InputError(
                f"distillation.teachers= predict no {lacking.name} {some(lacking)}: they were "
                "trained on another table or on other crops. Train them again."
            )
        return (1 - self.weight) * samples["label"].to_numpy() + self.weight * probability


def read_soft_targets(
    teachers: Path, folds: Sequence[int], level: Level, weight: float
) -> SoftTargets:
    """Read the out-of-fold probabilities of the teachers: by image where both see images.

    Args:
        teachers: their folder, `<output>/runs/<name>`.
        folds: the training folds.
        level: of the samples that the targets are for.
        weight: see `SoftTargets`.
    """
    folders = [teachers / f"fold{fold}" for fold in folds]
    if level == "image" and all((folder / "oof_images.csv").is_file() for folder in folders):
        rows = pd.concat([read_oof_images(folder / "oof_images.csv") for folder in folders])
        return SoftTargets(rows.set_index("image_id")["probability"], weight)
    rows = pd.concat([read_oof(folder / "oof.csv") for folder in folders])
    rows = rows[rows["unread"] == 0]
    return SoftTargets(rows.set_index("prediction_id")["probability"], weight)


def check_teachers(
    teachers: Path, record: Mapping[str, Any], folds: Sequence[int]
) -> dict[str, str]:
    """Check that the teachers of a run are finished and have not seen what it holds out.

    Args:
        teachers: their folder, `<output>/runs/<name>`.
        record: of the run.
        folds: its training folds.

    Returns:
        SHA-256 of the `oof.csv` of each, by the name of its folder.

    Raises:
        InputError: a teacher is absent or unfinished, of other data or other folds, or has learnt
            from a fold that the run has not.
    """
    hashes = {}
    unseen = unseen_folds(record)
    for fold in folds:
        folder = teachers / f"fold{fold}"
        left_out = sorted(unseen - {fold})
        command = f"python -m rsna_bcd.train experiment=... name={teachers.name} fold={fold}"
        command += f" 'left_out_folds={left_out}'" if left_out else ""
        where = f"distillation.teachers={teachers.name}: fold {fold}"
        if not (folder / "metrics.json").is_file():
            state = "is not finished" if folder.is_dir() else "was not trained"
            raise InputError(f"{where} {state}, and is needed for its predictions:\n  {command}")
        teacher = read_record(folder / "config.yaml")
        if (teacher["dataset"], teacher["folds"]) != (record["dataset"], record["folds"]):
            raise InputError(
                f"{where} was trained on other data or other folds. Give it a name of its own:\n"
                f"  {command}"
            )
        seen = unseen - unseen_folds(teacher)
        if seen or teacher["fold"] != fold:
            raise InputError(
                f"{where} has learnt from patients that fold={record['fold']} holds out (of fold "
                f"{', '.join(map(str, sorted(seen)))}): their soft targets would tell. Train "
                f"teachers without them, under a name of their own:\n  {command}"
            )
        hashes[folder.name] = file_sha256(folder / "oof.csv")
    return hashes
