"""pF1 against the organisers' formula and by hand."""

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.pf1 import pf1


def by_definition(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The organisers' formula, step by step."""
    true_positives = false_positives = 0.0
    for label, probability in zip(labels, probabilities, strict=True):
        clipped = min(max(probability, 0.0), 1.0)
        if label:
            true_positives += clipped
        else:
            false_positives += clipped
    precision = true_positives / (true_positives + false_positives)
    recall = true_positives / labels.sum()
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        ([1, 0, 1, 0], [1, 0, 1, 0], 1.0),
        ([1, 0], [0.5, 0.5], 0.5),  # P = .5 / 1, R = .5 / 1
        ([1, 1, 0, 0], [0.8, 0.4, 0.3, 0.5], 0.6),  # P = 1.2 / 2, R = 1.2 / 2
        ([1, 1, 0], [1, 0, 0], 2 / 3),  # P = 1, R = 1/2
        ([1, 0], [3.0, -2.0], 1.0),  # clipped to 1 and 0
        ([1, 0, 1], [0, 0, 0], 0.0),  # the organisers divide by zero here
        ([0, 0, 0], [0.1, 0.9, 1.0], 0.0),  # ... and here
        ([1, 0], [0, 1], 0.0),
        ([], [], 0.0),
    ],
)
def test_hand_computed_cases(
    labels: list[int], probabilities: list[float], expected: float
) -> None:
    assert pf1(labels, probabilities) == pytest.approx(expected, abs=1e-15)


def test_equals_the_definition_on_random_cases() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1000):
        labels = rng.integers(0, 2, rng.integers(2, 40))
        labels[0] = 1
        probabilities = rng.uniform(-0.2, 1.2, len(labels)).clip(0.001)
        assert pf1(labels, probabilities) == pytest.approx(
            by_definition(labels, probabilities), abs=1e-12
        )


def test_constant_one_at_the_real_prevalence() -> None:
    labels = np.zeros(23826)
    labels[:492] = 1
    assert pf1(labels, np.ones(23826)) == pytest.approx(0.0405, abs=5e-5)


def test_weights_count_rows() -> None:
    rng = np.random.default_rng(1)
    labels, probabilities = rng.integers(0, 2, 30), rng.random(30)
    weights = rng.integers(0, 4, 30)
    repeated = pf1(np.repeat(labels, weights), np.repeat(probabilities, weights))
    assert pf1(labels, probabilities, weights) == pytest.approx(repeated, abs=1e-12)


def test_refuses_what_is_not_a_score() -> None:
    with pytest.raises(InputError, match=r"row 1 holds nan \(1 of 2"):
        pf1([0, 1], [0.5, np.nan])
    with pytest.raises(InputError, match="Labels must be 0 or 1"):
        pf1([0, 2], [0.5, 0.5])
    with pytest.raises(ValueError, match="must be"):
        pf1([0, 1], [0.5])
