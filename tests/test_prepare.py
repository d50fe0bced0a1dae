"""The stage `prepare` on small folders of pictures and DICOM files."""

import os
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from breast_shapes import breast_image
from dicom_files import write_dicom
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.preparation.crop import CropSettings
from rsna_bcd.preparation.folder import PreparedFolder
from rsna_bcd.stages import prepare as stage
from rsna_bcd.stages.prepare import prepare
from rsna_bcd.tables.folds import read_folds

Row = tuple[str, str, str, str, int]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten patients with two breasts and one image each, as pictures; two of them in the test."""
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for patient in range(10):
        for laterality in "LR":
            split = "train" if patient < 8 else "test"
            image_id = f"{1000 + 2 * patient + (laterality == 'R')}"
            file = tmp_path / f"{split}_images" / str(patient) / f"{image_id}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = breast_image(100, 80, right=laterality == "R", seed=patient, noise=0.01)
            cv2.imwrite(str(file), np.rint(picture * 255).astype(np.uint8))
            rows[split].append((str(patient), image_id, laterality, "CC", int(patient % 4 == 0)))
    columns = ["patient_id", "image_id", "laterality", "view", "cancer"]
    pd.DataFrame(rows["train"], columns=columns).to_csv(tmp_path / "train.csv", index=False)
    test = pd.DataFrame(rows["test"], columns=columns)
    test["prediction_id"] = test["patient_id"] + "_" + test["laterality"]
    test.drop(columns="cancer").to_csv(tmp_path / "test.csv", index=False)
    return tmp_path


def run(data: Path, *overrides: str) -> Path:
    """Run the stage in this process; return the prepared folder."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(
            "prepare",
            [
                f"paths.data={data}",
                f"paths.output={data / 'output'}",
                "source=image",
                "crop=demo",
                "workers=0",
                *overrides,
            ],
        )
    prepare(cfg)
    return Path(cfg.prepared_dir)


def tables(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.glob("*.csv") if f.name != "timings.csv"}


