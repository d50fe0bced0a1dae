"""`ensemble.json` there and back, and that nothing unfitted can be read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.bootstrap import Interval
from rsna_bcd.scoring.ensembles import Ensemble, Member, read_ensemble, write_ensemble

FITTED = Ensemble(
    name="pair",
    blend="mean",
    members=(
        Member("b5", (0, 1), dataset="rsna", crop="h1536", rule="mean", select="last", weight=3.0),
        Member(
            "small", (0, 1), dataset="rsna", crop="h2048", rule="max", select="last", weight=1.0
        ),
    ),
    threshold=0.31,
    prior=0.0207,
    breasts=23826,
    positives=492,
    score={
        "auroc": Interval(0.92, 0.9, 0.94),
        "cross_fitted": {"pf1": Interval(0.48, 0.44, 0.52)},
        "in_sample": {"pf1": Interval(0.5, 0.46, 0.54)},
    },
)


def test_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "pair" / "ensemble.json"
    write_ensemble(FITTED, file)
    assert read_ensemble(file) == FITTED
    assert [path.name for path in file.parent.iterdir()] == ["ensemble.json"]
    record = json.loads(file.read_text())
    assert record["score"]["cross_fitted"]["pf1"] == {"value": 0.48, "low": 0.44, "high": 0.52}


def test_combine_keeps_to_the_members_weights() -> None:
    np.testing.assert_allclose(FITTED.combine([[0.4, 0.0], [0.8, 1.0]]), [0.5, 0.25])


def test_what_was_not_fitted_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ensemble name=pair members="):
        read_ensemble(tmp_path / "pair" / "ensemble.json")


def damage(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {**record, **changes}


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


def test_a_file_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "ensemble.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_ensemble(tmp_path / "ensemble.json")
