"""All images of one patient: breasts, findings, views, machine, files."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from rsna_bcd.errors import InputError
from rsna_bcd.phantom.anatomy import project
from rsna_bcd.phantom.breast import Breast, sample_breast
from rsna_bcd.phantom.competition import INVASIVE_SHARE
from rsna_bcd.phantom.dicom import write_dicom
from rsna_bcd.phantom.lesions import Circle, Finding, plant, sample_findings
from rsna_bcd.phantom.machines import MACHINES
from rsna_bcd.phantom.scanner import choose_detector, expose, matrix

LESION_COLUMNS = (
    "prediction_id", "image_id", "kind", "center_x", "center_y", "radius", "box_left", "box_top",
    "box_width", "box_height",
)  # fmt: skip
_NAMES = {"mass": "spiculated_mass", "calcifications": "calcification_cluster"}


@dataclass(frozen=True)
class Appearance:
    """What the images look like, and how hard they are.

    Attributes:
        pixel_mm: millimetres a stored pixel; .05 to .1 in reality.
        radius_mm: mean radius of masses and clusters, without spicules.
        contrast: brightness of a mass over its surroundings, of a range of 1.
        lookalikes: share of negative breasts with look-alikes of cancers.
        lesion_views: `both`, or `one`: each cancer is seen either from above or from the side.
    """

    pixel_mm: float
    radius_mm: float
    contrast: float
    lookalikes: float
    lesion_views: Literal["both", "one"]

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        checks = {
            f"pixel_mm={self.pixel_mm}": 0.05 <= self.pixel_mm <= 2,
            f"radius_mm={self.radius_mm}": 2 <= self.radius_mm <= 12,
            f"contrast={self.contrast}": 0 <= self.contrast <= 1,
            f"lookalikes={self.lookalikes}": 0 <= self.lookalikes <= 1,
            f"lesion_views={self.lesion_views}": self.lesion_views in ("both", "one"),
        }
        wrong = [setting for setting, holds in checks.items() if not holds]
        if wrong:
            raise InputError(
                f"appearance: {', '.join(wrong)}. pixel_mm lies in [0.05, 2], radius_mm in "
                "[2, 12], contrast and lookalikes in [0, 1], lesion_views is both or one."
            )


@dataclass(frozen=True)
class Examination:
    """A patient's visit.

    Attributes:
        images: the patient's rows of the competition's plan.
        folder: `<data>/<split>_images`.
        appearance: of the images.
        seed: of the competition. With the patient's number it decides all that is seen.
    """

    images: pd.DataFrame
    folder: Path
    appearance: Appearance
    seed: int


def examine(examination: Examination) -> list[dict[str, Any]]:
    """Make the DICOM files of one patient.

    Returns:
        One record for each cancer in each image, keys `LESION_COLUMNS`.
    """
    appearance, images = examination.appearance, examination.images
    patient = int(images["patient_id"].iloc[0])
    machine = MACHINES[int(images["machine_id"].iloc[0])]
    rng = np.random.default_rng([examination.seed, 1, patient])
    size = float(rng.standard_normal())
    detector = choose_detector(machine, size)
    shape = matrix(detector, appearance.pixel_mm)
    syntax = JPEG2000Lossless if rng.random() < 0.5 else JPEGLosslessSV1
    folder = examination.folder / str(patient)
    folder.mkdir(parents=True, exist_ok=True)
    lesions = []
    for laterality, rows in images.groupby("laterality"):
        known = rows.iloc[0]
        breast = sample_breast(size, known["parenchyma"], bool(known["implant"]), rng)
        findings = _findings(known, breast, appearance, rng)
        hidden_side = bool(rng.integers(2)) if appearance.lesion_views == "one" else None
        for row in rows.to_dict("records"):
            projection = project(breast, row["view"], shape, detector.height_mm / shape[0], rng)
            planted = [
                (finding, plant(projection, finding))
                for finding in findings
                if projection.from_side != hidden_side
            ]
            exposure = expose(projection, shape[1], machine, str(laterality), row["view"], rng)
            image_id = str(row["image_id"])
            write_dicom(
                folder / f"{image_id}.dcm", exposure.pixels, exposure.header, str(patient),
                image_id, syntax,
            )  # fmt: skip
            lesions += [
                _record(row, finding, circle, shape, exposure.mirrored)
                for finding, circle in planted
                if finding.malignant
            ]
    return lesions


def _findings(
    known: pd.Series, breast: Breast, appearance: Appearance, rng: np.random.Generator
) -> list[Finding]:
    """Draw what is planted in a breast: its cancers, look-alikes, or nothing."""
    cancer = bool(known["cancer"])
    invasive = bool(known["invasive"]) if cancer else rng.random() < INVASIVE_SHARE
    findings = sample_findings(
        breast, cancer, invasive, appearance.radius_mm, appearance.contrast, rng
    )
    return findings if cancer or rng.random() < appearance.lookalikes else []


def _record(
    row: Mapping[Hashable, Any],
    finding: Finding,
    circle: Circle,
    shape: tuple[int, int],
    mirrored: bool,
) -> dict[str, Any]:
    """Describe a lesion in pixels of the stored image."""
    x = shape[1] - 1 - circle.x if mirrored else circle.x
    left, right = max(0, int(x - circle.radius)), min(shape[1], int(x + circle.radius) + 1)
    top, bottom = int(circle.y - circle.radius), int(circle.y + circle.radius) + 1
    top, bottom = max(0, top), min(shape[0], bottom)
    values = (
        row["prediction_id"], row["image_id"], _NAMES[finding.kind], round(x, 2),
        round(circle.y, 2), round(circle.radius, 2), left, top, right - left, bottom - top,
    )  # fmt: skip
    return dict(zip(LESION_COLUMNS, values, strict=True))
