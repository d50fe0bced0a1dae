"""The prepared folder: journal, resume, tables."""

import csv
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from breast_shapes import breast_image

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.files import write_file
from rsna_bcd.preparation.crop import CropSettings, CropTask, Png, Record, make_crop
from rsna_bcd.preparation.folder import MANIFEST_COLUMNS, PreparedFolder
from rsna_bcd.tables.images import Split

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


def finished(folder: PreparedFolder, split: Split = "train") -> dict[str, bool]:
    """The images that are, their sources being where `made` puts them."""
    return folder.finished(split, IMAGES, sources(folder), folder.folder.parent)


@pytest.fixture
def folder(tmp_path: Path) -> PreparedFolder:
    prepared = PreparedFolder(tmp_path / "prepared")
    prepared.folder.mkdir()
    return prepared


def made(folder: PreparedFolder, patient_id: str, image_id: str) -> Record:
    """Make one crop as the engine would."""
    source = folder.folder.parent / f"{image_id}.png"
    cv2.imwrite(str(source), np.rint(breast_image(80, 64) * 255))
    crop = folder.folder / folder.crop_path("train", patient_id, image_id)
    task = CropTask(
        source, crop, SETTINGS, "image", ("dicomsdl",), Png(1, "rle", "avg"), f"{image_id}.png"
    )
    return make_crop(task)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_what_is_in_the_journal_and_on_disk_is_finished(folder: PreparedFolder) -> None:
    assert finished(folder) == {}
    folder.note("train", "c", made(folder, "9", "c"), 0.25)
    assert finished(folder) == {"c": True}
    assert finished(folder, "test") == {}
    made(folder, "9", "a")  # a crop that the journal does not know may be of another day
    assert finished(folder).keys() == {"c"}
    crop = folder.folder / "train/9/c.png"
    crop.write_bytes(crop.read_bytes()[:-1])  # cut short
    assert finished(folder) == {}
    crop.unlink()
    assert finished(folder) == {}


def test_a_source_that_was_replaced_is_not_finished(folder: PreparedFolder) -> None:
    folder.note("train", "c", made(folder, "9", "c"), 0.25)
    source = sources(folder)["c"]
    source.write_bytes(source.read_bytes() + b"\0")
    assert finished(folder) == {}


def test_a_line_cut_short_by_a_crash_does_not_count(folder: PreparedFolder) -> None:
    folder.note("train", "c", made(folder, "9", "c"), 0.25)
    journal = folder.folder / "journal.jsonl"
    with journal.open("a") as file:
        file.write('{"split": "train", "image_id": "a", "rec')
    assert finished(folder).keys() == {"c"}
    folder.note("train", "b", made(folder, "8", "b"), 0.5)
    assert finished(folder).keys() == {"c", "b"}
    journal.write_text("no journal\n")
    with pytest.raises(InputError, match="damaged .* overwrite=true"):
        finished(folder)


def test_tables_say_what_became_of_each_image(folder: PreparedFolder) -> None:
    folder.note("train", "c", made(folder, "9", "c"), 0.25)
    folder.write_tables({"train": (IMAGES, ["c"], {"b": "cut short"})})
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
    folder.write_tables({"test": (IMAGES, [], {})})
    test = pd.read_csv(folder.folder / "test.csv")
    assert list(test["image_id"]) == ["c", "a", "b"]
    assert test["path"].isna().all()


def test_splits_share_a_manifest_and_replace_only_their_own_rows(folder: PreparedFolder) -> None:
    folder.write_tables({"test": (IMAGES.head(1), [], {})})
    folder.write_tables({"train": (IMAGES, [], {"c": "unreadable"})})
    folder.write_tables({"train": (IMAGES, [], {"c": "cut short"})})
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


def contents(folder: PreparedFolder) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.folder.iterdir() if f.is_file()}


