"""Parts that are fitted together, and that a held-out row has no part in its own decision."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring import cross_fitting
from rsna_bcd.scoring.blend import BlendMethod
from rsna_bcd.scoring.calibration import CalibrationMethod
from rsna_bcd.scoring.cross_fitting import (
    EnsembleFitter,
    Members,
    cross_fitted_decisions,
    patient_groups,
)
from rsna_bcd.scoring.metrics import OPERATING, auroc, average_precision, sigmoid
from rsna_bcd.scoring.thresholds import BestPf1, Policy, RecallRate

EVERYTHING = EnsembleFitter("rank_mean", None, BestPf1(by_site=10), "platt")
FITTERS = [
    EVERYTHING,
    EnsembleFitter("mean", None, BestPf1()),
    EnsembleFitter("logit_mean", None, RecallRate(0.1), "isotonic"),
    EnsembleFitter("rank_mean", (1.0, 1.0, 2.0), RecallRate()),
]
fitters = pytest.mark.parametrize("fitter", FITTERS, ids=lambda f: f"{f.blend}-{f.policy}")
Case = tuple[np.ndarray, Members, np.ndarray, np.ndarray]


def make_case(seed: int = 0, n: int = 600) -> Case:
    """Labels, three members (one of two aggregations, one of noise), patients and sites."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.15).astype(int)
    p = [sigmoid(s * labels + rng.normal(size=n) - 2) for s in (1.5, 0.8, 1.2, 0.0)]
    members: Members = [{"mean": p[1], "max": p[0]}, {"max": p[2]}, {"mean": p[3]}]
    return labels, members, np.arange(n) // 2, np.array(["1", "2"])[np.arange(n) // 2 % 2]


def with_unreadable(members: Members, unreadable: np.ndarray, prior: float) -> Members:
    return [{name: np.where(unreadable, prior, p) for name, p in m.items()} for m in members]


def test_patient_groups_keep_patients_together_and_positives_even() -> None:
    patients = np.repeat([f"p{i}" for i in range(100)], 2)
    labels = (np.arange(200) < 24).astype(int)  # 12 patients with cancer on both sides
    groups = patient_groups(labels, patients, n=5, seed=0)
    assert (groups[::2] == groups[1::2]).all()
    assert sorted(np.bincount(groups[labels == 1])) == [4, 4, 4, 6, 6]
    assert np.bincount(groups).tolist() == [40] * 5
    assert (groups != patient_groups(labels, patients, n=5, seed=1)).any()


def test_patient_groups_are_never_more_than_patients_with_cancer() -> None:
    assert set(patient_groups([1, 0, 0, 1, 0, 0, 0, 1], np.arange(8), n=5, seed=0)) == {0, 1, 2}
    with pytest.raises(InputError, match="at least two patients with cancer, but there are 1"):
        patient_groups([1, 1, 0, 0], [7, 7, 8, 9], n=5, seed=0)


@pytest.mark.parametrize("method", get_args(CalibrationMethod))
def test_calibration_changes_no_decision(method: CalibrationMethod) -> None:
    labels, members, patients, sites = make_case()
    groups = patient_groups(labels, patients, 4, 0)
    plain, calibrated = (replace(EVERYTHING, calibration=c) for c in (None, method))
    fitted = calibrated.fit(labels, members, patients, sites)
    assert replace(fitted, calibration=None) == plain.fit(labels, members, patients, sites)
    before, after = (
        f.cross_fit(labels, members, patients, groups, sites) for f in (plain, calibrated)
    )
    np.testing.assert_array_equal(before.decisions, after.decisions)
    np.testing.assert_array_equal(before.ranking, after.ranking)


def test_fit_with_fixed_weights_is_the_cross_fitted_threshold() -> None:
    labels, members, patients, _ = make_case()
    groups = patient_groups(labels, patients, 5, 0)
    fitter = EnsembleFitter("mean", (2.0, 1.0, 1.0), BestPf1())
    fixed: Members = [{"mean": next(iter(member.values()))} for member in members]
    blended = fitter.fit(labels, fixed, patients).combine(fixed)
    np.testing.assert_allclose(blended, np.array([0.5, 0.25, 0.25]) @ [m["mean"] for m in fixed])
    scored = fitter.cross_fit(labels, fixed, patients, groups)
    decisions = cross_fitted_decisions(labels, blended, patients, BestPf1(), groups)
    np.testing.assert_array_equal(scored.decisions, decisions)
    np.testing.assert_array_equal(scored.probabilities, blended)
    assert scored.calibrated is None


def test_fit_chooses_the_better_aggregation_and_gives_noise_little_weight() -> None:
    labels, members, patients, sites = make_case(n=3000)
    fitted = EVERYTHING.fit(labels, members, patients, sites)
    scores = {name: average_precision(labels, p) for name, p in members[0].items()}
    assert scores["max"] > scores["mean"]
    assert fitted.aggregations == ("max", "max", "mean")
    assert fitted.weights[2] < 0.1 < fitted.weights[1] < fitted.weights[0]
    equal: Members = [{"mean": members[0]["max"], "max": members[0]["max"]}]
    fitter = EnsembleFitter("mean", (1.0,), BestPf1())
    assert fitter.fit(labels, equal, patients).aggregations == ("mean",)  # the member's own


