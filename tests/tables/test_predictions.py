"""Predictions per image and per breast, of several runs, and valid submissions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricated_runs import oof, oof_images, save_image_run, save_run

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv
from rsna_bcd.tables.predictions import (
    OOF_COLUMNS,
    align,
    by_aggregation,
    check_informative,
    check_submission,
    read_oof,
    read_oof_images,
    read_predictions,
    read_run,
    to_breasts,
    trained_folds,
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


def test_to_breasts_aggregates_in_order_of_first_appearance(images: pd.DataFrame) -> None:
    mean, largest = to_breasts(images, "mean"), to_breasts(images, "max")
    assert tuple(mean.columns) == OOF_COLUMNS
    assert mean["prediction_id"].tolist() == ["9_R", "9_L", "10_L"]
    assert mean["probability"].tolist() == pytest.approx([0.6, 0.25, 1.0])
    assert largest["probability"].tolist() == [0.9, 0.25, 1.0]
    assert mean["logit"].tolist() == pytest.approx([np.log(1.5), -np.log(3), np.log(1e7)], rel=1e-6)
    assert mean[["label", "unread"]].to_numpy().tolist() == [[1, 0], [0, 0], [0, 0]]
    unlabelled = to_breasts(images.drop(columns=["fold", "label"]), "mean")
    assert set(OOF_COLUMNS) - set(unlabelled) == {"fold", "label"}


@pytest.mark.parametrize(
    ("change", "key"),
    [({"label": [0, 0, 1, 0, 1]}, "label: 9_R"), ({"probability": np.nan}, "9_R")],
)
def test_to_breasts_refuses(change: dict[str, Any], key: str, images: pd.DataFrame) -> None:
    with pytest.raises(InputError, match=key):
        to_breasts(images.assign(**change), "mean")


def test_with_unreadable_adds_the_prevalence_and_a_mark(images: pd.DataFrame) -> None:
    breasts = to_breasts(images, "mean")
    whole = with_unreadable(breasts[breasts["prediction_id"] != "9_L"], images, 0.02)
    assert whole["unread"].tolist() == [0, 1, 0]
    assert whole["probability"].tolist() == pytest.approx([0.6, 0.02, 1.0])
    assert whole["label"].tolist() == [1, 0, 0]
    pd.testing.assert_frame_equal(with_unreadable(breasts, images, 0.02), breasts)
    with pytest.raises(InputError, match="9_L"):
        with_unreadable(breasts, images[images["prediction_id"] != "9_L"], 0.02)


OOF = "prediction_id,patient_id,laterality,fold,label,logit,probability,unread\n"
IMAGE = "image_id,prediction_id,patient_id,laterality,fold,label,logit,probability\n"


@pytest.mark.parametrize(
    ("read", "text", "key"),
    [
        (read_predictions, None, "does not exist"),
        (read_predictions, "", "is empty"),
        (read_oof, OOF, "lacks rows"),
        (read_oof, "prediction_id,probability\n7_L,0\n", "column.* patient_id, "),
        (read_oof, OOF + "7_L,7,L,0,0,0,0.5,0\n" * 2, "twice: 7_L"),
        (read_oof, OOF + "7_L,7,L,0,3,0,0.5,0\n", "label .*7_L"),
        (read_oof, OOF + "7_L,7,L,0,0,0,,0\n", "7_L"),
        (read_oof, OOF + "7_L,7,L,0,0,0,1.5,0\n", "7_L .*1.5"),
        (read_oof_images, IMAGE + "5,7_L,7,L,0,0,0,0.5\n" * 2, r"images twice: 5\."),
    ],
)
def test_reader_refuses(
    read: Callable[[Path], pd.DataFrame], text: str | None, key: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "table.csv").write_text(text)
    with pytest.raises(InputError, match=key):
        read(tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("ids", "values", "key"),
    [
        (["1_L"], [0], "lacks breasts: 1_R"),
        (["1_L", "1_R", "1_R"], [0, 0, 0], "twice: 1_R"),
        (["1_L", "1_R", "2_L"], [0, 0, 0], "unexpected breasts: 2_L"),
        (["1_L", "1_R"], [0, np.nan], "1_R"),
        (["1_L", "1_R"], [-0.1, 0], "1_L"),
        (["1_L", "1_R"], [0.1, np.inf], "1_R"),
    ],
)
def test_check_submission(ids: list[str], values: list[float], key: str) -> None:
    sample = pd.DataFrame({"prediction_id": ["1_L", "1_R"], "cancer": [0.02, 0.02]})
    check_submission(sample[::-1], sample)
    with pytest.raises(InputError, match="columns"):
        check_submission(sample.rename(columns={"cancer": "probability"}), sample)
    with pytest.raises(InputError, match=key):
        check_submission(pd.DataFrame({"prediction_id": ids, "cancer": values}), sample)


def test_read_run_pools_folds_in_order(tmp_path: Path) -> None:
    late, early = oof(range(4, 8), 10), oof(range(4), 2)
    run = save_run(tmp_path / "b5", late, early)
    (run / "foldall").mkdir()
    assert trained_folds(run) == [2, 10]
    pooled = pd.concat([early, late], ignore_index=True)
    pd.testing.assert_frame_equal(read_run(run), pooled, check_dtype=False, check_exact=True)
    assert read_run(run, [10])["fold"].unique().tolist() == [10]


def test_read_run_refuses_invalid_folds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name=b5 fold=0"):
        read_run(tmp_path / "b5")
    run = save_run(tmp_path / "b5", oof(range(4), 0))
    with pytest.raises(InputError, match="Fold 1 of b5 was not trained.*fold=1`"):
        read_run(run, [1])
    (run / "fold3").mkdir()
    (run / "fold3" / "train.log").touch()  # of a training that was refused
    assert trained_folds(run) == [0]
    assert len(read_run(run)) == 4
    (run / "fold3" / "checkpoints").mkdir()  # of a training that lost its record
    assert trained_folds(run) == [0, 3]
    with pytest.raises(InputError, match="fold3 has no config.yaml: .*Or delete the folder"):
        read_run(run)
    assert len(read_run(run, [0])) == 4
    (run / "fold3" / "config.yaml").touch()
    with pytest.raises(InputError, match="Fold 3 of b5 is not finished.*fold=3`"):
        read_run(run)
    repeated = save_run(tmp_path / "b6", oof(range(4), 0), oof(range(3, 8), 1))
    with pytest.raises(InputError, match="in two folds: 3_L"):
        read_run(repeated)


def test_align_is_by_breast() -> None:
    first, second = oof(range(6), 0, seed=1), oof(range(6), 0, seed=2)
    rows, probabilities = align({"a": first, "b": second.iloc[::-1]})
    pd.testing.assert_frame_equal(rows, first)
    np.testing.assert_array_equal(probabilities, [first["probability"], second["probability"]])
    with pytest.raises(InputError, match="a lacks 1 .*: 6_L. Train all of them on one split"):
        align({"a": first, "b": oof(range(7), 0)})
    two_folds = pd.concat([first, oof(range(6, 14), 1)])
    with pytest.raises(InputError, match="b lacks 8 .*: 6_L, 7_L, .* and 3 more.*fold=1`"):
        align({"a": two_folds, "b": first})
    with pytest.raises(InputError, match="different labels for 2_L"):
        align({"a": first, "b": first.assign(label=first["label"].mask(first.index == 2, 1))})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"probability": 0.3}, "8 probabilities .* equal 0.3"),
        ({"probability": 0.3 + 1e-8 * np.arange(10)}, "8 probabilities .* 0.3"),
        ({"label": [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]}, "0 positive .* 8 breasts"),
        ({"unread": 1}, "None of the 10 breasts"),
    ],
)
def test_check_informative_ignores_unreadable_breasts(change: dict[str, Any], key: str) -> None:
    table = oof(range(10), 0)  # 0 and 5 have cancer
    lost = table["prediction_id"].isin(["3_L", "5_L"])
    table = table.assign(unread=lost.astype(int), probability=table["probability"].mask(lost, 0.02))
    other = oof(range(10, 20), 1)
    check_informative("b5", pd.concat([table, other]))
    with pytest.raises(InputError, match=key):
        check_informative("b5", pd.concat([table.assign(**change), other]))


def test_by_aggregation_has_the_mean_and_the_maximum_of_the_images(tmp_path: Path) -> None:
    images = oof_images(range(6), 0), oof_images(range(6, 12), 1)
    run = save_image_run(tmp_path / "b5", *images)
    both = by_aggregation(run, read_run(run), "mean")
    assert list(both) == ["mean", "max"]  # the run's own first
    grouped = pd.concat(images).groupby("prediction_id", sort=False)["probability"]
    for aggregation, probabilities in both.items():
        expected = grouped.agg(aggregation)
        assert probabilities.index.tolist() == expected.index.tolist()
        np.testing.assert_allclose(probabilities, expected, rtol=1e-12)
    breasts = save_run(tmp_path / "views", oof(range(6), 0))  # a breast-level network
    assert list(by_aggregation(breasts, read_run(breasts), "mean")) == ["mean"]


def test_by_aggregation_keeps_the_prevalence_of_unreadable_breasts(tmp_path: Path) -> None:
    images = oof_images(range(6), 0)
    run = save_image_run(tmp_path / "b5", images)
    write_csv(images[images["prediction_id"] != "2_L"], run / "fold0" / "oof_images.csv")
    table = read_run(run)
    with pytest.raises(InputError, match=r"2_L"):
        by_aggregation(run, table, "mean")  # not marked as unread
    table.loc[table["prediction_id"] == "2_L", ["probability", "unread"]] = 0.2, 1
    both = by_aggregation(run, table, "mean")
    assert [p["2_L"] for p in both.values()] == [0.2, 0.2]
    assert both["max"]["3_L"] > both["mean"]["3_L"]


def test_by_aggregation_refuses_images_of_another_training(tmp_path: Path) -> None:
    run = save_image_run(tmp_path / "b5", oof_images(range(6), 0), oof_images(range(6, 12), 1))
    write_csv(oof_images(range(6), 0, seed=1), run / "fold0" / "oof_images.csv")
    with pytest.raises(InputError, match="0_L, 1_L.* and 1 more"):
        by_aggregation(run, read_run(run), "mean")
    (run / "fold0" / "oof_images.csv").unlink()
    with pytest.raises(InputError, match=r"fold0.oof_images.csv does not exist"):
        by_aggregation(run, read_run(run), "mean")
