"""A study end to end: the runs are the command's, it resumes, and stops at its deadline."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from fabricated_crops import save_crops
from omegaconf import OmegaConf
from stage_settings import composed
from study import main, run_study
from study_config import Place, compose_run, last_of_each, needed_runs, read_study
from study_heads import _bags
from study_runs import Task, _sha256, do_run, is_predicted

import rsna_bcd.stages.train
from rsna_bcd._records import recorded_keys, select_settings
from rsna_bcd.errors import InputError
from rsna_bcd.settings import Train
from rsna_bcd.stages import _training_checks
from rsna_bcd.stages._training_checks import check_training
from rsna_bcd.stages.train import train

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"
STUDY = """
dataset: rsna
folds: [0, 1]
seeds: [3]
reference: plain
resamples: 50
base: [crop=demo, crop.height=64, crop.width=32, network=test_resnet, augment=flips, epochs=1,
  batch_size=8, negatives_per_positive=null]
variants:
  plain: []
  mirrored: [tta=hflip]
  flips: {of: plain, flips: [hflip]}
  head: {of: plain, head: attention}
  both_breasts: {of: plain, head: attention, other_breast: true}
  stack: {of: plain, stack: [mean, max, other, age]}
  best: {choose: all}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops, and a study that has been run on them."""
    folder = tmp_path_factory.mktemp("study")
    save_crops(folder / "data")
    (folder / "study.yaml").write_text(STUDY)
    run(folder)
    return folder


def run(folder: Path, **changes: Any) -> pd.DataFrame:
    settings: dict[str, Any] = {"jobs": 0, **changes}
    return run_study(folder / "study.yaml", folder / "data", folder / "out", **settings)


def test_runs_are_those_of_the_command(folder: Path, tmp_path: Path) -> None:
    save_crops(tmp_path)
    overrides = [
        *("crop=demo", "crop.height=64", "crop.width=32", "network=test_resnet", "augment=flips"),
        *("epochs=1", "batch_size=8", "negatives_per_positive=null", "name=plain_s3", "seed=3"),
        *("fold=1", "workers=0", "trainer=cpu", f"paths.output={tmp_path}"),
    ]
    train(composed("train", *overrides))
    for name in ("oof.csv", "oof_images.csv", "config.yaml", "metrics.json", "seen.json"):
        place = Path("runs") / "plain_s3" / "fold1" / name
        assert (folder / "out" / place).read_bytes() == (tmp_path / place).read_bytes()


def test_saving_once_changes_nothing_but_the_checkpoints(folder: Path, tmp_path: Path) -> None:
    study = read_study(folder / "study.yaml")
    one = needed_runs(study, "cpu")[0]
    place = Place(folder, folder / "out", saves_once=True, overrides=("workers=0",))
    cfg = compose_run(one, study, place)
    cfg.run_dir = str(tmp_path)
    train(cfg)
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    for name in ("oof.csv", "config.yaml"):
        trained = folder / "out" / "runs" / one.name / "fold0" / name
        assert (tmp_path / name).read_bytes() == trained.read_bytes()


def test_flips_without_training_are_what_tta_gives(folder: Path) -> None:
    for fold in (0, 1):
        own = pd.read_csv(folder / f"out/predicted/flips_s3/fold{fold}.csv")
        trained = pd.read_csv(folder / f"out/runs/mirrored_s3/fold{fold}/oof.csv")
        pd.testing.assert_frame_equal(own, trained, rtol=0, atol=1e-6)
        head = pd.read_csv(folder / f"out/predicted/head_s3/fold{fold}.csv")
        columns = ["prediction_id", "patient_id", "fold", "label", "unread"]
        assert head[columns].equals(trained[columns])


def test_a_second_call_trains_nothing_and_gives_the_same_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "out" / "study.csv").read_bytes()
    monkeypatch.setattr("study.do_run", None)
    monkeypatch.setattr(rsna_bcd.stages.train, "train", None)
    table = run(folder)
    assert (folder / "out" / "study.csv").read_bytes() == before
    assert table["variant"].tolist() == list(read_study(folder / "study.yaml").variants)
    assert (table["missing"] == "").all()
    assert table["breasts"].tolist() == [16] * 7
    assert np.isfinite(table["difference"][1:]).all()
    text = (folder / "out" / "study.md").read_text()
    assert "Reference: plain. Up to 16 breasts, 4 with cancer" in text


def test_the_table_of_a_part_does_not_replace_that_of_the_study(folder: Path) -> None:
    before = (folder / "out" / "study.csv").read_bytes()
    assert run(folder, only=["flips"])["variant"].tolist() == ["plain", "flips"]
    assert (folder / "out" / "study.csv").read_bytes() == before
    assert pd.read_csv(folder / "out" / "study_only.csv")["variant"].tolist() == ["plain", "flips"]
    with pytest.raises(InputError, match="only=flip: the study has no such variant"):
        run(folder, only=["flip"])


def test_what_was_lost_is_made_again(folder: Path) -> None:
    lost = folder / "out" / "predicted" / "head_s3" / "fold0.csv"
    content = lost.read_bytes()
    lost.unlink()
    assert "fold 0" in run(folder, deadline=time.monotonic() - 1)["missing"][3]
    assert not lost.exists()
    run(folder)
    assert lost.read_bytes() == content


def test_a_record_of_an_earlier_version_counts(folder: Path) -> None:
    csv = folder / "out" / "predicted" / "flips_s3" / "fold0.csv"
    record = json.loads(csv.with_suffix(".json").read_text())
    empty: dict[str, Any] = {"overrides": None, "head": None, "stack": [], "other_breast": False}
    csv.with_suffix(".json").write_text(json.dumps({"variant": empty | record["variant"]}))
    study = read_study(folder / "study.yaml")
    task = Task(needed_runs(study, "cpu")[0], study, Place(folder / "data", folder / "out"))
    assert task.predicted_csv(study.variants["flips"]) == csv
    assert is_predicted(task, study.variants["flips"])
    assert not is_predicted(task, replace(study.variants["flips"], flips=("vflip",)))
    csv.with_suffix(".json").write_text(json.dumps(record))


def test_the_seconds_of_a_resumed_run_are_those_of_all_its_starts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(folder / "study.yaml")
    run = replace(needed_runs(study, "cpu")[0], predicted=())
    task = Task(run, study, Place(folder / "data", tmp_path))
    (task.folder / "checkpoints").mkdir(parents=True)
    (task.folder / "checkpoints" / "last.ckpt").touch()
    (task.folder / "timings.csv").write_text("epoch,seconds\n0,1000\n1,2000\n")
    finish = (task.folder / "metrics.json").touch
    monkeypatch.setattr(rsna_bcd.stages.train, "train", lambda _: finish())
    do_run(task)
    assert 3000 < json.loads((task.folder / "study.json").read_text())["seconds"] < 3100


def test_other_overrides_under_the_same_name_are_refused(folder: Path) -> None:
    file = folder / "study.yaml"
    file.write_text(STUDY.replace("[tta=hflip]", "[tta=hflip, epochs=2]"))
    try:
        with pytest.raises(InputError, match=r"trained with other settings \(epochs=1, epochs=2"):
            run(folder)
    finally:
        file.write_text(STUDY)


def test_a_run_that_fails_is_named_and_the_others_are_done(folder: Path, tmp_path: Path) -> None:
    file = folder / "failing.yaml"
    fails = "failing: [network.backbone=no_such_net]"
    text = STUDY.split("  flips")[0].replace("mirrored: [tta=hflip]", fails)
    file.write_text(text)
    table = run_study(file, folder / "data", folder / "out", jobs=0)
    assert len(table.attrs["failed"]) == 2
    assert "timm has no network 'no_such_net'" in table.attrs["failed"][0]
    assert table["missing"].tolist() == ["", "seed 3: fold 0,1"]


def save_distilled(folder: Path, n_folds: int) -> None:
    """Crops of so many folds, and a study of three of them with one distilled variant."""
    save_crops(folder / "data", 12, n_folds=n_folds)
    text = STUDY.split("variants:")[0].replace("[0, 1]", "[0, 1, 2]").replace("plain", "soft")
    (folder / "study.yaml").write_text(
        f"{text}variants: {{soft: {{overrides: [], distilled: true}}}}"
    )


def test_teachers_are_trained_first_and_have_not_seen_the_held_out_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_distilled(tmp_path, 3)
    trained: list[str] = []

    def spy(cfg: Any) -> None:
        trained.append(f"{cfg.name} {cfg.fold}")
        train(cfg)

    monkeypatch.setattr(rsna_bcd.stages.train, "train", spy)
    assert (run(tmp_path)["missing"] == "").all()
    assert trained[:3] == ["soft_s3_without0 1", "soft_s3_without0 2", "soft_s3 0"]
    assert len(trained) == 9
    patients = pd.read_csv(tmp_path / "data/folds/rsna-stratified.csv").set_index("fold")
    folder = tmp_path / "out" / "runs"
    settings = set()
    for fold in range(3):
        record: Any = OmegaConf.load(folder / "soft_s3" / f"fold{fold}" / "config.yaml")
        settings.add(record.distillation.settings)
        assert record.distillation.teachers == f"soft_s3_without{fold}"
        for other in {0, 1, 2} - {fold}:
            teacher = folder / record.distillation.teachers / f"fold{other}"
            kept: Any = OmegaConf.load(teacher / "config.yaml")
            assert (kept.fold, kept.left_out_folds) == (other, [fold])
            predicted = set(pd.read_csv(teacher / "oof_images.csv")["patient_id"])
            assert predicted == set(patients[patients.index == other]["patient_id"])
    assert len(settings) == 1
    seconds = [
        json.loads((folder / name / "study.json").read_text())["seconds"]
        for name in ("soft_s3/fold0", "soft_s3_without0/fold1", "soft_s3_without0/fold2")
    ]
    assert seconds[0] > sum(seconds[1:])
    shutil.rmtree(folder / "soft_s3" / "fold0")  # and not its teachers
    trained.clear()
    run(tmp_path)
    assert trained == ["soft_s3 0"]


def test_a_size_that_is_not_there_is_made_of_a_larger_one_or_leaves_its_variant_out(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    text = STUDY.split("  mirrored")[0].replace("64, crop.width=32", "32, crop.width=16")
    text = text.replace("crop=demo", "crop=demo, crop.name=small")
    absent = (
        "  large: [crop.name=large, crop.height=128, crop.width=64]\n"
        "  wide: [crop.name=wide, crop.height=32, crop.width=32]\n"
        "  contrast: [crop.name=clahe, crop.clahe=2]\n"
        "  stack: {of: contrast, stack: [mean]}\n"
    )
    file.write_text(f"{text}{absent}patients: 6\n")
    table = run_study(file, folder / "data", tmp_path / "out", deadline=0.0, jobs=0)
    reasons = dict(reason.split(": ", 1) for reason in table.attrs["failed"])
    assert table["variant"].tolist() == ["plain", "large", "wide", "contrast", "stack"]
    assert set(reasons) == {"large", "wide", "contrast"}
    assert "python -m rsna_bcd.prepare paths.data=<images>" in reasons["contrast"]
    for setting in ("crop.clahe=2", "crop.height=32", "source=image", "dataset.name=rsna"):
        assert setting in reasons["contrast"]
    made = tmp_path / "out" / "prepared" / "rsna" / "small"
    images = pd.read_csv(made / "train.csv")
    assert images["patient_id"].nunique() == 6
    assert images.groupby("patient_id")["cancer"].max().sum() == 3
    assert "resized_from" in (made / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("reference: none", "reference=none is not a trained variant"),
        ("folds: []", r"folds=\[\]: should not be empty"),
        ("folds: 0", "folds=0: should be a list"),
        ("folds: [0, 0]", r"folds=\[0, 0\]: has a value twice"),
        ("folds: [0]", "stack is fitted on other folds: name two at least"),
        ("fold: [0, 1]", "there is no such key"),
        ("folds: [0, true]", "folds.1=true: should be a whole number"),
        ("dataset: ''", "dataset=: names a folder"),
        ("seeds: [a]", r"seeds\.0=a: should be a whole number"),
        ("base: crop=demo", "base=crop=demo: should be a list"),
        ("resamples: many", "resamples=many: should be a whole number"),
        ("patients: 2\npatients: 3", "found duplicate key patients"),
        ("prepare: ['${paths.output}']", "Interpolation key 'paths.output' not found"),
        ("variants:", "its variants one of names to variants"),
        ("variants: {plain: epochs=10}", "plain must be a list of overrides"),
        ("keep_checkpoints: maybe", "keep_checkpoints=maybe: should be true or false"),
        (
            "variants: {plain: {overrides: [], distilled: 2}}",
            "plain.distilled=2: should be true or",
        ),
        ("variants: {plain: [], f: {of: plain, flips: hflip}}", "f.flips=hflip: should be a list"),
        ("variants: {plain: [], f: {of: plain, flips: []}}", "f.flips is empty"),
        ("variants: {plain: [], f: {of: plain, stack: mean}}", "f.stack=mean: should be a list"),
        ("variants: {plain: [], f: {of: [plain], head: attention}}", "names .'plain'., which no"),
        ("variants: {plain: [], f: {ensemble: plain}}", "f must be a list of trained variants"),
        ("variants: {plain: [], f: {ensemble: [plain], seeds: 4}}", "f.seeds=4: should be a list"),
        ("variants: {plain: [], f: {of: plain, head: }}", "f.head is empty"),
        ("variants: {plain: [], f: {ensemble: [plain, plain]}}", "f.ensemble=.* has a value twice"),
        ("variants: {plain: [], a/b: {of: plain, flips: [hflip]}}", "names a folder"),
        ("variants: {plain: [], f: {combine: }}", "f.combine must be a list of trained variants"),
        ("more: 1", "more: there is no such key"),
        ("variants: {plain: {overrides: [], distilled: true}}", "plain needs all folds"),
        ("variants: {plain: {of: plain}}", "must be a list of overrides"),
        (
            "variants: {plain: [], f: {of: plain, flips: [left]}}",
            r"f\.flips\.0=left: should be hflip, vflip or both",
        ),
        ("variants: {plain: [], f: {of: later, flips: [hflip]}}", "names later"),
        ("variants: {plain: [], f: {combine: [later]}}", "f.combine names later"),
        ("variants: {plain: [], f: {of: plain, flips: [hflip], distilled: true}}", "not distilled"),
        ("variants: {plain: [], f: {combine: [plain], overrides: []}}", "f must be a list of over"),
        ("variants: {plain: [], f: {choose: [later]}}", "f.choose must be all, or a list"),
        ("variants: {plain: [], f: {choose: all}, g: {choose: [f]}}", "g.choose must be all"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, change: str, message: str) -> None:
    key = change.split(":")[0]
    lines = [line for line in STUDY.strip().splitlines() if not line.startswith(f"{key}:")]
    if key == "variants":
        lines = [line for line in lines if not line.startswith("  ") or "batch_size" in line]
    file = tmp_path / "study.yaml"
    file.write_text("\n".join([*lines, change]))
    with pytest.raises(InputError, match=message):
        read_study(file)


def test_a_combination_with_a_distilled_variant_is_distilled(tmp_path: Path) -> None:
    head = STUDY.split("variants:")[0].replace("[0, 1]", "[0, 1, 2]")
    (tmp_path / "study.yaml").write_text(
        f"{head}variants: {{plain: [], soft: {{overrides: [epochs=2], distilled: true}}, "
        "both: {combine: [soft, plain]}, neither: {combine: [plain]}}"
    )
    study = read_study(tmp_path / "study.yaml")
    teachers = {run.variant: len(run.teachers) for run in needed_runs(study, "cpu")}
    assert teachers == {"plain": 0, "soft": 2, "both": 2, "neither": 0}
    assert study.variants["both"].overrides == ("epochs=2",)


def test_words_for_flags_are_read(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        f"{STUDY.split('variants:')[0]}keep_checkpoints: 'no'\n"
        "variants: {plain: {overrides: [], distilled: 'no'}, other: {combine: [plain], "
        "distilled: 'off'}}"
    )
    study = read_study(tmp_path / "study.yaml")
    assert not study.keep_checkpoints
    assert not any(variant.distilled for variant in study.variants.values())


def test_names_may_be_numbers(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        f"{STUDY.split('variants:')[0].replace('plain', '5')}variants: {{5: [], 20: [epochs=20], "
        "both: {combine: [20, 5]}, flips: {of: 5, flips: [hflip]}, best: {choose: [5, 20]}}"
    )
    study = read_study(tmp_path / "study.yaml")
    assert study.reference == "5"
    assert study.variants["both"].overrides == ("epochs=20",)
    assert study.variants["flips"].of == "5"
    assert study.variants["best"].choose == ("5", "20")


def test_teachers_of_some_folds_alone_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_distilled(tmp_path, 4)
    monkeypatch.setattr(rsna_bcd.stages.train, "train", None)
    with pytest.raises(InputError, match=r"all folds of the data for soft.* has 0, 1, 2, 3\."):
        run(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=2", "Variant mirrored: .*Did you mean epochs"),
        ("training_share=25", "Variant mirrored: training_share=25: should be at most 1"),
        ("seed=9", "Variant mirrored: seed=9: the study sets seed itself"),
    ],
)
def test_an_override_that_is_refused_stops_the_study_at_once(
    override: str, message: str, folder: Path
) -> None:
    file = folder / "mistaken.yaml"
    file.write_text(STUDY.replace("[tta=hflip]", f"[{override}]"))
    with pytest.raises(InputError, match=message):
        run_study(file, folder / "data", folder / "out", jobs=0)


def test_a_head_on_a_network_with_metadata_is_refused_at_once(folder: Path) -> None:
    file = folder / "mistaken.yaml"
    metadata = '["metadata={_target_: rsna_bcd.tables.metadata.Metadata, columns: [age]}"]'
    text = STUDY.split("  flips")[0].replace("[tta=hflip]", metadata)
    file.write_text(f"{text}  head: {{of: mirrored, head: attention}}\n")
    with pytest.raises(InputError, match="head starts from mirrored, which must see single images"):
        run_study(file, folder / "data", folder / "out", jobs=0)


def test_data_that_cannot_be_used_leave_no_record(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError):
        run_study(folder / "study.yaml", tmp_path / "wrong", tmp_path / "out", jobs=0)
    assert not (tmp_path / "out" / "data.json").exists()


def test_other_data_or_weights_in_the_same_output_are_refused(folder: Path, tmp_path: Path) -> None:
    save_crops(tmp_path / "other")
    with pytest.raises(InputError, match="and not of data=.*other. Choose another output="):
        run_study(folder / "study.yaml", tmp_path / "other", folder / "out", jobs=0)
    (tmp_path / "other" / "folds" / "rsna-stratified.csv").unlink()
    shutil.copytree(folder / "out", tmp_path / "copy")  # without links
    shutil.move(tmp_path / "other" / "prepared", tmp_path / "images")
    (tmp_path / "images" / "train.csv").write_text("other labels")
    with pytest.raises(InputError, match=r"copy has .* another folds/.*csv than .*images/folds/"):
        run_study(folder / "study.yaml", tmp_path / "images", tmp_path / "copy", jobs=0)
    text = STUDY.split("  mirrored")[0]
    file, starts = tmp_path / "study.yaml", "checkpoint_path='{weights}/w.pth'"
    file.write_text(text.replace("plain: []", f'plain: [epochs=1, "{starts}"]'))
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        (tmp_path / name).mkdir()
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / name / "w.pth")
    own: dict[str, Any] = {"data": folder / "data", "output": tmp_path / "out", "jobs": 0}
    run_study(file, weights=tmp_path / "one", **own)
    assert (run_study(file, weights=tmp_path / "one", **own)["missing"] == "").all()
    with pytest.raises(InputError, match="trained with other settings .other weights."):
        run_study(file, weights=tmp_path / "two", **own)
    (tmp_path / "one" / "w.pth").unlink()  # finished runs need no weights
    _sha256.cache_clear()
    assert (run_study(file, weights=tmp_path / "one", **own)["missing"] == "").all()
    shutil.rmtree(tmp_path / "out" / "runs")
    failed = run_study(file, weights=tmp_path / "one", **own).attrs["failed"]
    assert failed[0].startswith("plain_s3, fold 0: ")
    assert "one/w.pth does not exist" in failed[0]


def test_the_order_of_overrides_does_not_matter(folder: Path) -> None:
    file = folder / "reordered.yaml"
    file.write_text(STUDY.replace("epochs=1,\n  batch_size=8,", "batch_size=8,\n  epochs=1,"))
    assert (run_study(file, folder / "data", folder / "out", jobs=0)["missing"] == "").all()


def test_moved_data_are_linked_again_and_data_without_folds_refused(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "data", tmp_path / "moved")
    shutil.copytree(folder / "out", tmp_path / "out", symlinks=True)
    for link in tmp_path.glob("out/*/**/*"):
        if link.is_symlink():
            link.unlink()
            link.symlink_to(tmp_path / "gone")
    (tmp_path / "moved" / "prepared" / ".DS_Store").touch()
    table = run_study(folder / "study.yaml", tmp_path / "moved", tmp_path / "out", jobs=0)
    assert (table["missing"] == "").all()
    shutil.rmtree(tmp_path / "moved" / "folds")
    with pytest.raises(InputError, match="There are no folds in"):
        run_study(folder / "study.yaml", tmp_path / "moved", tmp_path / "out", jobs=0)


@pytest.mark.parametrize(
    ("argument", "message"),
    [("jobs=-1", "jobs=-1: give 0 or more"), ("jobs=two", "jobs=two: give a number"),
     ("minutes=8m", "minutes=8m: give a number"), ("minutes=-1", "minutes=-1.0: give 0 or more"),
     ("job=2", "job= is unknown; there are"), ("data=nowhere", "There is no folder .*nowhere")],
)  # fmt: skip
def test_numbers_of_the_command_line_are_checked(argument: str, message: str, folder: Path) -> None:
    arguments = [f"data={folder / 'data'}", f"output={folder / 'out'}", "only=flips,", argument]
    with pytest.raises(SystemExit, match=message):
        main([str(folder / "study.yaml"), *arguments])


def test_a_row_of_other_breasts_does_not_lose_the_table(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "out", tmp_path / "out", symlinks=True)
    csv = tmp_path / "out" / "predicted" / "flips_s3" / "fold0.csv"
    pd.read_csv(csv)[1:].to_csv(csv, index=False)
    table = run_study(folder / "study.yaml", folder / "data", tmp_path / "out", jobs=0)
    row = table.set_index("variant").loc["flips"]
    assert "lacks 1 of the breasts" in row["remark"]
    assert np.isnan(row["auroc"])
    assert np.isfinite(table.set_index("variant")["auroc"].drop(["flips", "best"])).all()


def test_of_two_overrides_of_a_key_the_later_counts_and_groups_come_first() -> None:
    overrides = ["a.b=1", "crop=x", "+c.d=1", "crop=y", "a.b=2", "c.d=3"]
    assert last_of_each(overrides) == ["crop=y", "a.b=2", "c.d=3"]


NAMES = sorted(file.stem for file in STUDIES.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_the_numbers_of_rows_and_runs(name: str) -> None:
    study = read_study(STUDIES / f"{name}.yaml")
    runs = needed_runs(study, "cpu")
    n_runs = sum(1 + len(run.teachers) for run in runs)
    lines = (STUDIES.parents[1] / "docs" / "study.md").read_text().splitlines()
    (row,) = (line for line in lines if line.startswith(f"| `{name}.yaml` |"))
    _, rows, trainings = row.strip("| ").rsplit(" | ", 2)
    assert (int(rows), int(trainings.split()[0])) == (len(study.variants), n_runs)
    if name == "gpu":
        assert f"Of its {n_runs} trainings" in (STUDIES.parents[1] / "docs" / "gpu.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_study_in_the_project_has_valid_overrides(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for check in ("_check_crops", "_check_folds"):  # there are none
        monkeypatch.setattr(_training_checks, check, lambda _: None)
    study = read_study(STUDIES / f"{name}.yaml")
    place = Place(Path("data"), Path("output"), Path("weights"), saves_once=True)
    first = {run.variant: run for run in reversed(needed_runs(study, "gpu"))}
    for run in first.values():
        cfg = compose_run(run, study, place)  # checks keys, types and ranges
        if run.variant == study.reference or any(o.startswith("network=") for o in run.overrides):
            assert cfg.name == f"{run.variant}_s{study.seeds[0]}"
            assert cfg.callbacks.last.every_n_epochs == cfg.epochs
            assert "best" not in cfg.callbacks
            check_training(cfg)


@pytest.mark.parametrize("name", ["processor", "confirmation"])
def test_the_recommended_experiment_is_the_row_that_was_measured(name: str) -> None:
    study = read_study(STUDIES / f"{name}.yaml")
    place = Place(Path("data"), Path("output"), Path("weights"))
    measured = study.variants["epochs_10_age_tta_of_four"]
    row = next(run for run in needed_runs(study, "cpu") if run.variant == measured.of)
    trained = compose_run(row, study, place)
    weights = f"checkpoint_path={place.weights}/tf_efficientnet_lite0.pth"
    experiment = composed(
        "train", "experiment=recommended_small", "trainer=cpu", weights, f"seed={study.seeds[0]}"
    )
    assert list(experiment.tta) == list(measured.flips)
    keys = [key for key in recorded_keys(Train) if key not in ("name", "tta")]
    assert select_settings(experiment, *keys) == select_settings(trained, *keys)


def test_bags_hold_the_images_of_a_breast_and_those_of_the_other() -> None:
    images = pd.DataFrame(
        {
            "image_id": ["a", "b", "c"],
            "prediction_id": ["1_L", "1_R", "1_L"],
            "patient_id": "1",
            "view": ["CC", "MLO", "MLO"],
        }
    )
    features = np.arange(8, dtype=np.float32).reshape(4, 2)
    stored = {"image_id": np.array(["c", "x", "a", "b"]), "features": features}
    own = _bags(stored, images, other_breast=False)
    assert own["mask"].tolist() == [[True, True], [True, False]]
    assert own["features"][0].tolist() == [[4, 5], [0, 1]]  # a, c
    assert not own["other"].any()
    both = _bags(stored, images, other_breast=True)
    assert both["mask"].all()
    assert both["other"].tolist() == [[False, False, True], [False, True, True]]
    assert torch.equal(both["features"][0, 2], torch.tensor([6.0, 7.0]))  # b
    assert both["view"].tolist() == [[0, 1, 1], [1, 0, 1]]
