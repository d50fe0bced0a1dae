"""Trained runs: their weights, records and networks."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import nn

from rsna_bcd.errors import InputError, difference
from rsna_bcd.files import file_sha256
from rsna_bcd.models.checkpoint import (
    NETWORK,
    find_checkpoint,
    read_checkpoint,
    weights_sha256,
)
from rsna_bcd.models.prediction import TTA, network_level
from rsna_bcd.preparation.crop import ALGORITHM, CropSettings
from rsna_bcd.scoring.ensemble import Ensemble, Select
from rsna_bcd.tables.metadata import (
    TRAINING_DOMAIN_FILE,
    Metadata,
    TrainingDomain,
    read_training_domain,
)
from rsna_bcd.tables.views import Level, Views
from rsna_bcd.targets import read_record, takes_argument, with_current_targets

# Of records that are older than these keys.
_DEFAULTS = {"select": "last", "tta": [], "source": "dicom"}
_TABLES = {"oof.csv": "predictions", "oof_images.csv": "predictions by image"}


@dataclass(frozen=True)
class Run:
    """A trained network and how its inputs are prepared.

    Attributes:
        folder: `<output>/runs/<name>/fold<k>`.
        record: its settings, `config.yaml`.
        crop: of its images.
        source: of its images, "dicom" or "image".
        tta: test-time augmentation of its out-of-fold predictions, and so of all others.
        network: in eval mode.
        views: the images of a breast that it takes, at breast level.
        metadata: its inputs besides the pixels; None for none.
        seen: machines and views of its training, by column (`tables.metadata`); older runs lack
            them.
    """

    folder: Path
    record: dict[str, Any]
    crop: CropSettings
    source: str
    tta: TTA
    network: nn.Module
    views: Views
    metadata: Metadata | None
    seen: TrainingDomain = field(default_factory=dict)

    @property
    def level(self) -> Level:
        """Image or breast level."""
        return network_level(self.network)

    @property
    def name(self) -> str:
        """Name and fold: `b5 fold3`."""
        return f"{self.folder.parent.name} {self.folder.name}"

    @property
    def device(self) -> torch.device:
        """Of the network; the processor for one of another engine, without parameters."""
        return next(self.network.parameters(), torch.empty(0)).device


def load_run(folder: Path, device: torch.device | str = "cpu") -> Run:
    """Load a finished run from its folder alone, `<output>/runs/<name>/fold<k>`.

    Raises:
        InputError: the run is absent, unfinished or damaged, or its `config.yaml` is not the record
            inside its checkpoint.
    """
    record_file = folder / "config.yaml"
    fold = folder.name.removeprefix("fold")
    command = f"python -m rsna_bcd.train experiment=... name={folder.parent.name} fold={fold}"
    if not record_file.is_file():
        raise InputError(f"There is no run in {folder}. Train it:\n  {command}")
    if not (folder / "metrics.json").is_file():
        raise InputError(f"The run in {folder} is not finished. Resume it:\n  {command}")
    record = read_record(record_file)
    record.pop("rsna_bcd", None)  # the version that trained it
    select = record.get("select", _DEFAULTS["select"])
    weights = find_checkpoint(folder, select)
    if weights is None:
        absent = folder / "checkpoints" / f"{select}.ckpt"
        raise InputError(f"{absent} is absent. Train again:\n  {command} overwrite=true")
    checkpoint = read_checkpoint(weights)
    record = {**_DEFAULTS, **_check_record(record_file, record, checkpoint.get("config"), weights)}
    # All parameters come from the checkpoint: no download, no initial weights.
    crop: CropSettings = instantiate(record["crop"])
    settings = record["network"]
    network: nn.Module = instantiate(settings, **_overrides(settings, crop, folder))
    state = {k.removeprefix(NETWORK): v for k, v in checkpoint["state_dict"].items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"{weights} does not fit the network in {record_file}: one of them was changed. "
            f"Train again:\n  {command} overwrite=true"
        ) from error
    return Run(
        folder=folder,
        record={str(key): value for key, value in record.items()},
        crop=crop,
        source=record["source"],
        tta=record["tta"],
        network=network.to(device).eval(),
        # Older records lack these.
        views=instantiate(record["views"]) if record.get("views") else Views(),
        metadata=instantiate(record["metadata"]) if record.get("metadata") else None,
        seen=read_training_domain(folder / TRAINING_DOMAIN_FILE),
    )


def load_members(
    ensemble: Ensemble, models: Path, device: torch.device | str = "cpu"
) -> list[list[Run]]:
    """Load the networks of each member that predict new images; `models` has `runs/`.

    Raises:
        InputError: as `load_run`; or another version of this package made the crops of a run.
    """
    members = [
        [
            load_run(models / "runs" / member.name / f"fold{fold}", device)
            for fold in ensemble.predicting_folds(member)
        ]
        for member in ensemble.members
    ]
    check_crop_algorithm(run for member in members for run in member)
    return members


def check_crop_algorithm(runs: Iterable[Run]) -> None:
    """Raise an `InputError` if this version makes other crops than those of the training."""
    for run in runs:
        if run.crop.algorithm != ALGORITHM:
            raise InputError(
                f"{run.folder} was trained on crops of crop.algorithm={run.crop.algorithm}, but "
                f"this version of rsna_bcd makes those of {ALGORITHM}: prepare again and train "
                "again, or install the older version."
            )


def check_prepared_crops(run: Run, prepared: Path) -> None:
    """Raise an `InputError` if a run was trained on crops of another `crop.algorithm`."""
    record_file = prepared / "config.yaml"
    if not record_file.is_file():
        return
    algorithm = OmegaConf.select(OmegaConf.load(record_file), "crop.algorithm", default=1)
    if algorithm != run.crop.algorithm:
        raise InputError(
            f"The crops in {prepared} are of crop.algorithm={algorithm}, {run.folder} was trained "
            f"on {run.crop.algorithm}: train again, or prepare with the version that trained it."
        )


def _overrides(settings: dict[str, Any], crop: CropSettings, folder: Path) -> dict[str, Any]:
    """Arguments that make a network without reading weights, for the size of the crops.

    Those of them that it takes. What a bundle has in `<key>/config.json` is not read from the hub.
    """
    network = get_object(settings["_target_"])
    size = [crop.height, crop.width]
    overrides: dict[str, Any] = {
        "pretrained": False, "checkpoint_path": None, "image_size": size,
    }  # fmt: skip
    described = [key for key in settings if (folder / key / "config.json").is_file()]
    overrides |= {key: f"local-dir:{folder / key}" for key in described}
    return {key: value for key, value in overrides.items() if takes_argument(network, key)}


def _check_record(
    record_file: Path, record: dict[Any, Any], inside: Any, weights: Path
) -> dict[Any, Any]:
    """Check `config.yaml` against the record in the checkpoint, which one not of `train` lacks.

    Returns:
        The record, with the keys that only the checkpoint has: earlier versions had fewer keys.
    """
    if inside is None:
        return record
    plain = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(inside))))
    trained = with_current_targets(plain)
    merged: Any = OmegaConf.to_container(OmegaConf.merge(trained, record))
    expected: Any = OmegaConf.to_container(OmegaConf.merge(record, trained))
    differing = "\n".join(f"  {line}" for line in difference(expected, merged))
    if differing:
        raise InputError(
            f"{record_file} is not what {weights} was trained with (there -> in the file):\n"
            f"{differing}\nRestore the earlier file, or copy both again from the training."
        )
    return merged


def fold_hashes(run: Path, folds: Iterable[int | str], select: Select) -> dict[str, dict[str, str]]:
    """SHA-256 of `oof.csv`, `oof_images.csv` and `weights` that exist, by fold of a run."""
    hashes: dict[str, dict[str, str]] = {}
    for fold in folds:
        folder = run / f"fold{fold}"
        hashes[str(fold)] = {
            name: file_sha256(folder / name) for name in _TABLES if (folder / name).is_file()
        }
        checkpoint = find_checkpoint(folder, select)
        if checkpoint is not None:
            state = read_checkpoint(checkpoint)["state_dict"]
            hashes[str(fold)]["weights"] = weights_sha256(state)
    return hashes


def check_current(ensemble: Ensemble, models: Path) -> None:
    """Refuse an ensemble some of whose members in `models` were trained again after the fit.

    Its threshold and its weights fit the old predictions. Files that are absent now (predictions in
    a bundle), or were not hashed by an older version, are not compared.

    Raises:
        InputError: a member's predictions or weights have changed; with the command to fit again.
    """
    changed = []
    for member in ensemble.members:
        if not member.hashes:
            continue
        now = fold_hashes(models / "runs" / member.name, member.hashes, member.select)
        for fold, fitted in member.hashes.items():
            here = now.get(fold, {})
            names = [n for n, value in fitted.items() if n in here and here[n] != value]
            if names:
                parts = " and ".join(_TABLES.get(name, name) for name in names)
                changed.append(f"  {member.name}, fold {fold}: {parts}")
    if changed:
        members = shlex.quote(f"members=[{','.join(member.name for member in ensemble.members)}]")
        command = ensemble.command or (
            f"python -m rsna_bcd.ensemble name={shlex.quote(ensemble.name)} {members}"
        )
        raise InputError(
            f"The ensemble {ensemble.name} was fitted before these were made; its threshold and "
            "weights do not fit them:\n" + "\n".join(changed) + "\n"
            f"Fit it again:\n  {command} {shlex.quote(f'paths.output={models}')}"
        )


def resolve_device(name: str) -> torch.device:
    """Resolve the name of a torch device; `auto` is a GPU if there is one.

    Raises:
        InputError: it is unknown, or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name}: {error}. Choose auto, cpu or cuda.") from error
    return device
