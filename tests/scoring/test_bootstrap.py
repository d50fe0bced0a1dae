"""The bootstrap against resampling by hand and against a known standard error."""

from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from rsna_bcd.scoring.bootstrap import (
    Interval,
    Score,
    paired_difference,
    patient_bootstrap,
    patient_bootstraps,
    score_bootstraps,
)
from rsna_bcd.scoring.decisions import accuracy
from rsna_bcd.scoring.metrics import OPERATING
from rsna_bcd.scoring.pf1 import pf1
from rsna_bcd.scoring.ranking import auroc, average_precision


def a_case(seed: int, n_patients: int = 40) -> tuple[NDArray, NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    patients = rng.permutation(np.repeat([f"p{i}" for i in range(n_patients)], 2))
    labels = (rng.random(2 * n_patients) < 0.3).astype(int)
    return labels, np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1), patients


@pytest.mark.parametrize("metric", [pf1, auroc, average_precision])
def test_equals_repeating_rows_by_hand(metric) -> None:  # type: ignore[no-untyped-def]
    labels, probabilities, patients = a_case(0)
    rng = np.random.default_rng(7)
    ids = np.unique(patients)
    draws = []
    for _ in range(50):
        drawn = ids[rng.integers(0, len(ids), len(ids))]
        rows = np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])
        draws.append(metric(labels[rows], probabilities[rows]))
    interval = patient_bootstrap(metric, labels, probabilities, patients, n=50, seed=7)
    assert interval.value == pytest.approx(metric(labels, probabilities), abs=1e-12)
    assert (interval.low, interval.high) == pytest.approx(
        tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-12
    )


@pytest.mark.parametrize("metric", [pf1, auroc, average_precision, *OPERATING.values()])
@pytest.mark.parametrize("decimals", [1, 8], ids=["ties", "distinct"])
def test_a_block_of_resamples_scores_as_one_by_one(metric, decimals: int) -> None:  # type: ignore[no-untyped-def]
    labels, probabilities, patients = a_case(9)
    probabilities = probabilities.round(decimals)

    def unknown(y, p, /, *, weights):  # type: ignore[no-untyped-def]  # so it has no short cut
        return metric(y, p, weights=weights)

    for rows in (slice(None), labels == 0, labels == 1, slice(0, 3)):
        case = labels[rows], probabilities[rows], patients[rows]
        together, alone = (patient_bootstrap(m, *case, n=60) for m in (metric, unknown))
        np.testing.assert_allclose(
            (together.value, together.low, together.high),
            (alone.value, alone.low, alone.high),
            atol=1e-12,
        )


def test_size_of_the_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = a_case(10)
    whole = patient_bootstraps({"auroc": auroc, "pf1": pf1}, *case, n=50)
    monkeypatch.setattr("rsna_bcd.scoring.resampling._BLOCK", 7 * len(case[0]))
    assert patient_bootstraps({"auroc": auroc, "pf1": pf1}, *case, n=50) == whole


def test_scores_of_several_models_share_resamples() -> None:
    labels, first, patients = a_case(11)
    second = 1 - first
    scores = {
        "a": Score(auroc, first),
        "b": Score(accuracy, second),
        "c": Score(average_precision, first),
        "d": Score(auroc, second),
    }
    found = score_bootstraps(scores, labels, patients, n=50, seed=3)
    assert list(found) == ["a", "b", "c", "d"]
    for name, score in scores.items():
        alone = patient_bootstrap(score.metric, labels, score.probabilities, patients, 50, 3)
        assert found[name] == alone
    assert found["a"].low == pytest.approx(1 - found["d"].high, abs=1e-12)


def test_interval_has_the_width_of_the_binomial_one() -> None:
    rng = np.random.default_rng(0)
    labels, right = rng.integers(0, 2, 2000), rng.random(2000) < 0.8
    decisions = np.where(right, labels, 1 - labels)
    interval = patient_bootstrap(accuracy, labels, decisions, np.arange(2000), n=2000)
    assert interval.high - interval.low == pytest.approx(
        2 * 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 2000), rel=0.1
    )


def test_a_second_breast_that_repeats_the_first_adds_nothing() -> None:
    labels, probabilities, _ = a_case(1)
    patients = np.arange(len(labels))
    once = patient_bootstrap(auroc, labels, probabilities, patients, n=200)
    twice = patient_bootstrap(
        auroc, np.tile(labels, 2), np.tile(probabilities, 2), np.tile(patients, 2), n=200
    )
    assert (twice.value, twice.low, twice.high) == pytest.approx(
        (once.value, once.low, once.high), abs=1e-12
    )


def test_seed_decides_and_scores_share_resamples() -> None:
    case = a_case(2)
    assert patient_bootstrap(auroc, *case, n=100, seed=1) == patient_bootstrap(
        auroc, *case, n=100, seed=1
    )
    assert patient_bootstrap(auroc, *case, n=100, seed=1) != patient_bootstrap(
        auroc, *case, n=100, seed=2
    )
    both = patient_bootstraps({"a": auroc, "b": pf1}, *case, n=100, seed=1)
    assert both["b"] == patient_bootstrap(pf1, *case, n=100, seed=1)


def test_resamples_without_positives_are_left_out_of_auroc() -> None:
    labels = np.array([1, 0, 0, 0])
    interval = patient_bootstrap(auroc, labels, [0.9, 0.1, 0.2, 0.3], np.arange(4), n=200)
    assert interval == Interval(1.0, 1.0, 1.0)
    undefined = patient_bootstrap(auroc, [0, 0], [0.1, 0.2], np.arange(2), n=20)
    assert np.isnan([undefined.value, undefined.low, undefined.high]).all()


def test_a_model_does_not_differ_from_itself() -> None:
    labels, probabilities, patients = a_case(3)
    same = paired_difference(auroc, labels, probabilities, probabilities, patients, n=100)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_paired_interval_is_narrower_than_unpaired_ones() -> None:
    labels, probabilities, patients = a_case(4, n_patients=300)
    noise = np.random.default_rng(5).normal(0, 0.02, len(labels))
    paired = paired_difference(auroc, labels, probabilities, probabilities + noise, patients, n=300)
    alone = patient_bootstrap(auroc, labels, probabilities, patients, n=300)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_a_better_model_is_told_from_a_worse_one_and_sign_follows_the_order() -> None:
    labels, probabilities, patients = a_case(6, n_patients=300)
    chance = np.random.default_rng(7).random(len(labels))
    difference = partial(paired_difference, auroc, labels, patients=patients, n=300)
    better = difference(first=chance, second=probabilities)
    worse = difference(first=probabilities, second=chance)
    assert better.low > 0.1
    assert better.p_value == pytest.approx(2 / 301)
    assert (worse.value, worse.low, worse.high) == pytest.approx(
        (-better.value, -better.high, -better.low), abs=1e-12
    )


def test_p_value_of_no_difference_is_uniform() -> None:
    rng = np.random.default_rng(8)
    p_values = []
    for seed in range(60):
        labels, _, patients = a_case(seed, n_patients=60)
        signal = rng.normal(labels, 1)
        first, second = (signal + rng.normal(0, 0.7, len(labels)) for _ in range(2))
        p_values.append(paired_difference(auroc, labels, first, second, patients, n=100).p_value)
    assert 0.35 < np.mean(p_values) < 0.65
    assert np.mean(np.array(p_values) < 0.1) < 0.25


def test_interval_reads_like_a_sentence() -> None:
    assert str(Interval(0.5194, 0.4761, 0.557)) == "0.519 (0.476 to 0.557)"
