"""Blends by hand and by identity."""

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.blend import blend

TWO = np.array([[0.1, 0.5, 1.0], [0.3, 0.5, 0.0]])


def test_mean_and_weights_by_hand() -> None:
    np.testing.assert_allclose(blend(TWO, "mean"), [0.2, 0.5, 0.5], atol=1e-15)
    np.testing.assert_allclose(blend(TWO, "mean", [3, 1]), [0.15, 0.5, 0.75], atol=1e-15)


def test_logit_mean_is_the_geometric_mean_of_the_odds() -> None:
    blended = blend(TWO[:, :2], "logit_mean")
    odds = TWO[:, :2] / (1 - TWO[:, :2])
    np.testing.assert_allclose(blended / (1 - blended), np.sqrt(odds[0] * odds[1]))
    assert blend(TWO, "logit_mean")[2] == pytest.approx(0.5)  # 0 and 1 balance, and stay finite


@pytest.mark.parametrize("rule", ["mean", "logit_mean"])
def test_one_member_comes_back_as_it_is(rule: str) -> None:
    np.testing.assert_allclose(blend(TWO[:1], rule), TWO[0], atol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(blend(TWO, rule, [1, 0]), TWO[0], atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [[1], [0, 0], [2, -1], [np.nan, 1]])
def test_unfit_weights(weights: list[float]) -> None:
    with pytest.raises(InputError, match="must be 2 numbers"):
        blend(TWO, "mean", weights)


def test_unknown_rule() -> None:
    with pytest.raises(InputError, match="mean or logit_mean, not 'max'"):
        blend(TWO, "max")  # type: ignore[arg-type]
