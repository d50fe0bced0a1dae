"""Saved records of earlier versions: where the objects of `_target_` are now, and TTA as a list."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

# Old dotted path -> new one. Records on disk live longer than modules: entries stay.
OLD_TARGETS: dict[str, str] = {
    "rsna_bcd.tables.images.map_rsna": "rsna_bcd.tables.datasets.map_rsna",
    "rsna_bcd.tables.generic.map_generic": "rsna_bcd.tables.datasets.map_generic",
    "rsna_bcd.models.optimizers.Rates": "rsna_bcd.models.optim.ParameterGroups",
    "rsna_bcd.models.schedules.one_cycle": "rsna_bcd.models.optim.one_cycle",
    "rsna_bcd.models.schedules.warmup_cosine": "rsna_bcd.models.optim.warmup_cosine",
}

OLD_TTA: dict[str, list[str]] = {"none": [], "hflip": ["hflip"]}  # it was one of two names


def read_record(file: Path) -> dict[str, Any]:
    """Read a saved `config.yaml` as plain values, as this version would write it."""
    record: dict[str, Any] = with_current_targets(OmegaConf.to_container(OmegaConf.load(file)))
    return record


def with_current_targets(record: Any) -> Any:
    """Copy a saved record.

    Each `_target_` in it, at any depth, is where the object is now; `tta` is a list.
    """
    if isinstance(record, list):
        return [with_current_targets(value) for value in record]
    if not isinstance(record, dict):
        return record
    current = {key: with_current_targets(value) for key, value in record.items()}
    target = current.get("_target_")
    if isinstance(target, str):
        current["_target_"] = OLD_TARGETS.get(target, target)
    if isinstance(current.get("tta"), str):
        current["tta"] = OLD_TTA.get(current["tta"], current["tta"])
    return current
