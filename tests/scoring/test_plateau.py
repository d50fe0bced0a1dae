"""Every threshold against brute force, and the plateau around the best."""

import numpy as np
import pytest
from sklearn import metrics

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.decisions import decide
from rsna_bcd.scoring.pf1 import pf1
from rsna_bcd.scoring.plateau import plateau, threshold_curve


def a_case(seed: int, n: int = 60, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.2).astype(int)
    labels[:2] = 0, 1
    return labels, np.clip(rng.random(n) + 0.2 * labels, 0, 1).round(decimals)


@pytest.mark.parametrize("seed", range(20))
def test_search_equals_brute_force(seed: int) -> None:
    labels, probabilities = a_case(seed)
    brute = max(pf1(labels, probabilities >= t) for t in np.unique(probabilities))
    best = plateau(labels, probabilities, np.arange(60), width=0)
    assert best.pf1 == pytest.approx(brute, abs=1e-12)
    assert pf1(labels, decide(probabilities, best.threshold)) == pytest.approx(brute, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_curve_is_that_of_the_decisions_at_every_threshold(seed: int) -> None:
    labels, probabilities = a_case(seed)
    curve = threshold_curve(labels, probabilities)
    assert len(curve.thresholds) == len(np.unique(probabilities))
    called = [decide(probabilities, t) for t in curve.thresholds]
    precision = [metrics.precision_score(labels, c) for c in called]
    np.testing.assert_allclose(curve.precision, precision, atol=1e-12)
    recall = [metrics.recall_score(labels, c) for c in called]
    np.testing.assert_allclose(curve.recall, recall, atol=1e-12)
    np.testing.assert_allclose(curve.pf1, [pf1(labels, c) for c in called], atol=1e-12)
    np.testing.assert_allclose(curve.recall_rate, [c.mean() for c in called], atol=1e-12)


def test_weights_repeat_and_remove_rows() -> None:
    labels, probabilities = a_case(3)
    weights = np.arange(60) % 3
    rows = np.repeat(np.arange(60), weights)
    weighted = threshold_curve(labels, probabilities, weights)
    repeated = threshold_curve(labels[rows], probabilities[rows])
    for name in ("thresholds", "precision", "recall", "pf1", "recall_rate"):
        np.testing.assert_array_equal(getattr(weighted, name), getattr(repeated, name))


def test_thresholds_lie_midway() -> None:
    curve = threshold_curve([1, 1, 0, 0], [0.9, 0.8, 0.4, 0.1])
    assert curve.thresholds == pytest.approx([0.85, 0.6, 0.25, 0.05])


def test_thresholds_separate_neighbouring_floats() -> None:
    low, high = np.nextafter(0.5, 0), 0.5
    best = plateau([1, 0], [high, low], [0, 1])
    assert decide([high, low], best.threshold).tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("width", [0.5, 2.0])
def test_plateau_spans_all_that_is_as_good_as_the_best(seed: int, width: float) -> None:
    labels, probabilities = a_case(seed)
    patients = np.arange(60) // 2
    found = plateau(labels, probabilities, patients, width)
    curve = threshold_curve(labels, probabilities)
    good = curve.pf1 >= curve.pf1.max() - width * found.standard_error
    assert (found.low, found.high) == (curve.thresholds[good].min(), curve.thresholds[good].max())
    low, middle, high = (
        decide(probabilities, t).sum() for t in (found.low, found.threshold, found.high)
    )
    distances = np.abs(np.log(60 * curve.recall_rate[good]) - np.log(low * high) / 2)
    assert np.abs(np.log(middle) - np.log(low * high) / 2) == pytest.approx(distances.min())


def test_decisions_do_not_depend_on_the_scale() -> None:
    labels, probabilities = a_case(4, n=500, decimals=6)
    patients = np.arange(500) // 2
    direct = decide(probabilities, plateau(labels, probabilities, patients).threshold)
    for scale in (np.exp, np.sqrt, lambda p: np.log(p / (1.01 - p))):
        moved = scale(probabilities)
        np.testing.assert_array_equal(
            decide(moved, plateau(labels, moved, patients).threshold), direct
        )


def test_standard_error_is_that_of_the_ratio_by_hand() -> None:
    found = plateau([1, 0, 0, 1, 0], [0.9, 0.1, 0.8, 0.05, 0.7], [*"aabcd"], width=0)
    assert found.pf1 == pytest.approx(2 / 3)
    # 0.9 alone is called: the residuals are 2 - 2/3 * 2 of a, -2/3 of c, 0 of b and d; 2 + 1 are
    # called or positive.
    squares = (2 / 3) ** 2 + (2 / 3) ** 2
    assert found.standard_error == pytest.approx(np.sqrt(squares * 4 / 3) / 3)


def test_standard_error_is_the_spread_over_samples_of_patients() -> None:
    rng = np.random.default_rng(0)

    def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sick = rng.random(800) < 0.1  # of a sick patient's two breasts one or both
        labels = np.stack([sick, sick & (rng.random(800) < 0.5)], axis=1).ravel().astype(int)
        seen = np.repeat(rng.random(800), 2) < np.where(labels == 1, 0.7, 0.02)
        return labels, np.where(seen, 0.9, 0.1), np.repeat(np.arange(800), 2)

    found = [plateau(*sample(), width=0) for _ in range(400)]
    spread = np.std([one.pf1 for one in found])
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1, 0], [0.5, 0.5, 0.5], "All 3 probabilities equal 0.5"),
        ([0, 0, 0], [0.1, 0.5, 0.7], "0 positive and 3 negative"),
        ([1, 1], [0.1, 0.5], "2 positive and 0 negative"),
        ([0, 1], [0.1, np.nan], "finite"),
    ],
)
def test_refuses_where_there_is_nothing_to_choose_by(
    labels: list[int], probabilities: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plateau(labels, probabilities, np.arange(len(labels)))
