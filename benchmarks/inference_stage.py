"""The stage `submit` as a user starts it: its time, and the memory of all its processes."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from large_test_set import NAME, make_table
from timing import Clock, family, limited_to, proportional

_FEWEST = 500  # images for a slope: before, buffers fill


def submit(
    data: Path, output: Path, models: Path, cores: int, overrides: list[str]
) -> list[dict[str, float]]:
    """Submit a test set, on so many cores.

    Args:
        data: `paths.data`.
        output: `paths.output`.
        models: `paths.models`.
        cores: that it may use.
        overrides: further ones.

    Returns:
        Samples, one a second and one at the end: `seconds`, `mb` of all processes together, where
        pages that several share count once, `processes`, `others`, the share of the machine that
        other work took until then.
    """
    command = [
        *(sys.executable, "-m", "rsna_bcd.submit", f"name={NAME}", f"paths.data={data}"),
        *(f"paths.output={output}", f"paths.models={models}", *overrides),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    clock, samples = Clock(), []
    log = output.with_suffix(".log")
    with log.open("w") as out:
        with limited_to(cores):
            stage = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        while stage.poll() is None:
            sizes = [proportional(pid) for pid in family(stage.pid)]
            samples.append(_sample(clock, sizes))
            time.sleep(1)
    if stage.returncode:
        raise RuntimeError(f"submit ended with {stage.returncode}:\n{log.read_text()}")
    # Whose children were waited for by now: only this one knows the figures of the others.
    return [*samples, _sample(clock, [])]


def _sample(clock: Clock, sizes: list[float]) -> dict[str, float]:
    return {
        "seconds": clock.read()[0], "mb": sum(sizes), "processes": len(sizes),
        "others": clock.other_load(),
    }  # fmt: skip


def measure_submit(
    files: list[Path], images: int, runs: list[Path], models: Path, cores: int, overrides: list[str]
) -> dict[str, Any]:
    """Submit one pass over the files, to measure the start, then `images` images.

    Returns:
        `images`; `seconds` of the stage from its start to its end; `start`, those that do not
        depend on the number of images; `seconds_an_image`; `failures`; `how` and `stages`, the
        stage's own description of its networks and its seconds per image; `others`; `weights_mb`;
        and of the memory `peak_mb`, `quarters_mb` (medians), `slope_mb` per 1,000 images (None for
        few), `samples`.
    """
    with tempfile.TemporaryDirectory() as folder:
        small = make_table(Path(folder, "small"), files, len(files))
        large = make_table(Path(folder, "large"), files, images)
        first = submit(small, Path(folder, "small_out"), models, cores, overrides)
        samples = submit(large, Path(folder, "large_out"), models, cores, overrides)
        submission = Path(folder, "large_out", "submissions", NAME)
        failures = len((submission / "failures.csv").read_text().splitlines()) - 1
        summary = json.loads((submission / "summary.json").read_text())
    if summary["breasts"] != -(-images // 2) or summary["shed"]:
        raise RuntimeError(f"Not all was predicted: {summary}")
    seconds = samples[-1]["seconds"]
    each = (seconds - first[-1]["seconds"]) / (images - len(files))
    return {
        "images": images,
        "seconds": seconds,
        "seconds_an_image": each,
        "start": first[-1]["seconds"] - len(files) * each,
        "failures": failures,
        "how": summary["how"],
        "stages": {stage: s / images for stage, s in summary["seconds"].items()},
        "others": samples[-1]["others"],
        "weights_mb": sum(weight(run) for run in runs) / 2**20,
        **memory_figures(samples, images),
        "samples": samples,
    }


def weight(run: Path) -> int:
    """Bytes of a run's checkpoint."""
    return sum(file.stat().st_size for file in (run / "checkpoints").glob("*.*"))


def memory_figures(samples: list[dict[str, float]], images: int) -> dict[str, Any]:
    """Peak, medians by quarter of the time at work, and a straight line's rise in it."""
    # At work is when there is more than one process.
    busy = [s for s in samples if s["processes"] > 1]
    seconds = np.array([s["seconds"] for s in busy])
    mb = np.array([s["mb"] for s in busy])
    share = (seconds - seconds[0]) / max(1e-9, seconds[-1] - seconds[0])
    steady = (share > 0.1) & (share < 0.98)
    return {
        "peak_mb": max(s["mb"] for s in samples),
        "quarters_mb": [
            statistics.median(mb[(share >= n / 4) & (share <= (n + 1) / 4)]) for n in range(4)
        ],
        "slope_mb": float(np.polyfit(share[steady], mb[steady], 1)[0]) / images * 1000
        if images >= _FEWEST
        else None,
    }
