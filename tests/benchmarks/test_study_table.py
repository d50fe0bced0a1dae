"""The table of a study: against scikit-learn, by hand, and by identity."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import study_blends
from fabricated_runs import oof, save_run
from sklearn.metrics import roc_auc_score
from study_blends import Scored, choose_blends, greedy_selection, stack_inputs, stack_predictions
from study_config import Place, Study, needed_runs, read_study
from study_figure import study_figure
from study_runs import RECORD, Task
from study_table import (
    as_markdown,
    auroc_resamples,
    common_folds,
    holm,
    other_breast_leak,
    study_table,
)

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv
from rsna_bcd.scoring.intervals import paired_difference, percentile_interval, two_sided_p_value
from rsna_bcd.scoring.metrics import auroc, sigmoid

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
  only_better: {choose: [better]}
  best: {choose: all}
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
    same = ["seeds", "auroc", "low", "high", "difference", "difference_low", "minutes"]
    one, own = table.loc[["only_better"], same], table.loc[["better"], same]
    pd.testing.assert_frame_equal(one.set_index(own.index), own)  # of one candidate: one choice
    assert table.loc["best", "minutes"] == 2 * 1.5  # of those that are trained
    corrected = holm(table["p"].to_numpy())
    np.testing.assert_array_equal(table["p_holm"].to_numpy(), corrected)


def test_the_figure_shows_the_compared_rows(
    study: Study, tasks: list[Task], tmp_path: Path
) -> None:
    (tmp_path / "runs" / "better_s2" / "fold1" / "metrics.json").unlink()
    table = made(study, tasks, tmp_path)
    table.loc["stack", "p"] = np.nan  # as where rows are not comparable
    figure = study_figure(table.reset_index())
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    compared = [name for name in table.index if name != "stack"]
    assert [name.partition(" ")[0] for name in names] == compared
    assert "both_seeds (fold 0)" in names
    for axes, key in zip(figure.axes, ("auroc", "difference"), strict=True):
        points = [np.ravel(line.get_xdata())[0] for line in axes.lines if line.get_marker() == "o"]
        np.testing.assert_array_equal(points, table.loc[compared, key])
    nothing = study_figure(table.reset_index().assign(auroc=np.nan, p=np.nan))
    assert not any(line.get_marker() == "o" for axes in nothing.axes for line in axes.lines)


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
    assert table.loc["only_better", "missing"] == "seed 2: fold 0,1; seed 2: candidates better"
    assert table.loc["only_better", "auroc"] == pytest.approx(scores[0])
    assert table.loc["best", "missing"] == (
        "seed 1: candidates both_seeds; seed 2: candidates better, both_seeds, both_variants"
    )
    assert "left out, as stacks need three folds here: stack" in table["remark"]["best"]
    text = as_markdown(study, table.reset_index())
    assert "Missing: better, seed 2: fold 1." in text


def test_a_combination_is_scored_on_folds_that_did_not_choose_it(
    study: Study, tasks: list[Task], tmp_path: Path
) -> None:
    """Each variant is perfect in one fold and wrong in the other, where the choice is the other."""
    labels = []
    for task in tasks:
        rows = oof(HALVES[task.run.fold], task.run.fold)
        is_right = task.run.fold == ["plain", "better"].index(task.run.variant)
        order = rows["label"] + np.linspace(0, 0.5, len(rows))
        rows["probability"] = sigmoid(order if is_right else -order)
        save_run(tmp_path / "runs" / task.run.name, rows)
        labels.append(rows["label"].to_numpy())
    table = made(study, tasks, tmp_path)
    for seed in (1, 2):
        assert f"seed {seed}, fold 0: better; seed {seed}, fold 1: plain" in table["remark"]["best"]
    assert table["auroc"]["best"] == 0.0
    tables = [
        pd.read_csv(tmp_path / f"runs/{name}_s1/fold{f}/oof.csv") for name in SKILL for f in (0, 1)
    ]
    p = np.stack([pd.concat(tables[i : i + 2])["probability"].to_numpy() for i in (0, 2)])
    label = pd.concat(tables[:2])["label"].to_numpy()
    weights = greedy_selection(label, p)
    assert auroc(label, weights @ np.log(p / (1 - p))) >= 0.5  # chosen on the folds it is scored on


def test_the_choice_among_stacks_of_noise_is_no_better_than_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds are repetitions. A stack that has seen the fold would tell which one fits it."""
    monkeypatch.setattr(study_blends, "_MEMBERS", 2)
    names, seeds = [f"n{i}" for i in range(4)], list(range(20))
    variants = [f"  {name}: []" for name in names]
    variants += [f"  s{name}: {{of: {name}, stack: [mean, other]}}" for name in names]
    chosen = f"  best: {{choose: [{', '.join(f's{name}' for name in names)}]}}"
    head = STUDY.split("variants:")[0].replace("plain", "n0").replace("[0, 1]", "[0, 1, 2]")
    head = head.replace("[1, 2]", str(seeds))
    (tmp_path / "study.yaml").write_text("\n".join([f"{head}variants:", *variants, chosen]))
    study = read_study(tmp_path / "study.yaml")
    rows = pd.concat([oof(range(40 * k, 40 * k + 40), k) for k in range(3)])
    sides = [rows.assign(laterality=s, prediction_id=rows["patient_id"] + f"_{s}") for s in "LR"]
    rows = pd.concat(sides, ignore_index=True)
    rng = np.random.default_rng(0)
    scored = {}
    for name in names:
        scored[name] = Scored({}, [])
        for seed in seeds:
            own = rows.assign(logit=rng.normal(size=len(rows)))  # knows nothing of the label
            scored[name].seeds[str(seed)] = {k: own[own["fold"] == k] for k in range(3)}
        stack = study.variants[f"s{name}"]
        scored[stack.name] = stack_predictions(study, stack, scored[name], tmp_path, rows)
    best = choose_blends(study, study.variants["best"], scored, ())
    found = [
        auroc(part["label"], part["probability"])
        for folds in best.seeds.values()
        for part in folds.values()
    ]
    assert len(found) == 3 * len(seeds)
    assert abs(np.mean(found) - 0.5) < 0.02  # with stacks that have seen it: .55


