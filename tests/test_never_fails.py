"""`submit` with faults of every kind: a valid submission, each fault named, the rest intact."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fabricated_networks import TinyBreasts, TinyImages
from fabricated_runs import fabricated_ensemble
from planted_faults import FAULTS, MANY, Planted, Planter
from saved_runs import CROP, save_run
from stage_settings import composed

from rsna_bcd.scoring.ensemble import Member, write_ensemble
from rsna_bcd.stages.submit import submit
from rsna_bcd.stages.synthesize import synthesize
from rsna_bcd.tables.images import TEST_COLUMNS
from rsna_bcd.tables.metadata import Metadata, training_domain, write_training_domain
from rsna_bcd.tables.test_set import FAILURE_COLUMNS

PRIOR = 0.25
IMAGES, BREASTS = ["age", "view", "machine_id"], ["age", "machine_id"]  # metadata of networks


def save_models(output: Path, clean: Path, threshold: float = 0.5) -> None:
    """An ensemble of two folds of image level, and one of breast level with larger crops."""
    seen = training_domain(pd.read_csv(clean / "test.csv", dtype=str))
    views = {"_target_": "rsna_bcd.tables.views.Views", "policy": "all", "most": MANY}
    for seed, (name, kind, height, columns) in enumerate(
        [("images", TinyImages, 48, IMAGES), ("images", TinyImages, 48, IMAGES),
         ("breasts", TinyBreasts, 64, BREASTS)]
    ):  # fmt: skip
        torch.manual_seed(seed)
        width = Metadata(columns).width
        network: Any = kind(width)
        if name == "images":  # so that breasts differ in the first digits
            with torch.no_grad():
                network.head.weight.mul_(10)
        folder = output / "runs" / name / f"fold{seed % 2}"
        save_run(
            folder, network, source="dicom", crop={**CROP, "name": kind.__name__, "height": height},
            network={"metadata_width": width}, views=views,
            metadata={"_target_": "rsna_bcd.tables.metadata.Metadata", "columns": columns},
        )  # fmt: skip
        write_training_domain(seen, folder / "seen.json")
    write_threshold(output, threshold)


def write_threshold(output: Path, threshold: float) -> None:
    members = (
        Member("images", (0, 1), "rsna", "TinyImages", "max", "last", weight=0.5),
        Member("breasts", (0,), "rsna", "TinyBreasts", "mean", "last", weight=0.5),
    )
    ensemble = fabricated_ensemble(members, threshold=threshold, prior=PRIOR)
    write_ensemble(ensemble, output / "ensembles" / "both" / "ensemble.json")


def submitted(data: Path, output: Path, name: str, *overrides: str) -> Path:
    """Submit, and return the folder."""
    folder = output / "submissions" / name
    paths = [f"paths.data={data}", f"paths.output={output}", f"submission_dir={folder}"]
    submit(composed("submit", *paths, "name=both", "workers=0", *overrides))
    return folder


def probabilities(folder: Path) -> pd.Series:
    return pd.read_csv(folder / "predictions.csv").set_index("prediction_id")["probability"]


def check(planted: Planted, folder: Path, clean: Path, unread: str) -> int:
    """Compare the submission of planted faults with that of the clean set.

    Returns:
        How many breasts are untouched.
    """
    sample = pd.read_csv(planted.data / "sample_submission.csv")
    decisions = pd.read_csv(folder / "submission.csv", index_col="prediction_id")["cancer"]
    assert decisions.index.tolist() == sample["prediction_id"].tolist()
    failures = pd.read_csv(folder / "failures.csv", dtype=str).fillna("")
    assert tuple(failures.columns) == FAILURE_COLUMNS
    named = failures[["kind", "prediction_id", "image_id"]].itertuples(index=False, name=None)
    assert Counter(named) == planted.cases
    assert failures["reason"].str.len().min() > 3
    lost = failures[failures["kind"].isin(["nothing readable", "unlisted"])]["prediction_id"]
    assert set(decisions[lost]) <= {{"negative": 0, "positive": 1, "prior": PRIOR}[unread]}
    assert set(decisions.drop(lost)) <= {0, 1}
    found, expected = probabilities(folder), probabilities(clean)
    assert (found[lost] == PRIOR).all()
    untouched = sorted(set(decisions.index) - planted.touched)
    assert np.abs(found[untouched] - expected[untouched]).max() <= 1e-6
    fitted = json.loads((folder.parents[1] / "ensembles" / "both" / "ensemble.json").read_text())
    is_positive = expected[untouched] >= fitted["threshold"]
    assert decisions[untouched].tolist() == is_positive.astype(int).tolist()
    return len(untouched)


def submit_clean(data: Path, output: Path) -> Path:
    """Submit the clean set; then set the threshold that half of its breasts reach."""
    save_models(output, data)
    clean = submitted(data, output, "clean")
    assert pd.read_csv(clean / "failures.csv").empty
    p = probabilities(clean).sort_values()
    assert p.nunique() == len(p)
    write_threshold(output, float(p.iloc[len(p) // 2 - 1 : len(p) // 2 + 1].mean()))
    return clean


@pytest.fixture(scope="module")
def hospital(competition: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All patients of the tiny competition as a test set."""
    data = tmp_path_factory.mktemp("hospital")
    train = pd.read_csv(competition / "train.csv", dtype=str)
    train["prediction_id"] = train["patient_id"] + "_" + train["laterality"]
    test = pd.read_csv(competition / "test.csv", dtype=str)
    rows = pd.concat([test, train])[list(TEST_COLUMNS)]
    rows.to_csv(data / "test.csv", index=False)
    sample = rows[["prediction_id"]].drop_duplicates().assign(cancer=0.02)
    sample.to_csv(data / "sample_submission.csv", index=False)
    (data / "test_images").mkdir()
    for folder in (*competition.glob("train_images/*"), *competition.glob("test_images/*")):
        (data / "test_images" / folder.name).symlink_to(folder)
    return data


