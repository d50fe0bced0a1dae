"""The stage `prepare` on small folders of pictures and DICOM files."""

import multiprocessing
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from breast_shapes import breast_image
from dicom_files import write_dicom
from file_trees import tree
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from stage_settings import composed

from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.preparation.crop import CropSettings
from rsna_bcd.preparation.folder import PreparedFolder
from rsna_bcd.stages import prepare as stage
from rsna_bcd.tables.folds import read_folds

COLUMNS = ["patient_id", "image_id", "laterality", "view", "cancer"]


def picture(**shape: Any) -> np.ndarray:
    return np.rint(breast_image(100, 80, noise=0.01, **shape) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients with two breasts and one image each, as pictures; two of them in the test."""
    folder = tmp_path_factory.mktemp("pictures")
    rows: dict[str, list[tuple[Any, ...]]] = {"train": [], "test": []}
    for patient in range(10):
        for laterality in "LR":
            split = "train" if patient < 8 else "test"
            image_id = f"{1000 + 2 * patient + (laterality == 'R')}"
            file = folder / f"{split}_images" / str(patient) / f"{image_id}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), picture(right=laterality == "R", seed=patient))
            rows[split].append((str(patient), image_id, laterality, "CC", int(patient % 4 == 0)))
    pd.DataFrame(rows["train"], columns=COLUMNS).to_csv(folder / "train.csv", index=False)
    test = pd.DataFrame(rows["test"], columns=COLUMNS)
    test["prediction_id"] = test["patient_id"] + "_" + test["laterality"]
    test.drop(columns="cancer").to_csv(folder / "test.csv", index=False)
    return folder


@pytest.fixture
def data(pictures: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pictures, tmp_path, dirs_exist_ok=True)


@pytest.fixture(autouse=True)
def _quick_contact_sheet(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_contact_sheet" not in request.fixturenames:
        monkeypatch.setattr(stage, "contact_sheet", lambda sample, read, title: title.encode())


@pytest.fixture
def real_contact_sheet() -> None:
    """For a test that draws it."""


def run(data: Path, *overrides: str) -> Path:
    """Run the stage in this process; return the prepared folder."""
    own = (f"paths.data={data}", f"paths.output={data / 'output'}", "source=image", "crop=demo")
    cfg = composed("prepare", *own, "workers=0", *overrides)
    stage.prepare(cfg)
    return Path(cfg.prepared_dir)


def straight(data: Path, *overrides: str) -> dict[str, bytes]:
    """The files of a run that nothing disturbs."""
    return tree(run(data, *overrides, "paths.output=${paths.data}/straight"))


@pytest.mark.usefixtures("real_contact_sheet")
def test_prepare_writes_crops_tables_and_folds(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(data)
    train = pd.read_csv(folder / "train.csv")
    assert len(train) == 16
    assert list(train.columns[:6]) == [*COLUMNS, "prediction_id"]
    assert (train["flipped"] == (train["laterality"] == "R")).all()
    for path in [*train["path"], *pd.read_csv(folder / "test.csv")["path"]]:
        crop = cv2.imread(str(folder / path), cv2.IMREAD_UNCHANGED)
        assert crop is not None
        assert crop.shape == (256, 128)
        assert crop[128, 0] > crop[128, -1]
    assert len(read_folds(data / "output/folds/rsna-stratified.csv")) == 8
    sheet = cv2.imread(str(folder / "train_contact_sheet.png"))
    assert sheet is not None
    assert sheet.std() > 10
    assert "train: 16 crops" in capsys.readouterr().err


def test_prepare_again_or_from_another_place_does_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(run(data))
    monkeypatch.setattr(stage.engine, "run", lambda *_, **__: pytest.fail("nothing to do"))
    (data / "moved").symlink_to(data)
    for place in (data, data / "moved"):
        capsys.readouterr()
        assert tree(run(place, f"paths.output={data / 'output'}")) == before
        assert "train: 16 crops (all there already)" in capsys.readouterr().err


def run_until_the_sixth(monkeypatch: pytest.MonkeyPatch, data: Path, *overrides: str) -> list[str]:
    """Run, stopped when the sixth crop is made but not noted; the images that were worked on."""
    engine_run, worked_on = stage.engine.run, []

    def stop_after_five(function: Any, tasks: Any, **settings: Any) -> Any:
        for i, result in enumerate(engine_run(function, tasks, **settings)):
            worked_on.append(result.key[1])
            if i == 5:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patched:
        patched.setattr(stage.engine, "run", stop_after_five)
        with pytest.raises(KeyboardInterrupt):
            run(data, *overrides)
    return worked_on


def test_prepare_resumes_a_run_that_was_stopped(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked_on = run_until_the_sixth(monkeypatch, data)
    times = {f: f.stat().st_mtime_ns for f in (data / "output").rglob("*.png")}
    assert len(times) == 6
    assert tree(run(data, "workers=2")) == straight(data)
    again = [f for f, time in times.items() if f.stat().st_mtime_ns != time]
    assert [f.stem for f in again] == worked_on[5:]  # only the one that was never noted


def test_prepare_resumes_a_run_with_overwrite_that_was_stopped(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(data)
    again = ("crop.margin=0.05", "overwrite=true")
    run_until_the_sixth(monkeypatch, data, *again)
    noted = (folder / "journal.jsonl").read_text()
    assert len(noted.splitlines()) == 5
    with monkeypatch.context() as patched:
        patched.setattr(PreparedFolder, "clear", lambda folder: pytest.fail("cleared twice"))
        done = run_until_the_sixth(monkeypatch, data, *again)  # the same command resumes
        assert (folder / "journal.jsonl").read_text().startswith(noted)
        assert not any(f'"{image_id}"' in noted for image_id in done)
        run(data, again[0])  # and so does the one without
    assert tree(folder) == straight(data, again[0])
    cleared = []
    monkeypatch.setattr(PreparedFolder, "clear", lambda folder: cleared.append(folder))
    run(data, *again)  # it has come to its end: a new one starts from scratch
    assert len(cleared) == 1


def test_prepare_notices_a_file_that_took_the_place_of_another(data: Path) -> None:
    for name, seed in (("a.bmp", 1), ("b.bmp", 2)):
        cv2.imwrite(str(data / "train_images" / name), picture(seed=seed))
        os.utime(data / "train_images" / name, (0, 0))  # of the same size, too
    table = pd.read_csv(data / "train.csv")
    files = [f"{row.patient_id}/{row.image_id}.png" for row in table.itertuples()]
    settings = ("dataset=generic", "dataset.name=own", "splits=[train]")
    trees = []
    for names in (["a.bmp", "b.bmp"], ["b.bmp", "a.bmp"]):
        table.assign(file=[*names, *files[2:]]).to_csv(data / "train.csv", index=False)
        trees.append(tree(run(data, *settings)))
    for crop in ("train/0/1000.png", "train/0/1001.png"):
        assert trees[0][crop] != trees[1][crop]
    assert trees[1] == straight(data, *settings)


def test_prepare_deletes_crops_of_failed_files_and_of_absent_rows(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(data)
    lost = data / "train_images/3/1006.png"
    lost.write_bytes(lost.read_bytes() + b"\0")
    table = pd.read_csv(data / "train.csv")
    table[table["image_id"] != 1010].to_csv(data / "train.csv", index=False)
    monkeypatch.setattr("rsna_bcd.preparation.crop.prepare_image", lambda *_: 1 / 0)
    present = []
    write_tables = PreparedFolder.write_tables

    def look(folder: PreparedFolder, splits: Any) -> None:
        present.append((folder.folder / "train/3/1006.png").exists())
        write_tables(folder, splits)

    monkeypatch.setattr(PreparedFolder, "write_tables", look)
    run(data, "max_failed_fraction=1", "overwrite_folds=true")
    assert present == [False]  # at once: the run may be stopped before its end
    crops = {f.stem for f in folder.glob("train/*/*.png")}
    assert crops == {str(i) for i in range(1000, 1016)} - {"1006", "1010"}


def test_prepare_refuses_other_settings_with_the_difference(data: Path) -> None:
    run(data, "splits=[test]")
    for override, difference in (
        ("crop.margin=0.05", "crop.margin: 0.01 -> 0.05"),
        ("decoders=[pydicom]", "decoders: .*openjpeg.* -> "),  # decodes a part of the levels only
    ):
        with pytest.raises(InputError, match=rf"(?s){difference}.*overwrite=true"):
            run(data, "splits=[test]", override)


def test_prepare_names_bad_files_and_prepares_the_others(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "train_images/3/1006.png").write_text("no picture")
    cv2.imwrite(str(data / "train_images/5/1010.png"), np.zeros((50, 50), np.uint8))
    with pytest.raises(InputError, match="2 of 16 files of the train split .*manifest.csv"):
        run(data)
    printed = capsys.readouterr().err
    assert "1006: not a picture" in printed
    assert "1010: all pixels have the value 0" in printed
    train = pd.read_csv(run(data, "max_failed_fraction=0.2") / "train.csv")
    assert train["path"].isna().sum() == 2
    for file in ("3/1006.png", "5/1010.png"):
        cv2.imwrite(str(data / "train_images" / file), picture())
    assert pd.read_csv(run(data) / "train.csv")["path"].notna().all()


def test_prepare_refuses_absent_files_unless_allowed(data: Path) -> None:
    shutil.rmtree(data / "train_images/2")
    (data / "test_images/9/1019.png").unlink()
    absent = r"2 of 16 files .*train_images/2/1004.*allow_missing=true"
    with pytest.raises(InputError, match=absent):
        run(data)
    folder = run(data, "allow_missing=true")
    assert len(pd.read_csv(folder / "train.csv")) == 14
    test = pd.read_csv(folder / "test.csv")
    assert len(test) == 4
    assert test.loc[test["path"].isna(), "image_id"].tolist() == [1019]
    manifest = pd.read_csv(folder / "manifest.csv")
    missing = manifest.loc[manifest["status"] == "missing", "image_id"]
    assert missing.tolist() == [1004, 1005, 1019]
    with pytest.raises(InputError, match="16 of 16 files"):  # all absent: paths.data= is wrong
        run(data, "allow_missing=true", "source=dicom", "dataset.name=other")


def test_prepare_reads_dicom_and_counts_failures_and_quality_flags(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.rint(breast_image(100, 80) * 4000).astype(np.uint16)
    files = sorted(data.glob("train_images/*/*.png"))
    for number, file in enumerate(files):
        elements = {"ViewPosition": "MCC" if number == 5 else "CC", "PartialView": "NO"}
        intent = "FOR PROCESSING" if number < 7 else "FOR PRESENTATION"
        window = {} if number < 4 else {"WindowCenter": "2048", "WindowWidth": "4096"}
        write_dicom(
            file.with_suffix(".dcm"), values, bits=12, syntax="jpeg2000",
            PresentationIntentType=intent, **elements, **window,
        )  # fmt: skip
    cut, other, constant = (file.with_suffix(".dcm") for file in files[:3])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    other.write_text("image_id,cancer\n" * 50)
    write_dicom(constant, np.full((50, 50), 3, np.uint16), bits=12)
    folder = run(data, "source=dicom", "splits=[train]", "max_failed_fraction=0.5")
    printed = capsys.readouterr().err
    assert "train: 13 crops, 3 unreadable" in printed
    assert "quality flags: no window 1; magnification 1; for processing 4" in printed
    manifest = pd.read_csv(folder / "manifest.csv", keep_default_na=False).set_index("image_id")
    reasons = manifest["status"].tolist()
    for reason, expected in zip(
        reasons[:3], ("cut short", "not a DICOM", "have the value 3"), strict=True
    ):
        assert expected in reason
    assert manifest.loc[1003, "transfer_syntax"] == "1.2.840.10008.1.2.4.90"
    assert manifest["quality_flags"].tolist()[3:8] == [
        "no window; for processing", "for processing", "magnification; for processing",
        "for processing", "",
    ]  # fmt: skip
    assert not (folder / "test.csv").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("crop.margin=2", "margin=2"),
        ("workers=-2", "workers=-2"),
        ("dataset.test_csv=nowhere.csv", r"nowhere.csv does not exist.*splits=\[train\]"),
        ("prepared_dir=${paths.data}", r"images in .* are within .*paths\.output="),
    ],
)
def test_prepare_refuses_settings_that_make_no_sense(
    data: Path, override: str, message: str
) -> None:
    with pytest.raises((InputError, InstantiationException), match=message):
        run(data, override)


def test_prepare_leaves_no_process_if_the_journal_cannot_be_written(data: Path) -> None:
    journal = data / "output/prepared/rsna/demo/journal.jsonl"
    journal.parent.mkdir(parents=True)
    journal.symlink_to("/nowhere/journal.jsonl")
    with pytest.raises(StorageError, match=r"journal\.jsonl") as error:
        run(data, "workers=2")
    assert multiprocessing.active_children() == []
    del error  # not before: its frames keep the engine from being collected


@pytest.mark.parametrize("file", sorted(Path(CONF, "crop").glob("*.yaml")), ids=lambda f: f.stem)
def test_crop_option_is_named_like_its_file(file: Path) -> None:
    settings = instantiate(composed("prepare", f"crop={file.stem}").crop)
    assert isinstance(settings, CropSettings)
    assert settings.name == file.stem


def test_prepare_reads_an_archive_like_its_folder(data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "competition.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in tree(data).items():
            if not name.endswith(".zip"):
                archive.writestr(name, content)
    unpacked = run(data)
    packed = run(data / "competition.zip", f"paths.output={tmp_path / 'packed'}")
    crops = {name: content for name, content in tree(packed).items() if "journal" not in name}
    assert len(crops) > 20
    assert crops == {k: v for k, v in tree(unpacked).items() if k in crops}
