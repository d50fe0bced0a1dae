"""Runs side by side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fabricated_runs import oof, save_run
from stage_settings import composed

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.metrics import auroc
from rsna_bcd.stages.compare import compare

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
        defaults = ["runs=[plain,ours]", "resamples=50", f"paths.output={runs}"]
        return compare(composed("compare", *defaults, *overrides))

    return run


def test_scores_and_differences_on_the_shared_folds(compared: Compare, runs: Path) -> None:
    result = compared(f"json={runs}/difference.json", f"csv={runs}/difference.csv")
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
    table = pd.read_csv(runs / "difference.csv").set_index(["run", "metric"])
    assert len(table) == 2 * len(plain["score"])
    assert table.loc[("plain", "auroc"), "value"] == plain["score"]["auroc"].value
    assert table.loc[("ours", "auroc"), "difference_low"] == difference.low
    assert table["p_value"].isna().sum() == len(plain["score"])


def test_scores_of_one_fold_and_of_one_run(compared: Compare) -> None:
    score = compared("fold=1")["runs"]["ours"]["score"]
    table = oof(range(100, 200), 1, seed=4, skill=0.4)
    assert score["auroc"].value == pytest.approx(auroc(table["label"], table["probability"]))
    alone = compared("runs=[plain]")
    assert (alone["folds"], list(alone["runs"]["plain"])) == ([0, 1, 2], ["score"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fold=[1,2]"], "Fold 2 of ours was not trained"),
        (["runs=[plain,absent]"], r"absent has \[\]"),
        (["runs=[ours,ours]"], "must be a list of different runs"),
        (["runs=theirs*"], r"no run with a finished fold for runs=theirs\*"),
        (["runs=ours", "reference=theirs"], "no run with a finished fold for reference=theirs"),
        (["runs=null", "metric=accuracy"], "choose auroc, average_precision, pf1"),
        (["reference=plain"], "reference=plain is for all runs or a pattern"),
        (["runs=null", "fold=0"], r"fold=0 is for a list of runs, such as runs=\[a,b\]"),
    ],
)
def test_bad_setting_is_refused(compared: Compare, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compared(*overrides)


def test_overview_ranks_all_runs_beside_the_reference(
    compared: Compare, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compared("runs=null", "reference=plain", f"csv={runs}/all.csv")
    ours, plain = result["runs"]
    assert (ours["run"], ours["folds"], ours["breasts"]) == ("ours", "0 1", 200)
    assert (plain["run"], plain["folds"], plain["breasts"]) == ("plain", "0 1 2", 300)
    side_by_side = compared()["runs"]["ours"]  # on the 200 that both have
    assert ours["value"] == pytest.approx(side_by_side["score"]["auroc"].value)
    assert ours["difference"] == pytest.approx(side_by_side["difference"]["auroc"].value)
    assert ours["p_value"] == pytest.approx(side_by_side["difference"]["auroc"].p_value)
    assert plain["difference"] is None
    written = pd.read_csv(runs / "all.csv")
    assert written["value"].tolist() == pytest.approx([ours["value"], plain["value"]])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_reference_is_the_baseline_or_the_best(compared: Compare, runs: Path) -> None:
    assert compared("runs=null")["reference"] == "ours"
    save_run(runs / "runs" / "baseline", oof(range(100), 0))
    assert compared("runs=null")["reference"] == "baseline"
    pattern = compared("runs=o*", "reference=plain", "metric=pf1")
    assert [run["run"] for run in pattern["runs"]] == ["ours", "plain"]


def test_unfinished_runs_are_listed_and_do_not_count(
    compared: Compare, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = runs / "runs", oof(range(100), 0)
    (folder / ".submitit").mkdir()
    save_run(folder / "idle", table)
    save_run(folder / "flat", table.assign(probability=0.5))
    save_run(folder / "damaged", table)
    for fold in ("plain/fold2", "idle/fold0"):
        (folder / fold / "metrics.json").unlink()
    (folder / "damaged" / "fold0" / "oof.csv").write_text("")
    (folder / "ours" / "fold0" / "metrics.json").write_text('{"optimistic": true}')
    result = compared("runs=null", "metric=pf1")
    by_name = {run["run"]: run for run in result["runs"]}
    assert by_name.keys() == {"plain", "ours"}
    assert by_name["plain"]["folds"] == "0 1"
    assert by_name["ours"]["optimistic"] == 1
    assert result["not_counted"].keys() == {"plain", "idle", "flat", "damaged"}
    assert result["not_counted"]["idle"] == "fold 0 not finished"
    assert "is empty" in result["not_counted"]["damaged"]
    assert "probabilities equal 0.5" in result["not_counted"]["flat"]
    printed = capsys.readouterr().out
    assert "ours *" in printed
    assert "plain: fold 2 not finished" in printed


def test_runs_on_other_breasts_or_labels_have_a_score_and_a_remark(
    compared: Compare, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(runs / "runs" / "elsewhere", oof(range(900, 1000), 0, skill=0.6))
    rows = oof(range(100), 0)
    rows.loc[:2, "label"] = 1 - rows.loc[:2, "label"]
    save_run(runs / "runs" / "relabelled", rows, oof(range(100, 200), 1))
    save_run(runs / "runs" / "relabelled", oof(range(200, 300), 2))
    (runs / "runs" / "relabelled" / "fold2" / "metrics.json").unlink()
    result = compared("runs=null", "reference=ours")
    by_name = {run["run"]: run for run in result["runs"]}
    assert by_name["plain"]["difference"] is not None
    elsewhere = by_name["elsewhere"]
    assert (elsewhere["shared_breasts"], elsewhere["difference"]) == (0, None)
    relabelled = by_name["relabelled"]
    assert (relabelled["shared_breasts"], relabelled["difference"]) == (200, None)
    assert relabelled["value"] > 0.5
    remark = "fold 2 not finished; labels differ from ours's for 3 breasts"
    assert result["not_counted"]["relabelled"] == remark
    printed = capsys.readouterr().out
    assert f"relabelled: {remark}\n" in printed
    assert "no breast in common" in printed
