"""`kill -9` of the whole run at random moments, then the same command again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from file_trees import tree

STOPPED = "Stopped by SIGINT. Finished work is kept: run the same command to resume.\n"
Crops = dict[Path, tuple[int, int]]


def start(data: Path, output: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rsna_bcd.prepare", "crop=demo", f"paths.data={data}"]
    return subprocess.Popen(
        [*command, f"paths.output={output}", *overrides],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_to_the_end(data: Path, output: Path, *overrides: str) -> None:
    with start(data, output, *overrides) as run:
        _, printed = run.communicate()
    assert run.returncode == 0, printed


def finished(folder: Path) -> Crops:
    """Crops that the journal knows: time of change and inode by file."""
    journal = folder / "journal.jsonl"
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    names = {json.loads(line)["image_id"] for line in lines}
    return {
        crop: (crop.stat().st_mtime_ns, crop.stat().st_ino)
        for crop in folder.rglob("*.png")
        if crop.stem in names
    }


def count_entries(folder: Path) -> int:
    journal = folder / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def interrupt(run: subprocess.Popen[str], folder: Path, new: int, number: int) -> tuple[bool, str]:
    """Signal the run when the journal has `new` more entries; whether it was alive, its stderr."""
    before = count_entries(folder)
    while run.poll() is None and count_entries(folder) < before + new:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.02))
    alive = run.poll() is None
    if alive:
        os.killpg(run.pid, number)
    return alive, run.communicate(timeout=60)[1]


def check(data: Path, where: Path, interrupts: list[tuple[int, str]], *overrides: str) -> None:
    """Interrupt by signals, each in a run with an override, and compare with a straight run."""
    straight, broken = where / "straight", where / "broken"
    run_to_the_end(data, straight, *overrides)
    folder = broken / "prepared/rsna/demo"
    images = sum(1 for _ in straight.rglob("t*/*/*.png"))
    random.seed(0)
    done: Crops = {}
    interrupted = 0
    for i, (number, override) in enumerate(interrupts):
        # At the start, while files are made, and so that some are left for the other signals.
        left = images - len(done)
        new = random.randint(0, max(0, min(2 * left // (len(interrupts) - i), left) - 2))
        with start(data, broken, *overrides, override) as run:
            alive, printed = interrupt(run, folder, max(new, 1), number)
        interrupted += alive
        if alive and number == signal.SIGINT:
            assert run.returncode == 130
            assert printed.endswith(STOPPED)
            assert "Traceback" not in printed
        now = finished(folder)
        assert {crop: now.get(crop) for crop in done} == done  # no crop was lost or made again
        done = now
    assert interrupted >= 0.9 * len(interrupts)
    run_to_the_end(data, broken, *overrides)
    now = finished(folder)
    assert {crop: now[crop] for crop in done} == done
    assert tree(broken) == tree(straight)
    assert not [f for f in broken.rglob("*") if f.name.endswith(".part") or f.name.startswith(".")]


def test_prepare_resumes_after_sigkill_and_sigint(competition: Path, tmp_path: Path) -> None:
    kill, ctrl_c = (signal.SIGKILL, "workers=0"), (signal.SIGINT, "workers=2")
    check(competition, tmp_path, [kill, ctrl_c], "splits=[test]", "workers=0")


@pytest.mark.slow
def test_prepare_resumes_after_20_kills(competition: Path, tmp_path: Path) -> None:
    check(competition, tmp_path, [(signal.SIGKILL, "workers=2")] * 20, "workers=2")
