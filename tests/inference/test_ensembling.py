"""Test images are blended and decided as the out-of-fold rows were that the ensemble fitted."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricated_runs import fabricated_ensemble, oof, oof_images, save_image_run, save_run
from stage_settings import composed

from rsna_bcd.files import write_csv
from rsna_bcd.inference.ensembling import predict_breasts
from rsna_bcd.inference.stream import BreastPrediction, Prediction
from rsna_bcd.scoring.blend import BlendMethod, RankTransform
from rsna_bcd.scoring.calibration import Temperature
from rsna_bcd.scoring.ensemble import Ensemble, Member
from rsna_bcd.stages.ensemble import ensemble
from rsna_bcd.tables.predictions import read_ensemble_oof

PATIENTS = range(300)


@dataclass(frozen=True)
class Network:
    """The part of a run that blending needs."""

    level: str


RUNS: list[list[Any]] = [[Network("image")], [Network("image")], [Network("breast")]]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Members by image and by breast with one fold each, and the site of every breast."""
    for seed, name in enumerate(["b5", "small"]):
        save_image_run(
            tmp_path / "runs" / name, oof_images(PATIENTS, 0, seed, skill=0.3 + seed / 5)
        )
    save_run(tmp_path / "runs" / "views", oof(PATIENTS, 0, 7))
    images = oof_images(PATIENTS, 0).rename(columns={"label": "cancer"})
    number = images["patient_id"].astype(int)
    sites = images[["patient_id", "image_id", "laterality", "cancer"]].assign(
        view="CC", site_id=1 + number % 2
    )
    write_csv(sites, tmp_path / "prepared" / "rsna" / "h512" / "train.csv")
    return tmp_path


def fit(output: Path, *overrides: str) -> tuple[Ensemble, pd.DataFrame]:
    """The ensemble, and its out-of-fold rows."""
    settings = [f"paths.output={output}", "resamples=10", "members=[b5,small,views]", *overrides]
    cfg = composed("ensemble", *settings)
    return ensemble(cfg), read_ensemble_oof(Path(cfg.ensemble_dir) / "oof.csv")


def as_test_predictions(output: Path) -> tuple[pd.DataFrame, list, list]:
    """The out-of-fold predictions as those of a test set."""
    by_run = [
        pd.read_csv(output / "runs" / name / "fold0" / "oof_images.csv", dtype={"patient_id": str})
        for name in ("b5", "small")
    ]
    views = pd.read_csv(output / "runs" / "views" / "fold0" / "oof.csv")
    images = by_run[0][["image_id", "prediction_id", "patient_id", "laterality"]]
    images = images.assign(site_id=1 + images["patient_id"].astype(int) % 2)
    values = np.stack([table["probability"] for table in by_run], axis=1)
    by_image = [
        Prediction(image, np.array([*row, np.nan]), None)
        for image, row in zip(images["image_id"], values, strict=True)
    ]
    by_breast = [
        BreastPrediction(breast, np.array([np.nan, np.nan, probability]))
        for breast, probability in zip(views["prediction_id"], views["probability"], strict=True)
    ]
    return images, by_image, by_breast


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["blend=logit_mean", "weights=[3,2,1]", "calibration=platt"],
        ["blend=rank_mean", "weights=fitted", "rule=auto", "by_site=5", "calibration=isotonic"],
        ["blend=mean", "weights=fitted", "rule=auto", "threshold=recall_rate", "recall_rate=0.15"],
        ["threshold=recall_rate", "calibration=temperature"],
    ],
)
def test_predict_breasts_repeats_the_out_of_fold_decisions(
    output: Path, settings: list[str]
) -> None:
    fitted, rows = fit(output, *settings)
    images, by_image, by_breast = as_test_predictions(output)
    found = predict_breasts(fitted, RUNS, images, by_image, by_breast)
    assert found["prediction_id"].tolist() == rows["prediction_id"].tolist()
    np.testing.assert_array_equal(found["probability"], rows["probability"])
    sites = (1 + rows["patient_id"].astype(int) % 2).astype(str)
    wanted = fitted.thresholds.decide(rows["probability"], sites)
    np.testing.assert_array_equal(found["cancer"], wanted)
    assert found["cancer"].sum() > 0
    if "rule=auto" in settings:
        assert [member.rule for member in fitted.members] == ["max", "max", "mean"]
    if "by_site=5" in settings:
        assert set(fitted.thresholds.sites) == {"1", "2"}
    assert ("calibrated" in found) == any("calibration" in setting for setting in settings)
    if "calibrated" in found:
        called = found["cancer"] == 1
        if not fitted.thresholds.sites:
            assert found["calibrated"][called].min() >= found["calibrated"][~called].max()


