"""Reasons to doubt what networks say of images that nobody chose for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from rsna_bcd.imaging.headers import machine_name
from rsna_bcd.imaging.quality import QualityFlag
from rsna_bcd.scoring.ensembles import Ensemble
from rsna_bcd.tables.answers import DOUBTS
from rsna_bcd.tables.from_headers import UNKNOWN_SIDE

if TYPE_CHECKING:  # it needs torch, which the processes that decode must not import
    from rsna_bcd.inference.runs import Run

_STANDARD_VIEWS = ("CC", "MLO")


def of_image(
    row: Mapping[str, Any], flags: Iterable[QualityFlag], runs: Sequence[Run], *, breast_found: bool
) -> list[str]:
    """Doubts about one image that could be read.

    Args:
        row: of the table from `images_from_headers`.
        flags: quality flags of its header and its pixels.
        runs: all networks; what one of them has not seen is doubtful.
        breast_found: whether the crop is of a breast, and not the whole frame.

    Returns:
        Keys of `DOUBTS`, in its order.
    """
    view = None if pd.isna(row["view"]) else str(row["view"])
    machine = None if pd.isna(row["machine_id"]) else str(row["machine_id"])
    given = {name for run in runs if run.metadata is not None for name in run.metadata.columns}
    holds = {
        "no breast found": not breast_found,
        **{str(flag): True for flag in flags},
        "unseen machine": machine is not None
        and any(_model(machine) not in _models_seen(run) for run in runs if names_models(run)),
        "unseen view": view is not None
        and any(view not in run.seen["view"] for run in runs if "view" in run.seen),
        "side unknown": row["laterality"] == UNKNOWN_SIDE,
        "view unknown": view is None,
        "patient unknown": not row["patient_named"],
        "facts missing": any(pd.isna(row[name]) for name in given),
    }
    return [kind for kind in DOUBTS if holds.get(kind)]


def of_breast(
    images: pd.DataFrame,
    of_images: Sequence[Sequence[str]],
    probability: float,
    ensemble: Ensemble,
    of_model: Sequence[str] = (),
    *,
    views_left_out: bool = False,
) -> list[str]:
    """Doubts about one breast.

    Args:
        images: its rows of the table, those of unreadable images included, without those that do
            not decide about it.
        of_images: doubts about each of these that could be read.
        probability: of the blend.
        ensemble: that gave it.
        of_model: doubts about all that it says.
        views_left_out: whether there are images that do not decide.

    Returns:
        Keys of `DOUBTS`, in its order.
    """
    if not of_images:
        return ["not read"]
    views = set(images["view"].dropna())
    all_known = not images["view"].isna().any() and len(of_images) == len(images)
    plateau = ensemble.plateau
    found = {*of_model, *(kind for of_image in of_images for kind in of_image)}
    if len(of_images) < len(images):
        found.add("image not read")
    if views_left_out:
        found.add("view left out")
    if plateau.low <= probability <= plateau.high and plateau.low < plateau.high:
        found.add("near the threshold")
    # Of an image whose side is unknown, nobody knows which others belong to it.
    if all_known and not (images["laterality"] == UNKNOWN_SIDE).any():
        found |= {f"no {view}" for view in _STANDARD_VIEWS if view not in views}
    return [kind for kind in DOUBTS if kind in found]


def names_models(run: Run) -> bool:
    """Whether the machines that a run has seen have names, which headers have as well."""
    return any(not machine.isdigit() for machine in run.seen.get("machine_id", ()))


def _models_seen(run: Run) -> set[str]:
    """Models that a run was trained on; runs of before have them as their headers had."""
    return {_model(machine) for machine in run.seen["machine_id"]}


def _model(machine: str) -> str:
    """A model for comparing, whatever its case, blanks and version."""
    return re.sub(r"[\W_]+", "", machine_name(machine) or "").lower()


def of_model(runs: Sequence[Run], *, made_up: bool) -> list[str]:
    """Doubts about all that networks say of DICOM files.

    Args:
        runs: all networks.
        made_up: whether they were trained on synthetic mammograms.

    Returns:
        Keys of `DOUBTS`, in its order.
    """
    holds = {
        "synthetic model": made_up,
        "trained on pictures": any(run.source != "dicom" for run in runs),
    }
    return [kind for kind in DOUBTS if holds.get(kind)]


def notes_of(ensemble: Ensemble, runs: Sequence[Run]) -> list[str]:
    """What one should know of all answers alike, in sentences.

    Args:
        ensemble: with its threshold.
        runs: all its networks.
    """
    notes = []
    if not all(names_models(run) for run in runs):
        known = all("machine_id" in run.seen for run in runs)
        why = "it knows them by numbers, headers by names" if known else "it kept no list of them"
        notes.append(f"Whether the model has seen a machine in training cannot be told: {why}.")
    if ensemble.policy == "recall_rate":
        notes.append(
            "The ensemble keeps a recall rate on a whole test set; here each breast is decided by "
            "the fitted threshold, whatever else is in the folder."
        )
    if ensemble.thresholds.sites:
        notes.append("Sites have thresholds of their own, but no header names a site of training.")
    return notes
