"""The prepared folder: crops, the journal that makes it resumable, and its tables.

```
config.yaml      how it was made
journal.jsonl    one line a finished crop, in order of completion; what is in it is not done again
train/ test/     <patient_id>/<image_id>.png
train.csv ...    the split's own columns, then `path` and the geometry of the crop
manifest.csv     one row a source file, in the order of the tables: what was found, what was done
timings.csv      seconds a file took; apart, so that the manifest does not depend on the machine
```
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.preparation.crop import CropSettings, Source, prepare_image
from rsna_bcd.tables.images import Split

GEOMETRY = ("box_left", "box_top", "box_width", "box_height", "flipped", "scale")
MANIFEST_COLUMNS = (
    "split", "patient_id", "image_id", "status", "decoder", "transfer_syntax", "photometric",
    "bits_stored", "window", "source_height", "source_width", "breast_found", *GEOMETRY,
    "source_sha256", "crop_sha256",
)  # fmt: skip
TIMING_COLUMNS = ("split", "image_id", "seconds")
MISSING = "missing"
_SPLITS: tuple[Split, ...] = ("train", "test")

Record = dict[str, str | int | float | None]


@dataclass(frozen=True)
class CropTask:
    """One file to make a crop of.

    Attributes:
        source_file: the DICOM file or picture.
        crop_file: the PNG to write.
        settings: of the crop.
        source: how to read `source_file`.
    """

    source_file: Path
    crop_file: Path
    settings: CropSettings
    source: Source


def make_crop(task: CropTask) -> Record:
    """Prepare one image and write its PNG.

    Returns:
        The record of `prepare_image` with `crop_sha256`, the hash of the PNG, and `source_stamp`,
        by which a file that was replaced is recognised.

    Raises:
        ImageError: the file is no image that can be used.
    """
    stamp = _stamp(task.source_file)
    prepared = prepare_image(task.source_file, task.settings, task.source)
    return {
        **prepared.record,
        "crop_sha256": _write_png(task.crop_file, prepared.pixels),
        "source_stamp": stamp,
    }


@dataclass(frozen=True)
class Outcome:
    """What became of one image: exactly one of `record` and `reason` is set."""

    record: Record | None
    reason: str | None
    seconds: float


class PreparedFolder:
    """A folder of crops.

    Args:
        folder: where it is or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_file = folder / "config.yaml"
        self._journal_file = folder / "journal.jsonl"

    def crop_path(self, split: Split, patient_id: str, image_id: str) -> Path:
        """Where the crop of an image is, relative to the folder."""
        return Path(split, patient_id, f"{image_id}.png")

    def crop_files(self, split: Split, images: pd.DataFrame) -> dict[str, Path]:
        """Where the crops of a table are or will be, by `image_id`."""
        return {
            image_id: self.folder / self.crop_path(split, patient_id, image_id)
            for patient_id, image_id in _identities(images)
        }

    def finished(
        self, split: Split, images: pd.DataFrame, sources: Mapping[str, Path]
    ) -> dict[str, Outcome]:
        """Outcomes by `image_id` of those images whose crop is in the journal and on disk.

        Args:
            split: which split.
            images: its table from `read_images`.
            sources: their files, by `image_id`. One that changed since is not finished.
        """
        files = self.crop_files(split, images)
        return {
            image_id: Outcome(entry["record"], None, entry["seconds"])
            for entry in self._journal()
            if entry["split"] == split
            and (image_id := entry["image_id"]) in sources
            and image_id in files
            and files[image_id].is_file()
            and entry["record"]["source_stamp"] == _stamp(sources[image_id])
        }

    def note(self, split: Split, image_id: str, outcome: Outcome) -> None:
        """Append a finished image to the journal; failures are not noted, a rerun tries again."""
        entry = {"split": split, "image_id": image_id, **asdict(outcome)}
        del entry["reason"]
        with self._journal_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def write_tables(
        self, split: Split, images: pd.DataFrame, outcomes: Mapping[str, Outcome]
    ) -> None:
        """Write the split's table, and its rows of the manifest and the timings.

        Args:
            split: which split.
            images: its table from `read_images`.
            outcomes: by `image_id`; images without one were missing on disk.
        """
        _write_csv_frame(self.folder / f"{split}.csv", self._split_table(split, images, outcomes))
        manifest, timings = [], []
        for patient_id, image_id in _identities(images):
            outcome = outcomes.get(image_id)
            status = MISSING if outcome is None else outcome.reason or "ok"
            identity = {"split": split, "patient_id": patient_id, "image_id": image_id}
            record = outcome.record if outcome and outcome.record else {}
            manifest.append({**identity, "status": status, **record})
            if record and outcome:
                timings.append({**identity, "seconds": f"{outcome.seconds:.3f}"})
        self._merge_rows("manifest.csv", MANIFEST_COLUMNS, split, manifest)
        self._merge_rows("timings.csv", TIMING_COLUMNS, split, timings)

    def clear(self) -> None:
        """Forget everything: crops made from now on replace the old ones."""
        for name in ("journal.jsonl", "manifest.csv", "timings.csv", "config.yaml"):
            (self.folder / name).unlink(missing_ok=True)
        for split in _SPLITS:
            (self.folder / f"{split}.csv").unlink(missing_ok=True)

    def _split_table(
        self, split: Split, images: pd.DataFrame, outcomes: Mapping[str, Outcome]
    ) -> pd.DataFrame:
        """The split's own columns, then `path` and geometry, empty where there is no crop.

        Missing files leave the table of training, where they would teach nothing, but not that of
        the test, where every breast needs a prediction.
        """
        if split == "train":
            images = images[images["image_id"].isin(outcomes.keys())]
        rows: list[dict[str, str | int | float | None]] = []
        for patient_id, image_id in _identities(images):
            outcome = outcomes.get(image_id)
            if outcome is None or outcome.record is None:
                rows.append(dict.fromkeys(("path", *GEOMETRY)))
            else:
                path = self.crop_path(split, patient_id, image_id).as_posix()
                rows.append({"path": path, **{k: outcome.record[k] for k in GEOMETRY}})
        added = pd.DataFrame(rows, index=images.index, columns=["path", *GEOMETRY])
        whole = [c for c in GEOMETRY if c != "scale"]
        added[whole] = added[whole].astype("Int64")  # integers, also beside empty cells
        return images.join(added)

    def _journal(self) -> list[dict[str, Any]]:
        """Entries of the journal; a last line that a crash cut short does not count."""
        if not self._journal_file.exists():
            return []
        lines = self._journal_file.read_text(encoding="utf-8").split("\n")
        if lines[-1]:  # mend it, so that the next entry starts on a line of its own
            self._journal_file.write_text("".join(f"{x}\n" for x in lines[:-1]), encoding="utf-8")
        try:
            return [json.loads(line) for line in lines[:-1]]
        except json.JSONDecodeError as error:
            raise InputError(
                f"{self._journal_file} is damaged ({error}). Start afresh with overwrite=true."
            ) from error

    def _merge_rows(
        self, name: str, columns: tuple[str, ...], split: Split, rows: Iterable[Mapping[str, Any]]
    ) -> None:
        """Replace the rows of one split in a table that all splits share."""
        file = self.folder / name
        kept: list[Mapping[str, Any]] = []
        if file.exists():
            with file.open(newline="", encoding="utf-8") as old:
                kept = [row for row in csv.DictReader(old) if row["split"] != split]
        merged = sorted([*kept, *rows], key=lambda row: _SPLITS.index(row["split"]))
        unfinished = file.with_suffix(".csv.part")
        with unfinished.open("w", newline="", encoding="utf-8") as new:
            writer = csv.DictWriter(new, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(merged)
        unfinished.replace(file)


def _identities(images: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of `patient_id` and `image_id`, in the order of the table."""
    return list(zip(images["patient_id"], images["image_id"], strict=True))


def _stamp(file: Path) -> str:
    """Size and time of change of a file: another one has another stamp."""
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _write_png(file: Path, pixels: NDArray[np.uint8]) -> str:
    """Write a PNG that is either whole or absent, and return its SHA-256."""
    # Level 1 writes five times as fast as level 6, for files that are 5 % larger.
    encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".png.part")
    unfinished.write_bytes(encoded)
    unfinished.replace(file)
    return hashlib.sha256(encoded).hexdigest()


def _write_csv_frame(file: Path, frame: pd.DataFrame) -> None:
    """Write a table that is either whole or absent."""
    unfinished = file.with_suffix(".csv.part")
    frame.to_csv(unfinished, index=False)
    unfinished.replace(file)
