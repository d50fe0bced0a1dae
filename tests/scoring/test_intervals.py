"""Intervals against resampling by hand, formulas, published figures and repeated sampling."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.intervals import (
    ConfidenceBand,
    Interval,
    Score,
    auroc_covariance,
    bootstrap_distributions,
    bootstrap_interval,
    bootstrap_metrics,
    bootstrap_scores,
    delong,
    delong_difference,
    nan_if_degenerate,
    paired_difference,
    precision_recall_band,
    roc_band,
    wilson,
    wilson_if_degenerate,
)
from rsna_bcd.scoring.metrics import (
    OPERATING,
    RANKING,
    Metric,
    accuracy,
    auroc,
    average_precision,
    brier,
)

Case = tuple[np.ndarray, np.ndarray, np.ndarray]
Z = 1.959963984540054

# 43 patients of DeLong et al. (1988), with the figures of the SAS/STAT User's Guide, PROC LOGISTIC,
# "Comparing Receiver Operating Characteristic Curves": albumin, total protein, K-G score, outcome.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3  5 1  3.9 6.8  3 1  2.8 4.8  6 0  3.2 5.8  3 1  0.9 4.0  5 0  2.5 5.7  8 0
1.6 5.6  5 1  3.8 5.7  5 1  3.7 6.7  6 1  3.2 5.4  4 1  3.8 6.6  6 1  4.1 6.6  5 1  3.6 5.7  5 1
4.3 7.0  4 1  3.6 6.7  4 0  2.3 4.4  6 1  4.2 7.6  4 0  4.0 6.6  6 0  3.5 5.8  6 1  3.8 6.8  7 1
3.0 4.7  8 0  4.5 7.4  5 1  3.7 7.4  5 1  3.1 6.6  6 1  4.1 8.2  6 1  4.3 7.0  5 1  4.3 6.5  4 1
3.2 5.1  5 1  2.6 4.7  6 1  3.3 6.8  6 0  1.7 4.0  7 0  3.7 6.1  5 1  3.3 6.3  7 1  4.2 7.7  6 1
3.5 6.2  5 1  2.9 5.7  9 0  2.1 4.8  7 1  2.8 6.2  8 0  4.0 7.0  7 1  3.3 5.7  6 1  3.7 6.9  5 1
3.6 6.6  5 1
"""


def make_case(seed: int, n_patients: int = 40, decimals: int = 8) -> Case:
    """Labels, probabilities and patients of two shuffled rows each."""
    rng = np.random.default_rng(seed)
    patients = rng.permutation(np.repeat([f"p{i}" for i in range(n_patients)], 2))
    labels = (rng.random(2 * n_patients) < 0.3).astype(int)
    p = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    return labels, p.round(decimals), patients