@pytest.mark.parametrize(
    ("fitter", "named"),
    [
        (EnsembleFitter("rank_mean", (1.0, 1.0), BestPf1()), "member 2"),
        (EnsembleFitter("mean", None, BestPf1(), names=("b5", "small")), "small"),
    ],
)
def test_fit_names_a_constant_member(fitter: EnsembleFitter, named: str) -> None:
    p = np.linspace(0.1, 0.9, 8)
    with pytest.raises(InputError, match=f"probabilities of {named} "):
        fitter.fit(p > 0.4, [{"mean": p}, {"mean": np.full(8, 0.3)}], np.arange(8))


@fitters
def test_cross_fit_uses_no_held_out_row(fitter: EnsembleFitter) -> None:
    labels, members, patients, sites = make_case()
    groups = patient_groups(labels, patients, 3, 0)
    before = fitter.cross_fit(labels, members, patients, groups, sites)
    rng = np.random.default_rng(1)
    for group in range(3):
        inside, noise = groups == group, rng.random(len(labels))
        changed = [{r: np.where(inside, noise, p) for r, p in m.items()} for m in members]
        shuffled = np.where(inside, rng.permutation(labels), labels)
        after = fitter.cross_fit(shuffled, changed, patients, groups, sites)
        assert after.fitted[group] == before.fitted[group]
        assert after.fitted != before.fitted


def test_cross_fit_applies_the_fit_of_each_group() -> None:
    labels, members, patients, sites = make_case()
    groups = patient_groups(labels, patients, 4, 0)
    scored = EVERYTHING.cross_fit(labels, members, patients, groups, sites)
    assert scored.calibrated is not None
    for group, fitted in enumerate(scored.fitted):
        blended = fitted.combine(members)  # of all rows: a row does not depend on others
        assert fitted.calibration is not None
        for found, expected in (
            (scored.probabilities, blended),
            (scored.decisions, fitted.threshold.decide(blended, sites)),
            (scored.calibrated, fitted.calibration.apply(blended)),
        ):
            np.testing.assert_array_equal(found[groups == group], expected[groups == group])


def test_cross_fit_among_noise_is_not_optimistic_and_the_fit_is() -> None:
    """Eight members of noise: in sample something always looks good."""
    rng, patients = np.random.default_rng(0), np.arange(300)
    fitter, labels = EnsembleFitter("mean", None, BestPf1()), (np.arange(300) < 30).astype(int)
    in_sample, scored = [], []
    for _ in range(20):
        noise: Members = [{"mean": rng.random(300), "max": rng.random(300)} for _ in range(8)]
        fitted = fitter.fit(labels, noise, patients)
        in_sample.append(average_precision(labels, fitted.combine(noise)))
        groups = patient_groups(labels, patients, 5, 0)
        cross_fitted = fitter.cross_fit(labels, noise, patients, groups)
        scored.append(average_precision(labels, cross_fitted.probabilities))
    assert np.mean(scored) < 0.13 < 0.16 < np.mean(in_sample)  # by chance .1 and a little more


def test_cross_fit_ranks_groups_of_different_scales_on_one() -> None:
    """Two aggregations that are as good, one on a far higher scale: the choice is chance."""
    rng, patients = np.random.default_rng(1), np.arange(2000)
    labels = patients % 20 // 19
    shared = 2 * labels + rng.normal(size=2000)
    low, high = (sigmoid(shared + 0.1 * rng.normal(size=2000) - shift) for shift in (4, 0))
    groups = patient_groups(labels, patients, 8, 2)
    fitter = EnsembleFitter("mean", (1.0,), BestPf1())
    scored = fitter.cross_fit(labels, [{"mean": low, "max": high}], patients, groups)
    assert {fitted.aggregations for fitted in scored.fitted} == {("mean",), ("max",)}
    within = []
    for g in range(8):
        inside = groups == g
        within.append(auroc(labels[inside], scored.probabilities[inside]))
        order = np.argsort(scored.probabilities[inside])
        assert (np.diff(scored.ranking[inside][order]) > 0).all()  # the order within is kept
    assert auroc(labels, scored.ranking) == pytest.approx(np.mean(within), abs=0.005)
    assert auroc(labels, scored.probabilities) < np.mean(within) - 0.1
    fixed = fitter.cross_fit(labels, [{"mean": low}], patients, groups)
    np.testing.assert_array_equal(fixed.ranking, low)


