"""Quality flags of images, breasts and models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fabricated_runs import fabricated_ensemble
from torch import nn

from rsna_bcd.imaging.quality import split_flags
from rsna_bcd.inference import studies
from rsna_bcd.inference.run import Run
from rsna_bcd.preparation.crop import CropSettings
from rsna_bcd.scoring.ensemble import Member
from rsna_bcd.scoring.thresholds import Plateau, Threshold
from rsna_bcd.tables.metadata import Metadata, TrainingDomain
from rsna_bcd.tables.study_results import QUALITY_FLAGS
from rsna_bcd.tables.views import Views

ROW = {
    "laterality": "L", "view": "CC", "machine_id": "Mammomat", "patient_named": True, "age": 61.0,
    "site_id": pd.NA,
}  # fmt: skip
MEMBERS = (Member("a", (0,), "rsna", "demo", "mean", "last", 1.0),)
ENSEMBLE = replace(
    fabricated_ensemble(MEMBERS, threshold=0.5, prior=0.02),
    plateau=Plateau(0.4, 0.6, 0.5, pf1=0.5, standard_error=0.1),
)


def fake_run(seen: TrainingDomain | None = None, **changes: Any) -> Run:
    crop = CropSettings("demo", 64, 32, "breast", 0.02, True, "pad")
    run = Run(Path("fold0"), {}, crop, "dicom", (), nn.Identity(), Views(), None, seen or {})
    return replace(run, **changes)


def flag_image(run: Run, row: dict[str, Any], flags: str, found: bool) -> list[str]:
    return studies.image_flags({**ROW, **row}, split_flags(flags), [run], breast_found=found)


@pytest.mark.parametrize(
    ("row", "flags", "found", "expected"),
    [
        ({}, "", True, []),
        ({}, "", False, ["no breast found"]),
        ({}, "for processing", True, ["for processing"]),
        ({"view": None}, "no window; specimen", False,
         ["no breast found", "no window", "specimen", "view unknown"]),
        ({"laterality": "unknown", "patient_named": False}, "", True,
         ["side unknown", "patient unknown"]),
    ],
)  # fmt: skip
def test_image_flags(row: dict, flags: str, found: bool, expected: list[str]) -> None:
    assert flag_image(fake_run(), row, flags, found) == expected


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({}, []),
        ({"machine_id": ("29", "49")}, []),  # numbers of the competition, of which no header knows
        ({"machine_id": ("Lorad", "Mammomat")}, []),
        ({"machine_id": ("Lorad",)}, ["unseen machine"]),
        ({"machine_id": ("Lorad", "MAMMO MAT VB30A")}, []),  # as older runs have kept it
        ({"view": ("CC", "MLO")}, []),
        ({"view": ("MLO",)}, ["unseen view"]),
    ],
)
def test_image_flags_of_unseen(seen: dict[str, tuple[str, ...]], expected: list[str]) -> None:
    assert flag_image(fake_run(seen), {}, "", True) == expected
    assert flag_image(fake_run(seen), {"machine_id": pd.NA, "view": None}, "", True) == [
        "view unknown"
    ]


@pytest.mark.parametrize(
    ("columns", "expected"), [(["age"], []), (["age", "site_id"], ["facts missing"])]
)
def test_image_flags_missing_metadata(columns: list[str], expected: list[str]) -> None:
    assert flag_image(fake_run(metadata=Metadata(columns)), {}, "", True) == expected


@pytest.mark.parametrize(
    ("views", "sides", "read", "probability", "expected"),
    [
        (["CC", "MLO"], "L", 2, 0.1, []),
        (["CC", "CC"], "L", 2, 0.1, ["no MLO"]),
        (["ML"], "L", 1, 0.1, ["no CC", "no MLO"]),
        (["CC", None], "L", 2, 0.1, []),  # it may be the other one
        (["CC"], "unknown", 1, 0.1, []),
        (["CC", "MLO"], "L", 1, 0.1, ["image not read"]),
        (["CC", "MLO"], "L", 2, 0.4, ["near the threshold"]),
        (["CC", "MLO"], "L", 2, 0.61, []),
        (["CC"], "L", 0, 0.5, ["not read"]),
    ],
)
def test_breast_flags(
    views: list[str | None], sides: str, read: int, probability: float, expected: list[str]
) -> None:
    images = pd.DataFrame({"view": views, "laterality": sides})
    assert studies.breast_flags(images, [[]] * read, probability, ENSEMBLE) == expected


def test_breast_flags_excluded_views() -> None:
    images = pd.DataFrame({"view": ["CC"], "laterality": "L"})
    found = studies.breast_flags(images, [[]], 0.1, ENSEMBLE, has_excluded=True)
    assert found == ["view left out", "no MLO"]


def test_breast_flags_include_those_of_images_and_model_in_order() -> None:
    images = pd.DataFrame({"view": ["CC", "MLO"], "laterality": "L"})
    of_images = [["unseen machine"], ["no breast found", "unseen machine"]]
    model = studies.model_flags([fake_run(), fake_run(source="image")], is_synthetic=True)
    assert model == ["synthetic model", "trained on pictures"]
    assert studies.model_flags([fake_run()], is_synthetic=False) == []
    found = studies.breast_flags(images, of_images, 0.1, ENSEMBLE, model)
    assert found == [*model, "no breast found", "unseen machine"]
    assert found == [kind for kind in QUALITY_FLAGS if kind in found]


def test_model_notes() -> None:
    named = {"machine_id": ("Mammomat",)}
    assert studies.model_notes(ENSEMBLE, [fake_run(named)]) == []
    (note,) = studies.model_notes(ENSEMBLE, [fake_run(named), fake_run()])
    assert "kept no list" in note
    (note,) = studies.model_notes(ENSEMBLE, [fake_run({"machine_id": ("29",)})])
    assert "numbers for them" in note
    sites = replace(
        ENSEMBLE, policy="recall_rate", thresholds=Threshold(0.5, {"1": 0.4}, recall_rate=0.1)
    )
    rate, of_sites = studies.model_notes(sites, [fake_run(named)])
    assert "fitted threshold" in rate
    assert "no header names a site" in of_sites