@pytest.fixture(scope="module")
def clean(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its submission, in `<output>/submissions/clean`."""
    return submit_clean(hospital, tmp_path_factory.mktemp("models"))


def mixture(
    source: Path, clean: Path, data: Path, seed: int, names: list[str], *overrides: str
) -> tuple[Planted, int]:
    """Plant faults, submit and check; how many breasts are untouched."""
    planted = Planter(source, data, seed).plant(names)
    unread = ("negative", "positive", "prior")[seed % 3]
    folder = submitted(data, clean.parents[1], data.name, f"unread={unread}", *overrides)
    return planted, check(planted, folder, clean, unread)


@pytest.mark.parametrize("seed", range(3))
def test_submit_names_each_fault_and_keeps_the_other_breasts(
    seed: int, hospital: Path, clean: Path, tmp_path: Path
) -> None:
    """Each kind of fault is in one of three mixtures."""
    names = np.random.default_rng(0).permutation(list(FAULTS)).tolist()
    assert mixture(hospital, clean, tmp_path / f"mixture{seed}", seed, names[seed::3])[1] > 20


@pytest.mark.parametrize("column", ["age", "prediction_id"])
def test_submit_names_a_missing_column_once(
    column: str, hospital: Path, clean: Path, tmp_path: Path
) -> None:
    """`prediction_id` follows from other columns; an age is unknown to the networks."""
    (tmp_path / "test_images").symlink_to(hospital / "test_images")
    table = pd.read_csv(hospital / "test.csv", dtype=str)
    few = table[table["patient_id"].isin(table["patient_id"].unique()[:6])]
    few.drop(columns=column).to_csv(tmp_path / "test.csv", index=False)
    sample = few[["prediction_id"]].drop_duplicates().assign(cancer=0)
    sample.to_csv(tmp_path / "sample_submission.csv", index=False)
    folder = submitted(tmp_path, clean.parents[1], f"without-{column}")
    failures = pd.read_csv(folder / "failures.csv", dtype=str)
    assert failures["kind"].tolist() == ["missing column"]
    assert f" {column}" in failures["reason"][0]
    found = probabilities(folder)
    difference = np.abs(found - probabilities(clean)[found.index]).max()
    assert difference <= 1e-6 if column == "prediction_id" else difference > 1e-3


def test_submit_with_another_unread_policy_predicts_nothing_again(
    hospital: Path, clean: Path, tmp_path: Path
) -> None:
    planted = Planter(hospital, tmp_path, 0).plant(["no folder"])
    lost = [case[1] for case in planted.cases if case[0] == "nothing readable"]
    for unread, cancer in (("negative", 0), ("prior", PRIOR), ("positive", 1)):
        folder = submitted(tmp_path, clean.parents[1], "policies", f"unread={unread}")
        submission = pd.read_csv(folder / "submission.csv").set_index("prediction_id")["cancer"]
        assert (submission[lost] == cancer).all()
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["resumed"] > 0) == (unread != "negative")


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "mixtures"), [(60, 50), (300, 1)])
def test_submit_survives_many_mixtures_of_every_fault(
    patients: int, mixtures: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    size = [f"size.test_patients={patients}", "size.train_patients=1", "appearance.pixel_mm=1.2"]
    synthesize(composed("synthesize", f"paths.data={data}", "workers=2", *size))
    clean = submit_clean(data, tmp_path / "models")
    counts: Counter[str] = Counter()
    untouched = []
    for seed in range(mixtures):
        names = np.random.default_rng(seed).permutation([*FAULTS] * (patients // 60)).tolist()
        workers = "workers=2" if seed % 10 == 0 else "workers=0"  # as it is used; and quickly
        planted, number = mixture(data, clean, tmp_path / f"mixture{seed}", seed, names, workers)
        untouched.append(number)
        counts.update(case[0] for case in planted.cases.elements())
    with capsys.disabled():
        print(
            f"\n{mixtures} mixture(s) of {patients} patients: {len(FAULTS)} sorts of fault in each,"
            f" {counts.total()} cases in all, each named, and nothing else; {min(untouched)} to "
            f"{max(untouched)} breasts untouched, equal to 1e-6 and decided alike."
        )
        print(", ".join(f"{kind} {count}" for kind, count in counts.most_common()))
