"""Self-distillation: out-of-fold predictions of earlier runs as soft targets.

A teacher of a run that holds out fold k is trained with `fold=j left_out_folds=[k]`, and predicts
the patients of fold j: it has learnt from neither. The teachers of all j cover the training folds.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.errors import InputError, difference
from rsna_bcd.files import file_sha256, parts_sha256
from rsna_bcd.tables.folds import settings_without_fold, unseen_folds
from rsna_bcd.tables.images import some
from rsna_bcd.tables.predictions import read_oof, read_oof_images
from rsna_bcd.tables.views import Level
from rsna_bcd.targets import read_record

_TABLES: dict[Level, str] = {"image": "oof_images.csv", "breast": "oof.csv"}


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

    Raises:
        InputError: a table of a teacher is lost.
    """
    level = _target_level(teachers, folds, level)
    files = [_table(teachers, fold, level) for fold in folds]
    if level == "image":
        rows = pd.concat([read_oof_images(file) for file in files])
        return SoftTargets(rows.set_index("image_id")["probability"], weight)
    rows = pd.concat([read_oof(file) for file in files])
    rows = rows[rows["unread"] == 0]
    return SoftTargets(rows.set_index("prediction_id")["probability"], weight)


def check_teachers(
    teachers: Path,
    record: Mapping[str, Any],
    folds: Sequence[int],
    level: Level,
    recorded: Mapping[str, Any],
) -> dict[str, Any]:
    """Check that teachers are finished, alike, and have not seen the held-out patients.

    Args:
        teachers: their folder, `<output>/runs/<name>`.
        record: of the run.
        folds: its training folds.
        level: of its samples.
        recorded: returned by this function when the run began, for folds that are gone; or empty.

    Returns:
        `level` of the soft targets, SHA-256 of the teachers' `settings`, but for their names and
        folds, and `sha256` of the table that is read of each, by the name of its folder.

    Raises:
        InputError: a teacher is absent or unfinished, of other data, other folds or other
            settings, has lost its table, or has learnt from a fold that the run has not.
    """
    names = {fold: f"fold{fold}" for fold in folds}
    hashes = recorded.get("sha256", {})
    there = [
        fold for fold in folds if (teachers / names[fold]).is_dir() or names[fold] not in hashes
    ]
    settings = [_check_teacher(teachers, record, fold) for fold in there]
    for fold, other in zip(there, settings, strict=True):
        if differing := "\n".join(f"  {line}" for line in difference(settings[0], other)):
            raise InputError(
                f"distillation.teachers={teachers.name}: folds {there[0]} and {fold} were trained "
                f"with different settings:\n{differing}\nTrain them alike, under another name."
            )
    whole = len(there) == len(folds)
    level = _target_level(teachers, folds, level) if whole else recorded["level"]
    new = {names[fold]: file_sha256(_table(teachers, fold, level)) for fold in there}
    shared = _settings_sha256(settings[0]) if settings else recorded["settings"]
    hashes = {name: new.get(name) or hashes[name] for name in names.values()}
    return {"level": level, "settings": shared, "sha256": hashes}


def _check_teacher(teachers: Path, record: Mapping[str, Any], fold: int) -> dict[str, Any]:
    """Check the teacher of a fold by itself; the settings that it should share with the others."""
    folder, unseen = teachers / f"fold{fold}", unseen_folds(record)
    where = f"distillation.teachers={teachers.name}: fold {fold}"
    left_out = unseen - {fold}
    if not (folder / "metrics.json").is_file():
        state = "is not finished" if folder.is_dir() else "was not trained"
        command = _command(teachers.name, fold, left_out)
        raise InputError(f"{where} {state}, and is needed for its predictions:\n  {command}")
    record_file = folder / "config.yaml"
    if not record_file.is_file():
        command = f"{_command(teachers.name, fold, left_out)} overwrite=true"
        raise InputError(f"{where} has lost {record_file}. Train it again:\n  {command}")
    teacher = read_record(record_file)
    command = _command("...", fold, left_out)
    expected = record["dataset"], record["folds"], fold
    if (teacher["dataset"], teacher["folds"], teacher["fold"]) != expected:
        raise InputError(
            f"{where} was trained on other data or other folds. Train teachers under a name of "
            f"their own:\n  {command}"
        )
    if seen := unseen - unseen_folds(teacher):
        raise InputError(
            f"{where} has learnt from the patients of fold {', '.join(map(str, sorted(seen)))}, "
            "which this run holds out or leaves out: its predictions depend on their labels. Train "
            f"teachers without them, under a name of their own:\n  {command}"
        )
    settings = settings_without_fold(teacher)
    return {key: settings[key] for key in settings.keys() - {"name", "left_out_folds"}}


def _settings_sha256(settings: dict[str, Any]) -> str:
    """Equal for the teachers of all runs: those of each may start from runs of another name."""
    if "starts_from" in settings:
        network = {k: v for k, v in settings["network"].items() if k != "checkpoint_path"}
        starts = [
            {k: v for k, v in run.items() if k not in ("name", "left_out_folds")}
            for run in settings["starts_from"]
        ]
        settings = settings | {"checkpoint_path": None, "network": network, "starts_from": starts}
    return parts_sha256(json.dumps(settings, sort_keys=True).encode())


def _target_level(teachers: Path, folds: Sequence[int], level: Level) -> Level:
    """By image if samples are images and teachers predict images: each then has to have them."""
    tables = [teachers / f"fold{fold}" / _TABLES["image"] for fold in folds]
    return "image" if level == "image" and any(file.is_file() for file in tables) else "breast"


def _table(teachers: Path, fold: int, level: Level) -> Path:
    """The file that has the probabilities of one teacher."""
    file = teachers / f"fold{fold}" / _TABLES[level]
    if not file.is_file():
        raise InputError(
            f"distillation.teachers={teachers.name}: there is no {file}. Run the teacher again "
            f"with its settings, which makes it: name={teachers.name} fold={fold}."
        )
    return file


def _command(name: str, fold: int, left_out: set[int]) -> str:
    command = f"python -m rsna_bcd.train experiment=... name={name} fold={fold}"
    return command + (f" 'left_out_folds={sorted(left_out)}'" if left_out else "")
