"""The prepared folder: crops, the journal that makes it resumable, and its tables.

```
config.yaml       how it was made
journal.jsonl     one line per finished crop, which is not made again
train/ test/      <patient_id>/<image_id>.png
train_contact_sheet.png ...  a sample of the split's crops, to look at
train.csv ...     the split's own columns, then `path` and the geometry of the crop
manifest.csv      one row per source file, in the order of the tables: its record or the failure
timings.csv       seconds per file; apart, so that nothing else depends on the machine
lock              empty; held by the run that is at work in the folder
overwriting       empty; present until a run with `overwrite=true` is complete
```

While a run works, the journal grows in order of completion. At its end, when the tables are
written, it is sorted by identifier and the seconds move to `timings.csv`: complete runs leave the
same files, however they were interrupted.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from rsna_bcd.files import (
    UNFINISHED,
    locked,
    read_json_lines,
    storage_error,
    version_stamp,
    write_csv,
    write_file,
)
from rsna_bcd.imaging.quality import QualityFlag, count_flags
from rsna_bcd.preparation.crop import Record
from rsna_bcd.tables.images import SPLITS, Split

GEOMETRY = ("box_left", "box_top", "box_width", "box_height", "flipped", "rotated", "scale")
MANIFEST_COLUMNS = (
    "split", "patient_id", "image_id", "status", "decoder", "resolution_level", "transfer_syntax",
    "photometric", "bits_stored", "window", "quality_flags", "source_height", "source_width",
    "breast_found",
    *GEOMETRY, "source_sha256", "crop_sha256",
)  # fmt: skip

_Key = tuple[str, str]  # split, image_id


class PreparedFolder:
    """A folder of crops, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_file = folder / "config.yaml"
        self.overwriting_file = folder / "overwriting"
        self._journal_file = folder / "journal.jsonl"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out of the folder, and delete unfinished files of killed runs.

        Raises:
            InputError: another run is at work in the folder.
        """
        with locked(self.folder, "choose another crop.name=... or dataset.name=..."):
            self._delete_unfinished()
            yield
            self._delete_unfinished()  # of processes that died meanwhile

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
        self, split: Split, images: pd.DataFrame, sources: Mapping[str, Path], root: Path
    ) -> dict[str, bool]:
        """The images whose crop is in the journal and on disk, and whether a breast was found.

        Args:
            split: which split.
            images: its table from `read_images`.
            sources: their files, by `image_id`. One that changed since is not finished.
            root: the folder of images that they are in.
        """
        files = self.crop_files(split, images)
        return {
            image_id: bool(record["breast_found"])
            for (of, image_id), (record, _) in self._journal().items()
            if of == split
            and image_id in sources
            and image_id in files
            and files[image_id].is_file()
            and files[image_id].stat().st_size == record["crop_bytes"]
            and version_stamp(sources[image_id], str(sources[image_id].relative_to(root)))
            == record["source_stamp"]
        }

    def note(self, split: Split, image_id: str, record: Record, seconds: float) -> None:
        """Append a finished image to the journal; failures are not noted, a rerun tries again.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            with self._journal_file.open("a", encoding="utf-8") as file:
                file.write(_line((split, image_id), record, seconds))
        except OSError as error:
            raise storage_error(self._journal_file, error) from error

    def write_tables(
        self, tables: Mapping[Split, tuple[pd.DataFrame, Iterable[str], Mapping[str, str]]]
    ) -> None:
        """Write the splits' tables, and their rows of the manifest and the timings.

        Crops of theirs that no table names are deleted: their image failed since, or left.

        Args:
            tables: by split: its table from `read_images`; the `image_id` of the finished images;
                and by `image_id` why others failed. Images in neither were missing on disk.

        Raises:
            StorageError: they cannot be written.
        """
        done = {(split, i) for split, (_, finished, _) in tables.items() for i in finished}
        journal = {k: v for k, v in self._journal().items() if k in done or k[0] not in tables}
        earlier = {(r["split"], r["image_id"]): r["seconds"] for r in self._read_csv("timings.csv")}
        timings = {key: float(seconds) for key, seconds in earlier.items() if key in journal}
        timings |= {key: seconds for key, (_, seconds) in journal.items() if seconds is not None}
        manifest: list[Mapping[str, Any]] = [
            row for row in self._read_csv("manifest.csv") if row["split"] not in tables
        ]
        for split, (images, finished, failures) in tables.items():
            records = {image_id: journal[split, image_id][0] for image_id in finished}
            self._write_split_table(split, images, records, failures)
            status = {**failures, **dict.fromkeys(records, "ok")}
            for patient_id, image_id in _identities(images):
                identity = {"split": split, "patient_id": patient_id, "image_id": image_id}
                row = identity | {"status": status.get(image_id, "missing")}
                manifest.append(row | records.get(image_id, {}))
        manifest.sort(key=lambda row: SPLITS.index(row["split"]))
        self._write_csv("manifest.csv", MANIFEST_COLUMNS, manifest)
        # Last and one after the other: a run that is killed in between finds all it needs.
        rows = [
            {"split": split, "image_id": image_id, "seconds": f"{seconds:.3f}"}
            for (split, image_id), seconds in sorted(timings.items())
        ]
        self._write_csv("timings.csv", ("split", "image_id", "seconds"), rows)
        lines = (_line(key, record, None) for key, (record, _) in sorted(journal.items()))
        write_file(self._journal_file, "".join(lines))
        for split, (images, _, _) in tables.items():
            crops = self.crop_files(split, images)
            self._delete_crops(split, {crops[i] for of, i in journal if of == split})

    def flag_counts(self, split: Split) -> dict[QualityFlag, int]:
        """The number of images of a split with each quality flag, as the manifest has them."""
        rows = (row for row in self._read_csv("manifest.csv") if row["split"] == split)
        return count_flags(row["quality_flags"] for row in rows)

    def clear(self) -> None:
        """Delete everything that runs made."""
        # First, should this be interrupted: only crops in the journal count as finished.
        self._journal_file.unlink(missing_ok=True)
        for split in SPLITS:
            self._delete_crops(split, set())
            for name in (f"{split}.csv", f"{split}_contact_sheet.png"):
                (self.folder / name).unlink(missing_ok=True)
        for name in ("manifest.csv", "timings.csv", "config.yaml"):
            (self.folder / name).unlink(missing_ok=True)

    def _delete_unfinished(self) -> None:
        for leftover in self.folder.rglob(f"*{UNFINISHED}"):
            leftover.unlink(missing_ok=True)

    def _delete_crops(self, split: Split, kept: Set[Path]) -> None:
        """Delete the crops of a split but some, and the folders that it leaves empty."""
        for crop in list(self.folder.glob(f"{split}/[!.]*/[!.]*.png")):
            if crop not in kept:
                crop.unlink()
                with suppress(OSError):  # others are in it
                    crop.parent.rmdir()

    def _write_split_table(
        self,
        split: Split,
        images: pd.DataFrame,
        records: Mapping[str, Record],
        failures: Mapping[str, str],
    ) -> None:
        """The split's own columns, then `path` and geometry, empty where there is no crop.

        Missing files are left out of the training table, where they are of no use, but not out of
        the test table: every breast needs a prediction.
        """
        if split == "train":
            images = images[images["image_id"].isin(records.keys() | failures.keys())]
        rows: list[Record] = []
        for patient_id, image_id in _identities(images):
            row: Record = {}
            if image_id in records:
                path = self.crop_path(split, patient_id, image_id).as_posix()
                row = {"path": path, **{k: records[image_id][k] for k in GEOMETRY}}
            rows.append(row)
        added = pd.DataFrame(rows, index=images.index, columns=["path", *GEOMETRY])
        whole = [c for c in GEOMETRY if c != "scale"]
        added[whole] = added[whole].astype("Int64")  # integers, also beside empty cells
        write_csv(images.join(added), self.folder / f"{split}.csv")

    def _journal(self) -> dict[_Key, tuple[Record, float | None]]:
        """Records, and seconds where they are known; the last entry of an image is used."""
        if not self._journal_file.exists():
            return {}
        journal: dict[_Key, tuple[Record, float | None]] = {}

        def read_entry(entry: Any) -> None:
            journal[entry["split"], entry["image_id"]] = entry["record"], entry.get("seconds")

        read_json_lines(self._journal_file, read_entry)
        return journal

    def _read_csv(self, name: str) -> list[dict[str, str]]:
        """A table of an earlier run; no rows where there was none."""
        file = self.folder / name
        if not file.exists():
            return []
        with file.open(newline="", encoding="utf-8") as content:
            return list(csv.DictReader(content))

    def _write_csv(
        self, name: str, columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]
    ) -> None:
        """Write a table atomically."""
        content = io.StringIO()
        writer = csv.DictWriter(content, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_file(self.folder / name, content.getvalue())


def _line(key: _Key, record: Record, seconds: float | None) -> str:
    """An entry of the journal."""
    entry = {"split": key[0], "image_id": key[1], "record": record}
    return json.dumps(entry if seconds is None else {**entry, "seconds": seconds}) + "\n"


def _identities(images: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of `patient_id` and `image_id`, in the order of the table."""
    return list(zip(images["patient_id"], images["image_id"], strict=True))
