"""Pooled folds, and several runs about the same breasts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated_runs import oof, save_run

from rsna_bcd.errors import InputError
from rsna_bcd.tables.out_of_fold import align, read_run, trained_folds


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
    (run / "fold3").mkdir()  # what a training that was refused leaves behind
    assert len(read_run(run)) == 4
    (run / "fold3" / "config.yaml").touch()
    with pytest.raises(InputError, match="Fold 3 of b5 is not finished.*fold=3 resume=true"):
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
