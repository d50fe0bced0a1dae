"""The ensemble stage on runs of a few hundred rows."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated_runs import oof, oof_images, save_image_run, save_run
from stage_settings import composed

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.calibration import ece
from rsna_bcd.scoring.cross_fitting import EnsembleFitter, patient_groups
from rsna_bcd.scoring.ensemble import Ensemble, read_ensemble
from rsna_bcd.scoring.metrics import auroc, brier, pf1
from rsna_bcd.scoring.thresholds import BestPf1
from rsna_bcd.stages.ensemble import ensemble
from rsna_bcd.tables.predictions import by_aggregation, read_ensemble_oof, read_oof, read_run

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
    defaults = ["name=pair", "members=[b5,small]", "resamples=20", f"paths.output={output}"]
    return lambda *overrides: ensemble(composed("ensemble", *defaults, *overrides))


def test_ensemble_follows_from_the_files_of_its_members(fit: Fit, output: Path) -> None:
    fitted = fit("weights=[3,1]")
    folder = output / "ensembles" / "pair"
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["config.yaml", "ensemble.json", "oof.csv"]
    assert read_ensemble(folder / "ensemble.json") == fitted
    b5, small = fitted.members
    attributes = (b5.name, b5.folds, b5.dataset, b5.crop, b5.rule)
    assert attributes == ("b5", (0, 1), "rsna", "h512", "mean")
    assert (small.crop, b5.weight, small.weight) == ("h1024", 3, 1)
    assert (fitted.breasts, fitted.positives, fitted.prior) == (240, 48, 0.2)
    pooled = [
        pd.concat([read_oof(output / "runs" / name / f"fold{k}" / "oof.csv") for k in (0, 1)])
        for name in ("b5", "small")
    ]
    blended = 0.75 * pooled[0]["probability"] + 0.25 * pooled[1]["probability"]
    labels = pooled[0]["label"]
    table = read_oof(output / "ensembles" / "pair" / "oof.csv")
    np.testing.assert_allclose(table["probability"], blended, atol=1e-12)
    chosen = BestPf1().fit(labels, table["probability"], table["patient_id"])
    assert fitted.threshold == chosen.value
    in_sample = fitted.score["in_sample"]["pf1"]
    assert in_sample.value == pytest.approx(pf1(labels, chosen.decide(table["probability"])))
    cross_fitted = fitted.score["cross_fitted"]["pf1"]
    assert cross_fitted.low < cross_fitted.value <= in_sample.value


def test_breast_is_unread_only_where_no_member_read_it(output: Path, fit: Fit) -> None:
    for name, lost in (("c", ["5_L", "7_L"]), ("d", ["7_L"])):
        table = oof(range(100), 0)
        table["unread"] = table["prediction_id"].isin(lost).astype(int)
        save_run(output / "runs" / name, table)
    fit("name=cd", "members=[c,d]")
    table = read_oof(output / "ensembles" / "cd" / "oof.csv").set_index("prediction_id")
    assert table.index[table["unread"] == 1].tolist() == ["7_L"]


def test_unread_breasts_fit_nothing_and_are_predicted_negative(output: Path, fit: Fit) -> None:
    """Their prior is above all that the networks say, as after no calibration at all."""
    prior = 0.6
    for seed, name in enumerate(["c", "d"]):
        table = oof(range(200), 0, seed)
        table["probability"] /= 2
        table["unread"] = (np.arange(200) % 8 == 0).astype(int)  # 5 of 25 have cancer
        table["probability"] = table["probability"].mask(table["unread"] == 1, prior)
        save_run(output / "runs" / name, table)
        save_run(output / "runs" / f"{name}_read", table[table["unread"] == 0])
    settings = ["blend=rank_mean", "calibration=platt"]
    fitted = fit("name=cd", "members=[c,d]", *settings)
    read_alone = fit("name=read", "members=[c_read,d_read]", *settings)
    for one, other in ((fitted, read_alone), (fitted.members[0], read_alone.members[0])):
        for name in {"thresholds", "plateau", "calibration", "ranks"} & vars(one).keys():
            assert getattr(one, name) == getattr(other, name), name
    rows = read_ensemble_oof(output / "ensembles" / "cd" / "oof.csv")
    unread = rows["unread"] == 1
    assert unread.sum() == 25
    assert (rows["probability"][unread] > fitted.threshold).all()
    assert rows["decision"][unread].sum() == 0
    assert rows["calibrated"][unread].to_numpy() == pytest.approx(0.2, abs=0.02)
    # They are missed, not left out.
    in_sample = fitted.decide(rows["probability"], unreadable=unread)
    for kind, decisions in (("in_sample", in_sample), ("cross_fitted", rows["decision"])):
        assert fitted.score[kind]["pf1"].value == pytest.approx(pf1(rows["label"], decisions))
        assert fitted.score[kind]["pf1"].value < read_alone.score[kind]["pf1"].value


def test_same_settings_fit_again_and_others_are_refused(output: Path, fit: Fit) -> None:
    first = fit()
    assert fit() == first
    for name, crop in (("b5", "h512"), ("small", "h1024")):
        save_run(output / "runs" / name, oof(range(240, 300), 2), crop={"name": crop})
    assert fit().breasts == 300
    with pytest.raises(InputError, match=r"blend: mean -> logit_mean[\s\S]*overwrite=true"):
        fit("blend=logit_mean")
    assert fit("blend=logit_mean", "overwrite=true").blend == "logit_mean"


def test_old_thresholds_never_remain_beside_new_rows(
    output: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit()
    monkeypatch.setattr("rsna_bcd.stages.ensemble.write_ensemble", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit("blend=logit_mean", "overwrite=true")
    assert not (output / "ensembles" / "pair" / "ensemble.json").exists()


def test_caveats_are_printed(output: Path, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(output / "runs" / "chosen", oof(range(100), 2), select="best")
    for settings, caveat in (
        ([], "threshold=recall_rate keeps the rate"),
        (["threshold=recall_rate"], "submit keeps the recall rate instead"),
        (["members=[chosen]"], "optimistic: chosen kept the epoch"),
    ):
        fitted = fit("overwrite=true", *settings)
        assert caveat in " ".join(capsys.readouterr().out.split())
    assert [member.folds for member in fitted.members] == [(2,)]  # one fold is enough


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["members=[b5,absent]"], "absent holds no trained fold"),
        (["members=[b5,b5]"], "different runs"),
        (["members=[absent,too]", "weights=[1]"], "must be 2 numbers"),  # before they are read
        (["recall_rate=0.1"], "is for threshold=recall_rate"),
        (["by_site=5", "threshold=recall_rate"], "by_site= is for threshold=pf1"),
        (["by_site=5"], "by_site= needs .*h512/train.csv.*rsna_bcd.prepare dataset=rsna crop=h512"),
        (["calibration=temperature", "blend=rank_mean"], "use calibration=platt or isotonic"),
    ],
)
def test_bad_setting_is_refused(fit: Fit, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(*overrides)


def test_name_is_those_of_the_members_unless_given(output: Path) -> None:
    members = ["members=[b5,small]", "resamples=5", f"paths.output={output}"]
    assert ensemble(composed("ensemble", *members)).name == "b5+small"
    submit = composed("submit", "name=b5+small", f"paths.output={output}")
    assert Path(submit.ensemble_json).is_file()


def test_choices_are_cross_fitted_together(output: Path, fit: Fit) -> None:
    """The held-out rows of the table are those of the fitter, and make the scores."""
    for seed, name in enumerate(["c", "d"]):
        save_image_run(output / "runs" / name, oof_images(range(200), 0, seed))
    fitted = fit(
        "name=cd", "members=[c,d]", "weights=fitted", "rule=auto", "blend=rank_mean",
        "calibration=platt", "groups=4",
    )  # fmt: skip
    table = read_ensemble_oof(output / "ensembles" / "cd" / "oof.csv")
    runs = [output / "runs" / name for name in ("c", "d")]
    members = [
        {rule: p.to_numpy() for rule, p in by_aggregation(run, read_run(run), "mean").items()}
        for run in runs
    ]
    labels, patients = table["label"], table["patient_id"].to_numpy(dtype=str)
    fitter = EnsembleFitter("rank_mean", None, BestPf1(), "platt")
    groups = patient_groups(labels, patients, 4, 0)
    held_out = fitter.cross_fit(labels, members, patients, groups)
    np.testing.assert_array_equal(table["group"], groups)
    np.testing.assert_array_equal(table["held_out"], held_out.probabilities)
    np.testing.assert_array_equal(table["ranking"], held_out.ranking)
    assert (table["ranking"] != table["held_out"]).any()
    np.testing.assert_array_equal(table["decision"], held_out.decisions)
    np.testing.assert_array_equal(table["calibrated"], held_out.calibrated)
    np.testing.assert_array_equal(table["probability"], fitted.combine([m["max"] for m in members]))
    assert [member.rule for member in fitted.members] == ["max", "max"]
    thresholds = [one.threshold.value for one in held_out.fitted]
    assert fitted.cross_fitted_thresholds == tuple(thresholds)
    score = fitted.score
    assert score["auroc"].value == pytest.approx(auroc(labels, table["ranking"]))
    assert score["in_sample"]["auroc"].value == pytest.approx(auroc(labels, table["probability"]))
    assert score["cross_fitted"]["pf1"].value == pytest.approx(pf1(labels, table["decision"]))
    calibration = score["calibration"]
    assert calibration["calibrated"]["brier"].value == brier(labels, table["calibrated"])
    assert calibration["calibrated"]["brier"].value < 0.2 * 0.8  # that of the prevalence
    assert calibration["calibrated"]["ece"].value == ece(labels, table["calibrated"])
    assert "blended" not in calibration  # ranks are no probabilities
    in_sample = pf1(labels, fitted.decide(table["probability"]))
    assert score["optimism"] == pytest.approx(in_sample - score["cross_fitted"]["pf1"].value)


def test_recall_rate_predicts_that_share_positive(output: Path, fit: Fit) -> None:
    fitted = fit("threshold=recall_rate", "recall_rate=0.1")
    assert fitted.policy == "recall_rate"
    assert fitted.thresholds.recall_rate == pytest.approx(0.1, abs=1 / 240)
    assert fitted.score["in_sample"]["recall_rate"].value == fitted.thresholds.recall_rate
    # Of 240 rows none is nearest to this, so the PPV is undefined.
    fit("threshold=recall_rate", "recall_rate=0.0001", "overwrite=true")
    back = read_ensemble(output / "ensembles" / "pair" / "ensemble.json")
    assert np.isnan(back.score["in_sample"]["ppv"].value)
    assert back.score["in_sample"]["pf1"].value == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (oof(range(100), 0), "c lacks 140 of the breasts.*fold=1`"),
        (oof(range(240), 0).assign(probability=0.5), "All 240 probabilities of fold 0 of c equal"),
        (oof(range(240), 0).assign(probability=np.nan), "probability is not a number"),
        (oof(range(240), 0).assign(label=0), "Fold 0 of c has 0 positive ones"),
    ],
)
def test_unfit_member_is_refused(output: Path, fit: Fit, table: pd.DataFrame, message: str) -> None:
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


@pytest.mark.parametrize("start", ["the same fold", "all patients"])
def test_networks_of_all_patients_need_the_settings_of_the_folds(
    output: Path, fit: Fit, start: str
) -> None:
    run = output / "runs" / "c"
    for fold, patients in ((0, range(100)), (1, range(100, 240)), ("all", range(1))):
        first = "all" if start == "all patients" else fold
        settings = {
            "fold": fold,
            "checkpoint_path": f"runs/b5/fold{first}/checkpoints/last.ckpt",
            "starts_from": [{"name": "b5", "fold": first}],
        }
        save_run(run, oof(patients, fold, 5), **settings)
    (run / "foldall" / "oof.csv").unlink()
    fitted = fit("members=[c]", "name=all", "networks=all")
    folds = fit("members=[c]", "name=folds")
    assert fitted.members[0].hashes == {**folds.members[0].hashes, "all": {}}
    assert "networks=all" in fitted.command
    same = replace(fitted, name="folds", members=folds.members, command=folds.command)
    assert replace(same, networks="folds") == folds
    save_run(run, oof(range(1), "all"), **settings, epochs=12)
    with pytest.raises(InputError, match=r"(?s)fold0 -> foldall.*epochs: .absent. -> 12"):
        fit("members=[c]", "name=all", "networks=all")
    shutil.rmtree(run / "foldall")
    with pytest.raises(InputError, match=r"needs .*foldall, .*train .*name=c fold=all"):
        fit("members=[c]", "name=all", "networks=all")


def test_networks_of_all_patients_need_the_folds(output: Path, fit: Fit) -> None:
    (output / "runs" / "c").mkdir()
    (output / "runs" / "b5" / "fold0").rename(output / "runs" / "c" / "foldall")
    with pytest.raises(InputError, match=r"holds no trained fold. Run .*name=c fold=0"):
        fit("members=[c]", "name=c", "networks=all")


@pytest.mark.parametrize("setting", ["by_site=100", "calibration=platt"])
def test_networks_of_all_patients_have_nothing_out_of_fold(fit: Fit, setting: str) -> None:
    with pytest.raises(InputError, match="networks=all have none.*Leave them out"):
        fit("networks=all", setting)
