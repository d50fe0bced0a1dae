"""`submit` resumes, keeps its time budget and excludes networks that diverged."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fabricated_networks import TinyImages
from submission_inputs import NAME, configure, overrides, save_members, save_test_set

from rsna_bcd.scoring.ensemble import write_ensemble
from rsna_bcd.stages.submit import submit
from rsna_bcd.tables.predictions import check_submission

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("test_set")
    save_test_set(folder, 16)
    return folder


@pytest.fixture(scope="module", params=[(2, 0), (2, 1)], ids=["images", "images and breasts"])
def straight(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output of an undisturbed run; read it, do not write to it."""
    output = tmp_path_factory.mktemp("straight")
    save_members(output, *request.param)
    submit(configure(data, output, ["batch_size=3"]))
    return output


def submission_of(output: Path) -> Path:
    return output / "submissions" / NAME


def lines_of(output: Path) -> Lines:
    """The whole lines of the journal."""
    journal = submission_of(output) / "journal.jsonl"
    content = journal.read_text() if journal.exists() else ""
    return [json.loads(line) for line in content.split("\n")[:-1]]


def finished(lines: Lines, data: Path, *, by_patient: bool) -> set[str]:
    """Images that must not be predicted again: where breasts are looked at, of whole patients."""
    images = {line["image"] for line in lines if "image" in line}
    if not by_patient:
        return images
    table = pd.read_csv(data / "test.csv", dtype=str)
    breasts = {line["breast"] for line in lines if "breast" in line}
    whole = table["image_id"].isin(images) & table["prediction_id"].isin(breasts)
    of_patient = whole.groupby(table["patient_id"]).transform("all")
    return set(table.loc[of_patient, "image_id"])


def check_same(output: Path, straight: Path) -> None:
    """The same decisions; probabilities may be those of other batches."""
    found, wanted = submission_of(output), submission_of(straight)
    for name in ("submission.csv", "failures.csv"):
        assert (found / name).read_bytes() == (wanted / name).read_bytes()
    here, there = (pd.read_csv(folder / "predictions.csv") for folder in (found, wanted))
    pd.testing.assert_frame_equal(here, there, rtol=0, atol=1e-6)


def copy_models(straight: Path, output: Path) -> Path:
    """The networks, and an empty place for the submission."""
    shutil.copytree(straight, output, ignore=shutil.ignore_patterns("submissions"))
    submission_of(output).mkdir(parents=True)
    return output


@pytest.mark.parametrize("share", [0.0, 0.004, 0.1, 0.37, 0.6, 0.85, 1.0])
def test_submit_resumes_from_any_part_of_the_journal(
    straight: Path, data: Path, tmp_path: Path, share: float
) -> None:
    """`kill -9` leaves a beginning of it, cut anywhere."""
    output = copy_models(straight, tmp_path / "output")
    whole = (submission_of(straight) / "journal.jsonl").read_bytes()
    (submission_of(output) / "journal.jsonl").write_bytes(whole[: round(share * len(whole))])
    before = lines_of(output)
    by_patient = any("breast" in line for line in lines_of(straight))
    submit(configure(data, output, ["batch_size=3"]))
    after = lines_of(output)
    assert after[: len(before)] == before
    n_images = len(pd.read_csv(data / "test.csv"))
    again = [line["image"] for line in after[len(before) :] if "image" in line]
    assert len(again) == len(set(again))
    assert len(again) == n_images - len(finished(before, data, by_patient=by_patient))
    check_same(output, straight)


