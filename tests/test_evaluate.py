"""The evaluate stage on a fabricated submission and tiny crops."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from fabricated_runs import oof, save_run
from stage_settings import composed

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.metrics import auroc, pf1
from rsna_bcd.stages.ensemble import ensemble
from rsna_bcd.stages.evaluate import evaluate

Evaluate = Callable[..., dict[str, Any]]


def configured(stage: str, output: Path, *overrides: str) -> Any:
    paths = [f"paths.data={output}/data", f"paths.output={output}", "resamples=20"]
    return composed(stage, *paths, *overrides)


def save_noise(file: Path, mean: float, rng: np.random.Generator) -> None:
    pixels = rng.normal(mean, 10, (24, 16)).clip(1, 255)
    cv2.imwrite(str(file), pixels.astype(np.uint8))


def save_crops(folder: Path, split: str, breasts: pd.DataFrame, brighter: int) -> None:
    """Two noisy crops per breast, brighter with cancer. The last file is unreadable."""
    rng = np.random.default_rng(len(breasts))
    rows = breasts.loc[breasts.index.repeat(2), ["patient_id", "prediction_id", "label"]]
    rows = rows.rename(columns={"label": "cancer"}).assign(laterality="L", view="CC")
    rows["image_id"] = [f"{split}{i}" for i in range(len(rows))]
    rows["path"] = [f"{split}/{image_id}.png" for image_id in rows["image_id"]]
    (folder / split).mkdir(parents=True)
    for path, cancer in zip(rows["path"], rows["cancer"], strict=True):
        save_noise(folder / path, 80 + brighter * cancer, rng)
    rows["path"] = [*rows["path"][:-1], None]
    dropped = "prediction_id" if split == "train" else "cancer"
    rows.drop(columns=dropped).to_csv(folder / f"{split}.csv", index=False)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An ensemble of one run, its prepared crops, and a submission."""
    save_run(tmp_path / "runs" / "b5", oof(range(100), 0))
    ensemble(configured("ensemble", tmp_path, "name=demo", "members=[b5]"))
    crops = tmp_path / "prepared" / "rsna" / "h512"
    save_crops(crops, "train", oof(range(100), 0), brighter=8)
    test = oof(range(200, 280), 0)
    save_crops(crops, "test", test, brighter=8)
    folder = tmp_path / "submissions" / "demo"
    folder.mkdir(parents=True)
    test[["prediction_id", "probability"]].to_csv(folder / "predictions.csv", index=False)
    decisions = test["probability"].ge(0.6).astype(int)
    test[["prediction_id"]].assign(cancer=decisions).to_csv(folder / "submission.csv", index=False)
    (tmp_path / "data").mkdir()
    solution = test[["prediction_id", "label"]].rename(columns={"label": "cancer"})
    solution.iloc[::-1].to_csv(tmp_path / "data" / "solution.csv", index=False)
    return tmp_path


@pytest.fixture
def evaluated(output: Path) -> Evaluate:
    return lambda *overrides: evaluate(configured("evaluate", output, "name=demo", *overrides))


def test_scores_are_those_of_the_files(evaluated: Evaluate, output: Path) -> None:
    result = evaluated()
    test = oof(range(200, 280), 0)
    decisions = test["probability"] >= 0.6
    assert (result["breasts"], result["patients"], result["positives"]) == (80, 80, 16)
    score = result["score"]
    assert score["auroc"].value == pytest.approx(auroc(test["label"], test["probability"]))
    assert score["pf1"].value == pytest.approx(pf1(test["label"], decisions))
    assert score["sensitivity"].value == pytest.approx(decisions[test["label"] == 1].mean())
    counts = result["decisions"]
    assert sum(counts.values()) == 80
    assert counts["true_positives"] == (decisions & (test["label"] == 1)).sum()
    written = json.loads((output / "submissions" / "demo" / "evaluation.json").read_text())
    assert written["score"]["pf1"]["value"] == score["pf1"].value
    assert list(written["baseline"]) == ["auroc", "average_precision"]
    assert written["baseline"]["auroc"]["value"] > 0.9


def test_baseline_finds_nothing_in_equal_intensities(output: Path, evaluated: Evaluate) -> None:
    crops = output / "prepared" / "rsna" / "h512"
    rng = np.random.default_rng(0)
    for path in pd.read_csv(crops / "test.csv")["path"].dropna():
        save_noise(crops / path, 80, rng)
    assert 0.3 < evaluated()["baseline"]["auroc"].value < 0.7


def test_baseline_needs_both_classes(output: Path, evaluated: Evaluate) -> None:
    csv = output / "prepared" / "rsna" / "h512" / "train.csv"
    pd.read_csv(csv).assign(cancer=0).to_csv(csv, index=False)
    with pytest.raises(InputError, match="one class only.*baseline=false"):
        evaluated()


