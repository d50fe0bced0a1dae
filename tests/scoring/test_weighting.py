"""Fitted weights against the conditions of a minimum and against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.blend import Blend, blend, fit_ranks, on_scale
from rsna_bcd.scoring.ranking import auroc, average_precision
from rsna_bcd.scoring.weighting import PULL, fit_weights

RULES: tuple[Blend, ...] = ("mean", "logit_mean", "rank_mean")


def members(
    skills: tuple[float, ...], n: int = 3000, seed: int = 0, prevalence: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and members whose logits rise by `skills` where there is cancer."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prevalence).astype(int)
    logits = np.array([skill * labels + rng.normal(size=n) for skill in skills]) - 2
    return labels, 1 / (1 + np.exp(-logits))


def loss(weights: np.ndarray, labels: np.ndarray, scaled: np.ndarray, pull: float) -> float:
    """The objective at its best size and intercept, by a grid that narrows around the best."""
    x = scaled - scaled.mean(axis=1, keepdims=True)
    z = weights @ (x / x.mean(axis=0).std())
    size, intercept, width = 2.0, -2.0, 2.0
    best = np.inf
    for _ in range(40):
        for a in size + width * np.linspace(-1, 1, 5):
            for b in intercept + width * np.linspace(-1, 1, 5):
                own = weights * max(a, 0)
                value = np.logaddexp(0, max(a, 0) * z + b) - labels * (max(a, 0) * z + b)
                value = value.sum() + pull / 2 * np.sum((own - own.mean()) ** 2)
                if value < best:
                    best, at = value, (a, b)
        (size, intercept), width = at, width * 0.7
    return float(best)


@pytest.mark.parametrize("rule", RULES)
def test_no_other_weights_are_better(rule: Blend) -> None:
    labels, p = members((2.0, 1.2, 0.4), n=400)
    ranks = [fit_ranks(row) for row in p]
    fitted = fit_weights(labels, p, rule, ranks, pull=1.0)
    scaled = on_scale(p, rule, ranks)
    best = loss(fitted, labels, scaled, 1.0)
    rng = np.random.default_rng(0)
    others = [*rng.dirichlet(np.ones(3), 15), *(fitted + 0.01 * rng.normal(size=(10, 3))).clip(0)]
    assert all(loss(w / w.sum(), labels, scaled, 1.0) >= best - 1e-6 for w in others)


def test_without_pull_and_where_all_help_it_is_a_logistic_regression() -> None:
    labels, p = members((2.0, 1.5, 1.0))
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit(on_scale(p, "logit_mean").T, labels)
    expected = theirs.coef_[0] / theirs.coef_.sum()
    assert (expected > 0).all()
    np.testing.assert_allclose(fit_weights(labels, p, "logit_mean", pull=1e-9), expected, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_no_better_than_chance_gets_nothing_and_never_less(rule: Blend) -> None:
    labels, p = members((2.0, 0.0, -1.0))
    ranks = [fit_ranks(row) for row in p]
    weights = fit_weights(labels, p, rule, ranks)
    assert weights.sum() == pytest.approx(1)
    assert weights[2] == 0
    assert weights[0] > 0.9
    fitted, equal = (auroc(labels, blend(p, rule, w, ranks)) for w in (weights, None))
    assert fitted > equal + 0.05


def test_a_member_that_is_not_calibrated_keeps_its_weight() -> None:
    """Network two saw balanced batches: all its odds are ten times too high."""
    labels, p = members((1.5, 1.5), n=20000)
    odds = 10 * p[1] / (1 - p[1])
    weights = fit_weights(labels, np.stack([p[0], odds / (1 + odds)]), "logit_mean")
    np.testing.assert_allclose(weights, [0.5, 0.5], atol=0.05)


def test_the_pull_is_towards_equal_weights() -> None:
    labels, p = members((2.0, 0.5), n=300)
    spread = [np.ptp(fit_weights(labels, p, "mean", pull=pull)) for pull in (0.1, 10, 1e3, 1e6)]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.01


def test_one_member_and_useless_ones() -> None:
    labels, p = members((1.0,))
    assert fit_weights(labels, p, "mean").tolist() == [1]
    labels, p = members((-1.0, -2.0))
    assert fit_weights(labels, p, "mean").tolist() == [0.5, 0.5]


def test_twice_the_same_member_shares_its_weight() -> None:
    labels, p = members((1.5, 1.0))
    weights = fit_weights(labels, p[[0, 0, 1]], "mean")
    assert weights[0] == pytest.approx(weights[1], abs=1e-6)


def test_nothing_to_fit_by() -> None:
    with pytest.raises(InputError, match="All 3 labels equal 0"):
        fit_weights([0, 0, 0], [[0.1, 0.2, 0.3]], "mean")
    with pytest.raises(InputError, match="member 2 are equal"):
        fit_weights([0, 1, 0], [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5]], "mean")


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cancers", [60, 500])
def test_the_pull_that_is_set_serves_few_and_many_cancers(rule: Blend, cancers: int) -> None:
    """Average precision on new rows, against equal weights and a hundred times the pull."""

    def score(skills: tuple[float, ...], pull: float | None) -> float:
        new_labels, new = members(skills, 100_000, 99, prevalence=0.02)
        found = []
        for seed in range(10):
            labels, p = members(skills, cancers * 50, seed, prevalence=0.02)
            ranks = [fit_ranks(row) for row in p]
            weights = None if pull is None else fit_weights(labels, p, rule, ranks, pull)
            found.append(average_precision(new_labels, blend(new, rule, weights, ranks)))
        return float(np.mean(found))

    for name, skills in {"alike": (1.8, 1.8, 1.8), "one weak": (1.8, 1.8, 0.5)}.items():
        fitted, equal, pulled = (score(skills, pull) for pull in (PULL, None, 100 * PULL))
        print(f"{rule}, {cancers}, {name}: {fitted:.3f}, equal {equal:.3f}, pulled {pulled:.3f}")
        if name == "alike":
            assert fitted > equal - 0.01  # what fitting costs where it cannot gain
        else:
            assert fitted > equal + 0.02  # what it gains where it can
