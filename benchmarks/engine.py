"""What the engine costs: a plain loop beside one process and two of the engine.

    python benchmarks/engine.py --seconds 600                  # synthetic files
    RSNA_BCD_REAL_DATA=... python benchmarks/engine.py --json engine.json

The task is that of `prepare`: one JPEG 2000 file to one PNG. See `timing`.
The time from the first result to the last counts: starting and warming up do not. Two plain loops
at once show the speed of two cores without any engine.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from mammograms import mammograms, transcoded
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import finish_measurement, median_and_range, start_measurement

LOOP, LOOPS, ONE, TWO = "plain loop", "two plain loops", "engine, workers=1", "engine, workers=2"
PIPELINES = (LOOP, ONE, LOOPS, TWO)


def make(task: tuple[str, str, str]) -> tuple[int, float]:
    """Make the PNG of a file.

    Returns:
        This process and the CPU seconds that it has had so far.
    """
    import pipelines

    crop, source, folder = task
    if crop not in _ways:
        _ways[crop] = pipelines.ours(crop)
    _ways[crop](Path(source), Path(folder, f"{os.getpid()}.png"))
    return os.getpid(), time.process_time()


_ways: dict[str, Any] = {}  # by crop


def run(pipeline: str, crop: str, files: list[str], seconds: float) -> dict[str, float]:
    """Work for some seconds, in this process or with the engine.

    Returns:
        Images per second, and CPU seconds per image, those of this process included.
    """
    import cv2
    from engine import make  # from here, as processes import it: not from __main__

    from rsna_bcd.preparation.engine import run

    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        tasks = ((n, (crop, file, folder)) for n, file in enumerate(itertools.cycle(files)))
        workers = {LOOP: 0, ONE: 1, TWO: 2}[pipeline]
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


def measure(pipeline: str, crop: str, files: list[Path], seconds: float) -> dict[str, float]:
    """`run` in a fresh process, or in two at once."""
    request = [LOOP if pipeline == LOOPS else pipeline, crop, list(map(str, files)), seconds]
    programs = [start_measurement(__file__, request) for _ in range(2 if pipeline == LOOPS else 1)]
    answers = [finish_measurement(program) for program in programs]
    return {
        "rate": sum(answer["rate"] for answer in answers),
        "cpu": statistics.mean(answer["cpu"] for answer in answers),
    }


def ratios(rounds: list[dict[str, dict[str, float]]], key: str, one: str, two: str) -> list[float]:
    """`key` of one pipeline over that of another, by round."""
    return [turns[one][key] / turns[two][key] for turns in rounds]


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="of all turns together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crop", default="h1024")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(run(*json.loads(arguments.measure))))
        return
    console = Console(width=100)
    seconds = arguments.seconds / (arguments.rounds * len(PIPELINES))
    rounds: list[dict[str, dict[str, float]]] = [{} for _ in range(arguments.rounds)]
    turns = list(itertools.product(rounds, PIPELINES))
    with tempfile.TemporaryDirectory() as folder:
        files, origin = mammograms(Path(folder))
        files = transcoded(files, Path(folder), ".90")
        for round_, pipeline in track(turns, "Measuring", console=Console(stderr=True)):
            round_[pipeline] = measure(pipeline, arguments.crop, files, seconds)
    table = Table("pipeline", "images per second", "CPU s/image")
    for pipeline in PIPELINES:
        table.add_row(
            pipeline,
            *(median_and_range([r[pipeline][key] for r in rounds], 3) for key in ("rate", "cpu")),
        )
    compared = {
        "time of one process / loop": ratios(rounds, "rate", LOOP, ONE),
        "CPU of one process / loop": ratios(rounds, "cpu", ONE, LOOP),
        "speed of two processes / one": ratios(rounds, "rate", TWO, ONE),
        "speed of two loops / one": ratios(rounds, "rate", LOOPS, LOOP),
        "speed of two processes / two loops": ratios(rounds, "rate", TWO, LOOPS),
    }
    console.print(
        f"{origin}, {arguments.rounds} rounds of {seconds:.0f} s a pipeline; median (range)"
    )
    console.print(table)
    for name, values in compared.items():
        console.print(f"{name}: {median_and_range(values, 3)}", highlight=False)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"files": origin, "rounds": rounds, "compared": compared}, indent=1)
        )


if __name__ == "__main__":
    main()