def test_crops_tables_and_folds(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(data)
    train = pd.read_csv(folder / "train.csv")
    assert len(train) == 16
    assert list(train.columns[:6]) == [
        "patient_id", "image_id", "laterality", "view", "cancer", "prediction_id",
    ]  # fmt: skip
    assert (train["flipped"] == (train["laterality"] == "R")).all()
    for path in [*train["path"], *pd.read_csv(folder / "test.csv")["path"]]:
        crop = cv2.imread(str(folder / path), cv2.IMREAD_UNCHANGED)
        assert crop is not None
        assert crop.shape == (256, 128)
        assert crop[128, 0] > crop[128, -1]
    folds = read_folds(data / "output/folds/rsna-stratified.csv")
    assert len(folds) == 8
    assert "train: 16 crops" in capsys.readouterr().err


def test_quality_flags_are_counted(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, file in enumerate(sorted((data / "test_images").glob("*/*.png"))):
        picture = breast_image(100, 80, seed=number, noise=0.01)
        elements = {"ViewPosition": "MCC" if number == 0 else "CC", "PartialView": "NO"}
        intent = "FOR PROCESSING" if number < 2 else "FOR PRESENTATION"
        write_dicom(
            file.with_suffix(".dcm"), np.rint(picture * 4095).astype(np.uint16), bits=12,
            PresentationIntentType=intent, WindowCenter="2048", WindowWidth="4096", **elements,
        )  # fmt: skip
    folder = run(data, "source=dicom", "splits=[test]")
    manifest = pd.read_csv(folder / "manifest.csv", keep_default_na=False)
    flags = ["magnification; for processing", "for processing", "", ""]
    assert manifest["quality_flags"].tolist() == flags
    assert "quality flags: magnification 1; for processing 2" in capsys.readouterr().err


def test_running_again_does_nothing_and_changes_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tables(run(data))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("there was nothing to do")

    monkeypatch.setattr(stage.engine, "run", fail)
    capsys.readouterr()
    assert tables(run(data)) == before
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


def test_a_run_that_was_stopped_goes_on(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = tables(run(data, "paths.output=${paths.data}/straight"))
    worked_on = run_until_the_sixth(monkeypatch, data)
    times = {f: f.stat().st_mtime_ns for f in (data / "output").rglob("*.png")}
    assert len(times) == 6
    folder = run(data)
    assert tables(folder) == straight
    again = [f for f, time in times.items() if f.stat().st_mtime_ns != time]
    assert [f.stem for f in again] == worked_on[5:]  # only the one that was never noted


def tree(folder: Path) -> dict[str, bytes]:
    """What is in every file but the timings."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "timings.csv"
    }


def test_a_run_with_overwrite_that_was_stopped_goes_on(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = tree(run(data, "crop.margin=0.05", "paths.output=${paths.data}/straight"))
    folder = run(data)
    again = ("crop.margin=0.05", "overwrite=true")
    run_until_the_sixth(monkeypatch, data, *again)
    noted = (folder / "journal.jsonl").read_text()
    assert len(noted.splitlines()) == 5
    monkeypatch.setattr(PreparedFolder, "clear", lambda folder: pytest.fail("cleared twice"))
    done = run_until_the_sixth(monkeypatch, data, *again)  # the same command goes on
    assert (folder / "journal.jsonl").read_text().startswith(noted)
    assert not any(f'"{image_id}"' in noted for image_id in done)
    run(data, again[0])  # and so does the one without
    monkeypatch.undo()
    assert tree(folder) == straight
    cleared = []
    monkeypatch.setattr(PreparedFolder, "clear", lambda folder: cleared.append(folder))
    run(data, *again)  # it has come to its end: a new one starts afresh
    assert len(cleared) == 1


def test_a_file_that_took_the_place_of_another_is_noticed(data: Path) -> None:
    pictures = [breast_image(100, 80, seed=seed, noise=0.01) for seed in (1, 2)]
    a, b = data / "train_images/a.bmp", data / "train_images/b.bmp"
    for file, picture in zip((a, b), pictures, strict=True):
        cv2.imwrite(str(file), np.rint(picture * 255).astype(np.uint8))
        os.utime(file, (0, 0))
    assert a.stat().st_size == b.stat().st_size
    table = pd.read_csv(data / "train.csv")
    files = list(table["patient_id"].astype(str) + "/" + table["image_id"].astype(str) + ".png")
    settings = ("dataset=generic", "dataset.name=own", "splits=[train]")
    table.assign(file=["a.bmp", "b.bmp", *files[2:]]).to_csv(data / "train.csv", index=False)
    folder = run(data, *settings)
    before = tree(folder)
    table.assign(file=["b.bmp", "a.bmp", *files[2:]]).to_csv(data / "train.csv", index=False)
    run(data, *settings)
    crops = ["train/0/1000.png", "train/0/1001.png"]
    assert [tree(folder)[crop] for crop in crops] != [before[crop] for crop in crops]
    assert tree(folder) == tree(run(data, *settings, "paths.output=${paths.data}/straight"))


def test_the_same_data_in_another_place_go_on(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(data)
    (data / "moved").symlink_to(data)
    capsys.readouterr()
    run(data, f"paths.data={data / 'moved'}", f"paths.output={data / 'output'}")
    assert "train: 16 crops (all there already)" in capsys.readouterr().err


def test_crops_of_files_that_failed_and_rows_that_left_are_deleted(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(data)
    lost = data / "train_images/3/1006.png"
    lost.write_bytes(lost.read_bytes() + b"\0")
    table = pd.read_csv(data / "train.csv")
    table[table["image_id"] != 1010].to_csv(data / "train.csv", index=False)
    monkeypatch.setattr(
        "rsna_bcd.preparation.crop.prepare_image", lambda *arguments: 1 / 0
    )  # no `ImageError`
    seen = []
    write_tables = PreparedFolder.write_tables

    def see(folder: PreparedFolder, splits: Any) -> None:
        seen.append((folder.folder / "train/3/1006.png").exists())
        write_tables(folder, splits)

    monkeypatch.setattr(PreparedFolder, "write_tables", see)
    run(data, "max_failed_fraction=1", "overwrite_folds=true")
    assert seen == [False]  # at once: the run may be stopped before its end
    crops = {f.stem for f in folder.glob("train/*/*.png")}
    assert crops == {str(i) for i in range(1000, 1016)} - {"1006", "1010"}


def test_a_journal_that_cannot_be_written_ends_the_run(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data / "output/prepared/rsna/demo"
    folder.mkdir(parents=True)
    (folder / "journal.jsonl").symlink_to("nowhere/journal.jsonl")
    engine_run, closed = stage.engine.run, []

    def watched(function: Any, tasks: Any, **settings: Any) -> Any:
        try:
            yield from engine_run(function, tasks, **settings)
        finally:
            closed.append(True)

    monkeypatch.setattr(stage.engine, "run", watched)
    with pytest.raises(StorageError, match=r"journal\.jsonl cannot be written.*paths\.output="):
        run(data, "workers=1")
    assert closed


def test_images_where_the_crops_go_are_refused(data: Path) -> None:
    with pytest.raises(InputError, match=r"images in .* are within .*paths\.output="):
        run(data, "prepared_dir=${paths.data}")


def test_processes_make_the_same_tables(data: Path) -> None:
    alone = tables(run(data))
    together = tables(run(data, "workers=2", "paths.output=${paths.data}/together"))
    assert alone == together


def test_other_settings_are_refused_with_the_difference(data: Path) -> None:
    folder = run(data)
    with pytest.raises(InputError, match=r"crop.margin: 0.01 -> 0.05(.|\n)*overwrite=true"):
        run(data, "crop.margin=0.05")
    with pytest.raises(InputError, match=r"decoders: .*openjpeg.* -> (.|\n)*overwrite=true"):
        run(data, "decoders=[pydicom]")  # which cannot decode a part of the levels only
    before = tables(folder)
    assert tables(run(data, "crop.margin=0.05", "overwrite=true")) != before


def test_bad_files_are_named_and_cost_nothing_else(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "train_images/3/1006.png").write_text("no picture")
    cv2.imwrite(str(data / "train_images/5/1010.png"), np.zeros((50, 50), np.uint8))
    with pytest.raises(InputError, match="2 of 16 files of the train split .*manifest.csv"):
        run(data)
    printed = capsys.readouterr().err
    assert "1006: not a picture" in printed
    assert "1010: all pixels have the value 0" in printed
    folder = run(data, "max_failed_fraction=0.2")
    train = pd.read_csv(folder / "train.csv").set_index("image_id")
    assert train["path"].isna().sum() == 2
    picture = np.rint(breast_image(100, 80) * 255).astype(np.uint8)
    for file in ("3/1006.png", "5/1010.png"):
        cv2.imwrite(str(data / "train_images" / file), picture)
    mended = pd.read_csv(run(data) / "train.csv")
    assert mended["path"].notna().all()


def test_absent_files_stop_the_run_unless_allowed(data: Path) -> None:
    for file in (data / "train_images/2").iterdir():
        file.unlink()
    (data / "train_images/2").rmdir()
    (data / "test_images/9/1019.png").unlink()
    with pytest.raises(
        InputError, match=r"2 of 16 files .*train_images/2/1004.*allow_missing=true"
    ):
        run(data)
    folder = run(data, "allow_missing=true")
    assert len(pd.read_csv(folder / "train.csv")) == 14
    test = pd.read_csv(folder / "test.csv")
    assert len(test) == 4
    assert test.loc[test["path"].isna(), "image_id"].tolist() == [1019]
    manifest = pd.read_csv(folder / "manifest.csv")
    missing = manifest.loc[manifest["status"] == "missing", "image_id"]
    assert missing.tolist() == [1004, 1005, 1019]
    with pytest.raises(InputError, match="16 of 16 files"):  # all absent: not what is meant
        run(data, "allow_missing=true", "source=dicom", "dataset.name=other")


def test_dicom_files_good_and_bad(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.rint(breast_image(100, 80) * 4000).astype(np.uint16)
    for file in data.glob("train_images/*/*.png"):
        write_dicom(file.with_suffix(".dcm"), values, bits=12, syntax="jpeg2000")
    whole = (data / "train_images/0/1000.dcm").read_bytes()
    (data / "train_images/0/1000.dcm").write_bytes(whole[: len(whole) // 2])
    (data / "train_images/1/1002.dcm").write_text("image_id,cancer\n" * 50)
    write_dicom(data / "train_images/2/1004.dcm", np.full((50, 50), 3, np.uint16), bits=12)
    arguments = ("source=dicom", "splits=[train]", "max_failed_fraction=0.5")
    folder = run(data, *arguments)
    printed = capsys.readouterr().err
    assert "train: 13 crops, 3 unreadable" in printed
    assert "quality flags: no window 13" in printed
    manifest = pd.read_csv(folder / "manifest.csv").set_index("image_id")
    reasons = manifest["status"].astype(str)
    assert "cut short" in reasons[1000]
    assert "not a DICOM file" in reasons[1002]
    assert "all pixels have the value 3" in reasons[1004]
    assert manifest.loc[1001, "transfer_syntax"] == "1.2.840.10008.1.2.4.90"
    assert manifest.loc[1001, "quality_flags"] == "no window"
    assert not (folder / "test.csv").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["splits=[train,valid]"], "splits=.* choose one or both"),
        (["splits=[]"], "choose one or both"),
        (["source=video"], "source=video: choose dicom or image"),
        (["crop.fit=shrink"], "fit=shrink"),
        (["workers=-2"], "workers=-2"),
        (["dataset.test_csv=nowhere.csv"], r"nowhere.csv does not exist.*splits=\[train\]"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    data: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises((InputError, InstantiationException), match=message):
        run(data, *overrides)


@pytest.mark.parametrize("file", sorted(Path(CONF, "crop").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_crop_is_named_like_its_file(file: Path) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        settings = instantiate(compose("prepare", [f"crop={file.stem}"]).crop)
    assert isinstance(settings, CropSettings)
    assert settings.name == file.stem


def test_an_archive_is_prepared_like_its_folder(data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "competition.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(data.rglob("*")):
            if file.is_file() and file.suffix != ".zip":
                archive.write(file, file.relative_to(data))
    unpacked = run(data, "dataset.name=unpacked")
    packed = run(
        data, "dataset.name=packed", f"paths.data={data / 'competition.zip'}", "workers=2",
    )  # fmt: skip
    assert tables(packed) == tables(unpacked)
    crops = [file.relative_to(unpacked) for file in unpacked.rglob("*.png")]
    crops = [file for file in crops if len(file.parts) > 1]
    assert len(crops) == 20
    for crop in crops:
        assert (packed / crop).read_bytes() == (unpacked / crop).read_bytes()
