"""Terminal output: progress, results of a study, summary of a submission."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from rsna_bcd.reporting.console import (
    ProgressBar,
    SubmissionSummary,
    count_reasons,
    make_console,
    print_results,
    time_left,
)
from rsna_bcd.tables.study_results import BreastResult, ImageResult


@pytest.mark.parametrize(
    ("seconds", "done", "before", "expected"),
    [
        (10, 0, 0, ""),
        (10, 20, 20, ""),  # nothing in this process
        (10, 100, 0, ""),
        (10, 50, 0, "10 s left"),
        (10, 60, 50, "40 s left"),  # only the units of this process count
        (600, 25, 0, r"30 min left, ends at \d\d:\d\d"),
        (3600, 20, 0, r"4\.0 h left, ends at \d\d:\d\d"),
    ],
)
def test_time_left_follows_from_the_speed(
    seconds: float, done: int, before: int, expected: str
) -> None:
    assert re.fullmatch(expected, time_left(seconds, done, before, 100))


def draw(terminal: bool) -> str:
    console = make_console(file=io.StringIO(), force_terminal=terminal, width=100)
    with ProgressBar(console, "Predicting", 40) as bar:
        for done in range(10, 41):
            bar.update(done, 10, "3 unreadable" if done == 40 else "")
        bar.log("[a note]")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_progress_bar_writes_a_few_lines_without_a_terminal() -> None:
    lines = draw(terminal=False).splitlines()
    assert [line.split(",")[0] for line in lines] == [
        *(f"Predicting: {done} of 40" for done in (12, 16, 20, 24, 28, 32, 36, 40)), "[a note]",
    ]  # fmt: skip
    assert all("left" in line for line in lines[:7])
    assert lines[7].endswith("40 of 40, 3 unreadable")
    shown = draw(terminal=True)
    assert "40/40" in shown
    assert "[a note]" in shown
    assert "Predicting: " not in shown


def test_count_reasons_groups_and_orders() -> None:
    reasons = {f"{i}.txt": "not a DICOM file" for i in range(3)} | {"a": "a copy of b", "c": "CT"}
    assert count_reasons(reasons) == [
        "3 x not a DICOM file (.txt: 3)", "1 x a copy of another file", "1 x CT",
    ]  # fmt: skip
    assert count_reasons({str(i): f"reason {i}" for i in range(8)})[-1] == "2 for other reasons"


def test_print_results_shows_the_breasts_with_the_highest_scores(tmp_path: Path) -> None:
    image = ImageResult("a/1.dcm", "CC", None, ["needle localization"], None, {}, decides=False)
    results = [
        BreastResult(
            f"{n}_L", str(n), 1, "L", n / 100, 0.5, None, "positive" if n > 50 else "negative",
            ["no MLO"] if n == 59 else [], [image],
        )
        for n in range(60)
    ]  # fmt: skip
    console = make_console(file=io.StringIO(), width=120)
    print_results(console, tmp_path, "pair", results, {"x": "CT"}, ["A note."])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert sum(f"{n}_L " in text for n in range(60)) >= 40
    assert " 0_L " not in text
    for part in ("40 breasts", "no MLO: ", "needle localization)", "34 more", "1 x CT", "A note."):
        assert part in text, part


SUMMARY = SubmissionSummary(
    breasts=200, images=400, predicted=400, resumed=0, positive=5, unread=0, failures={},
    dropped="", silent="", threshold=0.25, recall_rate=None, why_fitted="", sites={},
    how="cpu, float32, onnx",
    seconds={"predicting": 80, "decoding": 40, "waiting": 4, "b5 fold0": 30, "b5 fold1": 34},
)  # fmt: skip
NO_FAILURES = pd.DataFrame(columns=["prediction_id", "image_id", "kind", "reason"])


def test_submission_summary_without_failures() -> None:
    assert SUMMARY.lines(NO_FAILURES) == [
        "200 breasts, 400 images: 5 predicted positive (2.5%).",
        "No failures.",
        "Threshold 0.2500.",
        "80 s for 400 images: 0.2 s/image; the networks took 0.16 s/image and waited for images "
        "for 0.01 s/image; decoding took 0.1 s/image of one process. cpu, float32, onnx.",
    ]


def test_submission_summary_names_failures_and_degradation() -> None:
    rows = [("a_L", str(i), "absent", "no such file") for i in range(6)]
    rows = [("a_L", "", "no value", "b5 fold1 gave no finite value"), *rows]
    failures = pd.DataFrame(rows, columns=NO_FAILURES.columns)
    summary = replace(
        SUMMARY, resumed=300, unread=2, failures={"absent": 6, "no value": 1},
        dropped="test-time augmentation", silent="b5 fold1", recall_rate=0.035,
    )  # fmt: skip
    lines = summary.lines(failures)
    assert lines[1:4] == [
        "Failures: 6 absent, 1 no value; 2 breast(s) without a readable image.",
        "  no value a_L: b5 fold1 gave no finite value",
        "  absent a_L 0: no such file",
    ]
    assert lines[7:11] == [
        "  ... (7 in all)",
        "Dropped for the time budget: test-time augmentation.",
        "Excluded, without a finite value: b5 fold1.",
        "Threshold 0.2500, which keeps a recall rate of 3.5%.",
    ]
    assert lines[11].startswith("80 s for 100 images (300 images were predicted before): 0.8 s")
    assert len(lines) == 12
    assert replace(summary, predicted=300).lines(failures)[-1].startswith("No image was left")
    by_site = replace(SUMMARY, sites={"1": 0.3}, why_fitted="too few breasts").lines(NO_FAILURES)
    assert by_site[2] == "Threshold 0.2500, site 1 0.3000, as fitted: too few breasts."


@pytest.mark.parametrize(
    ("positive", "out_of_fold", "part"),
    [
        (0, 0.03, "no breast is predicted positive, 3.0% were out of fold"),
        (200, 0.03, "every breast is predicted positive, 3.0% were out of fold"),
        (0, None, "no breast is predicted positive. Check"),
        (60, 0.03, "30.0% of the breasts are predicted positive, 3.0% were"),
        (20, 0.5, "10.0% of the breasts are predicted positive, 50.0% were"),
        (5, 0.03, None),
        (11, 0.03, None),
        (1, 0.02, None),
        (5, None, None),
    ],
)
def test_submission_summary_warns_of_an_improbable_recall_rate(
    positive: int, out_of_fold: float | None, part: str | None
) -> None:
    lines = replace(SUMMARY, positive=positive, out_of_fold=out_of_fold).lines(NO_FAILURES)
    assert lines[1].startswith("WARNING: ") == (part is not None)
    assert part is None or part in lines[1]
