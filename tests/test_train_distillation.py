"""Soft targets: teachers that have not seen the held-out patients, recorded and resumed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricated_crops import save_crops
from omegaconf import OmegaConf
from tiny_training import check_equal, configure, interrupt, run

from rsna_bcd.errors import InputError
from rsna_bcd.files import file_sha256
from rsna_bcd.stages._ensemble_fit import _record
from rsna_bcd.stages._training_checks import soft_targets
from rsna_bcd.tables.distillation import check_teachers, read_soft_targets
from rsna_bcd.targets import read_record

pytestmark = pytest.mark.filterwarnings("ignore")

STUDENT = ("distillation.teachers=without${fold}", "negatives_per_positive=null", "batch_size=8")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds, and the teachers of the first."""
    output = tmp_path_factory.mktemp("distillation")
    save_crops(output, 12, n_folds=3)
    for fold in (1, 2):
        run(output, "name=without0", f"fold={fold}", "left_out_folds=[0]", "epochs=1")
    return output


@pytest.fixture(scope="module")
def student(output: Path) -> Path:
    return run(output, *STUDENT)


def test_a_run_records_its_teachers_and_what_they_predicted(output: Path, student: Path) -> None:
    record: Any = OmegaConf.load(student / "config.yaml")
    teachers = output / "runs" / "without0"
    hashes = {name: file_sha256(teachers / name / "oof_images.csv") for name in ("fold1", "fold2")}
    expected = {"teachers": "without0", "weight": 0.5, "level": "image", "sha256": hashes}
    found: Any = OmegaConf.to_container(record.distillation)
    assert found == {**expected, "settings": found["settings"]}
    assert "left_out_folds" not in record
    assert OmegaConf.load(teachers / "fold1" / "config.yaml").left_out_folds == [0]
    assert set(pd.read_csv(student / "oof.csv")["fold"]) == {0}
    compared = _record(student / "config.yaml")["distillation"]
    assert compared == {"weight": 0.5, "level": "image", "settings": found["settings"]}


def test_targets_are_out_of_fold_probabilities_of_images_or_breasts(output: Path) -> None:
    teachers = output / "runs" / "without0"
    targets = soft_targets(configure(output, *STUDENT), "image")
    assert targets is not None
    tables = [pd.read_csv(teachers / f"fold{fold}" / "oof_images.csv") for fold in (1, 2)]
    images = pd.concat(tables).set_index("image_id")["probability"]
    assert targets.probability.tolist() == images.tolist()
    assert targets.probability.index.tolist() == images.index.astype(str).tolist()
    breasts = read_soft_targets(teachers, [1, 2], "breast", 1.0).probability
    by_breast = pd.concat(tables).groupby("prediction_id")["probability"].mean()
    np.testing.assert_allclose(breasts, by_breast[breasts.index], rtol=1e-6)


def test_a_resumed_run_equals_a_straight_one(output: Path, student: Path, tmp_path: Path) -> None:
    for kind in ("folds", "prepared"):
        (tmp_path / kind).symlink_to(output / kind)
    shutil.copytree(output / "runs" / "without0", tmp_path / "runs" / "without0")
    interrupt(tmp_path, *STUDENT)
    check_equal(run(tmp_path, *STUDENT), student)
    for gone in ("without0/fold2", "without0"):
        shutil.rmtree(tmp_path / "runs" / gone)
        run(tmp_path, *STUDENT)  # is finished, and needs them no more
    with pytest.raises(InputError, match="distillation"):
        run(tmp_path, *STUDENT[1:])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fold=1"], "fold 0 was not trained, and is needed"),
        (
            ["fold=2", "distillation.teachers=tiny"],
            "fold 0 has learnt .* of fold 2, .*name=[.]{3} fold=0",
        ),
        (
            ["left_out_folds=[1]"],
            r"fold 2 has learnt .* of fold 1, .*name=[.]{3} fold=2 'left_out_folds=\[0, 1\]'",
        ),
        (["fold=all", "distillation.teachers=without0"], "fold 0 was not trained"),
        (["fold=2", "distillation.teachers=tiny", "+trainer.fast_dev_run=true"], "of fold 2, "),
        (["folds_csv=${paths.output}/other.csv"], "on other data or other folds"),
    ],
    ids=lambda value: " ".join(value),
)
def test_teachers_that_do_not_fit_are_refused(
    overrides: list[str], message: str, output: Path, student: Path
) -> None:
    folds = (output / "folds" / "rsna-stratified.csv").read_text()
    (output / "other.csv").write_text(folds + "unknown,1\n")
    with pytest.raises(InputError, match=f"(?s)distillation.teachers=.*{message}"):
        run(output, *STUDENT, "name=refused", *overrides)
    assert not list((output / "runs" / "refused").glob("fold*/config.yaml"))


@pytest.fixture
def teachers(output: Path, tmp_path: Path) -> Path:
    """A copy."""
    return Path(shutil.copytree(output / "runs" / "without0", tmp_path / "without0"))


@pytest.fixture
def check(teachers: Path) -> Callable[[], dict[str, Any]]:
    record = {**read_record(teachers / "fold1" / "config.yaml"), "fold": 0, "left_out_folds": []}
    return lambda: check_teachers(teachers, record, [1, 2], "image", {})


def change(folder: Path, **settings: Any) -> None:
    OmegaConf.save({**read_record(folder / "config.yaml"), **settings}, folder / "config.yaml")


def test_teachers_have_the_same_settings(teachers: Path, check: Callable) -> None:
    before = check()
    for fold in (1, 2):  # those of another student
        change(teachers / f"fold{fold}", name="other", left_out_folds=[0, 3])
    assert check() == before
    change(teachers / "fold2", epochs=3)
    with pytest.raises(InputError, match="(?s)folds 1 and 2 .*different settings.*epochs: 1 -> 3"):
        check()
    change(teachers / "fold1", epochs=3)
    assert check()["settings"] != before["settings"]
    assert check()["sha256"] == before["sha256"]


def test_a_lost_record_of_a_teacher_is_named(teachers: Path, check: Callable) -> None:
    (teachers / "fold2" / "config.yaml").unlink()
    message = r"(?s)fold 2 has lost .*fold2/config.yaml.*left_out_folds=\[0\]' overwrite=true"
    with pytest.raises(InputError, match=message):
        check()


def test_a_lost_table_of_a_teacher_is_named(teachers: Path, check: Callable) -> None:
    (teachers / "fold2" / "oof_images.csv").unlink()
    for read in (check, lambda: read_soft_targets(teachers, [1, 2], "image", 1.0)):
        with pytest.raises(InputError, match="teachers=without0: there is no .*fold2/oof_images"):
            read()
    (teachers / "fold1" / "oof_images.csv").unlink()
    assert check()["level"] == "breast"
    (teachers / "fold1" / "oof.csv").unlink()
    with pytest.raises(InputError, match="there is no .*fold1/oof.csv. Run the teacher again"):
        check()


def test_a_network_of_all_patients_learns_from_ordinary_runs(output: Path) -> None:
    for fold in (0, 1, 2):
        run(output, "name=plain", f"fold={fold}", "epochs=1")
    folder = run(output, *STUDENT, "fold=all", "name=all", "distillation.teachers=plain")
    record: Any = OmegaConf.load(folder / "config.yaml")
    assert list(record.distillation.sha256) == ["fold0", "fold1", "fold2"]
