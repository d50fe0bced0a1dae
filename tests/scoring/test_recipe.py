"""What is chosen together, and that a held-out row has no part in what decides it."""

from dataclasses import replace

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring import cross_fitting
from rsna_bcd.scoring.blend import Blend
from rsna_bcd.scoring.bootstrap import patient_bootstrap
from rsna_bcd.scoring.cross_fitting import cross_fit, cross_fitted_bootstraps, patient_groups
from rsna_bcd.scoring.metrics import OPERATING
from rsna_bcd.scoring.pf1 import pf1
from rsna_bcd.scoring.ranking import auroc, average_precision
from rsna_bcd.scoring.recipe import Fitted, Members, Recipe
from rsna_bcd.scoring.threshold import BestPf1, RecallRate

EVERYTHING = Recipe("rank_mean", None, BestPf1(by_site=10), "platt")


def a_case(seed: int = 0, n: int = 600) -> tuple[np.ndarray, Members, np.ndarray, np.ndarray]:
    """Labels, three members (one of two rules, one of noise), patients and sites."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.15).astype(int)
    p = [1 / (1 + np.exp(2 - s * labels - rng.normal(size=n))) for s in (1.5, 0.8, 1.2, 0.0)]
    members: Members = [{"mean": p[1], "max": p[0]}, {"max": p[2]}, {"mean": p[3]}]
    return labels, members, np.arange(n) // 2, np.array(["1", "2"])[np.arange(n) // 2 % 2]


def test_with_nothing_to_choose_it_is_the_cross_fitted_threshold() -> None:
    labels, members, patients, _ = a_case()
    groups = patient_groups(labels, patients, 5, 0)
    recipe = Recipe("mean", (2.0, 1.0, 1.0), BestPf1())
    fixed: Members = [{"mean": next(iter(member.values()))} for member in members]
    blended = recipe.fit(labels, fixed, patients).combine(fixed)
    expected = 0.5 * fixed[0]["mean"] + 0.25 * fixed[1]["mean"] + 0.25 * fixed[2]["mean"]
    np.testing.assert_allclose(blended, expected)
    held_out = recipe.cross_fit(labels, fixed, patients, groups)
    plain = cross_fit(labels, blended, patients, BestPf1(), groups)
    np.testing.assert_array_equal(held_out.decisions, plain.decisions)
    np.testing.assert_array_equal(held_out.probabilities, blended)
    assert held_out.calibrated is None


def test_the_better_rule_is_chosen_and_the_own_one_kept_among_equals() -> None:
    labels, members, patients, sites = a_case()
    fitted = EVERYTHING.fit(labels, members, patients, sites)
    assert fitted.rules == ("max", "max", "mean")
    scores = {rule: average_precision(labels, p) for rule, p in members[0].items()}
    assert scores["max"] > scores["mean"]
    same: Members = [{"mean": members[0]["max"], "max": members[0]["max"]}]
    assert Recipe("mean", (1.0,), BestPf1()).fit(labels, same, patients).rules == ("mean",)


def test_weights_leave_out_the_noise() -> None:
    labels, members, patients, sites = a_case(n=3000)
    weights = EVERYTHING.fit(labels, members, patients, sites).weights
    assert weights[2] < 0.1 < weights[1] < weights[0]


@pytest.mark.parametrize("blend", ["mean", "logit_mean", "rank_mean"])
def test_held_out_rows_have_no_part_in_what_decides_them(blend: str) -> None:
    labels, members, patients, sites = a_case()
    recipe = replace(EVERYTHING, blend=blend)  # type: ignore[arg-type]
    groups = patient_groups(labels, patients, 3, 0)
    before = recipe.cross_fit(labels, members, patients, groups, sites)
    rng = np.random.default_rng(1)
    for group in range(3):
        inside = groups == group
        noise = rng.random(len(labels))
        moved = [{r: np.where(inside, noise, p) for r, p in m.items()} for m in members]
        shuffled = np.where(inside, rng.permutation(labels), labels)
        after = recipe.cross_fit(shuffled, moved, patients, groups, sites)
        assert after.fitted[group] == before.fitted[group]
        assert any(a != b for a, b in zip(after.fitted, before.fitted, strict=True))


def test_every_row_gets_what_its_group_was_fitted_to_give() -> None:
    labels, members, patients, sites = a_case()
    groups = patient_groups(labels, patients, 4, 0)
    held_out = EVERYTHING.cross_fit(labels, members, patients, groups, sites)
    assert len(held_out.fitted) == 4
    assert held_out.calibrated is not None
    for group, fitted in enumerate(held_out.fitted):
        inside = groups == group
        blended = fitted.combine(members)  # of all rows: a row does not depend on others
        np.testing.assert_array_equal(held_out.probabilities[inside], blended[inside])
        decided = fitted.threshold.decide(blended, sites)
        np.testing.assert_array_equal(held_out.decisions[inside], decided[inside])
        assert fitted.calibration is not None
        calibrated = fitted.calibration.apply(blended)
        np.testing.assert_array_equal(held_out.calibrated[inside], calibrated[inside])


def test_choosing_among_noise_is_optimistic_and_its_cross_fit_is_not() -> None:
    """Eight members that know nothing: in sample something always looks good."""
    rng = np.random.default_rng(0)
    recipe = Recipe("mean", None, BestPf1())
    in_sample, honest = [], []
    for _ in range(30):
        labels = np.zeros(300, dtype=int)
        labels[:30] = 1
        noise: Members = [{"mean": rng.random(300), "max": rng.random(300)} for _ in range(8)]
        patients = np.arange(300)
        fitted: Fitted = recipe.fit(labels, noise, patients)
        in_sample.append(average_precision(labels, fitted.combine(noise)))
        groups = patient_groups(labels, patients, 5, 0)
        held_out = recipe.cross_fit(labels, noise, patients, groups)
        honest.append(average_precision(labels, held_out.probabilities))
        assert pf1(labels, held_out.decisions) < 0.35
    # By chance, .1 and a little more on 30 positives.
    assert np.mean(in_sample) > 0.16
    assert np.mean(honest) < 0.13


def test_intervals_are_of_the_held_out_decisions_with_thresholds_fitted_anew() -> None:
    labels, members, patients, sites = a_case()
    groups = patient_groups(labels, patients, 5, 0)
    fixed = Recipe("mean", (1.0,), BestPf1())
    one: Members = [{"mean": members[0]["max"]}]
    held_out = fixed.cross_fit(labels, one, patients, groups)
    found = fixed.intervals({"pf1": pf1}, labels, held_out, patients, n=200)["pf1"]
    plain = cross_fitted_bootstraps(
        {"pf1": pf1}, labels, one[0]["mean"], patients, BestPf1(), groups, n=200
    )
    assert found == plain["pf1"]
    held_out = EVERYTHING.cross_fit(labels, members, patients, groups, sites)
    found = EVERYTHING.intervals({"pf1": pf1}, labels, held_out, patients, sites, n=200)["pf1"]
    assert found.value == pf1(labels, held_out.decisions)
    as_given = patient_bootstrap(pf1, labels, held_out.decisions, patients, n=200)
    assert found.low < found.value < found.high
    assert found.high - found.low > as_given.high - as_given.low


RECIPES = [
    EVERYTHING,
    Recipe("mean", None, BestPf1()),
    Recipe("logit_mean", None, RecallRate(0.1), "isotonic"),
    Recipe("rank_mean", (1.0, 1.0, 2.0), RecallRate()),
]


def with_unread(members: Members, unread: np.ndarray, prior: float = 0.15) -> Members:
    return [{rule: np.where(unread, prior, p) for rule, p in m.items()} for m in members]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.blend}-{recipe.policy}")
def test_intervals_equal_repeating_rows_by_hand(recipe: Recipe) -> None:
    """Every copy of a patient under a new id, each group on its own blend."""
    labels, members, patients, sites = a_case(3, 400)
    unread = np.random.default_rng(4).random(400) < 0.05
    members = with_unread(members, unread)
    groups = patient_groups(labels, patients, 4, 0)
    held_out = recipe.cross_fit(labels, members, patients, groups, sites, unread)
    assert len(held_out.columns) == 4
    rng = np.random.default_rng(7)
    draws: dict[str, list[float]] = {name: [] for name in OPERATING}
    for _ in range(25):
        drawn = rng.integers(0, 200, 200)
        copies = [np.flatnonzero(patients == patient) for patient in drawn]
        rows, new = np.concatenate(copies), np.repeat(np.arange(200), [len(c) for c in copies])
        decisions = np.zeros(len(rows))
        for group, fitted in enumerate(held_out.fitted):
            p = fitted.combine(members)[rows]
            fit, inside = ((groups[rows] == group) == own for own in (False, True))
            fit, inside = fit & ~unread[rows], inside & ~unread[rows]
            policy = recipe.policy.fit(labels[rows][fit], p[fit], new[fit], sites[rows][fit])
            decisions[inside] = policy.decide(p[inside], sites[rows][inside])
        for name, metric in OPERATING.items():
            draws[name].append(metric(labels[rows], decisions, weights=None))
    found = recipe.intervals(
        OPERATING, labels, held_out, patients, sites, n=25, seed=7, unread=unread
    )
    for name, values in draws.items():
        assert (found[name].low, found[name].high) == pytest.approx(
            tuple(np.nanquantile(values, [0.025, 0.975])), abs=1e-12
        )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.blend}-{recipe.policy}")
@pytest.mark.parametrize("seed", range(5))
def test_the_value_is_that_of_the_procedure_whose_interval_it_has(
    recipe: Recipe, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every patient is drawn once, the interval shrinks to the value."""
    labels, members, patients, sites = a_case(seed)
    groups = patient_groups(labels, patients, 5, seed)
    held_out = recipe.cross_fit(labels, members, patients, groups, sites)
    monkeypatch.setattr(cross_fitting, "resamples", lambda *_: [np.ones((1, 300))])
    for name, found in recipe.intervals(OPERATING, labels, held_out, patients, sites).items():
        assert found.value == OPERATING[name](labels, held_out.decisions, weights=None)
        assert (found.low, found.high) == pytest.approx((found.value,) * 2, abs=1e-12)


