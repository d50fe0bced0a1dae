"""What the engine costs: a plain loop beside one process and two of the engine.

    python benchmarks/engine.py --seconds 600                  # synthetic files
    RSNA_BCD_REAL_DATA=... python benchmarks/engine.py --json engine.json

The task is that of `prepare`: one JPEG 2000 file to one PNG. All ways take turns (A B C A B C ...),
so that what disturbs the machine disturbs all, and each turn is a process of its own. Counted is
from the first result to the last: starting and warming up are not. Two plain loops at once are what
the machine gives without any engine: two cores may share more than they show.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mammograms import mammograms, transcoded
from prepare import ALLOCATOR
from ranges import shown
from rich.console import Console
from rich.progress import track
from rich.table import Table

LOOP, LOOPS, ONE, TWO = "plain loop", "two plain loops", "engine, workers=1", "engine, workers=2"
WAYS = (LOOP, ONE, LOOPS, TWO)


def make(task: tuple[str, str, str]) -> tuple[int, float]:
    """Make the PNG of a file.

    Returns:
        This process and the CPU seconds that it has had so far.
    """
    import ways

    crop, source, folder = task
    if crop not in _ways:
        _ways[crop] = ways.ours(crop)
    _ways[crop](Path(source), Path(folder, f"{os.getpid()}.png"))
    return os.getpid(), time.process_time()


_ways: dict[str, Any] = {}  # by crop


def turn(way: str, crop: str, files: list[str], seconds: float) -> dict[str, float]:
    """Work for some seconds, in this process or with the engine.

    Returns:
        Images a second, and CPU seconds an image, those of this process included.
    """
    import cv2
    from engine import make  # from here, as processes import it: not from __main__

    from rsna_bcd.preparation.engine import run

    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        tasks = ((n, (crop, file, folder)) for n, file in enumerate(itertools.cycle(files)))
        workers = {LOOP: 0, ONE: 1, TWO: 2}[way]
        results = run(make, tasks, workers=workers)
        warm = 2 * max(workers, 1)  # results that do not count
        images, cpu = -1, _Cpu()
        for result in itertools.islice(results, warm, None):
            if result.value is None:
                raise RuntimeError(result.reason)
            cpu.note(*result.value)
            images += 1
            now = time.perf_counter()
            if images == 0:
                start = now
            elif now - start > seconds:
                break
        used = cpu.seconds()
        results.close()
    return {"rate": images / (now - start), "cpu": used / images}


class _Cpu:
    """CPU seconds since the first note, of this process and those that work for it."""

    def __init__(self) -> None:
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}

    def note(self, pid: int, seconds: float) -> None:
        for process, value in ((pid, seconds), (os.getpid(), time.process_time())):
            self._first.setdefault(process, value)
            self._last[process] = value

    def seconds(self) -> float:
        return sum(self._last[process] - self._first[process] for process in self._last)


def measure(way: str, crop: str, files: list[Path], seconds: float) -> dict[str, float]:
    """`turn` in a fresh process, or in two at once."""
    request = json.dumps([LOOP if way == LOOPS else way, crop, list(map(str, files)), seconds])
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1"}
    programs = [
        subprocess.Popen(
            [sys.executable, __file__, "--turn", request],
            stdout=subprocess.PIPE, text=True, env=environment,
        )
        for _ in range(2 if way == LOOPS else 1)
    ]  # fmt: skip
    answers = [json.loads(program.communicate()[0]) for program in programs]
    return {
        "rate": sum(answer["rate"] for answer in answers),
        "cpu": statistics.mean(answer["cpu"] for answer in answers),
    }


def ratios(rounds: list[dict[str, dict[str, float]]], key: str, one: str, two: str) -> list[float]:
    """`key` of one way over that of another, by round."""
    return [turns[one][key] / turns[two][key] for turns in rounds]


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="of all turns together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crop", default="h1024")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        print(json.dumps(turn(*json.loads(arguments.turn))))
        return
    console = Console(width=100)
    seconds = arguments.seconds / (arguments.rounds * len(WAYS))
    rounds: list[dict[str, dict[str, float]]] = [{} for _ in range(arguments.rounds)]
    turns = list(itertools.product(rounds, WAYS))
    with tempfile.TemporaryDirectory() as folder:
        files, origin = mammograms(Path(folder))
        files = transcoded(files, Path(folder), ".90")
        for round_, way in track(turns, "Measuring", console=Console(stderr=True)):
            round_[way] = measure(way, arguments.crop, files, seconds)
    table = Table("way", "images a second", "CPU s an image")
    for way in WAYS:
        table.add_row(way, *(shown([r[way][key] for r in rounds], 3) for key in ("rate", "cpu")))
    compared = {
        "time of one process / loop": ratios(rounds, "rate", LOOP, ONE),
        "CPU of one process / loop": ratios(rounds, "cpu", ONE, LOOP),
        "speed of two processes / one": ratios(rounds, "rate", TWO, ONE),
        "speed of two loops / one": ratios(rounds, "rate", LOOPS, LOOP),
        "speed of two processes / two loops": ratios(rounds, "rate", TWO, LOOPS),
    }
    console.print(f"{origin}, {arguments.rounds} rounds of {seconds:.0f} s a way; median (range)")
    console.print(table)
    for name, values in compared.items():
        console.print(f"{name}: {shown(values, 3)}", highlight=False)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"files": origin, "rounds": rounds, "compared": compared}, indent=1)
        )


if __name__ == "__main__":
    main()
