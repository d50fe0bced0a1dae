"""Blends by hand and by identity; fitted weights by the conditions of a minimum."""

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.blend import (
    SHRINKAGE,
    BlendMethod,
    RankTransform,
    blend,
    fit_rank_transform,
    fit_weights,
    transform_scores,
)
from rsna_bcd.scoring.metrics import average_precision, sigmoid

TWO = np.array([[0.1, 0.5, 1.0], [0.3, 0.5, 0.0]])
methods = pytest.mark.parametrize("method", ["mean", "logit_mean", "rank_mean"])


def make_members(
    skills: tuple[float, ...], n: int = 3000, seed: int = 0, prevalence: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and members whose logits rise by `skills` with cancer."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prevalence).astype(int)
    logits = np.array([skill * labels + rng.normal(size=n) for skill in skills]) - 2
    return labels, sigmoid(logits)


def test_blend_mean_by_hand() -> None:
    np.testing.assert_allclose(blend(TWO, "mean"), [0.2, 0.5, 0.5], atol=1e-15)
    np.testing.assert_allclose(blend(TWO, "mean", [3, 1]), [0.15, 0.5, 0.75], atol=1e-15)
    np.testing.assert_allclose(blend(TWO, "mean", [1, 0]), TWO[0], atol=1e-15)


def test_blend_logit_mean_is_the_geometric_mean_of_the_odds() -> None:
    blended, odds = blend(TWO[:, :2], "logit_mean"), TWO[:, :2] / (1 - TWO[:, :2])
    np.testing.assert_allclose(blended / (1 - blended), np.sqrt(odds[0] * odds[1]))
    np.testing.assert_allclose(blend(TWO[:1], "logit_mean"), TWO[0], atol=1e-6)
    assert blend(TWO, "logit_mean")[2] == pytest.approx(0.5)  # 0 and 1 balance, and stay finite


def test_blend_rank_mean_depends_on_the_order_and_the_breast_alone() -> None:
    p = np.random.default_rng(0).random((2, 200))
    monotone = np.stack([p[0] ** 5, sigmoid(p[1] - 3)])
    plain, other = (
        blend(q, "rank_mean", [2, 1], [fit_rank_transform(row) for row in q]) for q in (p, monotone)
    )
    np.testing.assert_allclose(plain, other, atol=1e-12)
    ranks = [fit_rank_transform(row) for row in p]
    assert plain.tolist() == [blend(p[:, [i]], "rank_mean", [2, 1], ranks)[0] for i in range(200)]


@pytest.mark.parametrize(
    ("method", "weights", "match"),
    [
        *(("mean", w, "must be 2 numbers") for w in ([1], [0, 0], [2, -1], [np.nan, 1])),
        ("rank_mean", None, "needs the ranks"),
    ],
)
def test_blend_refuses(method: BlendMethod, weights: list[float] | None, match: str) -> None:
    with pytest.raises(InputError, match=match):
        blend(TWO, method, weights)


def test_rank_transform_is_the_share_below_and_half_of_the_equal() -> None:
    p = np.random.default_rng(0).random(300).round(2)
    expected = (rankdata(p) - 0.5) / 300
    np.testing.assert_allclose(fit_rank_transform(p).apply(p), expected, atol=1e-12)


def test_rank_transform_of_many_rows_is_close_and_exact_at_the_top() -> None:
    p = np.sort(np.random.default_rng(0).beta(1, 30, 20000))
    transform = fit_rank_transform(p)
    assert len(transform.probabilities) <= 1002
    ranks = transform.apply(p)
    assert (np.diff(ranks) > 0).all()
    above = 1 - (np.arange(20000) + 0.5) / 20000  # share of the rows above
    np.testing.assert_allclose(1 - ranks, above, rtol=0.01)
    np.testing.assert_allclose(1 - ranks[-90:], above[-90:], rtol=1e-9)  # all of these are kept
    outside = transform.apply([0, p[0] / 2, p[0], p[-1], (1 + p[-1]) / 2, 1])
    assert (np.diff(outside) > 0).all()
    assert (outside[0], outside[-1]) == (0, 1)


def test_rank_transform_refuses_what_cannot_be_ranked() -> None:
    with pytest.raises(InputError, match="All 3 probabilities of b5 equal 0.5"):
        fit_rank_transform([0.5, 0.5, 0.5], "b5")
    for knots in (((0.1, 0.1), (0.0, 1.0)), ((0.1, 0.2), (0.5, 0.4)), ((), ()), ((0, 2), (0, 1))):
        with pytest.raises(InputError, match="do not rise"):
            RankTransform(*knots)


@methods
def test_fit_weights_meets_the_conditions_of_the_minimum(method: BlendMethod) -> None:
    """For the size and intercept that fit best, the gradient is 0 where a weight is positive."""
    labels, p = make_members((2.0, 1.2, -0.4), n=400)
    ranks = [fit_rank_transform(row) for row in p]
    weights = fit_weights(labels, p, method, ranks, shrinkage=1.0)
    x = transform_scores(p, method, ranks)
    x = (x - x.mean(axis=1, keepdims=True)) / x.mean(axis=0).std()
    # With shrinkage s and size a, the penalty is s a^2 / 2 * spread: an L2 penalty on the size.
    spread = np.sum((weights - weights.mean()) ** 2)
    z = weights @ x
    size = LogisticRegression(C=1 / spread, tol=1e-12).fit(z[:, None], labels)
    a, b = float(size.coef_[0, 0]), float(size.intercept_[0])
    gradient = x @ (sigmoid(a * z + b) - labels) + a * (weights - weights.mean())
    assert weights[2] == 0
    np.testing.assert_allclose(gradient[:2], 0, atol=1e-3)
    assert gradient[2] > 0


def test_fit_weights_without_shrinkage_is_a_logistic_regression() -> None:
    labels, p = make_members((2.0, 1.5, 1.0))
    x = transform_scores(p, "logit_mean").T
    coefficients = LogisticRegression(C=np.inf, tol=1e-10).fit(x, labels).coef_[0]
    weights = fit_weights(labels, p, "logit_mean", shrinkage=1e-9)
    np.testing.assert_allclose(weights, coefficients / coefficients.sum(), atol=1e-5)


def test_fit_weights_of_one_useless_and_constant_members() -> None:
    assert fit_weights(*make_members((1.0,)), "mean").tolist() == [1]
    assert fit_weights(*make_members((-1.0, -2.0)), "mean").tolist() == [0.5, 0.5]
    for labels, match in (([0, 0, 0], "All 3 labels equal 0"), ([0, 1, 0], "member 2 are equal")):
        with pytest.raises(InputError, match=match):
            fit_weights(labels, [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5]], "mean")


@pytest.mark.slow
@methods
@pytest.mark.parametrize("cancers", [60, 500])
def test_shrinkage_suits_few_and_many_cancers(method: BlendMethod, cancers: int) -> None:
    """Average precision on new rows, against equal weights."""

    def score(skills: tuple[float, ...], shrinkage: float | None) -> float:
        new_labels, new = make_members(skills, 100_000, 99, prevalence=0.02)
        scores = []
        for seed in range(10):
            labels, p = make_members(skills, cancers * 50, seed, prevalence=0.02)
            ranks = [fit_rank_transform(row) for row in p]
            weights = shrinkage and fit_weights(labels, p, method, ranks, shrinkage)
            scores.append(average_precision(new_labels, blend(new, method, weights, ranks)))
        return float(np.mean(scores))

    alike, one_weak = (1.8, 1.8, 1.8), (1.8, 1.8, 0.5)
    assert score(alike, SHRINKAGE) > score(alike, None) - 0.01  # the cost where nothing is gained
    assert score(one_weak, SHRINKAGE) > score(one_weak, None) + 0.02
