"""No file breaks preparation: damaged ones by the thousand, in the engine and in the command."""

import csv
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from damage import EXPECTED, SYNTAXES, damaged_files, whole_file
from dicom_files import write_dicom

from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.crop import CropSettings, prepare_image

FEW_OR_MANY = pytest.mark.parametrize(
    "count", [30, pytest.param(1000, marks=pytest.mark.slow)], ids="{}_of_each_syntax".format
)
DECODES_IN_PARTS = CropSettings(
    "test", 64, 64, box="breast", margin=0.01, orient=True, fit="pad", reduce=5
)


def read(task: tuple[Path, Path]) -> str:
    """Read a damaged file, make a small crop of it, and compare it with the original pixels."""
    damaged, original = task
    pixels = read_dicom(damaged).pixels
    prepare_image(damaged, DECODES_IN_PARTS, "dicom")
    return "unchanged" if np.array_equal(pixels, np.load(original)) else "changed"


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_files_are_the_same_each_time(syntax: str) -> None:
    first = [damaged.content for damaged in damaged_files(syntax, 15)]
    whole_file.cache_clear()
    assert [damaged.content for damaged in damaged_files(syntax, 15)] == first


@FEW_OR_MANY
def test_read_dicom_refuses_damaged_files_with_a_reason(count: int, tmp_path: Path) -> None:
    def tasks() -> Iterator[tuple[tuple[str, str, int], tuple[Path, Path]]]:
        for syntax in SYNTAXES:
            for number, damaged in enumerate(damaged_files(syntax, count)):
                file = tmp_path / f"{syntax}{number}.dcm"
                file.write_bytes(damaged.content)
                np.save(file.with_suffix(".npy"), damaged.pixels)
                yield (syntax, damaged.kind, number), (file, file.with_suffix(".npy"))

    counts: Counter[tuple[str, str, str]] = Counter()
    for result in engine.run(read, tasks(), workers=2, limit_seconds=60):
        syntax, kind, _ = result.key
        outcome = result.value or "refused"
        assert outcome in EXPECTED.get(kind, {"refused"}), result
        if result.reason is not None:
            # In our own words: neither an exception nor a process that died nor a time limit.
            assert not result.reason.startswith(("the process", "took longer")), result
            assert "Error: " not in result.reason.split("(")[0], result
        counts[syntax, kind, outcome] += 1
    assert counts.total() == count * len(SYNTAXES)
    assert all(counts[syntax, "cut", "refused"] for syntax in SYNTAXES)


@FEW_OR_MANY
def test_prepare_survives_damaged_files(count: int, tmp_path: Path) -> None:
    rows, kinds = [], {}

    def place(patient: str, image_id: str, cancer: int) -> Path:
        rows.append((patient, image_id, "L", "CC", cancer))
        file = tmp_path / f"train_images/{patient}/{image_id}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    for syntax in SYNTAXES:
        for number, damaged in enumerate(damaged_files(syntax, count, seed=1)):
            patient = f"{syntax}{number // 100}"
            file = place(patient, f"{syntax}{number}", number // 100 % 2)
            file.write_bytes(damaged.content)
            kinds[file.stem] = damaged.kind
    sound = np.random.default_rng(0).integers(0, 4096, (90, 70)).astype(np.uint16)
    sound[:, 40:] = 0
    for number, syntax in enumerate(SYNTAXES[:5]):
        file = place(f"sound{number}", f"sound{number}", number % 2)
        write_dicom(file, sound + number, bits=12, syntax=syntax)
    columns = ["patient_id", "image_id", "laterality", "view", "cancer"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "train.csv", index=False)
    command = [
        *(sys.executable, "-m", "rsna_bcd.prepare", f"paths.data={tmp_path}", "splits=[train]"),
        *(f"paths.output={tmp_path / 'output'}", "crop=demo", "max_failed_fraction=1"),
        *("folds=holdout", "workers=2"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1000)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    folder = tmp_path / "output/prepared/rsna/demo"
    with (folder / "manifest.csv").open(newline="") as content:
        manifest = {row["image_id"]: row for row in csv.DictReader(content)}
    assert manifest.keys() == {row[1] for row in rows}
    for image_id, row in manifest.items():
        crop = folder / f"train/{row['patient_id']}/{image_id}.png"
        expected = EXPECTED.get(kinds[image_id], {"refused"}) if image_id in kinds else {"ok"}
        if row["status"] == "ok":
            assert expected != {"refused"}, (kinds[image_id], row)
            pixels = cv2.imread(str(crop), cv2.IMREAD_UNCHANGED)
            assert pixels is not None
            assert pixels.shape == (256, 128)
        else:
            assert "refused" in expected, (kinds.get(image_id), row)
            assert not crop.exists()
    assert not list(folder.rglob("*.part"))