def test_submit_leaves_a_finished_submission(
    straight: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    shutil.copytree(straight, output)
    folder = submission_of(output)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    again = submit(configure(data, output))
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert again["cancer"].tolist() == pd.read_csv(folder / "submission.csv")["cancer"].tolist()
    assert "finished already" in capsys.readouterr().err
    submit(configure(data, output, ["overwrite=true"]))
    assert folder.joinpath("submission.csv").stat().st_mtime_ns > before[folder / "submission.csv"]
    check_same(output, straight)


@pytest.mark.parametrize("changed", ["networks", "files", "table", "ensemble", "nothing but lines"])
def test_submit_deletes_predictions_of_other_inputs(
    straight: Path, data: Path, tmp_path: Path, changed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, other = tmp_path / "output", tmp_path / "data"
    shutil.copytree(straight, output)
    shutil.copytree(data, other)
    submit(configure(other, output))  # copies have their own times, and count as other files
    capsys.readouterr()
    n_lines = len(lines_of(output))
    if changed == "networks":
        run = output / "runs" / "images"
        weights = Path("checkpoints") / "last.ckpt"
        shutil.copy(run / "fold1" / weights, run / "fold0" / weights)
    elif changed == "files":
        file = next(other.rglob("*.png"))
        file.write_bytes(next(data.rglob("*5.png")).read_bytes())
    elif changed == "table":
        table = pd.read_csv(other / "test.csv", dtype=str)
        table.assign(view="CC").to_csv(other / "test.csv", index=False)
    elif changed == "ensemble":
        fitted = output / "ensembles" / NAME / "ensemble.json"
        fitted.write_text(fitted.read_text().replace('"max"', '"mean"'))
    else:
        journal = submission_of(output) / "journal.jsonl"
        journal.write_text(journal.read_text().replace('"image"', '"picture"'))
    submit(configure(other, output))
    printed = capsys.readouterr().err
    if changed == "nothing but lines":
        assert "Begins again" in printed
    else:
        assert f"differ from before: {changed}." in printed
    assert len(lines_of(output)) == n_lines
    shutil.rmtree(submission_of(output))
    afresh = submit(configure(other, output))
    summary = json.loads((submission_of(output) / "summary.json").read_text())
    assert summary["positive"] == afresh["cancer"].sum()


def test_submit_refuses_two_at_a_time(straight: Path, data: Path, tmp_path: Path) -> None:
    output = copy_models(straight, tmp_path / "output")
    with (submission_of(output) / "journal.jsonl").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Exception, match="Another process is at work"):
            submit(configure(data, output))


def command(data: Path, output: Path, *more: str) -> tuple[list[str], dict[str, str]]:
    """As a user types it; the processes find the tiny networks."""
    words = [sys.executable, "-m", "rsna_bcd.submit", *overrides(data, output, *more)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return words, {**os.environ, "PYTHONPATH": path}


def kill_after(data: Path, output: Path, lines: int, pause: float) -> bool:
    """Run until the journal has so many lines more, wait, kill everything; whether it was alive."""
    words, environment = command(data, output, "batch_size=3", "workers=1")
    journal = submission_of(output) / "journal.jsonl"

    def count() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    before = count()
    run = subprocess.Popen(
        words, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    while run.poll() is None and count() < before + lines:
        time.sleep(0.001)
    time.sleep(pause)
    alive = run.poll() is None
    if alive:
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return alive


def check_kills(straight: Path, data: Path, output: Path, kills: int) -> None:
    """Kill, resume, and compare with the undisturbed run."""
    copy_models(straight, output)
    random.seed(kills)
    total = len(lines_of(straight))
    by_patient = any("breast" in line for line in lines_of(straight))
    killed = 0
    seen: list[Lines] = []
    for number in range(kills):
        left = total - len(lines_of(output))
        most = max(1, left // (kills - number) - 1)
        killed += kill_after(data, output, random.randint(0, most), random.uniform(0, 0.01))
        seen.append(lines_of(output))
    assert killed >= 0.7 * kills
    words, environment = command(data, output, "batch_size=3", "workers=1")
    subprocess.run(words, env=environment, check=True, stderr=subprocess.PIPE)
    after = lines_of(output)
    for before in seen:
        assert after[: len(before)] == before
        later = {line["image"] for line in after[len(before) :] if "image" in line}
        assert not later & finished(before, data, by_patient=by_patient)
    check_same(output, straight)


@pytest.mark.parametrize("straight", [(2, 1)], indirect=True)
def test_submit_resumes_after_kill(straight: Path, data: Path, tmp_path: Path) -> None:
    check_kills(straight, data, tmp_path / "output", 1)


@pytest.mark.slow
def test_submit_resumes_after_10_kills(straight: Path, data: Path, tmp_path: Path) -> None:
    check_kills(straight, data, tmp_path / "output", 10)


@pytest.fixture
def slow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look of a network of images at an image takes 15 ms."""
    forward = TinyImages.forward

    def slow(self: TinyImages, image: torch.Tensor) -> dict[str, torch.Tensor]:
        time.sleep(0.015 * len(image))
        return forward(self, image)

    monkeypatch.setattr(TinyImages, "forward", slow)


def summary_of(output: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((submission_of(output) / "summary.json").read_text())
    return summary


def plans_of(output: Path) -> list[dict[str, Any]]:
    return [line["plan"] for line in lines_of(output) if "plan" in line]


def submit_within(seconds: float, data: Path, output: Path) -> pd.DataFrame:
    """Submit with a budget, and check that it was kept and what was answered."""
    begun = time.monotonic()
    submission = submit(configure(data, output, [f"budget.hours={seconds / 3600}", "batch_size=4"]))
    assert time.monotonic() - begun < seconds
    check_submission(submission, pd.read_csv(data / "sample_submission.csv"))
    images = pd.read_csv(data / "test.csv", dtype=str)["image_id"]
    failures = pd.read_csv(submission_of(output) / "failures.csv", dtype=str)
    assert set(failures["kind"]) <= {"out of time"}
    predicted = {line["image"] for line in lines_of(output) if "image" in line}
    assert sorted([*failures["image_id"], *predicted]) == sorted(images)
    return submission


@pytest.mark.usefixtures("slow_networks")
def test_short_budget_drops_tta_and_folds(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """About 95 images by 3 folds in 2 passes are 8.6 s; without augmentation 1.4 s a fold."""
    output = tmp_path / "output"
    fitted = save_members(output, images=3, breasts=0)
    submission = submit_within(5.5, data, output)
    summary, printed = summary_of(output), capsys.readouterr().err
    assert not plans_of(output)[0]["tta"]
    assert plans_of(output)[-1]["dropped"] in ([2], [2, 1])
    assert "Dropped: test-time augmentation" in printed
    assert summary["shed"].startswith("test-time augmentation, images fold2")
    assert f"Dropped for the time budget: {summary['shed']}." in printed
    # What is left has no part of what was given up.
    left = replace(fitted.members[0], folds=(0,) if "fold1" in summary["shed"] else (0, 1))
    write_ensemble(
        replace(fitted, members=(left,)), Path(output / f"ensembles/{NAME}/ensemble.json")
    )
    for fold in (0, 1):
        record = output / f"runs/images/fold{fold}/config.yaml"
        record.write_text(record.read_text().replace("tta: hflip", "tta: none"))
    found = pd.read_csv(submission_of(output) / "predictions.csv")
    submit(configure(data, output))
    wanted = pd.read_csv(submission_of(output) / "predictions.csv")
    read = found["probability"] != fitted.prior
    pd.testing.assert_frame_equal(found[read], wanted[read], rtol=0, atol=1e-6)
    # The threshold keeps the share of calls that was fitted.
    assert summary["recall_rate"] == fitted.thresholds.recall_rate
    assert submission["cancer"].sum() == round(summary["recall_rate"] * read.sum())


@pytest.mark.usefixtures("slow_networks")
def test_budget_without_time_for_all_images(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    fitted = save_members(output, images=2, breasts=1)
    submission = submit_within(2.8, data, output)
    summary, printed = summary_of(output), capsys.readouterr().err
    late = summary["failures"]["out of time"]
    assert f"Out of time: {late} of" in printed
    assert "of the images will be out of time" in printed
    assert 0 < summary["predicted"] == summary["images"] - late
    predictions = pd.read_csv(submission_of(output) / "predictions.csv")
    unread = predictions["probability"] == fitted.prior
    assert unread.sum() == summary["unread"] > 0
    assert submission.loc[unread, "cancer"].sum() == 0
    # With more time, what was predicted is not predicted again; with any time, all is, by all.
    before = lines_of(output)
    submit(configure(data, output, ["budget.hours=1"]))
    assert lines_of(output)[: len(before)] == before
    assert summary_of(output)["resumed"] > 0
    assert "fold1" in summary_of(output)["shed"]
    capsys.readouterr()
    submit(configure(data, output))
    assert "Begins again" in capsys.readouterr().err
    assert summary_of(output)["shed"] == ""
    assert summary_of(output)["resumed"] == 0


def spoil(output: Path, name: str, fold: int) -> None:
    """Give a fold weights that are no numbers."""
    file = output / f"runs/{name}/fold{fold}/checkpoints/last.ckpt"
    state = torch.load(file)["state_dict"]
    torch.save({"state_dict": {key: values * torch.nan for key, values in state.items()}}, file)


def test_non_finite_run_is_excluded_and_named(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, other = tmp_path / "output", tmp_path / "other"
    save_members(output, images=2, breasts=1)
    spoil(output, "images", 1)
    submission = submit(configure(data, output))
    check_submission(submission, pd.read_csv(data / "sample_submission.csv"))
    assert "Excluded, without a finite value: images fold1." in capsys.readouterr().err
    failures = pd.read_csv(submission_of(output) / "failures.csv", dtype=str)
    assert len(failures) == len(pd.read_csv(data / "test.csv"))
    assert set(failures["kind"]) == {"no value"}
    assert set(failures["reason"]) == {"images fold1 gave no finite value"}
    assert summary_of(output)["recall_rate"] == 0.8
    save_members(other, images=1, breasts=1)
    submit(configure(data, other))
    found, wanted = (pd.read_csv(submission_of(o) / "predictions.csv") for o in (output, other))
    pd.testing.assert_frame_equal(found, wanted)


def test_ensemble_without_finite_runs_leaves_the_prior(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "output"
    fitted = save_members(output, images=1, breasts=1)
    for name in ("images", "breasts"):
        spoil(output, name, 0)
    submission = submit(configure(data, output))
    assert submission["cancer"].sum() == 0
    predictions = pd.read_csv(submission_of(output) / "predictions.csv")
    assert set(predictions["probability"]) == {fitted.prior}
    failures = pd.read_csv(submission_of(output) / "failures.csv", dtype=str)
    assert failures["image_id"].isna().sum() == len(predictions)  # rows of the breasts


def test_submit_reads_an_archive(straight: Path, data: Path, tmp_path: Path) -> None:
    packed = tmp_path / "competition.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(data.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(data))
    output = copy_models(straight, tmp_path / "output")
    submit(configure(packed, output, ["batch_size=3", "workers=2"]))
    check_same(output, straight)


def test_submit_survives_an_unlistable_folder(
    straight: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = copy_models(straight, tmp_path / "output")
    patient = pd.read_csv(data / "test.csv", dtype=str)["patient_id"].iloc[0]
    listdir = os.listdir

    def refuse(folder: Path) -> list[str]:
        if Path(folder).name == patient:
            raise OSError(5, "Input/output error", str(folder))
        return listdir(folder)

    monkeypatch.setattr("rsna_bcd.files.os.listdir", refuse)
    submit(configure(data, output, ["batch_size=3"]))
    failures = pd.read_csv(submission_of(output) / "failures.csv", dtype=str)
    lost = failures[failures["kind"] == "absent"]
    assert set(lost["patient_id"]) == {patient}
    assert lost["reason"].str.contains("Input/output error").all()
    check_submission(
        pd.read_csv(submission_of(output) / "submission.csv"),
        pd.read_csv(data / "sample_submission.csv"),
    )
