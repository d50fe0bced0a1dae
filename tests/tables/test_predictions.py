"""Images to breasts, files there and back, and what a submission must keep."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv
from rsna_bcd.tables.predictions import (
    OOF_COLUMNS,
    check_submission,
    logit,
    read_oof,
    read_oof_images,
    read_predictions,
    read_solution,
    to_breasts,
    with_unreadable,
)


@pytest.fixture
def images() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": ["5", "4", "3", "2", "1"],
            "prediction_id": ["9_R", "9_L", "9_R", "10_L", "9_R"],
            "patient_id": ["9", "9", "9", "10", "9"],
            "laterality": ["R", "L", "R", "L", "R"],
            "fold": [0, 0, 0, 1, 0],
            "label": [1, 0, 1, 0, 1],
            "probability": [0.9, 0.25, 0.3, 1.0, 0.6],
        }
    ).astype({"image_id": "string", "prediction_id": "string", "patient_id": "string"})


def test_mean_and_max_in_order_of_first_appearance(images: pd.DataFrame) -> None:
    mean, largest = to_breasts(images, "mean"), to_breasts(images, "max")
    assert tuple(mean.columns) == OOF_COLUMNS
    assert mean["prediction_id"].tolist() == ["9_R", "9_L", "10_L"]
    assert mean["probability"].tolist() == pytest.approx([0.6, 0.25, 1.0])
    assert largest["probability"].tolist() == [0.9, 0.25, 1.0]
    assert mean["logit"].tolist() == pytest.approx([np.log(1.5), -np.log(3), np.log(1e7)], rel=1e-6)
    assert mean["label"].tolist() == [1, 0, 0]
    assert mean["unread"].tolist() == [0, 0, 0]
    assert mean["patient_id"].dtype == "string"


def test_test_images_have_neither_fold_nor_label(images: pd.DataFrame) -> None:
    breasts = to_breasts(images.drop(columns=["fold", "label"]), "mean")
    assert tuple(breasts.columns) == tuple(c for c in OOF_COLUMNS if c not in ("fold", "label"))


def test_conflicting_images_are_refused(images: pd.DataFrame) -> None:
    images.loc[0, "label"] = 0
    with pytest.raises(InputError, match="differ in label: 9_R"):
        to_breasts(images, "mean")


def test_nan_is_no_probability(images: pd.DataFrame) -> None:
    images.loc[1, "probability"] = np.nan
    with pytest.raises(InputError, match="9_L"):
        to_breasts(images, "mean")


def test_unknown_rule(images: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="mean or max, not 'median'"):
        to_breasts(images, "median")  # type: ignore[arg-type]


def test_logits_stay_finite() -> None:
    assert logit(pd.Series([0.0, 0.5, 1.0])).tolist() == pytest.approx(
        [-np.log(1e7), 0, np.log(1e7)], rel=1e-6, abs=1e-12
    )


def test_unread_breasts_get_the_prior_and_a_mark(images: pd.DataFrame) -> None:
    read = to_breasts(images[images["prediction_id"] != "9_L"], "mean")
    whole = with_unreadable(read, images, prior=0.02)
    assert whole["prediction_id"].tolist() == ["9_R", "9_L", "10_L"]
    assert whole["unread"].tolist() == [0, 1, 0]
    assert whole["probability"].tolist() == pytest.approx([0.6, 0.02, 1.0])
    assert whole["label"].tolist() == [1, 0, 0]
    pd.testing.assert_frame_equal(
        with_unreadable(to_breasts(images, "mean"), images, prior=0.02), to_breasts(images, "mean")
    )


def test_unexpected_breasts_are_refused(images: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="lacks: 9_L"):
        with_unreadable(to_breasts(images, "mean"), images[images["prediction_id"] != "9_L"], 0.02)


def test_round_trip_keeps_every_digit(images: pd.DataFrame, tmp_path: Path) -> None:
    breasts = to_breasts(images, "mean").assign(probability=[1 / 3, 0.1 + 0.2, 1e-17])
    write_csv(breasts, tmp_path / "new" / "oof.csv")
    pd.testing.assert_frame_equal(
        read_oof(tmp_path / "new" / "oof.csv"), breasts.astype({"laterality": "str"})
    )
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["oof.csv"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="logit"), r"lacks the column\(s\) logit"),
        (lambda t: t.iloc[:0], "lacks rows"),
        (lambda t: pd.concat([t, t]), "twice: 9_R"),
        (lambda t: t.assign(label=[0, 1, 3]), "neither 0 nor 1 for 10_L"),
        (lambda t: t.assign(probability=[0.1, np.nan, 0.2]), "for 9_L"),
        (lambda t: t.assign(probability=[0.1, 0.2, 1.5]), "for 10_L .the first is 1.5"),
    ],
)
def test_bad_oof_files(
    images: pd.DataFrame,
    tmp_path: Path,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    message: str,
) -> None:
    write_csv(change(to_breasts(images, "mean")), tmp_path / "oof.csv")
    with pytest.raises(InputError, match=message):
        read_oof(tmp_path / "oof.csv")


def test_absent_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_predictions(tmp_path / "predictions.csv")
    (tmp_path / "predictions.csv").touch()
    with pytest.raises(InputError, match="is empty"):
        read_predictions(tmp_path / "predictions.csv")


def test_solution_of_images_or_breasts(tmp_path: Path) -> None:
    csv = tmp_path / "solution.csv"
    csv.write_text("prediction_id,cancer\n7_L,1\n7_L,1\n12_R,0\n")
    solution = read_solution(csv)
    assert solution["prediction_id"].tolist() == ["7_L", "12_R"]
    assert solution["patient_id"].tolist() == ["7", "12"]
    assert solution["label"].tolist() == [1, 0]
    csv.write_text("prediction_id,patient_id,cancer,density\n0,7,1,A\n1,7,0,B\n")
    assert read_solution(csv)["patient_id"].tolist() == ["7", "7"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prediction_id,cancer\n7_L,1\n7_L,0\n", "twice: 7_L"),
        ("prediction_id,cancer\n7_L,\n", "neither 0 nor 1 for 7_L"),
        ("prediction_id,label\n7_L,1\n", r"lacks the column\(s\) cancer"),
    ],
)
def test_bad_solutions(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "solution.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_solution(tmp_path / "solution.csv")


SAMPLE = pd.DataFrame({"prediction_id": ["1_L", "1_R"], "cancer": [0.02, 0.02]})


def test_a_valid_submission_passes_in_any_order() -> None:
    check_submission(pd.DataFrame({"prediction_id": ["1_R", "1_L"], "cancer": [1, 0]}), SAMPLE)


@pytest.mark.parametrize(
    ("ids", "values", "message"),
    [
        (["1_L"], [0], "lacks breasts: 1_R"),
        (["1_L", "1_R", "1_R"], [0, 0, 0], "twice: 1_R"),
        (["1_L", "1_R", "2_L"], [0, 0, 0], "nobody asked for: 2_L"),
        (["1_L", "1_R"], [0, np.nan], "for 1_R"),
        (["1_L", "1_R"], [-0.1, 0], "for 1_L"),
        (["1_L", "1_R"], [0.1, np.inf], "for 1_R"),
    ],
)
def test_bad_submissions(ids: list[str], values: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_submission(pd.DataFrame({"prediction_id": ids, "cancer": values}), SAMPLE)


def test_submission_with_other_columns() -> None:
    with pytest.raises(InputError, match="instead of prediction_id, cancer"):
        check_submission(SAMPLE.rename(columns={"cancer": "probability"}), SAMPLE)


def test_an_image_is_named_once(images: pd.DataFrame, tmp_path: Path) -> None:
    whole = images.assign(laterality="L", fold=0, label=0, logit=0.0)
    write_csv(whole, tmp_path / "oof_images.csv")
    assert len(read_oof_images(tmp_path / "oof_images.csv")) == len(images)
    write_csv(whole.assign(image_id=["5", "4", "4", "2", "5"]), tmp_path / "oof_images.csv")
    with pytest.raises(InputError, match=r"oof_images.csv names images twice: 4, 5\."):
        read_oof_images(tmp_path / "oof_images.csv")
