"""The table of a study: against scikit-learn, by hand, and by identity."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated_runs import oof, save_run
from sklearn.metrics import roc_auc_score
from study_config import Place, Study, needed_runs, read_study
from study_runs import RECORD, Task
from study_table import (
    as_markdown,
    auroc_resamples,
    common_folds,
    holm,
    other_breast_leak,
    stack_inputs,
    study_table,
)

from rsna_bcd.files import write_csv
from rsna_bcd.scoring.intervals import paired_difference, percentile_interval, two_sided_p_value
from rsna_bcd.scoring.metrics import auroc

STUDY = """
dataset: rsna
folds: [0, 1]
seeds: [1, 2]
reference: plain
resamples: 200
base: []
variants:
  plain: []
  better: [epochs=2]
  both_seeds: {ensemble: [better], seeds: [1, 2]}
  both_variants: {ensemble: [plain, better]}
  stack: {of: better, stack: [mean, age]}
"""
HALVES = (range(0, 60), range(60, 120))  # patients of the folds
SKILL = {"plain": 0.1, "better": 0.25}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "study.yaml").write_text(STUDY)
    return read_study(tmp_path / "study.yaml")


@pytest.fixture
def tasks(study: Study, tmp_path: Path) -> list[Task]:
    """All runs, as if trained."""
    place = Place(tmp_path, tmp_path)
    tasks = [Task(run, study, place) for run in needed_runs(study, "cpu")]
    for task in tasks:
        run = task.run
        rows = oof(HALVES[run.fold], run.fold, run.seed, SKILL[run.variant])
        save_run(tmp_path / "runs" / run.name, rows)
        record = {"overrides": list(run.overrides), "seconds": 90.0}
        (task.folder / RECORD).write_text(json.dumps(record))
    table = pd.concat([oof(half, fold) for fold, half in enumerate(HALVES)])
    table = table.assign(
        site_id=1, image_id=table["patient_id"], view="CC", cancer=table["label"], age=60,
        path="none",
    )  # fmt: skip
    write_csv(table, tmp_path / "prepared" / "train.csv")
    return tasks


def made(study: Study, tasks: list[Task], folder: Path) -> pd.DataFrame:
    prepared = dict.fromkeys(("plain", "better"), folder / "prepared")
    return study_table(study, tasks, folder, prepared).set_index("variant")


def pooled(variant: str, seed: int) -> pd.DataFrame:
    tables = [oof(half, fold, seed, SKILL[variant]) for fold, half in enumerate(HALVES)]
    return pd.concat(tables, ignore_index=True)


def test_scores_are_scikit_learns_averaged_over_seeds(
    study: Study, tasks: list[Task], tmp_path: Path
) -> None:
    table = made(study, tasks, tmp_path)
    score = {}
    for variant in SKILL:
        rows = [pooled(variant, seed) for seed in (1, 2)]
        score[variant] = np.mean([roc_auc_score(r["label"], r["probability"]) for r in rows])
        assert table.loc[variant, "auroc"] == pytest.approx(score[variant])
        assert table.loc[variant, "low"] < score[variant] < table.loc[variant, "high"]
    assert table.loc["better", "difference"] == pytest.approx(score["better"] - score["plain"])
    one, two = pooled("better", 1), pooled("better", 2)
    blend = (one["probability"] + two["probability"]) / 2
    assert table.loc["both_seeds", "auroc"] == pytest.approx(roc_auc_score(one["label"], blend))
    assert table.loc["both_seeds", "seeds"] == "1+2"
    assert (table[["breasts", "positives"]] == [120, 24]).all(axis=None)
    assert table.loc["better", "minutes"] == 1.5
    assert (table["missing"] == "").all()
    # A stack of one rising input orders each fold as its input does.
    assert table.loc["stack", "auroc"] == pytest.approx(score["better"], abs=0.02)
    corrected = holm(table["p"].to_numpy())
    np.testing.assert_array_equal(table["p_holm"].to_numpy(), corrected)


def test_of_one_seed_it_is_the_paired_difference_of_the_package() -> None:
    first, second = pooled("plain", 1), pooled("better", 1)
    labels, patients = first["label"].to_numpy(), first["patient_id"].to_numpy(dtype=str)
    both = np.stack([second["probability"], first["probability"]])
    values, resampled = auroc_resamples(labels, both, patients, 300)
    found = paired_difference(auroc, labels, both[1], both[0], patients, 300)
    assert values[0] - values[1] == pytest.approx(found.value, abs=1e-12)
    difference = resampled[0] - resampled[1]
    assert percentile_interval(difference) == pytest.approx((found.low, found.high), abs=1e-12)
    assert two_sided_p_value(difference) == found.p_value


def test_what_is_not_complete_is_named_and_the_rest_compared(
    study: Study, tasks: list[Task], tmp_path: Path
) -> None:
    (tmp_path / "runs" / "better_s2" / "fold1" / "metrics.json").unlink()
    table = made(study, tasks, tmp_path)
    assert table.loc["better", "missing"] == "seed 2: fold 1"
    assert table.loc["better", "seeds"] == "1"  # the one that has all folds
    one = pooled("better", 1), pooled("plain", 1)
    scores = [roc_auc_score(rows["label"], rows["probability"]) for rows in one]
    assert table.loc["better", "difference"] == pytest.approx(scores[0] - scores[1])
    assert table.loc["both_seeds", "folds"] == "0"  # the one that both seeds have
    assert table.loc["both_seeds", "breasts"] == 60
    text = as_markdown(study, table.reset_index())
    assert "Missing: better, seed 2: fold 1." in text


def test_the_folds_of_the_seed_that_has_most() -> None:
    some = pd.DataFrame()
    own = {"1": {0: some}, "2": {0: some, 1: some}, "3": {1: some, 0: some, 2: some}}
    reference = {seed: {0: some, 1: some} for seed in "123"}
    assert common_folds(own, reference) == [("2", [0, 1]), ("3", [0, 1])]
    assert common_folds({}, reference) == []


def test_holm_by_hand() -> None:
    corrected = holm([0.01, 0.04, np.nan, 0.03, 0.9])
    np.testing.assert_allclose(corrected, [0.04, 0.09, np.nan, 0.09, 0.9])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1.0, 1.0])


def test_inputs_of_a_stack_by_hand() -> None:
    breasts = pd.DataFrame(
        {"prediction_id": ["1_L", "1_R", "2_L"], "patient_id": ["1", "1", "2"], "logit": 0.0}
    )
    by_image = pd.DataFrame(
        {
            "prediction_id": ["1_L", "1_L", "1_R", "2_L"],
            "image_id": ["a", "b", "c", "d"],
            "logit": [1.0, 3.0, -1.0, 5.0],
        }
    )
    images = by_image.assign(view=["CC", "MLO", "CC", "MLO"], age=[50, 50, 60, np.nan])
    found = stack_inputs(breasts, by_image, images.drop(columns="logit"))
    assert found["mean"].tolist() == [2, -1, 5]
    assert found["max"].tolist() == [3, -1, 5]
    assert found["min"].tolist() == [1, -1, 5]
    assert found["CC"].tolist() == [1, -1, 5]
    assert found["MLO"].tolist() == [3, -1, 5]
    assert found["other"].tolist() == [-1, 2, 5]
    assert found["age"].tolist() == [50, 60, 55]


def test_data_whose_breasts_were_selected_by_label_are_recognised(
    study: Study, tasks: list[Task], tmp_path: Path
) -> None:
    images = pd.DataFrame(
        {
            "patient_id": ["1", "2", "3", "3", "4", "4"],
            "prediction_id": ["1_L", "2_R", "3_L", "3_R", "4_L", "4_R"],
            "cancer": [1, 1, 1, 0, 0, 0],
        }
    )
    assert other_breast_leak(images) == pytest.approx(
        roc_auc_score(images["cancer"], [1, 1, 0, 0, 0, 0])
    )
    assert other_breast_leak(images[2:]) == 0.5
    # A second breast for the healthy alone.
    csv = tmp_path / "prepared" / "train.csv"
    table = pd.read_csv(csv, dtype={"patient_id": str})
    right = table[table["cancer"] == 0].assign(laterality="R")
    right["prediction_id"] = right["patient_id"] + "_R"
    right["image_id"] = right["image_id"].astype(str) + "r"
    write_csv(pd.concat([table, right]), csv)
    prepared = dict.fromkeys(("plain", "better"), tmp_path / "prepared")
    found = study_table(study, tasks, tmp_path, prepared, ["better"]).set_index("variant")
    assert found["p"].isna()["better"]
    for name in ("better", "both_variants", "stack"):  # itself, and what starts from it
        assert "not comparable" in str(found.loc[name, "remark"])
    assert found.loc["plain", "remark"] == ""
