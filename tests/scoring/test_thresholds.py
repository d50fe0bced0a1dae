"""Thresholds against brute force, and operating points against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.intervals import bootstrap_metrics
from rsna_bcd.scoring.metrics import OPERATING, decide, pf1
from rsna_bcd.scoring.thresholds import (
    BestPf1,
    Policy,
    RecallRate,
    Threshold,
    operating_points,
    plateau,
    threshold_curve,
)

Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
seeds = pytest.mark.parametrize("seed", range(5))


def make_rows(seed: int, n: int = 60, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.2).astype(int)
    labels[:2] = 0, 1
    return labels, np.clip(rng.random(n) + 0.2 * labels, 0, 1).round(decimals)


@pytest.fixture
def case() -> Case:
    """1,000 patients of two sites; all probabilities of site 2 are lower."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(1000), 2)
    sites = np.where(patients % 2, "2", "1")
    labels = (rng.random(2000) < 0.1).astype(int)
    logits = rng.normal(2 * labels - 2 * (sites == "2"), 1)
    return labels, 1 / (1 + np.exp(-logits)), patients, sites


@pytest.mark.parametrize("seed", range(2))
def test_threshold_curve_has_the_decisions_at_every_threshold(seed: int) -> None:
    labels, p = make_rows(seed)
    curve = threshold_curve(labels, p)
    assert len(curve.thresholds) == len(np.unique(p))
    decisions = [decide(p, t) for t in curve.thresholds]
    for values, metric in (
        (curve.precision, metrics.precision_score),
        (curve.recall, metrics.recall_score),
        (curve.pf1, pf1),
        (curve.recall_rate, lambda _, d: d.mean()),
    ):
        np.testing.assert_allclose(values, [metric(labels, d) for d in decisions], atol=1e-12)
    weights = np.arange(60) % 3
    rows = np.repeat(np.arange(60), weights)
    weighted, repeated = threshold_curve(labels, p, weights), threshold_curve(labels[rows], p[rows])
    for name in vars(repeated):
        np.testing.assert_array_equal(getattr(weighted, name), getattr(repeated, name))


def test_thresholds_lie_midway_and_separate_neighbouring_floats() -> None:
    curve = threshold_curve([1, 1, 0, 0], [0.9, 0.8, 0.4, 0.1])
    assert curve.thresholds == pytest.approx([0.85, 0.6, 0.25, 0.05])
    low, high = np.nextafter(0.5, 0), 0.5
    assert decide([high, low], plateau([1, 0], [high, low], [0, 1]).threshold).tolist() == [1, 0]