def test_groups_on_different_scales_are_ranked_on_one() -> None:
    """Two rules that are as good, one on a far higher scale: which is chosen is chance."""
    rng = np.random.default_rng(1)
    labels = np.arange(2000) % 20 // 19
    shared = 2 * labels + rng.normal(size=2000)
    z = [shared + 0.1 * rng.normal(size=2000) for _ in range(2)]
    low, high = (1 / (1 + np.exp(shift - row)) for shift, row in zip((4, 0), z, strict=True))
    patients = np.arange(2000)
    groups = patient_groups(labels, patients, 8, 2)
    recipe = Recipe("mean", (1.0,), BestPf1())
    held_out = recipe.cross_fit(labels, [{"mean": low, "max": high}], patients, groups)
    assert {fitted.rules for fitted in held_out.fitted} == {("mean",), ("max",)}
    within = [auroc(labels[groups == g], held_out.probabilities[groups == g]) for g in range(8)]
    assert auroc(labels, held_out.ranking) == pytest.approx(np.mean(within), abs=0.005)
    assert auroc(labels, held_out.probabilities) < np.mean(within) - 0.1
    for g in range(8):  # nothing is lost within a group
        order = np.argsort(held_out.probabilities[groups == g])
        assert (np.diff(held_out.ranking[groups == g][order]) > 0).all()
    fixed = recipe.cross_fit(labels, [{"mean": low}], patients, groups)
    np.testing.assert_array_equal(fixed.ranking, low)


