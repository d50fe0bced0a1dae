"""Pooled folds, and several runs about the same breasts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated_runs import images_of, oof, save_image_run, save_run

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv
from rsna_bcd.tables.predictions import (
    align,
    by_aggregation,
    check_informative,
    read_run,
    trained_folds,
)


def test_folds_are_pooled_in_order(tmp_path: Path) -> None:
    run = save_run(tmp_path / "b5", oof(range(4, 8), 10), oof(range(4), 2))
    (run / "foldall").mkdir()
    assert trained_folds(run) == [2, 10]
    pooled = read_run(run)
    assert pooled["patient_id"].tolist() == list("01234567")
    assert read_run(run, [10])["fold"].unique().tolist() == [10]


def test_absent_and_unfinished_runs_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained fold.*name=b5 fold=0"):
        read_run(tmp_path / "b5")
    run = save_run(tmp_path / "b5", oof(range(4), 0))
    with pytest.raises(InputError, match="Fold 1 of b5 was not trained.*fold=1`"):
        read_run(run, [1])
    (run / "fold3").mkdir()  # of a training that was refused, or the record was lost
    with pytest.raises(InputError, match="fold3 has no config.yaml: .*Or delete the folder"):
        read_run(run)
    assert len(read_run(run, [0])) == 4
    (run / "fold3" / "config.yaml").touch()
    with pytest.raises(InputError, match="Fold 3 of b5 is not finished.*fold=3`"):
        read_run(run)


def test_a_breast_in_two_folds_is_refused(tmp_path: Path) -> None:
    run = save_run(tmp_path / "b5", oof(range(4), 0), oof(range(3, 8), 1))
    with pytest.raises(InputError, match="in two folds: 3_L"):
        read_run(run)


def test_runs_are_aligned_by_breast_not_by_row() -> None:
    first, second = oof(range(6), 0, seed=1), oof(range(6), 0, seed=2)
    rows, probabilities = align({"a": first, "b": second.iloc[::-1]})
    pd.testing.assert_frame_equal(rows, first)
    np.testing.assert_array_equal(probabilities, [first["probability"], second["probability"]])


def test_missing_rows_are_listed_with_the_fold_to_train() -> None:
    whole = pd.concat([oof(range(4), 0), oof(range(4, 12), 1)])
    with pytest.raises(InputError, match="b lacks 8 .*: 4_L, 5_L, .* and 3 more.*fold=1`"):
        align({"a": whole, "b": oof(range(4), 0)})
    with pytest.raises(InputError, match="a lacks 1 .*: 4_L. Train all of them on one split"):
        align({"a": oof(range(4), 0), "b": oof(range(5), 0)})


def test_labels_must_agree() -> None:
    other = oof(range(4), 0).assign(label=[1, 0, 1, 0])
    with pytest.raises(InputError, match="different labels for 2_L"):
        align({"a": oof(range(4), 0), "b": other})


def test_a_fold_that_tells_nothing_is_refused() -> None:
    informative = pd.concat([oof(range(10), 0), oof(range(10, 20), 1)])
    check_informative("b5", informative)
    in_fold_1 = informative["fold"] == 1
    constant = informative.assign(probability=informative["probability"].mask(in_fold_1, 0.3))
    with pytest.raises(InputError, match="All 10 probabilities of fold 1 of b5 equal 0.3"):
        check_informative("b5", constant)
    healthy = informative.assign(label=informative["label"].mask(in_fold_1, 0))
    with pytest.raises(InputError, match="Fold 1 of b5 has 0 positive ones among its 10 breasts"):
        check_informative("b5", healthy)
    nearly = constant["probability"] + 1e-8 * np.arange(20)  # what rounding leaves
    with pytest.raises(InputError, match="All 10 probabilities of fold 1 of b5 equal 0.3"):
        check_informative("b5", constant.assign(probability=nearly))


def test_the_prior_of_unread_breasts_makes_no_fold_informative() -> None:
    table = oof(range(10), 0)  # 0 and 5 have cancer
    lost = table["prediction_id"].isin(["3_L", "5_L"])
    unread = table.assign(
        unread=lost.astype(int), probability=table["probability"].mask(lost, 0.02)
    )
    check_informative("b5", unread)
    constant = unread.assign(probability=unread["probability"].where(lost, 0.3))
    with pytest.raises(InputError, match="All 8 probabilities of fold 0 of b5 equal 0.3"):
        check_informative("b5", constant)
    cancers = unread.assign(label=unread["label"].where(lost, 0))
    with pytest.raises(InputError, match="0 positive ones among its 8 breasts that were read"):
        check_informative("b5", cancers)
    with pytest.raises(InputError, match="None of the 10 breasts of fold 0 of b5 could be read"):
        check_informative("b5", unread.assign(unread=1))


def test_under_each_rule_a_breast_has_the_mean_and_the_maximum_of_its_images(
    tmp_path: Path,
) -> None:
    images = images_of(range(6), 0), images_of(range(6, 12), 1)
    run = save_image_run(tmp_path / "b5", *images)
    by_rule = by_aggregation(run, read_run(run), "mean")
    assert list(by_rule) == ["mean", "max"]  # the run's own first
    grouped = pd.concat(images).groupby("prediction_id", sort=False)["probability"]
    for rule, probabilities in by_rule.items():
        expected = grouped.agg(rule)
        assert probabilities.index.tolist() == expected.index.tolist()
        np.testing.assert_allclose(probabilities, expected, rtol=1e-12)


def test_a_breast_that_was_not_read_keeps_the_prior_under_each_rule(tmp_path: Path) -> None:
    images = images_of(range(6), 0)
    run = save_image_run(tmp_path / "b5", images)
    write_csv(images[images["prediction_id"] != "2_L"], run / "fold0" / "oof_images.csv")
    table = read_run(run)
    table.loc[table["prediction_id"] == "2_L", ["probability", "unread"]] = 0.2, 1
    by_rule = by_aggregation(run, table, "mean")
    assert [p["2_L"] for p in by_rule.values()] == [0.2, 0.2]
    assert by_rule["max"]["3_L"] > by_rule["mean"]["3_L"]
    with pytest.raises(InputError, match=r"oof_images.csv of b5 do not give .* for 2_L"):
        by_aggregation(run, read_run(run), "mean")  # not marked as unread


def test_a_network_that_looks_at_breasts_has_its_own_rule_alone(tmp_path: Path) -> None:
    run = save_run(tmp_path / "views", oof(range(6), 0), oof(range(6, 12), 1))
    by_rule = by_aggregation(run, read_run(run), "mean")
    assert list(by_rule) == ["mean"]
    assert by_rule["mean"].tolist() == read_run(run)["probability"].tolist()


def test_images_of_another_training_or_of_some_folds_only_are_refused(tmp_path: Path) -> None:
    run = save_image_run(tmp_path / "b5", images_of(range(6), 0), images_of(range(6, 12), 1))
    write_csv(images_of(range(6), 0, seed=1), run / "fold0" / "oof_images.csv")
    with pytest.raises(InputError, match="do not give the probabilities .*0_L, 1_L.* and 1 more"):
        by_aggregation(run, read_run(run), "mean")
    (run / "fold0" / "oof_images.csv").unlink()
    with pytest.raises(InputError, match=r"fold0.oof_images.csv does not exist"):
        by_aggregation(run, read_run(run), "mean")
