"""What is fitted together, and that a held-out row has no part in what decides it."""

from dataclasses import replace

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring import cross_fitting
from rsna_bcd.scoring.blend import BlendMethod
from rsna_bcd.scoring.cross_fitting import (
    EnsembleFitter,
    Members,
    cross_fitted_decisions,
    optimism,
    patient_groups,
)
from rsna_bcd.scoring.intervals import bootstrap_interval
from rsna_bcd.scoring.metrics import OPERATING, auroc, average_precision, pf1, sigmoid
from rsna_bcd.scoring.thresholds import BestPf1, Policy, RecallRate

EVERYTHING = EnsembleFitter("rank_mean", None, BestPf1(by_site=10), "platt")
FITTERS = [
    EVERYTHING,
    EnsembleFitter("mean", None, BestPf1()),
    EnsembleFitter("logit_mean", None, RecallRate(0.1), "isotonic"),
    EnsembleFitter("rank_mean", (1.0, 1.0, 2.0), RecallRate()),
]
fitters = pytest.mark.parametrize("fitter", FITTERS, ids=lambda f: f"{f.blend}-{f.policy}")


def make_case(seed: int = 0, n: int = 600) -> tuple[np.ndarray, Members, np.ndarray, np.ndarray]:
    """Labels, three members (one of two aggregations, one of noise), patients and sites."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.15).astype(int)
    p = [sigmoid(s * labels + rng.normal(size=n) - 2) for s in (1.5, 0.8, 1.2, 0.0)]
    members: Members = [{"mean": p[1], "max": p[0]}, {"max": p[2]}, {"mean": p[3]}]
    return labels, members, np.arange(n) // 2, np.array(["1", "2"])[np.arange(n) // 2 % 2]


def with_unreadable(members: Members, unreadable: np.ndarray, prior: float = 0.15) -> Members:
    return [{name: np.where(unreadable, prior, p) for name, p in m.items()} for m in members]


def test_patient_groups_keep_patients_together_and_positives_even() -> None:
    patients = np.repeat([f"p{i}" for i in range(100)], 2)
    labels = np.zeros(200, dtype=int)
    labels[:24] = 1  # 12 patients with cancer on both sides
    groups = patient_groups(labels, patients, n=5, seed=0)
    assert (groups[::2] == groups[1::2]).all()
    assert sorted(np.bincount(groups[labels == 1])) == [4, 4, 4, 6, 6]
    assert np.bincount(groups).tolist() == [40] * 5
    assert (groups != patient_groups(labels, patients, n=5, seed=1)).any()


def test_patient_groups_are_never_more_than_patients_with_cancer() -> None:
    labels = np.array([1, 0, 0, 1, 0, 0, 0, 1])
    assert set(patient_groups(labels, np.arange(8), n=5, seed=0)) == {0, 1, 2}
    with pytest.raises(InputError, match="at least two patients with cancer, but there are 1"):
        patient_groups(np.array([1, 1, 0, 0]), np.array([7, 7, 8, 9]), n=5, seed=0)


def test_optimism_of_noise_is_positive() -> None:
    rng = np.random.default_rng(0)
    values = []
    for _ in range(50):
        labels, noise, patients = (rng.random(400) < 0.05).astype(int), rng.random(400), range(400)
        groups = patient_groups(labels, patients, 5, 0)
        scored = cross_fitted_decisions(labels, noise, patients, BestPf1(), groups)
        in_sample = BestPf1().fit(labels, noise, patients).decide(noise)
        values.append(optimism(labels, in_sample, scored))
        assert values[-1] == pf1(labels, in_sample) - pf1(labels, scored)
    assert np.mean(values) > 0.02


def test_fitter_with_fixed_weights_is_the_cross_fitted_threshold() -> None:
    labels, members, patients, _ = make_case()
    groups = patient_groups(labels, patients, 5, 0)
    fitter = EnsembleFitter("mean", (2.0, 1.0, 1.0), BestPf1())
    fixed: Members = [{"mean": next(iter(member.values()))} for member in members]
    blended = fitter.fit(labels, fixed, patients).combine(fixed)
    expected = 0.5 * fixed[0]["mean"] + 0.25 * fixed[1]["mean"] + 0.25 * fixed[2]["mean"]
    np.testing.assert_allclose(blended, expected)
    scored = fitter.cross_fit(labels, fixed, patients, groups)
    decisions = cross_fitted_decisions(labels, blended, patients, BestPf1(), groups)
    np.testing.assert_array_equal(scored.decisions, decisions)
    np.testing.assert_array_equal(scored.probabilities, blended)
    assert scored.calibrated is None


def test_fitter_chooses_the_better_aggregation_and_keeps_its_own_among_equals() -> None:
    labels, members, patients, sites = make_case()
    fitted = EVERYTHING.fit(labels, members, patients, sites)
    assert fitted.aggregations == ("max", "max", "mean")
    scores = {name: average_precision(labels, p) for name, p in members[0].items()}
    assert scores["max"] > scores["mean"]
    same: Members = [{"mean": members[0]["max"], "max": members[0]["max"]}]
    fitter = EnsembleFitter("mean", (1.0,), BestPf1())
    assert fitter.fit(labels, same, patients).aggregations == ("mean",)


def test_fitter_gives_noise_no_weight() -> None:
    labels, members, patients, sites = make_case(n=3000)
    weights = EVERYTHING.fit(labels, members, patients, sites).weights
    assert weights[2] < 0.1 < weights[1] < weights[0]


@fitters
def test_cross_fit_uses_no_held_out_row(fitter: EnsembleFitter) -> None:
    labels, members, patients, sites = make_case()
    groups = patient_groups(labels, patients, 3, 0)
    before = fitter.cross_fit(labels, members, patients, groups, sites)
    rng = np.random.default_rng(1)
    for group in range(3):
        inside = groups == group
        noise = rng.random(len(labels))
        changed = [{r: np.where(inside, noise, p) for r, p in m.items()} for m in members]
        shuffled = np.where(inside, rng.permutation(labels), labels)
        after = fitter.cross_fit(shuffled, changed, patients, groups, sites)
        assert after.fitted[group] == before.fitted[group]
        assert any(a != b for a, b in zip(after.fitted, before.fitted, strict=True))


def test_cross_fit_applies_the_fit_of_each_group() -> None:
    labels, members, patients, sites = make_case()
    groups = patient_groups(labels, patients, 4, 0)
    scored = EVERYTHING.cross_fit(labels, members, patients, groups, sites)
    assert len(scored.fitted) == 4
    assert scored.calibrated is not None
    for group, fitted in enumerate(scored.fitted):
        inside = groups == group
        blended = fitted.combine(members)  # of all rows: a row does not depend on others
        assert fitted.calibration is not None
        for found, expected in (
            (scored.probabilities, blended),
            (scored.decisions, fitted.threshold.decide(blended, sites)),
            (scored.calibrated, fitted.calibration.apply(blended)),
        ):
            np.testing.assert_array_equal(found[inside], expected[inside])


def test_fit_among_noise_is_optimistic_and_its_cross_fit_is_not() -> None:
    """Eight members of noise: in sample something always looks good."""
    rng = np.random.default_rng(0)
    fitter, patients = EnsembleFitter("mean", None, BestPf1()), np.arange(300)
    in_sample, scored = [], []
    for _ in range(20):
        labels = np.zeros(300, dtype=int)
        labels[:30] = 1
        noise: Members = [{"mean": rng.random(300), "max": rng.random(300)} for _ in range(8)]
        fitted = fitter.fit(labels, noise, patients)
        in_sample.append(average_precision(labels, fitted.combine(noise)))
        groups = patient_groups(labels, patients, 5, 0)
        cross_fitted = fitter.cross_fit(labels, noise, patients, groups)
        scored.append(average_precision(labels, cross_fitted.probabilities))
    # By chance, .1 and a little more on 30 positives.
    assert np.mean(in_sample) > 0.16
    assert np.mean(scored) < 0.13


def test_cross_fit_ranks_groups_of_different_scales_on_one() -> None:
    """Two aggregations that are as good, one on a far higher scale: the choice is chance."""
    rng = np.random.default_rng(1)
    labels = np.arange(2000) % 20 // 19
    shared = 2 * labels + rng.normal(size=2000)
    z = [shared + 0.1 * rng.normal(size=2000) for _ in range(2)]
    low, high = (sigmoid(row - shift) for shift, row in zip((4, 0), z, strict=True))
    patients = np.arange(2000)
    groups = patient_groups(labels, patients, 8, 2)
    fitter = EnsembleFitter("mean", (1.0,), BestPf1())
    scored = fitter.cross_fit(labels, [{"mean": low, "max": high}], patients, groups)
    assert {fitted.aggregations for fitted in scored.fitted} == {("mean",), ("max",)}
    within = [auroc(labels[groups == g], scored.probabilities[groups == g]) for g in range(8)]
    assert auroc(labels, scored.ranking) == pytest.approx(np.mean(within), abs=0.005)
    assert auroc(labels, scored.probabilities) < np.mean(within) - 0.1
    for g in range(8):  # the order within a group is kept
        order = np.argsort(scored.probabilities[groups == g])
        assert (np.diff(scored.ranking[groups == g][order]) > 0).all()
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
    scores = fitter.intervals(
        OPERATING, labels, found, patients, sites=sites, n=20, unreadable=unreadable
    )
    missed = found.decisions[labels == 1].mean()  # unreadable cancers count as missed
    assert scores["sensitivity"].value == missed
    with pytest.raises(InputError, match="both classes|labels equal"):
        fitter.fit(labels, members, patients, sites, unreadable | (labels == 1))


def intervals_by_hand(
    fitter: EnsembleFitter,
    scored: cross_fitting.CrossFitted,
    labels: np.ndarray,
    members: Members,
    patients: np.ndarray,
    sites: np.ndarray,
    unreadable: np.ndarray,
    n: int,
) -> dict[str, list[float]]:
    """Scores of resamples with repeated rows, every copy of a patient under a new id (seed 7)."""
    rng, ids = np.random.default_rng(7), np.unique(patients)
    draws: dict[str, list[float]] = {name: [] for name in OPERATING}
    for _ in range(n):
        drawn = ids[rng.integers(0, len(ids), len(ids))]
        copies = [np.flatnonzero(patients == patient) for patient in drawn]
        rows, new = np.concatenate(copies), np.repeat(np.arange(len(ids)), [*map(len, copies)])
        y, site, group = labels[rows], sites[rows], scored.groups[rows]
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
    return draws


@fitters
def test_intervals_of_group_blends_equal_repeating_rows_by_hand(fitter: EnsembleFitter) -> None:
    labels, members, patients, sites = make_case(3, 400)
    unreadable = np.random.default_rng(4).random(400) < 0.05
    members = with_unreadable(members, unreadable)
    groups = patient_groups(labels, patients, 4, 0)
    scored = fitter.cross_fit(labels, members, patients, groups, sites, unreadable)
    assert len(scored.blends) == 4
    case = labels, members, patients, sites, unreadable
    draws = intervals_by_hand(fitter, scored, *case, n=15)
    found = fitter.intervals(
        OPERATING, labels, scored, patients, sites=sites, n=15, seed=7, unreadable=unreadable
    )
    for name, values in draws.items():
        assert (found[name].low, found[name].high) == pytest.approx(
            tuple(np.nanquantile(values, [0.025, 0.975])), abs=1e-12
        )


@pytest.mark.parametrize("decimals", [2, 8], ids=["ties", "distinct"])
@pytest.mark.parametrize(
    "policy",
    [
        BestPf1(),
        BestPf1(width=0),
        BestPf1(width=3),
        BestPf1(by_site=6),
        RecallRate(),
        RecallRate(0.003),
        RecallRate(0.9),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_patients", [12, 60])
def test_intervals_of_one_model_equal_repeating_rows_by_hand(
    policy: Policy, decimals: int, n_patients: int
) -> None:
    """Patients of several rows, of unknown sites, and resamples without a threshold."""
    rng = np.random.default_rng(n_patients)
    patients = np.sort(rng.integers(0, n_patients, 2 * n_patients))
    labels = (rng.random(len(patients)) < 0.2).astype(int)
    labels[patients == patients[0]] = labels[patients == patients[-1]] = 1
    p = np.clip(rng.normal(0.3 + 0.2 * labels, 0.15), 0, 1).round(decimals)
    sites = np.where(patients % 5 == 0, "b", np.where(patients % 3, "a", ""))
    rows = rng.permutation(len(patients))
    labels, p, patients, sites = labels[rows], p[rows], patients[rows], sites[rows]
    fitter, members = EnsembleFitter("mean", (1.0,), policy), [{"mean": p}]
    groups = patient_groups(labels, patients, 4, 0)
    scored = fitter.cross_fit(labels, members, patients, groups, sites)  # type: ignore[arg-type]
    case = labels, members, patients, sites, np.zeros(len(p), dtype=bool)
    draws = intervals_by_hand(fitter, scored, *case, n=20)  # type: ignore[arg-type]
    found = fitter.intervals(OPERATING, labels, scored, patients, sites=sites, n=20, seed=7)
    assert len(draws["pf1"]) > 10
    for name, metric in OPERATING.items():
        expected = metric(labels, scored.decisions), *np.nanquantile(draws[name], [0.025, 0.975])
        ends = found[name].value, found[name].low, found[name].high
        assert ends == pytest.approx(expected, abs=1e-12, nan_ok=True)


@fitters
def test_intervals_shrink_to_the_value_where_every_patient_is_drawn_once(
    fitter: EnsembleFitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the value is that of the procedure whose interval it has."""
    labels, members, patients, sites = make_case()
    groups = patient_groups(labels, patients, 5, 0)
    scored = fitter.cross_fit(labels, members, patients, groups, sites)
    monkeypatch.setattr(cross_fitting, "patient_resamples", lambda *_: [np.ones(300)])
    found = fitter.intervals(OPERATING, labels, scored, patients, sites=sites, n=1)
    for name, interval in found.items():
        assert interval.value == OPERATING[name](labels, scored.decisions)
        assert (interval.low, interval.high) == pytest.approx((interval.value,) * 2, abs=1e-12)