def resampled_rows(patients: np.ndarray, n: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of whole patients, drawn with replacement."""
    rng, ids = np.random.default_rng(seed), np.unique(patients)
    for _ in range(n):
        drawn = ids[rng.integers(0, len(ids), len(ids))]
        yield np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])


@pytest.mark.parametrize("decimals", [1, 8], ids=["ties", "distinct"])
@pytest.mark.parametrize("metric", [*RANKING.values(), brier, *OPERATING.values()])
def test_bootstrap_equals_repeating_rows_by_hand(metric: Metric, decimals: int) -> None:
    labels, p, patients = make_case(0, decimals=decimals)
    draws = [metric(labels[rows], p[rows]) for rows in resampled_rows(patients, n=50, seed=7)]
    interval = bootstrap_interval(metric, labels, p, patients, n=50, seed=7)
    assert interval.value == metric(labels, p)
    expected = np.nanquantile(draws, [0.025, 0.975])
    assert [interval.low, interval.high] == pytest.approx(expected, abs=1e-12)


def test_bootstrap_scores_share_resamples() -> None:
    labels, p, patients = make_case(11)
    reversed_ = 1 - p
    metrics = {"auroc": auroc, "accuracy": accuracy, "average_precision": average_precision}
    scores = {name: Score(metric, p) for name, metric in metrics.items()}
    found = bootstrap_scores(
        {**scores, "reversed": Score(auroc, reversed_)}, labels, patients, n=50, seed=3
    )
    assert list(found) == [*metrics, "reversed"]
    assert found["auroc"].low == pytest.approx(1 - found.pop("reversed").high, abs=1e-12)
    assert found == bootstrap_metrics(metrics, labels, p, patients, 50, 3)
    for name, metric in metrics.items():
        assert found[name] == bootstrap_interval(metric, labels, p, patients, 50, 3)
        assert found[name] != bootstrap_interval(metric, labels, p, patients, 50, 4)  # the seed


def test_bootstrap_of_some_rows_draws_all_patients() -> None:
    labels, p, patients = make_case(12)
    rows = np.arange(80) < 30
    scores = {"some": Score(auroc, p, rows), "all": Score(auroc, p)}
    values = bootstrap_distributions(scores, labels, patients, n=20, seed=1)
    assert (values["some"] != values["all"]).all()
    some = bootstrap_scores(scores, labels, patients, 20)["some"]
    assert some.value == auroc(labels[rows], p[rows])


def test_bootstrap_leaves_out_undefined_resamples() -> None:
    interval = bootstrap_interval(auroc, [1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3], np.arange(4), n=200)
    assert interval == Interval(1.0, 1.0, 1.0)
    undefined = bootstrap_interval(auroc, [0, 0], [0.1, 0.2], np.arange(2), n=20)
    assert np.isnan([undefined.value, undefined.low, undefined.high]).all()


def test_paired_difference_detects_the_better_model_and_is_narrow() -> None:
    labels, p, patients = make_case(6, n_patients=300)
    chance, noise = np.random.default_rng(7).random((2, 600))
    better, worse, near, same = (
        paired_difference(auroc, labels, first, second, patients, n=200)
        for first, second in ((chance, p), (p, chance), (p, p + 0.04 * noise), (p, p))
    )
    assert better.low > 0.1
    assert better.p_value == pytest.approx(2 / 201)
    assert (worse.value, worse.low, worse.high) == pytest.approx(
        (-better.value, -better.high, -better.low), abs=1e-12
    )
    alone = bootstrap_interval(auroc, labels, p, patients, n=200)
    assert near.high - near.low < 0.5 * (alone.high - alone.low)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(("positives", "n"), [(1, 12), (7, 10), (300, 1000), (0, 12), (12, 12)])
def test_wilson_ends_solve_its_equation(positives: int, n: int) -> None:
    interval = wilson(positives, n)
    assert interval.value == positives / n
    assert 0 <= interval.low < interval.high <= 1
    for end in (interval.low, interval.high):
        half = Z * np.sqrt(end * (1 - end) / n)
        assert abs(interval.value - end) == pytest.approx(half, abs=1e-9)
    with pytest.raises(InputError, match="no proportion"):
        wilson(n + 1, n)


def test_degenerate_intervals_are_replaced() -> None:
    for kept in (Interval(0.5, 0.3, 0.7), Interval(1.0, 0.9, 1.0)):
        assert wilson_if_degenerate(kept, 10) is kept
        assert nan_if_degenerate(kept) is kept
    perfect = Interval(1.0, 1.0, 1.0)
    assert wilson_if_degenerate(perfect, 10) == wilson(10, 10)
    assert wilson_if_degenerate(perfect, 0) is perfect  # of no rows
    assert str(nan_if_degenerate(perfect)) == "1.000 (nan to nan)"


def make_models(seed: int, n: int = 80) -> Case:
    """Labels, two correlated models with ties, and patients of one to three rows."""
    rng = np.random.default_rng(seed)
    patients = np.sort(rng.integers(0, n // 2, n))
    labels = (rng.random(n) < 0.3).astype(int)
    shared = rng.normal(size=n // 2)[patients] + labels
    return labels, (shared + rng.normal(size=(2, n))).round(1), patients


@pytest.mark.parametrize("seed", range(3))
def test_auroc_covariance_equals_that_of_all_pairs(seed: int) -> None:
    """Obuchowski's and DeLong's covariance from every pair of a positive and a negative."""
    labels, scores, patients = make_models(seed)
    x, y = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    wins = [(s[x][:, None] > s[y]) + 0.5 * (s[x][:, None] == s[y]) for s in scores]
    by_patient = patients == np.unique(patients)[:, None]
    i10, i01, i = len(set(patients[x])), len(set(patients[y])), len(by_patient)
    # (P, 2): sums over the positives, and over the negatives, of each patient
    a = np.transpose([by_patient[:, x] @ (w.mean(axis=1) - w.mean()) for w in wins])
    b = np.transpose([by_patient[:, y] @ (w.mean(axis=0) - w.mean()) for w in wins])
    expected = i10 / (i10 - 1) * a.T @ a / len(x) ** 2 + i01 / (i01 - 1) * b.T @ b / len(y) ** 2
    expected += i / (i - 1) * (a.T @ b + b.T @ a) / (len(x) * len(y))
    clustered = auroc_covariance(labels, scores, patients)
    np.testing.assert_allclose(clustered.covariance, expected, rtol=1e-10)
    np.testing.assert_allclose(clustered.auroc, [roc_auc_score(labels, s) for s in scores])
    by_row, by_column = (np.cov([w.mean(axis=axis) for w in wins]) for axis in (1, 0))
    independent = auroc_covariance(labels, scores).covariance
    np.testing.assert_allclose(independent, by_row / len(x) + by_column / len(y), rtol=1e-10)


def test_delong_gives_the_published_figures() -> None:
    albumin, protein, score, outcome = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4).T
    estimate = auroc_covariance(outcome, [albumin, -score, protein])
    np.testing.assert_allclose(estimate.auroc, [0.7366, 0.7258, 0.6478], atol=5e-5)
    errors = np.sqrt(np.diag(estimate.covariance))
    np.testing.assert_allclose(errors, [0.0927, 0.1028, 0.1000], atol=5e-5)
    gain = delong_difference(outcome, -score, albumin)
    figures = gain.value, gain.low, gain.high, gain.p_value
    assert figures == pytest.approx((0.0108, -0.1761, 0.1976, 0.9102), abs=5e-5)


def test_delong_interval_is_symmetric_in_the_log_odds() -> None:
    labels, scores, _ = make_models(0)
    found = delong(labels, scores[0])
    low, value, high = (np.log(a / (1 - a)) for a in (found.low, found.value, found.high))
    error = float(np.sqrt(auroc_covariance(labels, scores[0]).covariance[0, 0]))
    half = Z * error / (found.value * (1 - found.value))
    assert (value - low, high - value) == pytest.approx((half, half))


@pytest.mark.parametrize(("scores", "value"), [([1, 2, 3, 4], 1), ([4, 3, 2, 1], 0)])
def test_delong_of_perfect_and_of_equal_orders(scores: list[int], value: int) -> None:
    found = delong([0, 0, 1, 1], scores)
    reverse = delong_difference([0, 0, 1, 1], scores, [-score for score in scores])
    assert (found.value, reverse.value) == (value, 1 - 2 * value)
    assert np.isnan([found.low, found.high, reverse.low, reverse.high, reverse.p_value]).all()
    same = delong_difference([0, 0, 1, 1], scores, np.exp(scores))
    assert (same.value, same.p_value) == (0, 1)


@pytest.mark.parametrize(
    ("labels", "scores", "patients", "match"),
    [
        ([0, 0, 1, 1], [0.5] * 4, None, "All 4 probabilities equal 0.5"),
        ([1, 0, 0], [0.5, 0.2, 0.9], None, "two rows of each class, but 1 with cancer and 2"),
        ([1, 1, 0, 0], [0.5, 0.6, 0.2, 0.9], [*"aabc"], "two patients of each class, but 1 with"),
    ],
)
def test_delong_refuses_what_has_no_variance(
    labels: list[int], scores: list[float], patients: list[str] | None, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        delong(labels, scores, patients)


def test_band_values_are_the_curves_of_scikit_learn() -> None:
    labels, p, patients = make_case(5, 150, decimals=2)
    fpr, tpr, _ = roc_curve(labels, p, drop_intermediate=False)
    corners = np.unique(fpr)
    highest = np.array([tpr[fpr == x].max() for x in corners])
    np.testing.assert_allclose(roc_band(labels, p, patients, n=5, x=corners).value, highest)
    precision, recall, _ = precision_recall_curve(labels, p)
    band = precision_recall_band(labels, p, patients, n=5)
    for x, value in zip(band.x[1:], band.value[1:], strict=True):
        # In scikit-learn's order thresholds ascend: the last that reaches the recall is highest.
        assert value == pytest.approx(precision[np.flatnonzero(recall >= x - 1e-12)[-1]])


@pytest.mark.parametrize("curve", [roc_band, precision_recall_band])
def test_band_ends_are_quantiles_of_curves_of_repeated_rows(
    curve: Callable[..., ConfidenceBand],
) -> None:
    labels, p, patients = make_case(5, 30)
    curves = []
    for rows in resampled_rows(patients, n=20, seed=3):
        curves.append(curve(labels[rows], p[rows], patients[rows], n=1).value)
    band = curve(labels, p, patients, n=20, seed=3)
    expected = np.quantile(curves, [0.025, 0.975], axis=0)
    # At a recall of 0 the highest score counts also where it is not drawn.
    np.testing.assert_allclose(np.stack([band.low, band.high])[:, 1:], expected[:, 1:])


def test_bands_of_a_perfect_order_and_of_one_class() -> None:
    labels = np.repeat([0, 1], 20)
    for curve in (roc_band, precision_recall_band):
        band = curve(labels, labels * 0.5, np.arange(40), n=20)
        assert (np.stack([band.value, band.low]) == 1).all()
    with np.errstate(invalid="ignore", divide="ignore"):
        empty = roc_band(np.zeros(10), np.linspace(0, 1, 10), np.arange(10), n=3)
    assert np.isnan(empty.low).all()
