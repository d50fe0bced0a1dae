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
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fabricated_networks import TinyImages
from file_trees import tree
from submission_inputs import NAME, configure, overrides, save_members, save_test_set

from rsna_bcd.errors import InputError
from rsna_bcd.inference import test_set
from rsna_bcd.inference.stream import predict
from rsna_bcd.scoring.ensemble import write_ensemble
from rsna_bcd.scoring.thresholds import Threshold
from rsna_bcd.stages.submit import submit
from rsna_bcd.tables.predictions import check_submission

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 95 images, enough for a rate to be measured."""
    folder = tmp_path_factory.mktemp("many")
    save_test_set(folder, 16)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("test_set")
    save_test_set(folder, 7)
    return folder


@pytest.fixture(scope="module", params=[(2, 1)], ids=["images and breasts"])
def straight(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output of an undisturbed run, of so many folds by image and by breast; read only."""
    output = tmp_path_factory.mktemp("straight")
    save_members(output, *request.param)
    submit(configure(data, output, ["batch_size=3"]))
    return output


def folder_in(output: Path) -> Path:
    return output / "submissions" / NAME


def table_in(output: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder_in(output) / name, dtype={"image_id": str, "patient_id": str})


def summary_in(output: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder_in(output) / "summary.json").read_text())
    return summary


def journal_lines(output: Path) -> Lines:
    """The whole lines."""
    journal = folder_in(output) / "journal.jsonl"
    content = journal.read_text() if journal.exists() else ""
    return [json.loads(line) for line in content.split("\n")[:-1]]


def predicted_images(lines: Lines) -> list[str]:
    return [line["image"] for line in lines if "image" in line]


def finished(lines: Lines, data: Path) -> set[str]:
    """Images that must not be predicted again: with networks of breast level, whole patients."""
    images = set(predicted_images(lines))
    breasts = {line["breast"] for line in lines if "breast" in line}
    if not breasts:
        return set()
    table = pd.read_csv(data / "test.csv", dtype=str)
    complete = table["image_id"].isin(images) & table["prediction_id"].isin(breasts)
    return set(table.loc[complete.groupby(table["patient_id"]).transform("all"), "image_id"])


def check_same(output: Path, straight: Path) -> None:
    """The same decisions; probabilities may be those of other batches."""
    for name in ("submission.csv", "failures.csv"):
        assert (folder_in(output) / name).read_bytes() == (folder_in(straight) / name).read_bytes()
    here, there = (table_in(folder, "predictions.csv") for folder in (output, straight))
    pd.testing.assert_frame_equal(here, there, rtol=0, atol=1e-6)


def copy_models(straight: Path, output: Path) -> Path:
    """The networks, and an empty folder for the submission."""
    shutil.copytree(straight, output, ignore=shutil.ignore_patterns("submissions"))
    folder_in(output).mkdir(parents=True)
    return output


@pytest.mark.parametrize("share", [0.004, 0.1, 0.4, 0.85, 1.0])
def test_submit_resumes_from_any_part_of_the_journal(
    straight: Path, data: Path, tmp_path: Path, share: float
) -> None:
    """`kill -9` leaves a beginning of it, cut anywhere."""
    output = copy_models(straight, tmp_path / "output")
    whole = (folder_in(straight) / "journal.jsonl").read_bytes()
    (folder_in(output) / "journal.jsonl").write_bytes(whole[: round(share * len(whole))])
    before = journal_lines(output)
    submit(configure(data, output, ["batch_size=3"]))
    after = journal_lines(output)
    assert after[: len(before)] == before
    again = predicted_images(after[len(before) :])
    images = set(pd.read_csv(data / "test.csv", dtype=str)["image_id"])
    assert sorted(again) == sorted(images - finished(before, data))
    check_same(output, straight)