def test_the_order_of_completion_leaves_no_trace(folder: PreparedFolder) -> None:
    records = {"c": made(folder, "9", "c"), "a": made(folder, "9", "a")}
    folder.note("train", "c", records["c"], 0.25)
    folder.note("train", "a", records["a"], 0.5)
    folder.write_tables({"train": (IMAGES, ["c", "a"], {})})
    first = contents(folder)
    folder.clear()
    folder.note("train", "a", records["a"], 0.5)
    folder.write_tables({"train": (IMAGES, ["a"], {})})  # a run in between
    folder.note("train", "c", records["c"], 0.25)
    folder.write_tables({"train": (IMAGES, ["a", "c"], {})})
    assert contents(folder) == first
    assert b"seconds" not in first["journal.jsonl"]
    assert len(rows(folder.folder / "timings.csv")) == 2


def test_what_was_redone_or_failed_since_is_forgotten(folder: PreparedFolder) -> None:
    record = made(folder, "9", "c")
    folder.note("train", "c", record | {"window": "old"}, 0.25)
    folder.note("train", "c", record, 0.5)
    folder.write_tables({"train": (IMAGES, ["c"], {})})
    assert rows(folder.folder / "manifest.csv")[0]["window"] == record["window"]
    assert rows(folder.folder / "timings.csv")[0]["seconds"] == "0.500"
    folder.write_tables({"train": (IMAGES, [], {"c": "cut short"})})
    assert (folder.folder / "journal.jsonl").read_text() == ""
    assert rows(folder.folder / "timings.csv") == []


def test_a_folder_has_one_run_at_a_time(folder: PreparedFolder) -> None:
    with folder.held():
        with pytest.raises(InputError, match=r"Another process .* crop\.name="), folder.held():
            pass
        leftover = folder.folder / "train/9/c.png.part"
        leftover.parent.mkdir(parents=True)
        leftover.write_bytes(b"half")
    with folder.held():  # free again, and clean
        assert not leftover.exists()
        leftover.write_bytes(b"half")
    assert not leftover.exists()


def test_crops_that_no_table_names_are_deleted(folder: PreparedFolder) -> None:
    folder.note("train", "c", made(folder, "9", "c"), 0.25)
    folder.note("train", "b", made(folder, "8", "b"), 0.25)
    stays = ["test/9/c.png", "train/9/notes.txt", "train/9/.mine.png", "train/mine.png"]
    for name in stays:
        (folder.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.folder / name).touch()
    folder.write_tables({"train": (IMAGES, ["c"], {"b": "cut short"})})
    left = {str(f.relative_to(folder.folder)) for f in folder.folder.glob("t*/**/*")}
    assert left == {"train/9", "train/9/c.png", "test/9", *stays}
    folder.clear()
    assert not (folder.folder / "train/9/c.png").exists()
    assert not (folder.folder / "test/9").exists()


def test_two_processes_do_not_write_one_unfinished_file(
    folder: PreparedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    monkeypatch.setattr(Path, "replace", lambda unfinished, file: names.add(unfinished.name))
    for process in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        write_file(folder.folder / "c.png", b"")
    assert len(names) == 2
    with folder.held():
        assert [f.name for f in folder.folder.iterdir()] == ["lock"]


def test_a_journal_that_cannot_be_written_says_where_and_what_to_do(
    folder: PreparedFolder,
) -> None:
    record = made(folder, "9", "c")
    (folder.folder / "journal.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"journal\.jsonl cannot be written: No space.*output="):
        folder.note("train", "c", record, 0.25)


def test_a_crop_that_cannot_be_written_says_where_and_what_to_do(folder: PreparedFolder) -> None:
    (folder.folder / "train").write_text("a file where a folder belongs")
    with pytest.raises(StorageError, match=r"train/9/c\.png cannot be written: .*paths\.output="):
        made(folder, "9", "c")


@pytest.mark.parametrize("bits", [8, 16])
def test_compression_does_not_touch_pixels(bits: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**bits, (40, 20))
    pixels = pixels.astype(np.uint8 if bits == 8 else np.uint16)
    for level, strategy, rows in (
        (0, "default", "none"),
        (1, "rle", "avg"),
        (6, "filtered", "paeth"),
        (9, "huffman", "up"),
    ):
        encoded = Png(level, strategy, rows).encode(pixels)  # type: ignore[arg-type]
        decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(decoded, pixels)
    with pytest.raises(InputError, match=r"png\.level=10"):
        Png(10, "rle", "avg")
    with pytest.raises(InputError, match=r"png\.filter=all"):
        Png(1, "rle", "all")  # type: ignore[arg-type]
