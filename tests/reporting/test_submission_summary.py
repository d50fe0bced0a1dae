"""One screen says what became of a submission."""

from dataclasses import replace

import pandas as pd
import pytest

from rsna_bcd.reporting.console import SubmissionSummary

PLAIN = SubmissionSummary(
    breasts=200,
    images=400,
    predicted=400,
    resumed=0,
    positive=5,
    unread=0,
    failures={},
    shed="",
    silent="",
    threshold=0.25,
    recall_rate=None,
    why_fitted="",
    sites={},
    how="cpu, float32, onnx",
    seconds={
        "predicting": 80.0, "decoding": 40.0, "waiting": 4.0, "b5 fold0": 30.0, "b5 fold1": 34.0,
    },
)  # fmt: skip
NONE = pd.DataFrame(columns=["prediction_id", "image_id", "kind", "reason"])


def test_all_went_well() -> None:
    assert PLAIN.lines(NONE) == [
        "200 breasts, 400 images: 5 called positive (2.5%).",
        "No failures.",
        "Threshold 0.2500.",
        "80 s for 400 images: 0.2 s an image, of which the networks took 0.16 s and waited for "
        "images 0.01 s; decoding took 0.1 s of a process. cpu, float32, onnx.",
    ]


def test_whatever_did_not_go_well_is_said() -> None:
    failures = pd.DataFrame(
        {
            "prediction_id": ["a_L"] * 7,
            "image_id": ["", *map(str, range(6))],
            "kind": ["no value", *["absent"] * 6],
            "reason": ["b5 fold1 gave no finite value", *["no such file"] * 6],
        }
    )
    summary = replace(
        PLAIN,
        resumed=300,
        unread=2,
        failures={"absent": 6, "no value": 1},
        shed="test-time augmentation, b5 fold2",
        silent="b5 fold1",
        recall_rate=0.035,
    )
    lines = summary.lines(failures)
    assert lines[1] == (
        "Failures: 6 absent, 1 no value; 2 breast(s) of which nothing could be read."
    )
    assert lines[2] == "  no value a_L: b5 fold1 gave no finite value"
    assert lines[3] == "  absent a_L 0: no such file"
    assert lines[7] == "  ... (7 in all)"
    assert lines[8:11] == [
        "Dropped for the time budget: test-time augmentation, b5 fold2.",
        "Excluded, without a finite value: b5 fold1.",
        "Threshold 0.2500, which keeps a recall rate of 3.5%.",
    ]
    assert lines[11].startswith("80 s for 100 images (300 images were done before): 0.8 s an image")
    assert len(lines) == 12
    assert replace(summary, predicted=300).lines(failures)[-1] == (
        "Nothing was left to predict (300 images were done before)."
    )


def test_thresholds_of_sites_and_why_a_rate_is_not_kept() -> None:
    summary = replace(PLAIN, sites={"1": 0.3}, why_fitted="too few breasts")
    assert summary.lines(NONE)[2] == "Threshold 0.2500, site 1 0.3000, as fitted: too few breasts."


@pytest.mark.parametrize(
    ("positive", "out_of_fold", "part"),
    [
        (0, 0.03, "no breast is called positive, 3.0% were out of fold"),
        (200, 0.03, "every breast is, 3.0% were out of fold"),
        (0, None, "no breast is called positive. Check"),
        (60, 0.03, "30.0% of the breasts are called positive, 3.0% were"),
        (20, 0.5, "10.0% of the breasts are called positive, 50.0% were"),
    ],
)
def test_an_improbable_share_is_warned_of(
    positive: int, out_of_fold: float | None, part: str
) -> None:
    lines = replace(PLAIN, positive=positive, out_of_fold=out_of_fold).lines(NONE)
    assert lines[1].startswith("WARNING: ")
    assert part in lines[1]
    assert "source=" in lines[1]


@pytest.mark.parametrize(("positive", "out_of_fold"), [(5, 0.03), (11, 0.03), (1, 0.02), (5, None)])
def test_a_share_within_chance_is_not(positive: int, out_of_fold: float | None) -> None:
    lines = replace(PLAIN, positive=positive, out_of_fold=out_of_fold).lines(NONE)
    assert lines[1] == "No failures."