def test_baseline_is_optional(
    evaluated: Evaluate, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (output / "ensembles" / "demo" / "ensemble.json").unlink()
    assert "baseline" not in evaluated("baseline=false")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert rows
    assert {row.count("│") for row in rows} == {3}  # two columns
    with pytest.raises(InputError, match="no ensemble of this name"):
        evaluated()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("data/solution.csv", lambda t: t.assign(cancer=0), "one class only"),
        ("data/solution.csv", lambda t: t.assign(cancer=2), "neither 0 nor 1 for 279_L, "),
        ("data/solution.csv", lambda t: t.rename(columns={"cancer": "label"}),
         r"column\(s\) cancer; it has prediction_id, label"),
        ("data/solution.csv", lambda t: pd.concat([t, t.iloc[:1].assign(cancer=1)]),
         "contradicts itself about 279_L"),
        ("data/solution.csv", lambda t: t.assign(prediction_id=None), "prediction_id is empty in"),
        ("data/solution.csv", lambda t: t.iloc[1:], "only .*predictions.csv has 279_L"),
        ("submissions/demo/submission.csv", lambda t: t.iloc[1:], "only .*solution.csv has 200_L"),
        ("submissions/demo/predictions.csv", lambda t: t.iloc[1:], "only .*solution.csv has 200_L"),
        ("submissions/demo/submission.csv", lambda t: pd.concat([t, t]), "breasts twice: 200_L"),
        ("submissions/demo/predictions.csv", lambda t: t.assign(probability=np.nan), "number in"),
    ],
)  # fmt: skip
def test_file_that_does_not_fit_is_refused(
    output: Path, evaluated: Evaluate, file: str, change: Any, message: str
) -> None:
    change(pd.read_csv(output / file)).to_csv(output / file, index=False)
    with pytest.raises(InputError, match=message):
        evaluated("baseline=false")
    (output / file).unlink()
    with pytest.raises(InputError, match=f"{file} does not exist"):
        evaluated("baseline=false")


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace(",", ";").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("prediction_id,", "prediction_id , ").encode(),
        lambda text: text.replace("prediction_id,cancer", "Prediction ID,Cancer").encode(),
        lambda text: text.replace(",1", ",TRUE").replace(",0", ",FALSE").encode(),
    ],
)
def test_solution_is_read_as_other_tables_of_a_user(
    evaluated: Evaluate, output: Path, rewrite: Callable[[str], bytes]
) -> None:
    expected = evaluated("baseline=false")["score"]
    csv = output / "data" / "solution.csv"
    csv.write_bytes(rewrite(csv.read_text()))
    assert evaluated("baseline=false")["score"] == expected


def test_solution_of_images_or_breasts(evaluated: Evaluate, output: Path) -> None:
    csv = output / "data" / "solution.csv"
    table = pd.read_csv(csv)
    pd.concat([table, table]).to_csv(csv, index=False)
    assert (evaluated("baseline=false")["breasts"], evaluated()["patients"]) == (80, 80)
    table.assign(patient_id="").to_csv(csv, index=False)
    assert evaluated("baseline=false")["patients"] == 80
    patients = [str(i // 2) for i in range(80)]
    table = table.assign(patient_id=patients)
    table.to_csv(csv, index=False)
    assert evaluated("baseline=false")["patients"] == 40
    for column in ("patient_id", "prediction_id"):
        table.assign(**{column: ["", *table[column][1:]]}).to_csv(csv, index=False)
        with pytest.raises(InputError, match=rf"solution\.csv: {column} is empty in row 1"):
            evaluated("baseline=false")


def test_solution_of_other_breasts_names_both_files_and_remedies(
    evaluated: Evaluate, output: Path
) -> None:
    csv = output / "data" / "solution.csv"
    csv.write_text(csv.read_text().replace("_L", "_l"))
    with pytest.raises(InputError) as refused:
        evaluated("baseline=false")
    for part in (
        f"only {csv} has 279_l",
        f"only {output}/submissions/demo/predictions.csv has 200_L",
        "Point solution= at",
        "python -m rsna_bcd.submit name=demo paths.data=... overwrite=true",
    ):
        assert part in str(refused.value)
    with pytest.raises(InputError, match="data is a folder. Point solution= at"):
        evaluated(f"solution={output}/data")


def test_unknown_name_is_refused_with_those_that_exist(output: Path) -> None:
    with pytest.raises(InputError, match="named demo. Make it:\n.*rsna_bcd.submit name=other"):
        evaluate(configured("evaluate", output, "name=other"))