@pytest.mark.parametrize(
    ("plan", "tta", "kept"),
    [(True, "hflip", "hflip"), (False, "hflip", "none"), (1, "[hflip, vflip]", "[hflip]")],
    ids=["earlier version", "earlier version, dropped", "one of two"],
)
def test_submit_resumes_with_the_transforms_of_the_journal(
    data: Path, tmp_path: Path, plan: bool | int, tta: str, kept: str
) -> None:
    def submit_with(output: Path, tta: str) -> Path:
        save_members(output)
        for file in output.glob("runs/*/*/config.yaml"):
            file.write_text(file.read_text().replace("tta: hflip", f"tta: {tta}"))
        submit(configure(data, output, ["batch_size=3"]))
        return output

    output = submit_with(tmp_path / "output", tta)
    journal = folder_in(output) / "journal.jsonl"
    lines = [journal.read_text().split("\n")[0], json.dumps({"plan": {"tta": plan, "dropped": []}})]
    journal.write_text("".join(f"{line}\n" for line in lines))
    submit(configure(data, output, ["batch_size=3", "budget.hours=1"]))
    assert journal.read_text().split("\n")[:2] == lines
    assert summary_in(output)["shed"].startswith("" if plan is True else "test-time augmentation")
    found = table_in(output, "predictions.csv")
    expected = table_in(submit_with(tmp_path / "kept", kept), "predictions.csv")
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


