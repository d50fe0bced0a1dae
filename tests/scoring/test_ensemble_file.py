"""`ensemble.json` written and read, and the decisions of a fitted ensemble."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.blend import RankTransform
from rsna_bcd.scoring.calibration import CalibrationError, Isotonic, Temperature
from rsna_bcd.scoring.ensemble import Ensemble, Member, read_ensemble, write_ensemble
from rsna_bcd.scoring.intervals import Interval
from rsna_bcd.scoring.thresholds import Plateau, Threshold

ABOVE = math.nextafter(1, 2)
FITTED = Ensemble(
    name="pair",
    blend="mean",
    members=(
        Member("b5", (0, 1), "rsna", "h1536", rule="mean", select="last", weight=3.0),
        Member("small", (0, 1), "rsna", "h2048", rule="max", select="last", weight=1.0),
    ),
    policy="pf1",
    threshold=0.31,
    thresholds=Threshold(0.31, {"2": 0.4}, recall_rate=0.02),
    plateau=Plateau(0.29, 0.33, 0.31, pf1=0.5, standard_error=0.02),
    cross_fitted_thresholds=(0.3, 0.32),
    calibration=None,
    prior=0.0207,
    breasts=23826,
    positives=492,
    score={
        "auroc": Interval(0.92, 0.9, 0.94),
        "cross_fitted": {"pf1": Interval(0.48, 0.44, 0.52)},
        "in_sample": {"pf1": Interval(0.5, 0.46, 0.54)},
        "optimism": 0.02,
        "calibration": {"blended": {"ece": CalibrationError(0.004, chance=0.002)}},
    },
)
RANKED = replace(
    FITTED,
    blend="rank_mean",
    members=tuple(
        replace(member, ranks=RankTransform((0.0, top, 1.0), (0.0, 0.9, 1.0)))
        for member, top in zip(FITTED.members, (0.1, 0.5), strict=True)
    ),
)
BY_RATE = replace(FITTED, policy="recall_rate", thresholds=Threshold(0.31, {}, 0.02))


@pytest.mark.parametrize(
    "fitted",
    [
        FITTED,
        RANKED,
        replace(BY_RATE, calibration=Temperature(1.3, -0.2)),
        replace(FITTED, calibration=Isotonic((0.1, 0.2, 1 / 3), (0.0, 0.1, 1.0))),
        # Of `recall_rate` where no row is predicted positive.
        replace(FITTED, threshold=ABOVE, thresholds=Threshold(ABOVE, {}, 0.0)),
        replace(FITTED, networks="all"),
    ],
)
def test_read_ensemble_returns_what_was_written(tmp_path: Path, fitted: Ensemble) -> None:
    file = tmp_path / "pair" / "ensemble.json"
    write_ensemble(fitted, file)
    assert [path.name for path in file.parent.iterdir()] == ["ensemble.json"]
    assert read_ensemble(file) == fitted


def test_write_ensemble_keeps_the_keys(tmp_path: Path) -> None:
    file = tmp_path / "ensemble.json"
    write_ensemble(RANKED, file)
    record = json.loads(file.read_text())
    assert list(record) == [
        "name", "blend", "members", "policy", "threshold", "thresholds", "plateau",
        "cross_fitted_thresholds", "calibration", "prior", "breasts", "positives", "score",
        "command",
    ]  # fmt: skip
    assert list(record["members"][0]) == [
        "name", "folds", "dataset", "crop", "rule", "select", "weight", "ranks", "hashes",
    ]  # fmt: skip
    assert record["thresholds"] == {"value": 0.31, "sites": {"2": 0.4}, "recall_rate": 0.02}
    assert list(record["plateau"]) == ["low", "high", "threshold", "pf1", "standard_error"]
    assert record["score"]["cross_fitted"]["pf1"] == {"value": 0.48, "low": 0.44, "high": 0.52}
    assert record["score"]["calibration"]["blended"]["ece"] == {"value": 0.004, "chance": 0.002}
    assert '"probabilities": [ 0.0, 0.1, 1.0 ],' in file.read_text()  # a line, not a thousand


def test_read_ensemble_accepts_a_file_without_hashes_and_command(tmp_path: Path) -> None:
    """As older versions wrote it."""
    file = tmp_path / "ensemble.json"
    write_ensemble(FITTED, file)
    record = json.loads(file.read_text())
    for part in (record, *record["members"]):
        part.pop("command", part.pop("hashes", None))
    file.write_text(json.dumps(record))
    assert read_ensemble(file) == FITTED


def test_combine_weighs_members_and_ranks_by_the_stored_distribution() -> None:
    np.testing.assert_allclose(FITTED.combine([[0.4, 0.0], [0.8, 1.0]]), [0.5, 0.25])
    assert FITTED.unreadable_probability == pytest.approx(FITTED.prior)
    # Halfway to each member's top: rank .45; beyond it, halfway to 1: rank .95.
    np.testing.assert_allclose(RANKED.combine([[0.05, 0.55], [0.25, 0.75]]), [0.45, 0.95])
    # The prior, .0207, is below the tops: ranks .9 * .207 and .9 * .0414, weights 3 and 1.
    assert RANKED.unreadable_probability == pytest.approx(0.9 * (3 * 0.207 + 0.0414) / 4)


def test_combine_of_some_members_shares_the_weight_of_the_others() -> None:
    assert FITTED.combine([[0.4]], [True, False]).tolist() == [0.4]
    useless = replace(FITTED, members=(FITTED.members[0], replace(FITTED.members[1], weight=0.0)))
    assert useless.combine([[0.8]], [False, True]).tolist() == [0.8]


def test_decide_keeps_the_recall_rate_of_enough_readable_rows() -> None:
    p = np.random.default_rng(0).random(2000) / 10  # all below the fitted threshold
    assert BY_RATE.decide(p).sum() == 40
    assert BY_RATE.decide(p[:100]).sum() == 0  # 2 positive decisions are left to chance
    assert FITTED.decide(p).sum() == 0
    # Unreadable rows above all others would take the whole share.
    both, unreadable = np.append(p, np.full(2000, 0.5)), np.repeat([False, True], 2000)
    decided = BY_RATE.decide(both, unreadable=unreadable)
    np.testing.assert_array_equal(decided, np.append(BY_RATE.decide(p), np.zeros(2000)))
    assert BY_RATE.decide(p[:4], unreadable=[1, 1, 1, 1]).tolist() == [0, 0, 0, 0]


def test_decide_keeps_the_recall_rate_of_networks_of_all_patients() -> None:
    """Of few rows, too: the fitted threshold is of other networks."""
    ensemble = replace(FITTED, networks="all", thresholds=Threshold(0.31, {"2": 0.4}, 0.1))
    p = np.random.default_rng(0).random(50) / 10  # all below the fitted threshold
    decided = ensemble.decide(p, np.full(50, "2"))
    assert decided.sum() == 5
    assert p[decided == 1].min() > p[decided == 0].max()
    tied = np.repeat([0.9, 0.3, 0.1], [3, 7, 40])  # 3 is nearer to 5 than 10 is
    assert ensemble.decide(tied).sum() == 3
    assert ensemble.decide(p[:4]).sum() == 0
    assert ensemble.decide([]).tolist() == ensemble.decide(p[:2], unreadable=[1, 1]).tolist()[2:]
    assert [*map(ensemble.predicting_folds, ensemble.members)] == [("all",)] * 2


@pytest.mark.parametrize("fitted", [FITTED, RANKED], ids=["mean", "rank_mean"])
def test_unreadable_breasts_are_negative_with_a_prior_above_the_threshold(
    fitted: Ensemble,
) -> None:
    prior = fitted.unreadable_probability
    low, calibration = prior / 2, Temperature(2.0, -1.0)
    fitted = replace(fitted, threshold=low, thresholds=Threshold(low, {"2": low}))
    p, unreadable = [0.9, prior, prior, 0.0], [0, 1, 1, 0]
    assert fitted.decide(p).tolist() == [1, 1, 1, 0]  # readable, with the same blend
    for sites in (None, ["2", "2", "", "2"]):
        assert fitted.decide(p, sites, unreadable).tolist() == [1, 0, 0, 0]
    assert fitted.calibrate(p, unreadable) is None
    expected = np.where(unreadable, fitted.prior, calibration.apply(p))
    fitted = replace(fitted, calibration=calibration)
    np.testing.assert_array_equal(fitted.calibrate(p, unreadable), expected)
    assert fitted.decide(p, None, unreadable).tolist() == [1, 0, 0, 0]  # made before it


PF1 = {"pf1": {"value": 0.5, "low": 0.4, "high": 0.6}}
RANKS = {"probabilities": [0.0, 1.0], "ranks": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"threshold": None}, "threshold is None"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": 0.3}, "differ"),
        ({"prior": -0.1}, "prior is -0.1"),
        ({"members": []}, "names no members"),
        ({"score": {"in_sample": PF1}}, "cross_fitted"),
        ({"score": {"cross_fitted": PF1, "in_sample": {"pf1": 1}}}, "no score.in_sample.pf1"),
        ({"blend": "median"}, "not 'median'"),
        ({"policy": "f2"}, "policy is pf1 or recall_rate"),
        ({"thresholds": {"value": 0.31, "sites": {"2": None}, "recall_rate": 0.1}}, "site 2"),
        ({"thresholds": {"value": 0.31, "sites": {}, "recall_rate": None}}, "recall_rate is"),
        ({"calibration": {"method": "temperature", "temperature": -1.0}}, "no calibration"),
        ({"blend": "rank_mean"}, "blend=rank_mean needs the ranks of b5"),
        ({"member": {"rule": "median"}}, "rule of b5 is mean or max, not 'median'"),
        ({"member": {"select": "first"}}, "select of b5 is last or best"),
        ({"member": {"ranks": RANKS}}, "blend=mean needs no ranks of b5"),
        ({"another": 1}, "another version"),
        ({"thresholds": {"value": 0.31, "sites": [1], "recall_rate": 0.1}}, "another version"),
        ({"member": {"weight": "much"}}, "another version"),
        ("plateau", "another version"),
    ],
)
def test_read_ensemble_refuses_a_damaged_file_with_the_remedy(
    tmp_path: Path, change: Any, match: str
) -> None:
    file = tmp_path / "ensemble.json"
    write_ensemble(FITTED, file)
    record = json.loads(file.read_text())
    if isinstance(change, str):
        del record[change]
    elif "member" in change:
        record["members"][0] |= change["member"]
    else:
        record |= change
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"{match}.*rsna_bcd.ensemble.*overwrite=true"):
        read_ensemble(file)


def test_read_ensemble_refuses_an_absent_and_an_unreadable_file(tmp_path: Path) -> None:
    file = tmp_path / "pair" / "ensemble.json"
    with pytest.raises(InputError, match=r"ensemble name=pair members="):
        read_ensemble(file)
    file.parent.mkdir()
    file.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_ensemble(file)


def test_write_ensemble_refuses_numbers_that_are_not_finite(tmp_path: Path) -> None:
    plateau = replace(FITTED.plateau, standard_error=math.inf)
    with pytest.raises(InputError, match="ensemble.json is not written: .* not finite"):
        write_ensemble(replace(FITTED, plateau=plateau), tmp_path / "ensemble.json")
    assert not list(tmp_path.iterdir())
