"""Curves, against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from rsna_bcd.scoring.curves import precision_recall_curve, roc_curve


@pytest.fixture(params=[False, True], ids=["distinct", "ties"])
def rows(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=80)
    return rng.integers(0, 2, 80), scores.round(1) if request.param else scores


def test_roc_is_scikit_learns(rows: tuple[np.ndarray, np.ndarray]) -> None:
    expected = metrics.roc_curve(*rows, drop_intermediate=False)[:2]
    assert roc_curve(*rows) == pytest.approx(np.stack(expected, axis=1))


def test_precision_and_recall_are_scikit_learns(rows: tuple[np.ndarray, np.ndarray]) -> None:
    precision, recall, _ = metrics.precision_recall_curve(*rows)
    expected = np.stack([recall, precision], axis=1)[::-1][1:]  # less its made-up first point
    assert precision_recall_curve(*rows) == pytest.approx(expected)


def test_a_class_that_is_absent_makes_its_axis_undefined() -> None:
    assert np.isnan(roc_curve([0, 0], [0.1, 0.2])[1:, 1]).all()
    assert np.isnan(precision_recall_curve([0, 0], [0.1, 0.2])[:, 0]).all()
