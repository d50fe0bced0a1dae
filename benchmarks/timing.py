"""Timing: interleaved measurements in fresh processes, clocks, and medians with their range.

Pipelines are measured in turns (A B C A B C ...), each in its own process: a disturbance of the
machine affects all of them.
"""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The allocator settings of our decoding processes, which keep freed memory.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


def median_and_range(values: list[float], digits: int) -> str:
    """`median (lowest to highest)`."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def measure_in_process(
    script: str, request: Any, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run `script --measure REQUEST` in a fresh process.

    Args:
        script: that prints a JSON object as its last line.
        request: for its `--measure`, as JSON.
        environment: of the process; None: one thread, and the allocator of our decoding processes.

    Returns:
        The object.
    """
    if environment is None:
        environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, "--measure", json.dumps(request)]
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


@contextlib.contextmanager
def limited_to(cores: int) -> Iterator[None]:
    """Limit this process, and those that it starts meanwhile, to a number of cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Clock:
    """Seconds of the wall, and CPU seconds of this process, of its children and of the machine."""

    def __init__(self) -> None:
        self._wall, self._own, self._all = time.perf_counter(), cpu_seconds(), _machine()

    def read(self) -> tuple[float, float]:
        """Seconds and CPU seconds since it was made; children count once they have ended."""
        return time.perf_counter() - self._wall, cpu_seconds() - self._own

    def other_load(self) -> float:
        """Share of the machine that other processes used since then, 0 to 1."""
        wall, own = self.read()
        return max(0.0, _machine() - self._all - own) / (wall * (os.cpu_count() or 1))


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _machine() -> float:
    """CPU seconds of all processes since the machine started."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and those below it; processes are children of the thread that started them."""
    below: list[int] = []
    for threads in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            below += map(int, threads.read_text().split())
    return [pid, *(process for child in below for process in family(child))]


def proportional(pid: int) -> float:
    """Memory of a process in MB, its part of shared pages; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0) / 1024
