"""Blends by hand and by identity."""

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.blend import Ranks, blend, fit_ranks

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
    with pytest.raises(InputError, match="mean or logit_mean or rank_mean, not 'max'"):
        blend(TWO, "max")  # type: ignore[arg-type]


def test_ranks_are_the_share_below_and_half_of_the_equal() -> None:
    p = np.random.default_rng(0).random(300).round(2)
    expected = [(p < x).mean() + (p == x).mean() / 2 for x in p]
    np.testing.assert_allclose(fit_ranks(p).apply(p), expected, atol=1e-12)


def test_ranks_of_many_rows_keep_their_order_and_are_close() -> None:
    p = np.random.default_rng(0).beta(1, 30, 20000)
    ranks = fit_ranks(p)
    assert len(ranks.probabilities) <= 1002
    order = np.argsort(p)
    found = ranks.apply(p)[order]
    assert (np.diff(found) > 0).all()
    above = 1 - (np.arange(20000) + 0.5) / 20000  # share of the rows above
    np.testing.assert_allclose(1 - found, above, rtol=0.01)
    np.testing.assert_allclose(1 - found[-90:], above[-90:], rtol=1e-9)  # all of these are kept
    outside = ranks.apply([0, p.min() / 2, p.min(), p.max(), (1 + p.max()) / 2, 1])
    assert (np.diff(outside) > 0).all()
    assert (outside[0], outside[-1]) == (0, 1)


def test_rank_mean_sees_nothing_but_the_order() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((2, 200))
    bent = np.stack([p[0] ** 5, 1 / (1 + np.exp(3 - p[1]))])
    plain, other = (blend(q, "rank_mean", [2, 1], [fit_ranks(row) for row in q]) for q in (p, bent))
    np.testing.assert_allclose(plain, other, atol=1e-12)


def test_a_row_is_ranked_alike_whatever_is_beside_it() -> None:
    p = np.random.default_rng(0).random((3, 200))
    ranks = [fit_ranks(row) for row in p]
    together = blend(p, "rank_mean", [0.1, 0.2, 0.7], ranks)
    alone = [blend(p[:, [i]], "rank_mean", [0.1, 0.2, 0.7], ranks)[0] for i in range(200)]
    assert together.tolist() == alone


def test_ranks_that_cannot_be() -> None:
    with pytest.raises(InputError, match="All 3 probabilities of a member equal 0.5"):
        fit_ranks([0.5, 0.5, 0.5])
    with pytest.raises(InputError, match="needs the ranks"):
        blend(TWO, "rank_mean")
    for knots in (((0.1, 0.1), (0.0, 1.0)), ((0.1, 0.2), (0.5, 0.4)), ((), ()), ((0, 2), (0, 1))):
        with pytest.raises(InputError, match="do not rise"):
            Ranks(*knots)
