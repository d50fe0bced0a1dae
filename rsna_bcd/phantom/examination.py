"""All images of one patient: breasts, findings, views, machine, files."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from rsna_bcd.phantom.anatomy import project
from rsna_bcd.phantom.breast import Breast, sample_breast
from rsna_bcd.phantom.dicom import write_dicom
from rsna_bcd.phantom.lesions import Finding, Kind, plant, sample_finding
from rsna_bcd.phantom.machines import MACHINES
from rsna_bcd.phantom.scanner import choose_detector, expose, matrix

_KINDS: dict[tuple[Kind, ...], float] = {
    ("mass",): 0.45,
    ("calcifications",): 0.35,
    ("mass", "calcifications"): 0.2,
}
LESION_NAMES = {"mass": "spiculated_mass", "calcifications": "calcification_cluster"}


@dataclass(frozen=True)
class Appearance:
    """What the images look like, and how hard they are.

    Attributes:
        pixel_mm: millimetres a stored pixel; .065 to .1 in reality.
        contrast: brightness of a mass over its surroundings, display units.
        lookalikes: share of negative breasts with look-alikes of cancers.
        lesion_views: `both`, or `one` for cancers seen in a single view.
    """

    pixel_mm: float
    contrast: float
    lookalikes: float
    lesion_views: str


def examine(
    images: pd.DataFrame, folder: Path, appearance: Appearance, seed: int
) -> list[dict[str, Any]]:
    """Make the DICOM files of one patient.

    Args:
        images: the patient's rows of the plan.
        folder: `<data>/<split>_images`.
        appearance: settings.
        seed: of the competition. Images depend on it and on the patient, on nothing else.

    Returns:
        One record for each cancer in each image, for `lesions.csv`.
    """
    patient = int(images["patient_id"].iloc[0])
    machine = MACHINES[int(images["machine_id"].iloc[0])]
    rng = np.random.default_rng([seed, 1, patient])
    size = float(rng.standard_normal())
    detector = choose_detector(machine, size)
    shape = matrix(detector, appearance.pixel_mm)
    pixel_mm = detector.height_mm / shape[0]
    syntax = JPEG2000Lossless if rng.random() < 0.5 else JPEGLosslessSV1
    (folder / str(patient)).mkdir(parents=True, exist_ok=True)
    lesions = []
    for laterality in ("L", "R"):
        rows = images[images["laterality"] == laterality].to_dict("records")
        breast = sample_breast(size, rows[0]["parenchyma"], bool(rows[0]["implant"]), rng)
        findings = _findings(bool(rows[0]["cancer"]), breast, appearance, rng)
        hidden_side = bool(rng.integers(2)) if appearance.lesion_views == "one" else None
        for row in rows:
            projection = project(breast, row["view"], shape, pixel_mm, rng)
            planted = [
                (finding, plant(projection, finding))
                for finding in findings
                if projection.from_side != hidden_side
            ]
            exposure = expose(projection, shape[1], machine, laterality, row["view"], rng)
            image_id = str(row["image_id"])
            path = folder / str(patient) / f"{image_id}.dcm"
            write_dicom(path, exposure.pixels, exposure.header, str(patient), image_id, syntax)
            lesions += [
                _record(row, finding, circle, shape, exposure.mirrored)
                for finding, circle in planted
                if finding.malignant
            ]
    return lesions


def _findings(
    cancer: bool, breast: Breast, appearance: Appearance, rng: np.random.Generator
) -> list[Finding]:
    """Draw what a breast has, from one distribution for cancers and look-alikes."""
    kinds = list(_KINDS)[rng.choice(len(_KINDS), p=list(_KINDS.values()))]
    findings = [sample_finding(kind, cancer, breast, appearance.contrast, rng) for kind in kinds]
    return findings if cancer or rng.random() < appearance.lookalikes else []


def _record(
    row: Mapping[Hashable, Any],
    finding: Finding,
    circle: tuple[float, float, float],
    shape: tuple[int, int],
    mirrored: bool,
) -> dict[str, Any]:
    """Describe a lesion in pixels of the stored image."""
    x, y, radius = circle
    x = shape[1] - 1 - x if mirrored else x
    left, top = max(0, int(x - radius)), max(0, int(y - radius))
    right, bottom = min(shape[1], int(x + radius) + 1), min(shape[0], int(y + radius) + 1)
    return {
        "prediction_id": row["prediction_id"],
        "image_id": row["image_id"],
        "kind": LESION_NAMES[finding.kind],
        "center_x": round(x, 2),
        "center_y": round(y, 2),
        "radius": round(radius, 2),
        "box_left": left,
        "box_top": top,
        "box_width": right - left,
        "box_height": bottom - top,
    }
