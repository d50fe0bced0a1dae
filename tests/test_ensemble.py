"""The ensemble stage on runs of a few hundred rows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated_runs import oof, save_run
from hydra import compose, initialize_config_dir

from rsna_bcd._stage import CONF
from rsna_bcd.ensemble import ensemble
from rsna_bcd.errors import InputError
from rsna_bcd.scoring.ensembles import Ensemble, read_ensemble
from rsna_bcd.scoring.pf1 import pf1
from rsna_bcd.scoring.threshold import best_threshold, decide
from rsna_bcd.tables.predictions import read_oof

Fit = Callable[..., Ensemble]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two members with the same two folds."""
    for seed, name in enumerate(["b5", "small"]):
        folds = oof(range(100), 0, seed), oof(range(100, 240), 1, seed)
        save_run(tmp_path / "runs" / name, *folds, crop={"name": f"h{512 * (seed + 1)}"})
    return tmp_path


@pytest.fixture
def fit(output: Path) -> Fit:
    def run(*overrides: str) -> Ensemble:
        defaults = ["name=pair", "members=[b5,small]", "resamples=50", f"paths.output={output}"]
        with initialize_config_dir(CONF, version_base="1.3"):
            return ensemble(compose("ensemble", [*defaults, *overrides]))

    return run


def test_what_is_written_is_what_inference_needs(fit: Fit, output: Path) -> None:
    fitted = fit("weights=[3,1]")
    folder = output / "ensembles" / "pair"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "ensemble.json",
        "oof.csv",
    ]
    assert read_ensemble(folder / "ensemble.json") == fitted
    b5, small = fitted.members
    assert (b5.name, b5.folds, b5.dataset, b5.crop, b5.rule) == (
        "b5",
        (0, 1),
        "rsna",
        "h512",
        "mean",
    )
    assert (small.crop, b5.weight, small.weight) == ("h1024", 3, 1)
    assert fitted.prior == pytest.approx(0.2)
    assert (fitted.breasts, fitted.positives) == (240, 48)


def test_blend_threshold_and_score_follow_from_the_members_files(fit: Fit, output: Path) -> None:
    fitted = fit("weights=[3,1]")
    pooled = [
        pd.concat([read_oof(output / "runs" / name / f"fold{k}" / "oof.csv") for k in (0, 1)])
        for name in ("b5", "small")
    ]
    blended = 0.75 * pooled[0]["probability"] + 0.25 * pooled[1]["probability"]
    labels = pooled[0]["label"]
    table = read_oof(output / "ensembles" / "pair" / "oof.csv")
    np.testing.assert_allclose(table["probability"], blended, atol=1e-12)
    assert fitted.threshold == best_threshold(labels, table["probability"])
    in_sample = fitted.score["in_sample"]["pf1"]
    assert in_sample.value == pytest.approx(pf1(labels, decide(blended, fitted.threshold)))
    honest = fitted.score["cross_fitted"]["pf1"]
    assert honest.value <= in_sample.value
    assert honest.low < honest.value < honest.high


def test_one_fold_of_one_member_is_enough(output: Path, fit: Fit) -> None:
    save_run(output / "runs" / "alone", oof(range(100), 2))
    fitted = fit("name=alone", "members=[alone]")
    assert [member.folds for member in fitted.members] == [(2,)]
    assert fitted.score["cross_fitted"]["pf1"].value > 0


def test_a_breast_is_unread_only_where_no_member_read_it(output: Path, fit: Fit) -> None:
    for name, lost in (("c", ["5_L", "7_L"]), ("d", ["7_L"])):
        table = oof(range(100), 0)
        table["unread"] = table["prediction_id"].isin(lost).astype(int)
        save_run(output / "runs" / name, table)
    fit("name=cd", "members=[c,d]")
    table = read_oof(output / "ensembles" / "cd" / "oof.csv").set_index("prediction_id")
    assert table.index[table["unread"] == 1].tolist() == ["7_L"]


def test_same_settings_fit_again_and_others_are_refused(output: Path, fit: Fit) -> None:
    first = fit()
    assert fit() == first
    for name, crop in (("b5", "h512"), ("small", "h1024")):
        save_run(output / "runs" / name, oof(range(240, 300), 2), crop={"name": crop})
    assert fit().breasts == 300
    with pytest.raises(InputError, match=r"blend: mean -> logit_mean[\s\S]*overwrite=true"):
        fit("blend=logit_mean")
    assert fit("blend=logit_mean", "overwrite=true").blend == "logit_mean"


def test_optimistic_members_are_pointed_out(
    output: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(output / "runs" / "chosen", oof(range(100), 0), select="best")
    fit("name=chosen", "members=[chosen]")
    assert "optimistic: chosen kept the epoch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["members=[b5,absent]"], "absent holds no trained fold"),
        (["members=[b5,b5]"], "different runs"),
        (["members=b5"], "must be a list"),
        (["members=[]"], "must be a list"),
        (["weights=[1]"], "must be 2 numbers"),
        (["blend=median"], "not 'median'"),
    ],
)
def test_bad_settings(fit: Fit, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(*overrides)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (oof(range(100), 0), "c lacks 140 of the breasts.*fold=1`"),
        (oof(range(240), 0).assign(probability=0.5), "All 240 probabilities equal 0.5"),
        (oof(range(240), 0).assign(probability=np.nan), "probability is not a number"),
        (oof(range(240), 0).assign(label=0), "0 positive"),
    ],
)
def test_unfit_members(output: Path, fit: Fit, table: pd.DataFrame, message: str) -> None:
    save_run(output / "runs" / "c", table)
    members = "[b5,c]" if "lacks" in message else "[c]"
    with pytest.raises(InputError, match=message):
        fit("name=c", f"members={members}")
    assert not (output / "ensembles" / "c").exists()


def test_folds_must_be_trained_alike(output: Path, fit: Fit) -> None:
    run = save_run(output / "runs" / "c", oof(range(100), 0))
    save_run(run, oof(range(100, 240), 1), breast_rule="max")
    with pytest.raises(InputError, match="(?s)Folds of c were trained.*breast_rule: mean -> max"):
        fit("name=c", "members=[c]")
    for fold in ("fold0", "fold1"):
        (run / fold / "config.yaml").write_text("crop: {name: h512}\n")
    with pytest.raises(InputError, match="lacks dataset.name, breast_rule, select"):
        fit("name=c", "members=[c]")


def test_folds_may_start_from_the_same_fold_of_another_run(output: Path, fit: Fit) -> None:
    for fold in (0, 1):
        settings = {
            "fold": fold,
            "checkpoint_path": f"runs/b5/fold{fold}/checkpoints/last.ckpt",
            "starts_from": [{"name": "b5", "fold": fold}],
        }
        patients = range(100) if fold == 0 else range(100, 240)
        save_run(output / "runs" / "c", oof(patients, fold, 5), **settings)
    fit("members=[c]", "name=second_stage")
    save_run(output / "runs" / "c", oof(range(100), 0, 5), **{**settings, "fold": 0})
    with pytest.raises(InputError, match=r"(?s)Folds of c were trained.*checkpoint_path"):
        fit("members=[c]", "name=mixed")