def test_greedy_selection_by_hand() -> None:
    labels, logits = [1, 0, 0, 1], np.array([[1.0, 0, -1, 0], [-1.0, 0.5, 1.5, 0.75]])
    assert [auroc(labels, row) for row in logits] == [0.875, 0.25]
    assert auroc(labels, logits.sum(axis=0)) == 0.5
    assert greedy_selection(labels, sigmoid(logits)).tolist() == [2, 1]  # the order is right
    assert greedy_selection(labels, sigmoid(logits[[1, 0, 0]])).tolist() == [1, 2, 0]
    with pytest.raises(InputError, match="all equal"):
        greedy_selection([0, 0], np.full((2, 2), 0.5))


def test_scores_without_difficult_negatives(
    study: Study, tasks: list[Task], tmp_path: Path
) -> None:
    before = made(study, tasks, tmp_path)
    assert before["auroc_without_difficult"].isna().all()
    assert "without difficult" not in as_markdown(study, before.reset_index())
    csv = tmp_path / "prepared" / "train.csv"
    table = pd.read_csv(csv, dtype={"patient_id": str})
    difficult = (table["cancer"] == 0) & (table.index % 4 == 1)
    write_csv(table.assign(difficult_negative_case=difficult), csv)
    found = made(study, tasks, tmp_path)
    assert (found["difficult"] == difficult.sum()).all()
    for variant in SKILL:
        rows = [pooled(variant, seed)[~difficult.to_numpy()] for seed in (1, 2)]
        expected = np.mean([roc_auc_score(r["label"], r["probability"]) for r in rows])
        assert found["auroc_without_difficult"][variant] == pytest.approx(expected)
    unchanged = ["auroc", "low", "difference", "p_holm", "breasts"]
    pd.testing.assert_frame_equal(found[unchanged], before[unchanged])
    text = as_markdown(study, found.reset_index())
    assert f"{difficult.sum()} breasts" in text
    assert "| without difficult |" in text


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
    for name in ("better", "both_variants", "stack"):  # itself, and rows that start from it
        assert "not comparable" in str(found.loc[name, "remark"])
    assert found.loc["plain", "remark"] == ""
    left_out = "left out, as not comparable: better, both_seeds, both_variants, stack"
    assert str(found.loc["best", "remark"]).endswith(left_out)
    assert found["auroc"]["best"] == found["auroc"]["plain"]
