"""No file breaks preparation: thousands of damaged ones, through the engine and the command."""

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
from damage import EXPECTED, SYNTAXES, damaged_files
from dicom_files import write_dicom
from rich.console import Console
from rich.table import Table

from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.crop import CropSettings, prepare_image

MANY = 1_000  # of each syntax
DECODES_IN_PARTS = CropSettings(
    "test", 64, 64, box="breast", margin=0.01, orient=True, fit="pad", reduce=5
)


def outcome(task: tuple[str, str]) -> str:
    """Read a damaged file, and make a small crop of it; what it came to."""
    damaged, pixels = (Path(name) for name in task)
    found = read_dicom(damaged).pixels
    prepare_image(damaged, DECODES_IN_PARTS, "dicom")
    original = np.load(pixels)
    return "unchanged" if np.array_equal(found, original) else "changed"


def tasks_of(
    syntax: str, count: int, folder: Path, kinds: dict[str, str]
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Write damaged files and their original pixels; note the kind of each."""
    for number, damaged in enumerate(damaged_files(syntax, count)):
        file, pixels = folder / f"{number}.dcm", folder / f"{number}.npy"
        file.write_bytes(damaged.content)
        np.save(pixels, damaged.pixels)
        kinds[str(number)] = damaged.kind
        yield str(number), (str(file), str(pixels))


def check(syntax: str, count: int, folder: Path) -> Counter[tuple[str, str]]:
    """Every file has one of the outcomes that its kind may have; none ends a process."""
    kinds: dict[str, str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    tasks = tasks_of(syntax, count, folder, kinds)
    for result in engine.run(outcome, tasks, workers=2, limit_seconds=60):
        kind = kinds[result.key]
        came_to = result.value or "refused"
        assert came_to in EXPECTED.get(kind, {"refused"}), (syntax, kind, result)
        if result.reason is not None:
            # Of our own words: neither an exception nor a process that ended nor a time limit.
            assert not result.reason.startswith(("the process", "took longer")), result
            assert "Error: " not in result.reason.split("(")[0], (kind, result)
        counts[kind, came_to] += 1
    assert counts.total() == count
    return counts


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_files_have_reasons(syntax: str, tmp_path: Path) -> None:
    counts = check(syntax, 60, tmp_path)
    assert counts["cut", "refused"] >= 3


@pytest.mark.slow
def test_a_thousand_damaged_files_of_each_syntax(tmp_path: Path) -> None:
    table = Table("kind of damage", *SYNTAXES, title="refused / unchanged / changed")
    counts = {}
    for syntax in SYNTAXES:
        folder = tmp_path / syntax
        folder.mkdir()
        counts[syntax] = check(syntax, MANY, folder)
    for kind in sorted({kind for count in counts.values() for kind, _ in count}):
        cells = [
            " / ".join(str(counts[syntax][kind, o]) for o in ("refused", "unchanged", "changed"))
            for syntax in SYNTAXES
        ]
        table.add_row(kind, *("" if cell == "0 / 0 / 0" else cell for cell in cells))
    Console(width=110).print(table)


@pytest.mark.parametrize("count", [20, pytest.param(MANY, marks=pytest.mark.slow)])
def test_the_command_survives_them(count: int, tmp_path: Path) -> None:
    rows, kinds = [], {}
    for syntax in SYNTAXES:
        for number, damaged in enumerate(damaged_files(syntax, count, seed=1)):
            image_id = f"{syntax}{number}"
            patient = f"{syntax}{number // 100}"
            file = tmp_path / f"train_images/{patient}/{image_id}.dcm"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(damaged.content)
            rows.append((patient, image_id, "L", "CC", number // 100 % 2))
            kinds[image_id] = damaged.kind
    sound = np.random.default_rng(0).integers(0, 4096, (90, 70)).astype(np.uint16)
    sound[:, 40:] = 0
    for number in range(5):
        file = tmp_path / f"train_images/sound{number}/sound{number}.dcm"
        file.parent.mkdir(parents=True)
        write_dicom(file, sound + number, bits=12, syntax=["raw", *SYNTAXES[1:]][number])
        rows.append((f"sound{number}", f"sound{number}", "L", "CC", number % 2))
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
        if image_id.startswith("sound"):
            assert row["status"] == "ok"
            pixels = cv2.imread(str(crop), cv2.IMREAD_UNCHANGED)
            assert pixels is not None
            assert pixels.shape == (256, 128)
        else:
            refused = row["status"] != "ok"
            expected = EXPECTED.get(kinds[image_id], {"refused"})
            assert "refused" in expected if refused else expected != {"refused"}, (
                kinds[image_id],
                row,
            )
            assert crop.exists() != refused
    assert not list(folder.rglob("*.part"))
