"""Ways that take turns, each in a process of its own: the side that gives the turns."""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from prepare import ALLOCATOR

Engine = Literal["torch", "onnx", "auto"]

DECODE, NETWORK, OURS, LOOP = "decode and crop", "network", "ours", "plain loop"
_WAYS = str(Path(__file__).with_name("inference_ways.py"))


@dataclass(frozen=True)
class Setting:
    """What the turns of a way have in common.

    Attributes:
        way: `DECODE`, `NETWORK`, `OURS` or `LOOP`.
        cores: that it may use, with as many threads and processes.
        files: DICOM files; a pass is once through all of them.
        passes: of a turn, 2 at least.
        runs: folders of the networks, in `<models>/runs/`.
        engine: of the networks, as `submit` has it; that of the plain loop is torch.
        batch_size: images at a time through a network; of the plain loop it is one.
        device: of the networks, `cpu` or `cuda`.
    """

    way: str
    cores: int
    files: list[str]
    passes: int
    runs: list[str]
    engine: Engine
    batch_size: int
    device: str


class Worker:
    """The process of a way; it waits while the others have their turns.

    Attributes:
        way: its own.
        probability: mean over the files of what the networks said; NaN of decoding.
    """

    def __init__(self, setting: Setting) -> None:
        self.way = setting.way
        # The plain loop is given what our decoders have; all else is as the stage finds it.
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        if setting.way == LOOP:
            environment |= ALLOCATOR
        with kept_to(setting.cores):
            self._process = subprocess.Popen(
                [sys.executable, _WAYS, json.dumps(asdict(setting))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
        self.probability = self._answer()["probability"]  # now it is warm

    def turn(self) -> dict[str, float]:
        """Let it take its turn.

        Returns:
            `images`, the wall's `seconds` and the `cpu` seconds of all passes; where processes are
            started, the same of one pass before (`first_`), else 0; `others`, the share of the
            machine that other work took.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"A way ended with exit code {self._process.wait()}.")
        answer: dict[str, float] = json.loads(line)
        return answer


def an_image(turns: list[dict[str, float]], what: Literal["seconds", "cpu"]) -> list[float]:
    """Seconds that an image adds, by turn: without what the start of processes costs.

    That is the same each time, so that of all turns the median is subtracted.
    """
    first = statistics.median(turn[f"first_{what}"] for turn in turns)
    return [(turn[what] - first) / (turn["images"] - turn["first_images"]) for turn in turns]


def start(turns: list[dict[str, float]]) -> float:
    """Seconds that do not depend on the number of images."""
    first = statistics.median(turn["first_seconds"] for turn in turns)
    return first - statistics.median(an_image(turns, "seconds")) * turns[0]["first_images"]


@contextlib.contextmanager
def kept_to(cores: int) -> Iterator[None]:
    """Keep this process, and for ever those that it starts meanwhile, to so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Clock:
    """Seconds of the wall, and CPU seconds of this process, of its children and of the machine."""

    def __init__(self) -> None:
        self._wall, self._own, self._all = time.perf_counter(), _own(), _machine()

    def read(self) -> tuple[float, float]:
        """Seconds and CPU seconds since it was made; children count once they have ended."""
        return time.perf_counter() - self._wall, _own() - self._own

    def others(self) -> float:
        """Share of the machine that work of others had since then, 0 to 1."""
        wall, own = self.read()
        return max(0.0, _machine() - self._all - own) / (wall * (os.cpu_count() or 1))


def _own() -> float:
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
