"""A hidden test with faults of every kind: a valid submission, each is named, the rest intact."""

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
from hydra import compose, initialize_config_dir
from planted_faults import FAULTS, MANY, Planted, Planter

from rsna_bcd._records import write_record
from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.scoring.ensemble import Member, write_ensemble
from rsna_bcd.stages.submit import submit
from rsna_bcd.stages.synthesize import synthesize
from rsna_bcd.tables.images import TEST_COLUMNS
from rsna_bcd.tables.metadata import Metadata, training_domain, write_training_domain
from rsna_bcd.tables.test_set import FAILURE_COLUMNS

PRIOR = 0.25
IMAGES: dict[str, Any] = {"columns": ["age", "view", "machine_id"]}
BREASTS: dict[str, Any] = {"columns": ["age", "machine_id"]}


def save_run(folder: Path, seen: pd.DataFrame, network: Any, metadata: dict[str, Any]) -> None:
    """Leave what a finished run leaves, of a network that says something different of each."""
    (folder / "checkpoints").mkdir(parents=True)
    kind = type(network).__name__
    write_record(
        folder / "config.yaml",
        {
            "crop": {
                "_target_": "rsna_bcd.preparation.crop.CropSettings", "name": kind,
                "height": 48 if kind == "TinyImages" else 64, "width": 32, "box": "breast",
                "margin": 0.02, "orient": True, "fit": "pad", "algorithm": 2,
            },
            "source": "dicom", "tta": "hflip", "select": "last",
            "network": {
                "_target_": f"fabricated_networks.{kind}",
                "metadata_width": Metadata(**metadata).width,
            },
            "views": {"_target_": "rsna_bcd.tables.views.Views", "policy": "all", "most": MANY},
            "metadata": {"_target_": "rsna_bcd.tables.metadata.Metadata", **metadata},
        },
    )  # fmt: skip
    (folder / "metrics.json").write_text("{}")
    write_training_domain(training_domain(seen), folder / "seen.json")
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state}, folder / "checkpoints" / "last.ckpt")


def save_models(output: Path, clean: Path, threshold: float = 0.5) -> None:
    """An ensemble of two folds that look at images and one that looks at breasts."""
    seen = pd.read_csv(clean / "test.csv", dtype=str)
    for fold in range(2):
        torch.manual_seed(fold)
        of_images = TinyImages(Metadata(**IMAGES).width)
        with torch.no_grad():
            of_images.head.weight.mul_(10)
        save_run(output / "runs" / "images" / f"fold{fold}", seen, of_images, IMAGES)
    torch.manual_seed(2)
    of_breasts = TinyBreasts(Metadata(**BREASTS).width)
    save_run(output / "runs" / "breasts" / "fold0", seen, of_breasts, BREASTS)
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
    with initialize_config_dir(CONF, version_base="1.3"):
        submit(compose("submit", [*paths, "name=both", "workers=0", *overrides]))
    return folder


def probabilities(folder: Path) -> pd.Series:
    return pd.read_csv(folder / "predictions.csv").set_index("prediction_id")["probability"]


def check(planted: Planted, folder: Path, clean: Path, unread: str) -> int:
    """A submission of planted faults against that of the clean set.

    Returns:
        How many breasts are untouched.
    """
    sample = pd.read_csv(planted.data / "sample_submission.csv")
    submission = pd.read_csv(folder / "submission.csv")
    assert submission.columns.tolist() == ["prediction_id", "cancer"]
    assert submission["prediction_id"].tolist() == sample["prediction_id"].tolist()
    failures = pd.read_csv(folder / "failures.csv", dtype=str).fillna("")
    assert tuple(failures.columns) == FAILURE_COLUMNS
    named = failures[["kind", "prediction_id", "image_id"]].itertuples(index=False, name=None)
    assert Counter(named) == planted.cases
    assert failures["reason"].str.len().min() > 3
    decisions = submission.set_index("prediction_id")["cancer"]
    lost = failures[failures["kind"].isin(["nothing readable", "unlisted"])]["prediction_id"]
    assert set(decisions[lost]) <= {{"negative": 0, "positive": 1, "prior": PRIOR}[unread]}
    assert set(decisions.drop(lost)) <= {0, 1}
    found, expected = probabilities(folder), probabilities(clean)
    assert (found[lost] == PRIOR).all()
    untouched = sorted(set(decisions.index) - planted.touched)
    assert np.abs(found[untouched] - expected[untouched]).max() <= 1e-6
    of_clean = pd.read_csv(clean / "submission.csv").set_index("prediction_id")["cancer"]
    assert decisions[untouched].tolist() == of_clean[untouched].tolist()
    return len(untouched)


