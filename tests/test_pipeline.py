"""From DICOM files to `submission.csv`, by the commands that a user types."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

MEMBER = "tiny"
# A network small enough for seconds; everything else is what `make demo` does.
TINY = [
    "experiment=demo",
    f"name={MEMBER}",
    "epochs=1",
    "batch_size=8",
    "workers=0",
]


def run(stage: str, *overrides: str, data: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Run a stage as a user does."""
    paths = [f"paths.data={data}", f"paths.output={output}"]
    return subprocess.run(
        [sys.executable, "-m", f"rsna_bcd.{stage}", *paths, *overrides],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def output(competition: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder after every stage ran once."""
    folder = tmp_path_factory.mktemp("pipeline") / "output"
    for stage, *overrides in (
        ["prepare", "crop=demo", "folds.assign.n_folds=2", "workers=0"],
        ["train", *TINY, "-m", "fold=0,1"],
        ["ensemble", "name=all", f"members=[{MEMBER}]"],
        ["submit", "name=all", "workers=0"],
        ["evaluate", "name=all"],
    ):
        done = run(stage, *overrides, data=competition, output=folder)
        assert done.returncode == 0, f"{stage}: {done.stdout}\n{done.stderr}"
    return folder


def test_the_submission_answers_the_sample_submission(output: Path, competition: Path) -> None:
    submission = pd.read_csv(output / "submissions" / "all" / "submission.csv")
    sample = pd.read_csv(competition / "sample_submission.csv")
    assert submission.columns.tolist() == ["prediction_id", "cancer"]
    assert submission["prediction_id"].tolist() == sample["prediction_id"].tolist()
    assert set(submission["cancer"]) <= {0, 1}
    failures = pd.read_csv(output / "submissions" / "all" / "failures.csv")
    assert failures.empty


def test_out_of_fold_predictions_cover_every_breast_once(output: Path, competition: Path) -> None:
    folds = [output / "runs" / MEMBER / f"fold{k}" for k in (0, 1)]
    oof = pd.concat([pd.read_csv(fold / "oof.csv") for fold in folds])
    train = pd.read_csv(competition / "train.csv", dtype={"patient_id": str})
    wanted = set(train["patient_id"] + "_" + train["laterality"])
    assert len(oof) == len(wanted)
    assert set(oof["prediction_id"]) == wanted
    for fold in folds:
        assert json.loads((fold / "metrics.json").read_text())


def test_the_submission_is_the_mean_over_folds_cut_at_the_fitted_threshold(output: Path) -> None:
    ensemble = json.loads((output / "ensembles" / "all" / "ensemble.json").read_text())
    folder = output / "submissions" / "all"
    predictions = pd.read_csv(folder / "predictions.csv").set_index("prediction_id")
    submission = pd.read_csv(folder / "submission.csv").set_index("prediction_id")
    decided = (predictions["probability"] >= ensemble["threshold"]).astype(int)
    assert decided.loc[submission.index].tolist() == submission["cancer"].tolist()


def test_a_test_image_is_predicted_like_a_training_image(
    output: Path, competition: Path, tmp_path: Path
) -> None:
    """The held-out patients of fold 0, submitted as test images to the run of fold 0."""
    oof = pd.read_csv(
        output / "runs" / MEMBER / "fold0" / "oof.csv", dtype={"prediction_id": str}
    ).set_index("prediction_id")
    train = pd.read_csv(competition / "train.csv", dtype={"patient_id": str})
    train["prediction_id"] = train["patient_id"] + "_" + train["laterality"]
    test = train[train["prediction_id"].isin(oof.index)]
    data = tmp_path / "data"
    data.mkdir()
    (data / "test_images").symlink_to(competition / "train_images")
    test.to_csv(data / "test.csv", index=False)
    fitted = output / "ensembles" / "all" / "ensemble.json"
    record = json.loads(fitted.read_text())
    record["members"][0]["folds"] = [0]
    alone = output / "ensembles" / "fold0" / "ensemble.json"
    alone.parent.mkdir(exist_ok=True)
    alone.write_text(json.dumps(record))
    done = run("submit", "name=fold0", "workers=0", data=data, output=output)
    assert done.returncode == 0, done.stderr
    predictions = pd.read_csv(output / "submissions" / "fold0" / "predictions.csv")
    predicted = predictions.set_index("prediction_id")["probability"]
    # A different batch size moves a probability in its seventh digit.
    assert predicted.to_numpy() == pytest.approx(
        oof.loc[predicted.index, "probability"].to_numpy(), abs=1e-6
    )


def test_unreadable_and_absent_files_cost_their_breast_not_the_submission(
    output: Path, competition: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    test = pd.read_csv(competition / "test.csv", dtype=str)
    test.to_csv(data / "test.csv", index=False)
    for source in (competition / "test_images").rglob("*.dcm"):
        target = data / "test_images" / source.relative_to(competition / "test_images")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    lost, truncated = test["prediction_id"].unique()[:2]
    reasons = {}
    for row in test[test["prediction_id"].isin([lost, truncated])].itertuples():
        file = data / "test_images" / str(row.patient_id) / f"{row.image_id}.dcm"
        content = file.read_bytes()
        file.unlink()
        if row.prediction_id == truncated:
            file.write_bytes(content[: len(content) // 2])
        reasons[row.image_id] = row.prediction_id
    done = run("submit", "name=all", "workers=1", data=data, output=output)
    assert done.returncode == 0, done.stderr
    folder = output / "submissions" / "all"
    failures = pd.read_csv(folder / "failures.csv", dtype=str)
    of_images = failures.dropna(subset="image_id").set_index("image_id")
    assert of_images["prediction_id"].to_dict() == reasons
    kinds = {lost: "absent", truncated: "unreadable"}
    assert (of_images["kind"] == of_images["prediction_id"].map(kinds)).all()
    of_breasts = failures[failures["image_id"].isna()].set_index("prediction_id")["kind"]
    assert of_breasts.to_dict() == dict.fromkeys([lost, truncated], "nothing readable")
    assert failures["reason"].str.len().min() > 0
    prior = json.loads((output / "ensembles" / "all" / "ensemble.json").read_text())["prior"]
    predictions = pd.read_csv(folder / "predictions.csv").set_index("prediction_id")["probability"]
    assert predictions[[lost, truncated]].tolist() == pytest.approx([prior, prior])
    assert len(predictions) == test["prediction_id"].nunique()


def test_no_file_at_all_stops_before_predicting(
    output: Path, competition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "test.csv").write_bytes((competition / "test.csv").read_bytes())
    paths = [f"paths.data={data}", f"paths.output={output}"]
    monkeypatch.setattr(sys, "argv", ["submit", *paths, "name=all"])
    with pytest.raises(SystemExit, match="None of the .* files"):
        importlib.import_module("rsna_bcd.submit").main()


def test_nothing_readable_gives_every_breast_the_prior(
    output: Path, competition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    for source in (competition / "test_images").rglob("*.dcm"):
        target = data / "test_images" / source.relative_to(competition / "test_images")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("no DICOM")
    (data / "test.csv").write_bytes((competition / "test.csv").read_bytes())
    paths = [f"paths.data={data}", f"paths.output={output}", f"submission_dir={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["submit", *paths, "name=all", "workers=0"])
    importlib.import_module("rsna_bcd.submit").main()
    predictions = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert predictions["probability"].nunique() == 1


@pytest.mark.parametrize(
    ("stage", "overrides", "part"),
    [
        ("train", [*TINY, "fold=9"], "fold"),
        ("train", ["experiment=no_such_experiment"], "no_such_experiment"),
        ("train", [*TINY, "fold=0", "epochs=2"], "epochs: 1 -> 2"),
        ("train", [*TINY, "name=other", "crop=h1024"], "rsna_bcd.prepare"),
        ("prepare", ["crop=demo", "crop.margin=0.2"], "crop.margin"),
        ("ensemble", ["name=b", "members=[absent]"], "absent"),
        ("submit", ["name=absent"], "rsna_bcd.ensemble"),
    ],
)
def test_bad_input_gets_one_message(
    stage: str,
    overrides: list[str],
    part: str,
    output: Path,
    competition: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = [f"paths.data={competition}", f"paths.output={output}"]
    monkeypatch.setattr(sys, "argv", [stage, *paths, *overrides])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"rsna_bcd.{stage}").main()
    assert str(stop.value.code).startswith("error: ")
    assert part in str(stop.value.code)


def test_what_is_finished_is_not_done_again(
    output: Path, competition: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = output / "runs" / MEMBER / "fold0" / "checkpoints" / "last.ckpt"
    before = weights.stat().st_mtime_ns
    paths = [f"paths.data={competition}", f"paths.output={output}"]
    monkeypatch.setattr(sys, "argv", ["train", *paths, *TINY, "fold=0"])
    importlib.import_module("rsna_bcd.train").main()
    assert weights.stat().st_mtime_ns == before
