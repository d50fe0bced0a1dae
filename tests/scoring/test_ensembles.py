"""`ensemble.json` there and back, and that nothing unfitted can be read."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.blend import Ranks
from rsna_bcd.scoring.bootstrap import Interval
from rsna_bcd.scoring.calibration import Isotonic, Temperature
from rsna_bcd.scoring.calibration_intervals import CalibrationError
from rsna_bcd.scoring.ensembles import Ensemble, Member, read_ensemble, write_ensemble
from rsna_bcd.scoring.plateau import Plateau
from rsna_bcd.scoring.threshold import Threshold

ABOVE = math.nextafter(1, 2)
FITTED = Ensemble(
    name="pair",
    blend="mean",
    members=(
        Member("b5", (0, 1), dataset="rsna", crop="h1536", rule="mean", select="last", weight=3.0),
        Member(
            "small", (0, 1), dataset="rsna", crop="h2048", rule="max", select="last", weight=1.0
        ),
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
        "calibration": {
            "blended": {
                "brier": Interval(0.019, 0.018, 0.02),
                "ece": CalibrationError(0.004, chance=0.002),
            }
        },
    },
)
RANKED = replace(
    FITTED,
    blend="rank_mean",
    members=tuple(
        replace(member, ranks=Ranks((0.0, top, 1.0), (0.0, 0.9, 1.0)))
        for member, top in zip(FITTED.members, (0.1, 0.5), strict=True)
    ),
)


@pytest.mark.parametrize(
    "fitted",
    [
        FITTED,
        RANKED,
        replace(FITTED, policy="recall_rate", calibration=Temperature(1.3, -0.2)),
        replace(FITTED, calibration=Isotonic((0.1, 0.2, 1 / 3), (0.0, 0.1, 1.0))),
        # What `recall_rate` gives where none is called.
        replace(FITTED, threshold=ABOVE, thresholds=Threshold(ABOVE, {}, 0.0)),
    ],
)
def test_there_and_back(tmp_path: Path, fitted: Ensemble) -> None:
    write_ensemble(fitted, tmp_path / "ensemble.json")
    assert read_ensemble(tmp_path / "ensemble.json") == fitted


def test_the_file_is_whole_and_readable(tmp_path: Path) -> None:
    file = tmp_path / "pair" / "ensemble.json"
    write_ensemble(RANKED, file)
    assert [path.name for path in file.parent.iterdir()] == ["ensemble.json"]
    record = json.loads(file.read_text())
    assert record["score"]["cross_fitted"]["pf1"] == {"value": 0.48, "low": 0.44, "high": 0.52}
    blended = record["score"]["calibration"]["blended"]
    assert blended["ece"] == {"value": 0.004, "chance": 0.002}
    assert '"probabilities": [ 0.0, 0.1, 1.0 ],' in file.read_text()


def test_combine_keeps_to_the_members_weights() -> None:
    np.testing.assert_allclose(FITTED.combine([[0.4, 0.0], [0.8, 1.0]]), [0.5, 0.25])


def test_combine_ranks_by_what_is_stored() -> None:
    # Halfway to each member's top: rank .45; beyond it, halfway to 1: rank .95.
    np.testing.assert_allclose(RANKED.combine([[0.05, 0.55], [0.25, 0.75]]), [0.45, 0.95])
    # The prior, .0207, is below the tops: ranks .9 * .207 and .9 * .0414, weights 3 and 1.
    assert RANKED.unread == pytest.approx(0.9 * (3 * 0.207 + 0.0414) / 4)
    assert FITTED.unread == pytest.approx(FITTED.prior)


def test_a_site_has_its_own_threshold_and_an_unknown_one_the_global() -> None:
    decided = FITTED.decide([0.35, 0.35, 0.35, 0.35, 0.41], ["1", "2", "", "9", "2"])
    assert decided.tolist() == [1, 0, 1, 1, 1]
    assert FITTED.decide([0.35, 0.3]).tolist() == [1, 0]


def test_recall_rate_is_kept_on_new_rows_that_are_enough() -> None:
    by_rate = replace(FITTED, policy="recall_rate", thresholds=Threshold(0.31, {}, 0.02))
    many = np.random.default_rng(0).random(2000) / 10  # all below the fitted threshold
    assert by_rate.decide(many).sum() == 40
    assert by_rate.decide(many[:100]).sum() == 0  # 2 calls are left to chance
    assert FITTED.decide(many).sum() == 0


@pytest.mark.parametrize("fitted", [FITTED, RANKED], ids=["mean", "rank_mean"])
@pytest.mark.parametrize("calibration", [None, Temperature(2.0, -1.0)])
def test_unread_breasts_are_negative_also_where_the_prior_is_above_the_threshold(
    fitted: Ensemble, calibration: Temperature | None
) -> None:
    low = fitted.unread / 2
    fitted = replace(
        fitted, threshold=low, thresholds=Threshold(low, {"2": low}), calibration=calibration
    )
    p = [0.9, fitted.unread, fitted.unread, 0.0]
    assert fitted.decide(p).tolist() == [1, 1, 1, 0]  # these were read, and have this blend
    unread = [0, 1, 1, 0]
    assert fitted.decide(p, unread=unread).tolist() == [1, 0, 0, 0]
    assert fitted.decide(p, ["2", "2", "", "2"], np.array(unread, bool)).tolist() == [1, 0, 0, 0]
    calibrated = fitted.calibrate(p, unread)
    if calibration is None:
        assert calibrated is None
    else:
        whole = calibration.apply(p)
        assert calibrated is not None
        assert calibrated.tolist() == [whole[0], fitted.prior, fitted.prior, whole[3]]


def test_unread_breasts_have_no_part_in_a_recall_rate() -> None:
    by_rate = replace(FITTED, policy="recall_rate", thresholds=Threshold(0.31, {}, 0.02))
    p = np.random.default_rng(0).random(4000) / 10
    unread = np.arange(len(p)) % 2 == 1
    p[unread] = 0.5  # above all others: they would take the whole share
    decided = by_rate.decide(p, unread=unread)
    np.testing.assert_array_equal(decided[~unread], by_rate.decide(p[~unread]))
    assert decided.sum() == 40
    assert not decided[unread].any()
    assert by_rate.decide(p[:4], unread=[1, 1, 1, 1]).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("calibration", [Temperature(2.0, -1.0), Isotonic((0.2, 0.6), (0.0, 1.0))])
def test_calibration_changes_no_decision(calibration: Temperature | Isotonic) -> None:
    calibrated, p = replace(FITTED, calibration=calibration), np.linspace(0, 1, 101)
    assert calibrated.decide(p).tolist() == FITTED.decide(p).tolist()
    assert FITTED.calibrate(p) is None
    found = calibrated.calibrate(p)
    assert found is not None
    called = FITTED.decide(p) == 1
    assert found[called].min() >= found[~called].max()


def test_what_was_not_fitted_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ensemble name=pair members="):
        read_ensemble(tmp_path / "pair" / "ensemble.json")


def damage(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {**record, **changes}


def damage_members(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {
        **record,
        "members": [{**member, **changes} for member in record["members"]],
    }


PF1 = {"pf1": {"value": 0.5, "low": 0.4, "high": 0.6}}
SCORE = {"cross_fitted": PF1, "in_sample": PF1}
RANKS = {"probabilities": [0.0, 1.0], "ranks": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage(threshold=None), "threshold is None"),
        (damage(threshold=float("nan")), "threshold is nan"),
        (damage(threshold=1.5), "threshold is 1.5"),
        (damage(prior=-0.1), "prior is -0.1"),
        (damage(members=[]), "names no members"),
        (damage(score={"in_sample": {"pf1": {"value": 1, "low": 1, "high": 1}}}), "cross_fitted"),
        (damage(blend="median"), "not 'median'"),
        (damage(another=1), "another version"),
        (damage(score=None), "another version"),
        (damage(score={**SCORE, "cross_fitted": 3}), "no score.cross_fitted.pf1"),
        (damage(score={**SCORE, "cross_fitted": None}), "no score.cross_fitted.pf1"),
        (damage(score={**SCORE, "in_sample": {"pf1": 1}}), "no score.in_sample.pf1"),
        (damage(plateau=[1]), "another version"),
        (damage(thresholds={"value": 0.31, "sites": [1], "recall_rate": 0.1}), "another version"),
        (damage(calibration="platt"), "another version"),
        (damage(members=[1]), "another version"),
        (damage_members(rule="median"), "rule of b5 is mean or max, not 'median'"),
        (damage_members(select="first"), "select of b5 is last or best"),
        (damage_members(ranks=[1, 2]), "another version"),
        (damage_members(ranks=RANKS), "blend=mean needs no ranks of b5"),
        (damage_members(folds=3), "another version"),
        (damage_members(weight="much"), "another version"),
        (damage(policy="f2"), "policy is pf1 or recall_rate"),
        (damage(threshold=0.3), "differ"),
        (damage(thresholds={"value": 0.31, "sites": {"2": None}, "recall_rate": 0.1}), "site 2"),
        (damage(thresholds={"value": 0.31, "sites": {}, "recall_rate": None}), "recall_rate is"),
        (damage(calibration={"method": "temperature", "temperature": -1.0}), "no calibration"),
        (damage(blend="rank_mean"), "blend=rank_mean needs the ranks of b5"),
        (lambda record: {k: v for k, v in record.items() if k != "threshold"}, "another version"),
    ],
)
def test_damaged_files(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    file = tmp_path / "ensemble.json"
    write_ensemble(FITTED, file)
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(InputError, match=message):
        read_ensemble(file)


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_a_number_that_is_none_is_not_written(tmp_path: Path, number: float) -> None:
    plateau = replace(FITTED.plateau, standard_error=number)
    with pytest.raises(InputError, match="ensemble.json is not written: .* infinite or none"):
        write_ensemble(replace(FITTED, plateau=plateau), tmp_path / "ensemble.json")
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_version_before_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "ensemble.json"
    write_ensemble(FITTED, file)
    record = json.loads(file.read_text())
    for key in ("policy", "thresholds", "plateau", "cross_fitted_thresholds", "calibration"):
        del record[key]
    for member in record["members"]:
        del member["ranks"]
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match="another version.*rsna_bcd.ensemble.*overwrite=true"):
        read_ensemble(file)


def test_a_file_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "ensemble.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_ensemble(tmp_path / "ensemble.json")
