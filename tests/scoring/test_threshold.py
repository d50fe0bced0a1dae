"""Policies: what each chooses, by site and by rate."""

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.plateau import plateau
from rsna_bcd.scoring.threshold import BestPf1, RecallRate, Threshold

Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def case() -> Case:
    """1,000 patients of two sites; all probabilities of site 2 are lower."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(1000), 2)
    sites = np.where(patients % 2, "2", "1")
    labels = (rng.random(2000) < 0.1).astype(int)
    logits = rng.normal(2 * labels - 2 * (sites == "2"), 1)
    return labels, 1 / (1 + np.exp(-logits)), patients, sites


def test_best_pf1_is_the_middle_of_the_plateau(case: Case) -> None:
    fitted = BestPf1().fit(*case[:3])
    assert fitted.value == plateau(*case[:3]).threshold
    assert fitted.recall_rate == fitted.decide(case[1]).mean()
    assert fitted.sites == {}


def test_recall_rate_calls_the_share_that_is_asked_for(case: Case) -> None:
    fitted = RecallRate(0.035).fit(*case[:3])
    assert fitted.decide(case[1]).sum() == 70
    assert RecallRate().fit(*case[:3]) == BestPf1().fit(*case[:3])


def test_rate_carries_over_to_probabilities_on_another_scale(case: Case) -> None:
    labels, probabilities, patients, _ = case
    fitted = BestPf1().fit(labels, probabilities, patients)
    squeezed = probabilities**2 / 3
    moved = fitted.at_rate(squeezed)
    np.testing.assert_array_equal(moved.decide(squeezed), fitted.decide(probabilities))
    assert moved.recall_rate == fitted.recall_rate


def test_rate_of_few_rows_may_call_none() -> None:
    fitted = Threshold(0.5, {}, recall_rate=0.03)
    few = [0.1, 0.7, 1.0]
    assert fitted.at_rate(few).decide(few).sum() == 0
    ties = np.repeat([0.9, 0.1], [2, 98])
    assert fitted.at_rate(ties).decide(ties).sum() == 2


def test_sites_have_the_threshold_that_they_alone_would_have(case: Case) -> None:
    labels, probabilities, patients, sites = case
    fitted = BestPf1(by_site=20).fit(labels, probabilities, patients, sites)
    assert fitted.value == BestPf1().fit(labels, probabilities, patients).value
    assert set(fitted.sites) == {"1", "2"}
    for site, threshold in fitted.sites.items():
        rows = sites == site
        alone = BestPf1().fit(labels[rows], probabilities[rows], patients[rows])
        assert threshold == alone.value
        np.testing.assert_array_equal(
            fitted.decide(probabilities, sites)[rows], alone.decide(probabilities[rows])
        )


def test_small_and_unknown_sites_fall_back_to_the_global_threshold(case: Case) -> None:
    labels, probabilities, patients, sites = case
    sites = sites.astype("<U3")
    sites[patients < 20] = "3"
    sites[patients > 900] = "nan"
    fitted = BestPf1(by_site=20).fit(labels, probabilities, patients, sites)
    assert set(fitted.sites) == {"1", "2"}
    new = Threshold(0.5, {"1": 0.2}).decide([0.3, 0.3, 0.6, 0.3], ["1", "2", "new", ""])
    assert new.tolist() == [1, 0, 1, 0]
    assert Threshold(0.5, {"1": 0.2}).decide([0.3, 0.6]).tolist() == [0, 1]


def test_sites_are_known_by_name_or_integer_and_floats_refused() -> None:
    fitted = Threshold(0.5, {"1": 0.2})
    for sites in (["1", "2"], [1, 2], np.array([1, np.nan], dtype=object)):
        assert fitted.decide([0.3, 0.3], sites).tolist() == [1, 0]
    for floats in ([1.0, 2.0], np.array([np.nan, 1.0]), np.array(["2", 1.0], dtype=object)):
        with pytest.raises(InputError, match="Site 1.0 is a float"):
            fitted.decide([0.3, 0.3], floats)


def test_a_site_that_cannot_be_fitted_falls_back(case: Case) -> None:
    labels, probabilities, patients, sites = case
    constant = np.where(sites == "2", 0.2, probabilities)
    assert set(BestPf1(by_site=20).fit(labels, constant, patients, sites).sites) == {"1"}
    sick = np.where(sites == "2", 1, labels)
    assert set(BestPf1(by_site=20).fit(sick, probabilities, patients, sites).sites) == {"1"}


def test_refuses_what_it_cannot_fit(case: Case) -> None:
    with pytest.raises(InputError, match="by_site=null"):
        BestPf1(by_site=20).fit(*case[:3])
    with pytest.raises(InputError, match="All 3 probabilities equal"):
        RecallRate(0.1).fit([0, 1, 0], [0.5, 0.5, 0.5], [0, 1, 2])
    with pytest.raises(InputError, match="not between 0 and 1"):
        RecallRate(0.0)