@seeds
@pytest.mark.parametrize("width", [0, 0.5, 2.0])
def test_plateau_spans_all_thresholds_within_its_width(seed: int, width: float) -> None:
    labels, p = make_rows(seed)
    found = plateau(labels, p, np.arange(60) // 2, width)
    assert found.pf1 == pytest.approx(max(pf1(labels, p >= t) for t in np.unique(p)), abs=1e-12)
    curve = threshold_curve(labels, p)
    good = curve.pf1 >= curve.pf1.max() - width * found.standard_error
    assert (found.low, found.high) == (curve.thresholds[good].min(), curve.thresholds[good].max())
    low, middle, high = (decide(p, t).sum() for t in (found.low, found.threshold, found.high))
    distances = np.abs(np.log(60 * curve.recall_rate[good]) - np.log(low * high) / 2)
    assert np.abs(np.log(middle) - np.log(low * high) / 2) == pytest.approx(distances.min())


def test_plateau_does_not_depend_on_the_scale() -> None:
    labels, p = make_rows(4, n=500, decimals=6)
    patients = np.arange(500) // 2
    direct = decide(p, plateau(labels, p, patients).threshold)
    for scaled in (np.exp(p), np.sqrt(p), np.log(p / (1.01 - p))):
        decisions = decide(scaled, plateau(labels, scaled, patients).threshold)
        np.testing.assert_array_equal(decisions, direct)


def test_plateau_standard_error_by_hand() -> None:
    found = plateau([1, 0, 0, 1, 0], [0.9, 0.1, 0.8, 0.05, 0.7], [*"aabcd"], width=0)
    assert found.pf1 == pytest.approx(2 / 3)
    # Only 0.9 is predicted positive: the residuals are 2 - 2/3 * 2 of a, -2/3 of c, 0 of b and d.
    squares = (2 / 3) ** 2 + (2 / 3) ** 2
    assert found.standard_error == pytest.approx(np.sqrt(squares * 4 / 3) / 3)


@pytest.mark.parametrize(
    ("labels", "p", "match"),
    [
        ([0, 1, 0], [0.5, 0.5, 0.5], "All 3 probabilities equal 0.5"),
        ([0, 0, 0], [0.1, 0.5, 0.7], "0 positive and 3 negative"),
        ([1, 1], [0.1, 0.5], "2 positive and 0 negative"),
        ([0, 1], [0.1, np.nan], "finite"),
    ],
)
@pytest.mark.parametrize("policy", [BestPf1(), RecallRate(0.1)], ids=str)
def test_policy_refuses_rows_that_separate_nothing(
    policy: Policy, labels: list[int], p: list[float], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        policy.fit(labels, p, np.arange(len(labels)))


def test_recall_rate_predicts_the_given_share_positive(case: Case) -> None:
    assert RecallRate(0.035).fit(*case[:3]).decide(case[1]).sum() == 70
    assert RecallRate().fit(*case[:3]) == BestPf1().fit(*case[:3])
    with pytest.raises(InputError, match="not between 0 and 1"):
        RecallRate(0.0)


def test_at_same_recall_rate_on_another_scale_and_where_none_is_nearest(case: Case) -> None:
    fitted, squeezed = BestPf1().fit(*case[:3]), case[1] ** 2 / 3
    rescaled = fitted.at_same_recall_rate(squeezed)
    np.testing.assert_array_equal(rescaled.decide(squeezed), fitted.decide(case[1]))
    assert rescaled.recall_rate == fitted.recall_rate
    small = Threshold(0.5, {}, recall_rate=0.03)
    for p, positives in (([0.1, 0.7, 1.0], 0), (np.repeat([0.9, 0.1], [2, 98]), 2)):
        assert small.at_same_recall_rate(p).decide(p).sum() == positives


def test_sites_with_enough_positives_have_their_own_threshold(case: Case) -> None:
    labels, p, patients, sites = case
    fitted = BestPf1(by_site=20).fit(labels, p, patients, sites)
    assert fitted.value == BestPf1().fit(labels, p, patients).value
    assert set(fitted.sites) == {"1", "2"}
    for site, threshold in fitted.sites.items():
        rows = sites == site
        alone = plateau(labels[rows], p[rows], patients[rows]).threshold
        assert threshold == alone
        np.testing.assert_array_equal(fitted.decide(p, sites)[rows], decide(p[rows], alone))
    assert fitted.recall_rate == fitted.decide(p, sites).mean()
    with pytest.raises(InputError, match="by_site=null"):
        BestPf1(by_site=20).fit(labels, p, patients)


def test_other_sites_have_the_global_threshold(case: Case) -> None:
    labels, p, patients, sites = case
    constant, sick = np.where(sites == "2", 0.2, p), np.where(sites == "2", 1, labels)
    for own_labels, own_p in ((labels, constant), (sick, p)):
        assert set(BestPf1(by_site=20).fit(own_labels, own_p, patients, sites).sites) == {"1"}
    sites = np.where(patients < 20, "3", np.where(patients > 900, "nan", sites))
    assert set(BestPf1(by_site=20).fit(labels, p, patients, sites).sites) == {"1", "2"}


def test_decide_takes_sites_of_text_or_integers() -> None:
    fitted = Threshold(0.5, {"1": 0.2})
    assert fitted.decide([0.3, 0.3, 0.6, 0.3], ["1", "2", "new", ""]).tolist() == [1, 0, 1, 0]
    for sites, decisions in (
        (None, [0, 0]), ([1, 2], [1, 0]), (np.array([1, np.nan], object), [1, 0]),
    ):  # fmt: skip
        assert fitted.decide([0.3, 0.3], sites).tolist() == decisions
    for floats in ([1.0, 2.0], np.array([np.nan, 1.0]), np.array(["2", 1.0], dtype=object)):
        with pytest.raises(InputError, match="Site 1.0 is a float"):
            fitted.decide([0.3, 0.3], floats)


@pytest.fixture
def screening() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.05).astype(int)
    p = np.clip(rng.normal(0.3 + 0.2 * labels, 0.15), 0, 1).round(3)
    return labels, p, np.arange(2000) // 2


def test_operating_points_are_the_nearest_thresholds(screening: tuple[np.ndarray, ...]) -> None:
    labels, p, _ = screening
    points = operating_points(*screening, n=5)
    rates = ["recall rate 1.5 %", "recall rate 3.5 %", "recall rate 10 %"]
    assert list(points) == [*rates, "specificity 90 %", "specificity 95 %"]
    for name, rate in zip(rates, (0.015, 0.035, 0.1), strict=True):
        nearest = min(abs((p >= t).mean() - rate) for t in np.unique(p))
        found = points[name].scores["recall_rate"].value
        assert abs(found - rate) == pytest.approx(nearest, abs=1e-12)
    for rate in (0.9, 0.95):
        lowest = min(t for t in np.unique(p) if (p[labels == 0] < t).mean() >= rate)
        threshold = points[f"specificity {100 * rate:g} %"].threshold
        np.testing.assert_array_equal(p >= threshold, p >= lowest)


def test_operating_points_have_every_metric_of_the_table(
    screening: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metric that is added to the table appears; values and intervals are the bootstrap's."""
    labels, p, patients = screening
    monkeypatch.setitem(OPERATING, "error", lambda y, d, weights=None: 1 - pf1(y, d, weights))
    for point in operating_points(*screening, n=20, seed=3).values():
        decisions = decide(p, point.threshold)
        assert point.scores == bootstrap_metrics(OPERATING, labels, decisions, patients, 20, 3)


def test_operating_points_that_few_rows_cannot_have_are_left_out() -> None:
    case = [0, 1, 0], [0.9, 0.5, 0.1], [0, 1, 2]
    assert operating_points(*case, n=5) == {}
    assert list(operating_points(*case, recall_rates=(0.34,), n=5)) == ["recall rate 34 %"]
    tied = np.repeat([0.9, 0.1], [30, 70])  # 30 rows or none
    rates = operating_points(np.arange(100) % 2, tied, range(100), recall_rates=(0.1, 0.25), n=5)
    assert list(rates) == ["recall rate 25 %"]
    assert rates["recall rate 25 %"].scores["recall_rate"].value == 0.3


def test_operating_points_refuse_one_class_and_invalid_rates(
    screening: tuple[np.ndarray, ...],
) -> None:
    with pytest.raises(InputError, match="0 positive and 2 negative"):
        operating_points([0, 0], [0.1, 0.2], [0, 1])
    with pytest.raises(InputError, match="A recall rate of 35 is not between 0 and 1"):
        operating_points(*screening, recall_rates=(35,))
    with pytest.raises(InputError, match="A specificity of 1.0"):
        operating_points(*screening, specificities=(1.0,))
