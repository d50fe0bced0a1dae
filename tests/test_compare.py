"""Runs side by side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricated_runs import oof, save_run
from hydra import compose, initialize_config_dir

from rsna_bcd._stage import CONF
from rsna_bcd.compare import compare
from rsna_bcd.errors import InputError
from rsna_bcd.scoring.ranking import auroc

Compare = Callable[..., dict[str, Any]]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, skill, folds in (("plain", 0.0, 3), ("ours", 0.4, 2)):
        for fold in range(folds):
            patients = range(100 * fold, 100 * fold + 100)
            save_run(tmp_path / "runs" / name, oof(patients, fold, seed=len(name), skill=skill))
    return tmp_path


@pytest.fixture
def compared(runs: Path) -> Compare:
    def run(*overrides: str) -> dict[str, Any]:
        defaults = ["runs=[plain,ours]", "resamples=100", f"paths.output={runs}"]
        with initialize_config_dir(CONF, version_base="1.3"):
            return compare(compose("compare", [*defaults, *overrides]))

    return run


def test_scores_and_differences_on_the_shared_folds(compared: Compare, runs: Path) -> None:
    result = compared(f"json={runs}/difference.json")
    assert (result["folds"], result["breasts"], result["positives"]) == ([0, 1], 200, 40)
    plain, ours = (result["runs"][name] for name in ("plain", "ours"))
    difference = ours["difference"]["auroc"]
    assert difference.value == pytest.approx(
        ours["score"]["auroc"].value - plain["score"]["auroc"].value
    )
    assert difference.low > 0
    assert difference.p_value < 0.05
    assert "difference" not in plain
    written = json.loads((runs / "difference.json").read_text())
    assert written["runs"]["ours"]["difference"]["auroc"]["value"] == difference.value


def test_one_fold(compared: Compare) -> None:
    result = compared("fold=1")
    table = oof(range(100, 200), 1, seed=4, skill=0.4)
    assert result["runs"]["ours"]["score"]["auroc"].value == pytest.approx(
        auroc(table["label"], table["probability"])
    )


def test_a_run_alone_has_scores_and_no_difference(compared: Compare) -> None:
    result = compared("runs=[plain]")
    assert (result["folds"], list(result["runs"]["plain"])) == ([0, 1, 2], ["score"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fold=[1,2]"], "Fold 2 of ours was not trained"),
        (["runs=[plain,absent]"], r"absent has \[\]"),
        (["runs=ours"], "must be a list"),
    ],
)
def test_bad_settings(compared: Compare, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compared(*overrides)