@pytest.mark.parametrize("straight", [(2, 0)], indirect=True, ids=["images"])
def test_submit_at_image_level_predicts_no_image_twice(
    straight: Path, data: Path, tmp_path: Path
) -> None:
    output = copy_models(straight, tmp_path / "output")
    lines = (folder_in(straight) / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder_in(output) / "journal.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    submit(configure(data, output, ["batch_size=3"]))
    predicted = predicted_images(journal_lines(output))
    assert sorted(predicted) == sorted(pd.read_csv(data / "test.csv", dtype=str)["image_id"])
    check_same(output, straight)


def test_submit_leaves_a_finished_submission(
    straight: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    shutil.copytree(straight, output)
    folder = folder_in(output)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    again = submit(configure(data, output))
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert again["cancer"].tolist() == table_in(output, "submission.csv")["cancer"].tolist()
    assert "finished already" in capsys.readouterr().err
    submit(configure(data, output, ["overwrite=true"]))
    assert (folder / "submission.csv").stat().st_mtime_ns > before[folder / "submission.csv"]
    check_same(output, straight)
    (folder / "predictions.csv").unlink()  # it is made again, of the same predictions
    submit(configure(data, output))
    assert summary_in(output)["resumed"] == summary_in(output)["images"]
    check_same(output, straight)


def test_submit_that_is_refused_leaves_the_finished_submission(
    straight: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    shutil.copytree(straight, output)
    before = tree(folder_in(output))
    with pytest.raises(InputError, match=r"engine: auto -> onnx\n.*overwrite=true"):
        submit(configure(data, output, ["engine=onnx"]))
    with pytest.raises(InputError, match=r"rsna_bcd\.export|extra"):  # there is no such file
        submit(configure(data, output, ["engine=onnx", "overwrite=true"]))
    assert tree(folder_in(output)) == before


def test_submit_that_is_stopped_leaves_the_finished_submission(
    straight: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    shutil.copytree(straight, output)

    def stop(*arguments: Any) -> Iterator[Any]:
        yield from islice(predict(*arguments), 30)
        raise KeyboardInterrupt

    for _ in range(2):  # first by another engine, then by the same
        before = tree(folder_in(output))
        with monkeypatch.context() as patch:
            patch.setattr(test_set, "predict", stop)
            with pytest.raises(KeyboardInterrupt):
                submit(configure(data, output, ["engine=torch", "overwrite=true"]))
        after = tree(folder_in(output))
        assert len(journal_lines(output)) == 2 + 30
        assert after.keys() == before.keys()
        assert {name for name in after if after[name] != before[name]} == {"journal.jsonl"}
        submit(configure(data, output, ["engine=torch"]))
        assert 0 < summary_in(output)["resumed"] < summary_in(output)["images"]
        assert summary_in(output)["asked"]["engine"] == "torch"
        check_same(output, straight)


def test_submit_predicts_again_for_other_inputs(straight: Path, data: Path, tmp_path: Path) -> None:
    """Where `overwrite=true` allows it; else they are refused, and nothing changes."""
    output, other = tmp_path / "output", tmp_path / "data"
    shutil.copytree(straight, output)
    shutil.copytree(data, other)
    n_lines = len(journal_lines(output))

    def change_text(file: Path, old: str, new: str) -> None:
        file.write_text(file.read_text().replace(old, new))

    def change_networks() -> None:
        last = "checkpoints/last.ckpt"
        folds = output / "runs" / "images"
        shutil.copy(folds / "fold1" / last, folds / "fold0" / last)

    pictures = sorted(other.rglob("*.png"))
    table = pd.read_csv(other / "test.csv", dtype=str).assign(view="CC")
    fitted = output / "ensembles" / NAME / "ensemble.json"
    changes: list[tuple[str, Callable[[], Any]]] = [
        ("networks", change_networks),
        ("files", lambda: shutil.copy(pictures[0], pictures[-1])),
        ("table", lambda: table.to_csv(other / "test.csv", index=False)),
        ("ensemble", lambda: change_text(fitted, '"max"', '"mean"')),
    ]
    for changed, change in changes:
        change()
        before = tree(folder_in(output))
        with pytest.raises(InputError, match=rf"now\):\n  {changed}: \w+ -> \w+\n.*overwrite"):
            submit(configure(other, output))
        assert tree(folder_in(output)) == before
        submit(configure(other, output, ["overwrite=true"]))
        assert len(journal_lines(output)) == n_lines
        assert summary_in(output)["resumed"] == 0


def test_submit_refuses_two_at_a_time(straight: Path, data: Path, tmp_path: Path) -> None:
    output = copy_models(straight, tmp_path / "output")
    with (folder_in(output) / "journal.jsonl").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="Another process is at work"):
            submit(configure(data, output))


def kill_after(data: Path, output: Path, lines: int, pause: float) -> bool:
    """Run the command until the journal has so many lines more, wait, kill all its processes.

    Returns:
        Whether it was still at work.
    """
    words = overrides(data, output, "batch_size=3", "workers=1")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    before = len(journal_lines(output))
    run = subprocess.Popen(
        [sys.executable, "-m", "rsna_bcd.submit", *words],
        env={**os.environ, "PYTHONPATH": path},  # for the tiny networks
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    while run.poll() is None and len(journal_lines(output)) < before + lines:
        time.sleep(0.01)
    time.sleep(pause)
    alive = run.poll() is None
    if alive:
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return alive


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_submit_resumes_after_kills(straight: Path, data: Path, tmp_path: Path, kills: int) -> None:
    output = copy_models(straight, tmp_path / "output")
    random.seed(kills)
    total, killed = len(journal_lines(straight)), 0
    left_by_kills: list[Lines] = []
    for number in range(kills):
        most = max(1, (total - len(journal_lines(output))) // (kills - number) - 1)
        killed += kill_after(data, output, random.randint(1, most), random.uniform(0, 0.01))
        left_by_kills.append(journal_lines(output))
    assert killed >= 0.7 * kills
    submit(configure(data, output, ["batch_size=3"]))
    after = journal_lines(output)
    for before in left_by_kills:
        assert after[: len(before)] == before
        assert not finished(before, data) & set(predicted_images(after[len(before) :]))
    check_same(output, straight)


@pytest.fixture
def slow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock where nothing else takes time, a network of image level takes 15 ms per image."""
    forward, now = TinyImages.forward, [1000.0]

    def slow(self: TinyImages, image: torch.Tensor) -> dict[str, torch.Tensor]:
        now[0] += 0.015 * len(image)
        return forward(self, image)

    monkeypatch.setattr(TinyImages, "forward", slow)
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, lambda: now[0])
    on_this_clock = partial(test_set.DeadlineMonitor, clock=lambda: now[0])
    monkeypatch.setattr(test_set, "DeadlineMonitor", on_this_clock)


def submit_within(seconds: float, data: Path, output: Path) -> pd.DataFrame:
    """Submit with a budget; check that it was kept and that each image is predicted or named."""
    started = time.monotonic()
    submission = submit(configure(data, output, [f"budget.hours={seconds / 3600}", "batch_size=4"]))
    assert time.monotonic() - started < seconds
    check_submission(submission, pd.read_csv(data / "sample_submission.csv"))
    failures = table_in(output, "failures.csv")
    assert set(failures["kind"]) <= {"out of time"}
    images = pd.read_csv(data / "test.csv", dtype=str)["image_id"]
    predicted = set(predicted_images(journal_lines(output)))
    assert sorted([*failures["image_id"], *predicted]) == sorted(images)
    return submission


@pytest.mark.usefixtures("slow_networks")
def test_submit_with_a_short_budget_drops_tta_and_folds(
    tmp_path: Path, many: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """About 95 images by 3 folds in 2 passes are 8.6 s; without augmentation 1.4 s a fold."""
    output = tmp_path / "output"
    fitted = save_members(output, images=3, breasts=0)
    submission = submit_within(5.5, many, output)
    summary, printed = summary_in(output), capsys.readouterr().err
    plans = [line["plan"] for line in journal_lines(output) if "plan" in line]
    assert plans[0]["tta"] == 0
    assert plans[-1]["dropped"] in ([2], [2, 1])
    assert summary["shed"].startswith("test-time augmentation, images fold2")
    assert f"Dropped for the time budget: {summary['shed']}." in printed
    # The predictions are those of an ensemble of the rest.
    monkeypatch.undo()
    left = replace(fitted.members[0], folds=(0,) if "fold1" in summary["shed"] else (0, 1))
    write_ensemble(replace(fitted, members=(left,)), output / "ensembles" / NAME / "ensemble.json")
    for fold in (0, 1):
        record = output / "runs" / "images" / f"fold{fold}" / "config.yaml"
        record.write_text(record.read_text().replace("tta: hflip", "tta: none"))
    found = table_in(output, "predictions.csv")
    submit(configure(many, output, ["overwrite=true"]))
    expected = table_in(output, "predictions.csv")
    in_time = found["probability"] != fitted.prior
    pd.testing.assert_frame_equal(found[in_time], expected[in_time], rtol=0, atol=1e-6)
    # The threshold is on another scale now; the recall rate that was fitted is kept.
    assert summary["recall_rate"] == fitted.thresholds.recall_rate
    assert submission["cancer"].sum() == round(summary["recall_rate"] * in_time.sum())


@pytest.mark.usefixtures("slow_networks")
def test_submit_out_of_time_names_the_images_and_resumes_with_more_time(
    tmp_path: Path, many: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    fitted = save_members(output, images=2, breasts=1)
    submission = submit_within(2.0, many, output)  # a second of it is the reserve
    summary, printed = summary_in(output), capsys.readouterr().err
    late = summary["failures"]["out of time"]
    assert f"Out of time: {late} of" in printed
    assert 0 < summary["predicted"] == summary["images"] - late
    unreadable = table_in(output, "predictions.csv")["probability"] == fitted.prior
    assert unreadable.sum() == summary["unread"] > 0
    assert submission.loc[unreadable, "cancer"].sum() == 0
    monkeypatch.undo()
    before = journal_lines(output)
    submit(configure(many, output, ["budget.hours=1"]))
    assert journal_lines(output)[: len(before)] == before
    assert summary_in(output)["resumed"] > 0
    assert "fold1" in summary_in(output)["shed"]
    before = journal_lines(output)
    with pytest.raises(InputError, match=r"dropped .*fold1.*budget\.hours=.*overwrite=true"):
        submit(configure(many, output))
    assert journal_lines(output) == before
    # Without a budget, every network predicts every image.
    submit(configure(many, output, ["overwrite=true"]))
    assert (summary_in(output)["shed"], summary_in(output)["resumed"]) == ("", 0)


@pytest.mark.parametrize("patients", [16, 1])
def test_submit_with_networks_of_all_patients_keeps_the_recall_rate(
    tmp_path: Path, patients: int, capsys: pytest.CaptureFixture[str]
) -> None:
    output, data = tmp_path / "output", tmp_path / "data"
    data.mkdir()
    save_test_set(data, patients)
    fitted = save_members(output, images=1, breasts=1)
    file = output / "ensembles" / NAME / "ensemble.json"
    submit(configure(data, output))
    expected = table_in(output, "predictions.csv")
    # The networks of the folds, which are not needed any more, under another name and threshold.
    for name in ("images", "breasts"):
        (output / "runs" / name / "fold0").rename(output / "runs" / name / "foldall")
    thresholds = Threshold(0.9, {"1": 0.95}, recall_rate=0.3)
    write_ensemble(replace(fitted, networks="all", threshold=0.9, thresholds=thresholds), file)
    submission = submit(configure(data, output, ["overwrite=true"]))
    pd.testing.assert_frame_equal(table_in(output, "predictions.csv"), expected)
    assert submission["cancer"].sum() == round(0.3 * 2 * patients)
    lowest = expected["probability"][submission["cancer"] == 1].min()
    assert lowest > expected["probability"][submission["cancer"] == 0].max()
    assert summary_in(output)["recall_rate"] == 0.3
    assert "which keeps a recall rate of 30.0%" in capsys.readouterr().err


def make_non_finite(output: Path, name: str, fold: int) -> None:
    file = output / f"runs/{name}/fold{fold}/checkpoints/last.ckpt"
    state = torch.load(file)["state_dict"]
    torch.save({"state_dict": {key: values * torch.nan for key, values in state.items()}}, file)


def test_submit_excludes_and_names_a_non_finite_run(
    tmp_path: Path, many: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, other = tmp_path / "output", tmp_path / "other"
    save_members(output, images=2, breasts=1)
    make_non_finite(output, "images", 1)
    submission = submit(configure(many, output))
    check_submission(submission, pd.read_csv(many / "sample_submission.csv"))
    assert "Excluded, without a finite value: images fold1." in capsys.readouterr().err
    failures = table_in(output, "failures.csv")
    assert len(failures) == len(pd.read_csv(many / "test.csv"))
    assert set(failures["kind"]) == {"no value"}
    assert set(failures["reason"]) == {"images fold1 gave no finite value"}
    assert summary_in(output)["recall_rate"] == 0.8
    save_members(other, images=1, breasts=1)
    submit(configure(many, other))
    found, expected = (table_in(folder, "predictions.csv") for folder in (output, other))
    pd.testing.assert_frame_equal(found, expected)


def test_submit_without_a_finite_run_gives_the_prior(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "output"
    fitted = save_members(output, images=1, breasts=1)
    for name in ("images", "breasts"):
        make_non_finite(output, name, 0)
    assert submit(configure(data, output))["cancer"].sum() == 0
    predictions = table_in(output, "predictions.csv")
    assert set(predictions["probability"]) == {fitted.prior}
    assert table_in(output, "failures.csv")["image_id"].isna().sum() == len(predictions)


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
    submission = submit(configure(data, output, ["batch_size=3"]))
    failures = table_in(output, "failures.csv")
    lost = failures[failures["kind"] == "absent"]
    assert set(lost["patient_id"]) == {patient}
    assert lost["reason"].str.contains("Input/output error").all()
    check_submission(submission, pd.read_csv(data / "sample_submission.csv"))