def test_intervals_with_refitted_thresholds_are_wider_and_have_any_metric() -> None:
    labels, members, patients, sites = make_case()
    groups = patient_groups(labels, patients, 5, 0)
    scored = EVERYTHING.cross_fit(labels, members, patients, groups, sites)

    def npv(labels, decisions, weights=None):  # type: ignore[no-untyped-def]
        right = (np.asarray(labels) == 0) & (np.asarray(decisions) == 0)
        negative = np.asarray(decisions) == 0
        w = np.ones(len(right)) if weights is None else np.asarray(weights)
        return float(np.sum(w * right) / np.sum(w * negative))

    found = EVERYTHING.intervals(
        {"pf1": pf1, "npv": npv}, labels, scored, patients, sites=sites, n=200
    )
    assert found["npv"].low < found["npv"].value == npv(labels, scored.decisions)
    fixed = bootstrap_interval(pf1, labels, scored.decisions, patients, n=200)
    assert found["pf1"].high - found["pf1"].low > fixed.high - fixed.low


@pytest.mark.parametrize(
    ("blend", "weights"), [("rank_mean", (1.0, 1.0)), ("mean", None), ("rank_mean", None)]
)
@pytest.mark.parametrize(("names", "named"), [(("b5", "small"), "small"), ((), "member 2")])
def test_fitter_names_a_constant_member(
    blend: BlendMethod, weights: tuple[float, ...] | None, names: tuple[str, ...], named: str
) -> None:
    p = np.linspace(0.1, 0.9, 8)
    fitter = EnsembleFitter(blend, weights, BestPf1(), names=names)
    with pytest.raises(InputError, match=f"probabilities of {named} "):
        fitter.fit(p > 0.4, [{"mean": p}, {"mean": np.full(8, 0.3)}], np.arange(8))
