"""`kill -9` of the whole run at random moments, then the same command again."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def command(data: Path, output: Path, *overrides: str) -> list[str]:
    return [
        *(sys.executable, "-m", "rsna_bcd.prepare", "crop=demo"),
        *(f"paths.data={data}", f"paths.output={output}", *overrides),
    ]


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file but the timings, by name."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "timings.csv"
    }


def finished(folder: Path) -> dict[Path, tuple[int, int]]:
    """Crops that the journal knows: time of change and inode by file."""
    journal = folder / "journal.jsonl"
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    names = {json.loads(line)["image_id"] for line in lines}
    return {
        crop: (crop.stat().st_mtime_ns, crop.stat().st_ino)
        for crop in folder.rglob("*.png")
        if crop.stem in names
    }


def entries_of(folder: Path) -> int:
    """Lines of the journal, counted quickly."""
    journal = folder / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def kill_after(arguments: list[str], folder: Path, entries: int, pause: float) -> bool:
    """Run until the journal has grown by `entries`, wait, kill everything; whether it was alive."""
    before = entries_of(folder)
    run = subprocess.Popen(
        arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while run.poll() is None and entries_of(folder) < before + entries:
        time.sleep(0.001)
    time.sleep(pause)
    alive = run.poll() is None
    if alive:
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return alive


def check(data: Path, where: Path, kills: int, *overrides: str) -> None:
    """Kill, go on, and compare with a run that nothing disturbed."""
    straight, broken = where / "straight", where / "broken"
    subprocess.run(command(data, straight, *overrides), check=True, stderr=subprocess.PIPE)
    folder = broken / "prepared/rsna/demo"
    images = sum(1 for _ in straight.rglob("t*/*/*.png"))
    random.seed(0)
    done: dict[Path, tuple[int, int]] = {}
    killed = 0
    for number in range(kills):
        # At the start, while files are made, and so that some are left for the other kills.
        left = images - len(done)
        entries = random.randint(0, max(0, min(2 * left // (kills - number), left) - 2))
        killed += kill_after(
            command(data, broken, *overrides), folder, entries, random.uniform(0, 0.02)
        )
        now = finished(folder)
        assert {crop: now.get(crop) for crop in done} == done  # nothing was lost or done again
        done = now
    assert killed >= 0.9 * kills
    subprocess.run(command(data, broken, *overrides), check=True, stderr=subprocess.PIPE)
    now = finished(folder)
    assert {crop: now[crop] for crop in done} == done
    assert tree(broken) == tree(straight)
    assert not [f for f in broken.rglob("*") if f.name.endswith(".part") or f.name.startswith(".")]


def test_a_killed_run_goes_on(competition: Path, tmp_path: Path) -> None:
    check(competition, tmp_path, 3, "workers=0")


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_is_one_line_and_keeps_what_is_done(
    competition: Path, tmp_path: Path, workers: int
) -> None:
    folder = tmp_path / "prepared/rsna/demo"
    run = subprocess.Popen(
        command(competition, tmp_path, f"workers={workers}"), stderr=subprocess.PIPE, text=True
    )
    while run.poll() is None and entries_of(folder) < 10:
        time.sleep(0.001)
    run.send_signal(signal.SIGINT)
    _, printed = run.communicate(timeout=20)
    assert run.returncode == 130
    assert "Traceback" not in printed
    assert printed.endswith(
        "Stopped by SIGINT. What is done is kept: run the same command to resume.\n"
    )
    assert len(finished(folder)) >= 10


@pytest.mark.slow
def test_a_run_killed_20_times_leaves_what_an_undisturbed_one_leaves(
    competition: Path, tmp_path: Path
) -> None:
    check(competition, tmp_path, 20, "workers=2")
