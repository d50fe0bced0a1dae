"""A table of many rows: memory by time, and the accuracy of the progress bar.

    python benchmarks/many.py --rows 20000

Small synthetic DICOM files, linked many times over. The command runs as a user would see it, in a
terminal; memory is read from /proc, estimates are read off the bar.
"""

import argparse
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
from commands import run_command
from rich.console import Console
from rich.table import Table
from timing import family, proportional

_BAR = re.compile(r"(\d+)/(\d+) (\d+):(\d\d):(\d\d)")  # done/total, estimate of the rest
_SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def make_data(data: Path, rows: int) -> None:
    """A competition of `rows` images, four a patient, that share few files."""
    small = data / "small"
    sizes = "size.train_patients=16", "size.test_patients=1", "appearance.pixel_mm=0.83"
    run_command("synthesize", f"paths.data={small}", *sizes)
    files = sorted(small.glob("train_images/*/*.dcm"))
    table = pd.DataFrame({"image_id": range(1, rows + 1)})
    table["patient_id"] = table.index // 4 + 1
    table["laterality"] = ["LLRR"[i % 4] for i in range(rows)]
    table["view"] = ["CC", "MLO"] * (rows // 2)
    table["cancer"] = (table["patient_id"] % 20 == 0).astype(int)
    table.to_csv(data / "train.csv", index=False)
    for number, row in enumerate(table.itertuples()):
        folder = data / "train_images" / str(row.patient_id)
        folder.mkdir(parents=True, exist_ok=True)
        os.link(files[number % len(files)], folder / f"{row.image_id}.dcm")


def observe(data: Path, workers: int) -> list[dict[str, float]]:
    """Run the stage in a terminal of its own.

    Returns:
        Samples, one a second: `seconds, done, estimate` (seconds remaining, of the bar), `main_mb,
        worker_mb` (the largest).
    """
    screen, terminal = pty.openpty()
    command = [
        *(sys.executable, "-m", "rsna_bcd.prepare", f"paths.data={data}", "splits=[train]"),
        *(f"paths.output={data / 'output'}", "crop=demo", f"workers={workers}"),
    ]
    run = subprocess.Popen(command, stdout=terminal, stderr=terminal, stdin=subprocess.DEVNULL)
    os.close(terminal)
    shown: dict[str, float] = {}

    def read() -> None:
        try:
            while text := os.read(screen, 65536).decode(errors="replace"):
                plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
                for done, total, hours, minutes, seconds in _BAR.findall(plain):
                    estimate = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
                    shown.update(done=int(done), total=int(total), estimate=estimate)
        except OSError:  # the other side has closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    start, samples = time.monotonic(), []
    while run.poll() is None:
        time.sleep(1)
        if shown:
            main, *others = (proportional(pid) for pid in family(run.pid))
            samples.append(
                {
                    "seconds": time.monotonic() - start,
                    **shown,
                    "main_mb": main,
                    "worker_mb": max(others, default=0.0),
                }
            )
    if run.returncode:
        raise RuntimeError(f"prepare ended with {run.returncode}")
    return [sample for sample in samples if sample["main_mb"]]


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), arguments.rows)
        samples = observe(Path(folder), arguments.workers)
    finished = next(s["seconds"] for s in samples if s["done"] == samples[-1]["done"])
    table = Table(
        "done", "after s", "bar says s remain", "in truth", "main MB", "largest worker MB"
    )
    for share in _SHARES:
        sample = next(s for s in samples if s["done"] >= share * arguments.rows)
        table.add_row(
            f"{sample['done']:.0f}",
            f"{sample['seconds']:.0f}",
            f"{sample['estimate']:.0f}",
            f"{finished - sample['seconds']:.0f}",
            f"{sample['main_mb']:.0f}",
            f"{sample['worker_mb']:.0f}",
        )
    console = Console(width=100)
    console.print(table)
    peak = max(sample["main_mb"] for sample in samples)
    console.print(
        f"{arguments.rows} rows in {samples[-1]['seconds']:.0f} s, "
        f"{finished - samples[0]['seconds']:.0f} of them at work; the main process's peak, "
        f"while tables are written, {peak:.0f} MB"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(samples, indent=1))


if __name__ == "__main__":
    main()