def submit_clean(data: Path, output: Path) -> Path:
    """The submission of the clean set, by a threshold that calls half of it."""
    save_models(output, data)
    p = probabilities(submitted(data, output, "first")).sort_values()
    assert p.nunique() == len(p)
    write_threshold(output, float(p.iloc[len(p) // 2 - 1 : len(p) // 2 + 1].mean()))
    clean = submitted(data, output, "clean")
    assert pd.read_csv(clean / "submission.csv")["cancer"].sum() == len(p) - len(p) // 2
    assert pd.read_csv(clean / "failures.csv").empty
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


def mixture(hospital: Path, clean: Path, data: Path, seed: int, names: list[str]) -> int:
    """Plant faults, submit and check."""
    planted = Planter(hospital, data, seed).plant(names)
    unread = ("negative", "positive", "prior")[seed % 3]
    name = f"{data.name}-{seed}"
    folder = submitted(data, clean.parents[1], name, f"unread={unread}")
    return check(planted, folder, clean, unread)


@pytest.mark.parametrize("seed", range(3))
def test_faults_are_named_and_cost_no_other_breast(
    seed: int, hospital: Path, clean: Path, tmp_path: Path
) -> None:
    """The kinds of fault are dealt out to three mixtures."""
    names = np.random.default_rng(0).permutation(list(FAULTS)).tolist()
    assert mixture(hospital, clean, tmp_path, seed, names[seed::3]) > 20


@pytest.mark.parametrize("column", ["age", "view", "prediction_id"])
def test_a_column_that_is_missing_is_one_case(
    column: str, hospital: Path, clean: Path, tmp_path: Path
) -> None:
    """What others tell changes nothing; what networks are given is unknown to them."""
    for name in ("test_images", "sample_submission.csv"):
        (tmp_path / name).symlink_to(hospital / name)
    table = pd.read_csv(hospital / "test.csv", dtype=str)
    table.drop(columns=column).to_csv(tmp_path / "test.csv", index=False)
    folder = submitted(tmp_path, clean.parents[1], f"without-{column}")
    failures = pd.read_csv(folder / "failures.csv", dtype=str)
    assert failures["kind"].tolist() == ["missing column"]
    assert f" {column}" in failures["reason"][0]
    difference = np.abs(probabilities(folder) - probabilities(clean)).max()
    assert difference <= 1e-6 if column == "prediction_id" else difference > 1e-3


def test_without_one_file_there_is_no_answer(hospital: Path, clean: Path, tmp_path: Path) -> None:
    (tmp_path / "test_images").mkdir()
    for name in ("test.csv", "sample_submission.csv"):
        (tmp_path / name).symlink_to(hospital / name)
    with pytest.raises(InputError, match=r"None of the \d+ files .* is in"):
        submitted(tmp_path, clean.parents[1], "nothing")
    assert not (clean.parents[1] / "submissions" / "nothing" / "submission.csv").exists()


def test_another_policy_for_what_cannot_be_read_is_another_submission(
    hospital: Path, clean: Path, tmp_path: Path
) -> None:
    """In the same folder, and nothing is predicted anew."""
    planted = Planter(hospital, tmp_path, 0).plant(["no folder"])
    lost = [case[1] for case in planted.cases if case[0] == "nothing readable"]
    for unread, answer in (("negative", 0), ("prior", PRIOR), ("positive", 1)):
        folder = submitted(tmp_path, clean.parents[1], "policies", f"unread={unread}")
        submission = pd.read_csv(folder / "submission.csv").set_index("prediction_id")["cancer"]
        assert (submission[lost] == answer).all()
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["resumed"] > 0) == (unread != "negative")
    assert check(planted, folder, clean, "positive") > 40


def _synthetic(data: Path, patients: int) -> Path:
    """A test set of tiny images; its training part is one patient."""
    size = [f"size.test_patients={patients}", "size.train_patients=1", "appearance.pixel_mm=1.2"]
    with initialize_config_dir(CONF, version_base="1.3"):
        synthesize(compose("synthesize", [f"paths.data={data}", "workers=2", *size]))
    return data


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "mixtures"), [(60, 50), (300, 1)])
def test_many_mixtures_with_every_fault(
    patients: int, mixtures: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _synthetic(tmp_path / "data", patients)
    clean = submit_clean(data, tmp_path / "models")
    counts: Counter[str] = Counter()
    untouched = []
    for seed in range(mixtures):
        names = np.random.default_rng(seed).permutation([*FAULTS] * (patients // 60)).tolist()
        planted = Planter(data, tmp_path / f"mixture{seed}", seed).plant(names)
        unread = ("negative", "positive", "prior")[seed % 3]
        workers = "workers=2" if seed % 10 == 0 else "workers=0"  # as it is used; and quickly
        output = clean.parents[1]
        folder = submitted(planted.data, output, f"{seed}", f"unread={unread}", workers)
        untouched.append(check(planted, folder, clean, unread))
        counts.update(case[0] for case in planted.cases.elements())
    with capsys.disabled():
        print(
            f"\n{mixtures} mixture(s) of {patients} patients: {len(FAULTS)} sorts of fault in each,"
            f" {counts.total()} cases in all, each named, and nothing else; {min(untouched)} to "
            f"{max(untouched)} breasts untouched, equal to 1e-6 and decided alike."
        )
        print(", ".join(f"{kind} {count}" for kind, count in counts.most_common()))