@pytest.mark.parametrize("blend", ["mean", "rank_mean"])
def test_unreadable_rows_are_negative_and_fit_nothing(blend: BlendMethod) -> None:
    labels, members, patients, sites = make_case()
    unreadable = np.random.default_rng(2).random(len(labels)) < 0.1
    unreadable[:40] = True  # whole patients too
    members = with_unreadable(members, unreadable, prior=0.9)  # above any threshold
    fitter = replace(EVERYTHING, blend=blend)
    readable: Members = [{name: p[~unreadable] for name, p in m.items()} for m in members]
    alone = labels[~unreadable], readable, patients[~unreadable]
    fitted = fitter.fit(labels, members, patients, sites, unreadable)
    assert fitted == fitter.fit(*alone, sites[~unreadable])
    assert fitted.combine(members)[unreadable].min() > fitted.threshold.value
    groups = patient_groups(labels, patients, 5, 0)
    found = fitter.cross_fit(labels, members, patients, groups, sites, unreadable)
    expected = fitter.cross_fit(*alone, groups[~unreadable], sites[~unreadable])
    assert found.fitted == expected.fitted
    assert found.decisions[unreadable].sum() == 0
    assert found.calibrated is not None
    for name in ("probabilities", "ranking", "decisions", "calibrated"):
        np.testing.assert_array_equal(getattr(found, name)[~unreadable], getattr(expected, name))
    for group in range(5):
        inside = groups == group
        assert set(found.calibrated[inside & unreadable]) == {labels[~inside].mean()}
    rest: dict[str, Any] = {"sites": sites, "unreadable": unreadable, "n": 20}
    scores = fitter.intervals(OPERATING, labels, found, patients, **rest)
    assert scores["sensitivity"].value == found.decisions[labels == 1].mean()  # they are missed
    with pytest.raises(InputError, match="both classes|labels equal"):
        fitter.fit(labels, members, patients, sites, unreadable | (labels == 1))


def check_intervals(
    fitter: EnsembleFitter, case: Case, unreadable: np.ndarray, n: int
) -> cross_fitting.CrossFitted:
    """Compare with resamples of repeated rows, every copy of a patient under a new id."""
    labels, members, patients, sites = case
    groups = patient_groups(labels, patients, 4, 0)
    scored = fitter.cross_fit(labels, members, patients, groups, sites, unreadable)
    rng, ids = np.random.default_rng(7), np.unique(patients)
    draws: dict[str, list[float]] = {name: [] for name in OPERATING}
    for _ in range(n):
        drawn = ids[rng.integers(0, len(ids), len(ids))]
        copies = [np.flatnonzero(patients == patient) for patient in drawn]
        rows, new = np.concatenate(copies), np.repeat(np.arange(len(ids)), [*map(len, copies)])
        y, site, group = labels[rows], sites[rows], groups[rows]
        decisions = np.zeros(len(rows))
        try:
            for held_out, fitted in enumerate(scored.fitted):
                p = fitted.combine(members)[rows]
                fit = (group != held_out) & ~unreadable[rows]
                inside = (group == held_out) & ~unreadable[rows]
                threshold = fitter.policy.fit(y[fit], p[fit], new[fit], site[fit])
                decisions[inside] = threshold.decide(p[inside], site[inside])
        except InputError:
            continue
        for name, metric in OPERATING.items():
            draws[name].append(metric(y, decisions))
    assert len(draws["pf1"]) > n / 2
    rest: dict[str, Any] = {"sites": sites, "unreadable": unreadable, "n": n, "seed": 7}
    found = fitter.intervals(OPERATING, labels, scored, patients, **rest)
    for name, metric in OPERATING.items():
        expected = metric(labels, scored.decisions), *np.nanquantile(draws[name], [0.025, 0.975])
        ends = found[name].value, found[name].low, found[name].high
        assert ends == pytest.approx(expected, abs=1e-12, nan_ok=True)
    return scored


@fitters
def test_intervals_of_group_blends_equal_repeating_rows_by_hand(fitter: EnsembleFitter) -> None:
    labels, members, patients, sites = make_case(3, 400)
    unreadable = np.random.default_rng(4).random(400) < 0.05
    case = labels, with_unreadable(members, unreadable, prior=0.15), patients, sites
    assert len(check_intervals(fitter, case, unreadable, n=15).blends) == 4


@pytest.mark.parametrize("decimals", [2, 8], ids=["ties", "distinct"])
@pytest.mark.parametrize(
    "policy",
    [
        BestPf1(), BestPf1(width=0), BestPf1(width=3), BestPf1(by_site=6),
        RecallRate(), RecallRate(0.003), RecallRate(0.9),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("n_patients", [12, 60])
def test_intervals_of_one_model_equal_repeating_rows_by_hand(
    policy: Policy, decimals: int, n_patients: int
) -> None:
    """Patients of several rows, of unknown sites, and resamples without a threshold."""
    rng = np.random.default_rng(n_patients)
    patients = rng.permutation(np.sort(rng.integers(0, n_patients, 2 * n_patients)))
    labels = (rng.random(len(patients)) < 0.2).astype(int)
    labels[patients == patients[0]] = labels[patients == patients[-1]] = 1
    p = np.clip(rng.normal(0.3 + 0.2 * labels, 0.15), 0, 1).round(decimals)
    sites = np.where(patients % 5 == 0, "b", np.where(patients % 3, "a", ""))
    fitter = EnsembleFitter("mean", (1.0,), policy)
    check_intervals(fitter, (labels, [{"mean": p}], patients, sites), np.zeros(len(p), bool), n=20)