def test_predict_breasts_of_an_unknown_site_take_the_global_threshold(output: Path) -> None:
    fitted, rows = fit(output)
    fitted = replace(fitted, thresholds=replace(fitted.thresholds, sites={"1": 0.9, "2": 0.2}))
    images, by_image, by_breast = as_test_predictions(output)
    number, p = rows["patient_id"].astype(int), rows["probability"]
    own = np.where(number % 2 == 0, 0.9, 0.2)
    for sites, wanted in (
        (images["site_id"], p >= own),
        (images["site_id"].where(images["patient_id"] != "0"), p >= own),  # 1.0, and NaN
        (None, p >= fitted.threshold),
        (9, p >= fitted.threshold),
        (np.arange(len(images)) % 2 + 1, p >= fitted.threshold),  # both within a breast
    ):
        table = (
            images.assign(site_id=sites) if sites is not None else images.drop(columns="site_id")
        )
        found = predict_breasts(fitted, RUNS, table, by_image, by_breast)
        known = rows["patient_id"] != "0"
        np.testing.assert_array_equal(found["cancer"][known], wanted[known].astype(int))


@pytest.mark.parametrize("blend", ["mean", "rank_mean"])
@pytest.mark.parametrize("threshold", [0.5, 0.05])  # the prior below it, and above
def test_predict_breasts_averages_folds_and_decides_unreadable_breasts_negative(
    blend: BlendMethod, threshold: float
) -> None:
    ranks = RankTransform((0.0, 0.05, 1.0), (0.0, 0.7, 1.0)) if blend == "rank_mean" else None
    member = Member("b5", (0, 1), "rsna", "h512", "max", "last", 1.0, ranks)
    fitted = replace(
        fabricated_ensemble((member,), threshold, prior=0.1),
        blend=blend,
        calibration=Temperature(2.0, -1.0),
    )
    images = pd.DataFrame({"image_id": ["a1", "a2", "b1", "b2"], "patient_id": [*"aabb"]})
    images["laterality"] = [*"LLRR"]
    images["prediction_id"] = images["patient_id"] + "_" + images["laterality"]
    by_image = [
        Prediction("a1", np.array([0.2, 0.9]), None),
        Prediction("a2", np.array([0.5, 0.1]), None),
        Prediction("b1", None, "truncated"),
    ]
    found = predict_breasts(fitted, [RUNS[0] * 2], images, by_image, [])
    expected = fitted.combine([[0.7, 0.1]])  # .7 of (.5 + .9) / 2
    assert found["probability"].tolist() == pytest.approx(expected.tolist())
    assert blend == "rank_mean" or expected.tolist() == [0.7, 0.1]
    assert found["calibrated"][0] == Temperature(2.0, -1.0).apply(expected[0])
    assert found["calibrated"][1] == 0.1
    assert found["unread"].tolist() == [0, 1]
    assert found["cancer"].tolist() == [1, 0]


@pytest.mark.parametrize("blend", ["mean", "logit_mean", "rank_mean"])
def test_predict_breasts_without_dropped_folds_equals_an_ensemble_without_them(
    blend: BlendMethod, output: Path
) -> None:
    fitted, _ = fit(output, f"blend={blend}", "weights=[3,2,1]")
    images, by_image, by_breast = as_test_predictions(output)
    for dropped in ((0,), (2,), (0, 1)):
        found = predict_breasts(fitted, RUNS, images, by_image, by_breast, dropped)
        left = [i for i in range(3) if i not in dropped]
        alone = replace(fitted, members=tuple(fitted.members[i] for i in left))
        runs = [RUNS[i] for i in left]
        own_image, own_breast = (
            [replace(p, probabilities=p.probabilities[left]) for p in predictions]
            for predictions in (by_image, by_breast)
        )
        wanted = predict_breasts(alone, runs, images, own_image, own_breast)
        pd.testing.assert_frame_equal(found, wanted)


def test_predict_breasts_leaves_out_a_run_where_it_has_no_finite_value(output: Path) -> None:
    fitted, _ = fit(output, "weights=[3,0,0]")
    images, by_image, by_breast = as_test_predictions(output)
    whole = predict_breasts(fitted, RUNS, images, by_image, by_breast).set_index("prediction_id")
    first, second = images["prediction_id"].unique()[:2]
    lost = set(images.loc[images["prediction_id"] == first, "image_id"])
    part = images.loc[images["prediction_id"] == second, "image_id"].iloc[0]
    nan = [
        replace(p, probabilities=np.array([np.nan, *p.probabilities[1:]]))
        if p.image_id in {*lost, part}
        else p
        for p in by_image
    ]
    found = predict_breasts(fitted, RUNS, images, nan, by_breast).set_index("prediction_id")
    assert found["unread"].sum() == 0
    others = found.index.difference([first, second])
    pd.testing.assert_frame_equal(found.loc[others], whole.loc[others])
    # The members that are left have no weight: they count alike.
    values = {p.image_id: p.probabilities for p in by_image}
    of_breast = {p.prediction_id: p.probabilities[2] for p in by_breast}
    small = np.mean([values[i][1] for i in lost])
    assert fitted.members[1].rule == "mean"
    assert found.loc[first, "probability"] == pytest.approx((small + of_breast[first]) / 2)
    rest = set(images.loc[images["prediction_id"] == second, "image_id"]) - {part}
    own = np.mean([values[i][0] for i in rest])
    assert found.loc[second, "probability"] == pytest.approx(own)
    assert own != pytest.approx(whole.loc[second, "probability"], abs=1e-4)
