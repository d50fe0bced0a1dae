"""The prepared folder: journal, resume, tables."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from breast_shapes import breast_image

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.preparation.crop import CropSettings, CropTask, Png, Record, make_crop
from rsna_bcd.preparation.folder import MANIFEST_COLUMNS, PreparedFolder

SETTINGS = CropSettings("test", 64, 32, box="breast", margin=0.01, orient=True, fit="pad")
IMAGES = pd.DataFrame(
    {
        "site_id": [1, 1, 2],
        "patient_id": pd.array(["9", "9", "8"], dtype="string"),
        "image_id": pd.array(["c", "a", "b"], dtype="string"),
    }
)
PATIENTS = {"a": "9", "b": "8", "c": "9"}


@pytest.fixture
def folder(tmp_path: Path) -> PreparedFolder:
    prepared = PreparedFolder(tmp_path / "prepared")
    prepared.folder.mkdir()
    return prepared


def source(folder: PreparedFolder, image_id: str) -> Path:
    return folder.folder.parent / f"{image_id}.png"


def made(folder: PreparedFolder, image_id: str) -> Record:
    """Make one crop as the engine would."""
    file = source(folder, image_id)
    cv2.imwrite(str(file), np.rint(breast_image(80, 64) * 255))
    crop = folder.folder / folder.crop_path("train", PATIENTS[image_id], image_id)
    png = Png(1, "rle", "avg")
    return make_crop(CropTask(file, crop, SETTINGS, "image", ("dicomsdl",), png, file.name))


def note(folder: PreparedFolder, image_id: str, seconds: float = 0.25) -> Record:
    record = made(folder, image_id)
    folder.note("train", image_id, record, seconds)
    return record


def finished(folder: PreparedFolder, split: str = "train") -> dict[str, bool]:
    sources = {image_id: source(folder, image_id) for image_id in PATIENTS}
    return folder.finished(split, IMAGES, sources, folder.folder.parent)  # type: ignore[arg-type]


def rows(folder: PreparedFolder, name: str) -> list[dict[str, str]]:
    with (folder.folder / name).open(newline="") as text:
        return list(csv.DictReader(text))


def test_finished_needs_journal_whole_crop_and_the_same_source(folder: PreparedFolder) -> None:
    assert finished(folder) == {}
    note(folder, "c")
    assert finished(folder) == {"c": True}
    assert finished(folder, "test") == {}
    made(folder, "a")  # a crop that the journal does not know may be of another day
    assert finished(folder).keys() == {"c"}
    crop = folder.folder / "train/9/c.png"
    crop.write_bytes(crop.read_bytes()[:-1])
    assert finished(folder) == {}
    crop.unlink()
    assert finished(folder) == {}
    note(folder, "c")
    source(folder, "c").write_bytes(source(folder, "c").read_bytes() + b"\0")
    assert finished(folder) == {}


def test_journal_ignores_a_line_cut_short_by_a_crash(folder: PreparedFolder) -> None:
    note(folder, "c")
    journal = folder.folder / "journal.jsonl"
    with journal.open("a") as file:
        file.write('{"split": "train", "image_id": "a", "rec')
    assert finished(folder).keys() == {"c"}
    note(folder, "b")
    assert finished(folder).keys() == {"c", "b"}
    journal.write_text("no journal\n")
    with pytest.raises(InputError, match="damaged .* overwrite=true"):
        finished(folder)


def test_write_tables_have_the_state_of_each_image(folder: PreparedFolder) -> None:
    note(folder, "c")
    folder.write_tables({"train": (IMAGES, ["c"], {"b": "cut short"}), "test": (IMAGES, [], {})})
    train = pd.read_csv(folder.folder / "train.csv", dtype={"patient_id": str})
    assert list(train["image_id"]) == ["c", "b"]  # missing images are of no use in training
    assert train.columns[:4].tolist() == ["site_id", "patient_id", "image_id", "path"]
    assert train["path"].tolist()[0] == "train/9/c.png"
    assert train.loc[1, ["path", "box_left", "scale"]].isna().all()
    test = pd.read_csv(folder.folder / "test.csv")
    assert list(test["image_id"]) == ["c", "a", "b"]  # but all need predictions
    assert test["path"].isna().all()
    crop = cv2.imread(str(folder.folder / "train/9/c.png"), cv2.IMREAD_UNCHANGED)
    assert crop is not None
    assert crop.shape == (64, 32)
    assert crop.dtype == np.uint8
    manifest = rows(folder, "manifest.csv")
    assert tuple(manifest[0]) == MANIFEST_COLUMNS
    assert [r["image_id"] for r in manifest] == ["c", "a", "b"] * 2  # the order of the tables
    assert [r["status"] for r in manifest] == ["ok", "missing", "cut short", *["missing"] * 3]
    assert len(manifest[0]["source_sha256"]) == len(manifest[0]["crop_sha256"]) == 64
    timings = [{"split": "train", "image_id": "c", "seconds": "0.250"}]
    assert rows(folder, "timings.csv") == timings


def test_write_tables_replaces_the_rows_of_its_splits_only(folder: PreparedFolder) -> None:
    folder.write_tables({"test": (IMAGES.head(1), [], {})})
    folder.write_tables({"train": (IMAGES, [], {"c": "unreadable"})})
    folder.write_tables({"train": (IMAGES, [], {"c": "cut short"})})
    found = [(r["split"], r["image_id"], r["status"]) for r in rows(folder, "manifest.csv")]
    train = [("train", "c", "cut short"), ("train", "a", "missing"), ("train", "b", "missing")]
    assert found == [*train, ("test", "c", "missing")]


def test_write_tables_does_not_depend_on_the_order_of_completion(folder: PreparedFolder) -> None:
    def files() -> dict[str, bytes]:
        return {f.name: f.read_bytes() for f in folder.folder.iterdir() if f.is_file()}

    records = {image_id: note(folder, image_id) for image_id in "ca"}
    folder.write_tables({"train": (IMAGES, ["c", "a"], {})})
    first = files()
    folder.clear()
    folder.note("train", "a", records["a"], 0.25)
    folder.write_tables({"train": (IMAGES, ["a"], {})})  # a run in between
    folder.note("train", "c", records["c"], 0.25)
    folder.write_tables({"train": (IMAGES, ["a", "c"], {})})
    assert files() == first
    assert b"seconds" not in first["journal.jsonl"]
    assert len(rows(folder, "timings.csv")) == 2


def test_write_tables_uses_the_last_record_and_forgets_failures(folder: PreparedFolder) -> None:
    record = made(folder, "c")
    folder.note("train", "c", record | {"window": "old"}, 0.25)
    folder.note("train", "c", record, 0.5)
    folder.write_tables({"train": (IMAGES, ["c"], {})})
    assert rows(folder, "manifest.csv")[0]["window"] == record["window"]
    assert rows(folder, "timings.csv")[0]["seconds"] == "0.500"
    folder.write_tables({"train": (IMAGES, [], {"c": "cut short"})})
    assert (folder.folder / "journal.jsonl").read_text() == ""
    assert rows(folder, "timings.csv") == []


def test_write_tables_deletes_crops_that_no_table_names(folder: PreparedFolder) -> None:
    note(folder, "c")
    note(folder, "b")
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


def test_held_admits_one_run_at_a_time_and_deletes_unfinished_files(
    folder: PreparedFolder,
) -> None:
    leftover = folder.folder / "train/9/c.png.part"
    with folder.held():
        with pytest.raises(InputError, match=r"Another process .* crop\.name="), folder.held():
            pass
        leftover.parent.mkdir(parents=True)
        leftover.touch()
    assert not leftover.exists()
    leftover.touch()
    with folder.held():
        assert not leftover.exists()


def test_storage_errors_name_the_file_and_the_remedy(folder: PreparedFolder) -> None:
    record = made(folder, "c")
    (folder.folder / "journal.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"journal\.jsonl cannot be written: No space.*output="):
        folder.note("train", "c", record, 0.25)
    (folder.folder / "train/8").write_text("a file in the place of a folder")
    with pytest.raises(StorageError, match=r"train/8/b\.png cannot be written: .*paths\.output="):
        made(folder, "b")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("level", "strategy", "rows"),
    [(0, "default", "none"), (1, "rle", "avg"), (6, "filtered", "paeth"), (9, "huffman", "up")],
)
def test_png_is_lossless(level: int, strategy: str, rows: str, bits: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**bits, (40, 20))
    pixels = pixels.astype(np.uint8 if bits == 8 else np.uint16)
    encoded = Png(level, strategy, rows).encode(pixels)  # type: ignore[arg-type]
    decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, pixels)
