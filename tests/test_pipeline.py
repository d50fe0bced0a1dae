"""From DICOM files to the report, by the five commands of the README."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from test_docs import ROOT, commands

from rsna_bcd._stage import main

# A tiny network and crop in the place of those of the README.
SMALL = {
    "crop=h1536": ["crop=demo", "folds.assign.n_folds=2", "workers=0"],
    "experiment=recommended": ["experiment=demo", "name=recommended", "epochs=1", "batch_size=8"],
    "trainer=gpu": ["trainer=cpu", "workers=0"],
    "fold=0,1,2,3": ["fold=0,1"],
}
TINY = [one for part in ("experiment=recommended", "trainer=gpu") for one in SMALL[part]]
MORE = {"submit": ["workers=0"], "ensemble": ["resamples=100"], "report": ["resamples=100"]}


def run(stage: str, *overrides: str, data: Path, output: Path) -> None:
    """Run the `main` of a stage in this process."""
    argv = [stage, f"paths.data={data}", f"paths.output={output}", *overrides]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", argv)
        main(stage)


@pytest.fixture(scope="module")
def output(competition: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder after the commands of the README, and `evaluate`."""
    folder = tmp_path_factory.mktemp("pipeline") / "output"
    for stage, arguments in [*commands(ROOT / "README.md"), ("evaluate", ["name=best"])]:
        overrides = [one for argument in arguments for one in SMALL.get(argument, [argument])]
        run(stage, *MORE.get(stage, []), *overrides, data=competition, output=folder)
    return folder


def test_the_five_commands_of_the_readme_run(output: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| command | reads |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| \[(\w+)\]", table, re.MULTILINE) == [
        name for name, _ in commands(ROOT / "README.md")
    ]
    written = re.findall(r"`([\w/<>.]+/)`: ", table)
    assert len(written) == 5
    for folder in written:
        there = output / folder.replace("h1536", "demo").replace("<k>", "0")
        assert any(there.iterdir()), folder


def read(folder: Path, name: str) -> pd.Series:
    return pd.read_csv(folder / f"{name}.csv", index_col="prediction_id").iloc[:, 0]


def test_submit_predicts_a_test_image_like_a_training_image(
    output: Path, competition: Path, tmp_path: Path
) -> None:
    """The held-out patients of fold 0, submitted as test images to the run of fold 0."""
    oof = pd.read_csv(
        output / "runs" / "recommended" / "fold0" / "oof.csv", index_col="prediction_id"
    )
    train = pd.read_csv(competition / "train.csv", dtype={"patient_id": str})
    train["prediction_id"] = train["patient_id"] + "_" + train["laterality"]
    (tmp_path / "test_images").symlink_to(competition / "train_images")
    train[train["prediction_id"].isin(oof.index)].to_csv(tmp_path / "test.csv", index=False)
    record = json.loads((output / "ensembles" / "best" / "ensemble.json").read_text())
    record["members"][0]["folds"] = [0]
    alone = output / "ensembles" / "fold0" / "ensemble.json"
    alone.parent.mkdir(exist_ok=True)
    alone.write_text(json.dumps(record))
    run("submit", "name=fold0", "workers=0", data=tmp_path, output=output)
    found = read(output / "submissions" / "fold0", "predictions")
    # Another batch size moves a probability in its seventh digit.
    assert found.to_dict() == pytest.approx(oof["probability"].to_dict(), abs=1e-6)


def test_submit_without_any_file_stops_before_predicting(
    output: Path, competition: Path, tmp_path: Path
) -> None:
    (tmp_path / "test.csv").write_bytes((competition / "test.csv").read_bytes())
    with pytest.raises(SystemExit, match="None of the .* files"):
        run("submit", "name=best", data=tmp_path, output=output)


def test_submit_without_a_readable_file_gives_the_prior(
    output: Path, competition: Path, tmp_path: Path
) -> None:
    for source in (competition / "test_images").rglob("*.dcm"):
        target = tmp_path / source.relative_to(competition)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("no DICOM")
    (tmp_path / "test.csv").write_bytes((competition / "test.csv").read_bytes())
    folder = tmp_path / "out"
    overrides = ["name=best", "workers=0", f"submission_dir={folder}"]
    run("submit", *overrides, data=tmp_path, output=output)
    prior = json.loads((output / "ensembles" / "best" / "ensemble.json").read_text())["prior"]
    assert read(folder, "predictions").unique().tolist() == pytest.approx([prior])


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
def test_command_prints_one_message_for_bad_input(
    stage: str, overrides: list[str], part: str, output: Path, competition: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(stage, *overrides, data=competition, output=output)
    assert str(stop.value.code).startswith("error: ")
    assert part in str(stop.value.code)
