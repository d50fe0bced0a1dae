"""Pipelines from DICOM files to probabilities, measured in turns: the controlling process."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from timing import ALLOCATOR, limited_to

Engine = Literal["torch", "onnx", "auto"]

DECODE, NETWORK, OURS, LOOP = "decode and crop", "network", "ours", "plain loop"
_PIPELINES = str(Path(__file__).with_name("inference_pipelines.py"))


@dataclass(frozen=True)
class Setting:
    """Settings of a pipeline.

    Attributes:
        pipeline: `DECODE`, `NETWORK`, `OURS` or `LOOP`.
        cores: that it may use, with as many threads and processes.
        files: DICOM files; a pass is once through all of them.
        passes: of a turn, 2 at least.
        runs: folders of the networks, in `<models>/runs/`.
        engine: of the networks, as `submit` has it; that of the plain loop is torch.
        batch_size: images at a time through a network; of the plain loop it is one.
        device: of the networks, `cpu` or `cuda`.
    """

    pipeline: str
    cores: int
    files: list[str]
    passes: int
    runs: list[str]
    engine: Engine
    batch_size: int
    device: str


class Worker:
    """The process of a pipeline; it waits while others are measured.

    Attributes:
        pipeline: its name.
        probability: mean predicted probability over the files; NaN without networks.
    """

    def __init__(self, setting: Setting) -> None:
        self.pipeline = setting.pipeline
        # The plain loop is given what our decoders have; all else is as the stage finds it.
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        if setting.pipeline == LOOP:
            environment |= ALLOCATOR
        with limited_to(setting.cores):
            self._process = subprocess.Popen(
                [sys.executable, _PIPELINES, json.dumps(asdict(setting))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
        self.probability = self._receive()["probability"]  # now it is warm

    def measure(self) -> dict[str, float]:
        """Measure once.

        Returns:
            `images`, the wall's `seconds` and the `cpu` seconds of all passes; where processes are
            started, the same of one pass before (`first_`), else 0; `others`, the share of the
            machine that other work took.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._receive()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _receive(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"A pipeline ended with exit code {self._process.wait()}.")
        answer: dict[str, float] = json.loads(line)
        return answer


def per_image(rounds: list[dict[str, float]], key: Literal["seconds", "cpu"]) -> list[float]:
    """Seconds per image of each measurement, without the start of processes.

    The start costs the same each time: the median of all is subtracted.
    """
    first = statistics.median(one[f"first_{key}"] for one in rounds)
    return [(one[key] - first) / (one["images"] - one["first_images"]) for one in rounds]


def start_seconds(rounds: list[dict[str, float]]) -> float:
    """Seconds that do not depend on the number of images."""
    first = statistics.median(one["first_seconds"] for one in rounds)
    return first - statistics.median(per_image(rounds, "seconds")) * rounds[0]["first_images"]
