"""The prepared folder: journal, resume, tables."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from breast_shapes import breast_picture

from rsna_bcd.errors import InputError
from rsna_bcd.preparation.crop import CropSettings
from rsna_bcd.preparation.manifest import (
    MANIFEST_COLUMNS,
    CropTask,
    Outcome,
    PreparedFolder,
    make_crop,
)

SETTINGS = CropSettings("test", 64, 32, box="breast", margin=0.01, orient=True, fit="pad")
IMAGES = pd.DataFrame(
    {
        "site_id": [1, 1, 2],
        "patient_id": pd.array(["9", "9", "8"], dtype="string"),
        "image_id": pd.array(["c", "a", "b"], dtype="string"),
    }
)


def sources(folder: PreparedFolder) -> dict[str, Path]:
    """Where `made` puts the sources of the images."""
    return {image_id: folder.folder.parent / f"{image_id}.png" for image_id in ("a", "b", "c")}


@pytest.fixture
def folder(tmp_path: Path) -> PreparedFolder:
    prepared = PreparedFolder(tmp_path / "prepared")
    prepared.folder.mkdir()
    return prepared


def made(folder: PreparedFolder, patient_id: str, image_id: str) -> Outcome:
    """Make one crop as the engine would."""
    source = folder.folder.parent / f"{image_id}.png"
    cv2.imwrite(str(source), np.rint(breast_picture(80, 60) * 255))
    crop = folder.folder / folder.crop_path("train", patient_id, image_id)
    return Outcome(make_crop(CropTask(source, crop, SETTINGS, "image")), None, 0.25)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_what_is_in_the_journal_and_on_disk_is_finished(folder: PreparedFolder) -> None:
    assert folder.finished("train", IMAGES, sources(folder)) == {}
    outcome = made(folder, "9", "c")
    folder.note("train", "c", outcome)
    assert folder.finished("train", IMAGES, sources(folder)) == {"c": outcome}
    assert folder.finished("test", IMAGES, sources(folder)) == {}
    made(folder, "9", "a")  # a crop that the journal does not know may be of another day
    assert folder.finished("train", IMAGES, sources(folder)).keys() == {"c"}
    (folder.folder / "train/9/c.png").unlink()
    assert folder.finished("train", IMAGES, sources(folder)) == {}


def test_a_source_that_was_replaced_is_not_finished(folder: PreparedFolder) -> None:
    folder.note("train", "c", made(folder, "9", "c"))
    source = sources(folder)["c"]
    source.write_bytes(source.read_bytes() + b"\0")
    assert folder.finished("train", IMAGES, sources(folder)) == {}


def test_a_line_cut_short_by_a_crash_does_not_count(folder: PreparedFolder) -> None:
    folder.note("train", "c", made(folder, "9", "c"))
    journal = folder.folder / "journal.jsonl"
    with journal.open("a") as file:
        file.write('{"split": "train", "image_id": "a", "rec')
    assert folder.finished("train", IMAGES, sources(folder)).keys() == {"c"}
    folder.note("train", "b", made(folder, "8", "b"))
    assert folder.finished("train", IMAGES, sources(folder)).keys() == {"c", "b"}
    journal.write_text("no journal\n")
    with pytest.raises(InputError, match="damaged .* overwrite=true"):
        folder.finished("train", IMAGES, sources(folder))


def test_tables_say_what_became_of_each_image(folder: PreparedFolder) -> None:
    outcomes = {"b": Outcome(None, "cut short", 0.0), "c": made(folder, "9", "c")}
    folder.write_tables("train", IMAGES, outcomes)
    train = pd.read_csv(folder.folder / "train.csv", dtype={"patient_id": str})
    assert list(train["image_id"]) == ["c", "b"]  # the missing one teaches nothing
    assert train.columns[:4].tolist() == ["site_id", "patient_id", "image_id", "path"]
    assert train["path"].tolist()[0] == "train/9/c.png"
    assert train.loc[1, ["path", "box_left", "scale"]].isna().all()
    crop = cv2.imread(str(folder.folder / "train/9/c.png"), cv2.IMREAD_UNCHANGED)
    assert crop is not None
    assert crop.shape == (64, 32)
    assert crop.dtype == np.uint8
    manifest = rows(folder.folder / "manifest.csv")
    assert tuple(manifest[0]) == MANIFEST_COLUMNS
    assert [r["image_id"] for r in manifest] == ["c", "a", "b"]  # the table's order
    assert [r["status"] for r in manifest] == ["ok", "missing", "cut short"]
    assert len(manifest[0]["source_sha256"]) == len(manifest[0]["crop_sha256"]) == 64
    timings = rows(folder.folder / "timings.csv")
    assert timings == [{"split": "train", "image_id": "c", "seconds": "0.250"}]


def test_the_test_table_keeps_missing_images(folder: PreparedFolder) -> None:
    folder.write_tables("test", IMAGES, {})
    test = pd.read_csv(folder.folder / "test.csv")
    assert list(test["image_id"]) == ["c", "a", "b"]
    assert test["path"].isna().all()


def test_splits_share_a_manifest_and_replace_only_their_own_rows(folder: PreparedFolder) -> None:
    folder.write_tables("test", IMAGES.head(1), {})
    folder.write_tables("train", IMAGES, {"c": Outcome(None, "unreadable", 0.0)})
    folder.write_tables("train", IMAGES, {"c": Outcome(None, "cut short", 0.0)})
    manifest = rows(folder.folder / "manifest.csv")
    found = [(r["split"], r["image_id"], r["status"]) for r in manifest]
    train = [("train", "c", "cut short"), ("train", "a", "missing"), ("train", "b", "missing")]
    assert found == [*train, ("test", "c", "missing")]


def test_a_crop_replaces_what_is_there(folder: PreparedFolder) -> None:
    target = folder.folder / folder.crop_path("train", "9", "c")
    target.parent.mkdir(parents=True)
    target.write_bytes(b"half a picture")
    made(folder, "9", "c")
    assert cv2.imread(str(target), cv2.IMREAD_UNCHANGED) is not None
    assert list(target.parent.iterdir()) == [target]  # nothing unfinished is left