@pytest.mark.parametrize("blend", ["mean", "rank_mean"])
def test_unread_rows_are_never_called_and_fit_nothing(blend: Blend) -> None:
    labels, members, patients, sites = a_case()
    unread = np.random.default_rng(2).random(len(labels)) < 0.1
    unread[:40] = True  # whole patients too
    members = with_unread(members, unread, prior=0.9)  # above any threshold
    recipe = replace(EVERYTHING, blend=blend)
    read: Members = [{rule: p[~unread] for rule, p in m.items()} for m in members]
    alone = labels[~unread], read, patients[~unread]
    fitted = recipe.fit(labels, members, patients, sites, unread)
    assert fitted == recipe.fit(*alone, sites[~unread])
    assert fitted.combine(members)[unread].min() > fitted.threshold.value
    groups = patient_groups(labels, patients, 5, 0)
    found = recipe.cross_fit(labels, members, patients, groups, sites, unread)
    expected = recipe.cross_fit(*alone, groups[~unread], sites[~unread])
    assert found.fitted == expected.fitted
    assert found.decisions[unread].sum() == 0
    assert found.calibrated is not None
    for name in ("probabilities", "ranking", "decisions", "calibrated"):
        np.testing.assert_array_equal(getattr(found, name)[~unread], getattr(expected, name))
    for group in range(5):
        inside = groups == group
        assert set(found.calibrated[inside & unread]) == {labels[~inside].mean()}
    scores = recipe.intervals(OPERATING, labels, found, patients, sites, n=50, unread=unread)
    assert (
        scores["sensitivity"].value == found.decisions[labels == 1].mean()
    )  # missed cancers count
    with pytest.raises(InputError, match="both classes|labels equal"):
        recipe.fit(labels, members, patients, sites, unread | (labels == 1))


@pytest.mark.parametrize(
    ("blend", "weights"), [("rank_mean", (1.0, 1.0)), ("mean", None), ("rank_mean", None)]
)
@pytest.mark.parametrize(("names", "named"), [(("b5", "small"), "small"), ((), "member 2")])
def test_a_member_that_says_one_thing_is_named(
    blend: Blend, weights: tuple[float, ...] | None, names: tuple[str, ...], named: str
) -> None:
    p = np.linspace(0.1, 0.9, 8)
    recipe = Recipe(blend, weights, BestPf1(), names=names)
    with pytest.raises(InputError, match=f"probabilities of {named} "):
        recipe.fit(p > 0.4, [{"mean": p}, {"mean": np.full(8, 0.3)}], np.arange(8))
