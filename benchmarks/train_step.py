"""What the trainer costs: our step through Lightning beside a bare PyTorch loop.

    python benchmarks/train_step.py                                  # lite0 on the processor
    python benchmarks/train_step.py effnet_b5 convnext_small --trainer gpu --loader \
      --batch-size 16 --json step.json

Same network, optimizer, schedule, clipping, precision and batch; no moving average of the weights,
which the bare loop lacks. `plain` is the bare loop in float32, channels first, not compiled. Each
way is a process of its own; they take turns of some steps while the others wait (A B C A B C ...):
what disturbs the machine disturbs all. A turn is from the start of a step to the start of another:
what the trainer does between steps counts. Steps should take at least 200 ms: choose the batch
accordingly. `--loader` adds a training from crops on disk, with its images a second and the share
of time that it waits for them.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from crops import prepared
from ranges import shown
from rich.console import Console
from rich.progress import track
from rich.table import Table
from training_ways import TRAINER, WAYS, train

# Dense matrix products, from the vendor's data sheets, in TFLOP/s (SXM modules).
_PEAK = {
    ("H100", "bf16-mixed"): 989.0,
    ("H200", "bf16-mixed"): 989.0,
    ("A100", "bf16-mixed"): 312.0,
}


class Worker:
    """A process that trains a way in turns."""

    def __init__(self, way: str, overrides: list[str], rounds: int, steps: int) -> None:
        request = json.dumps([way, overrides, rounds, steps])
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", request],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer()  # it is warm

    def turn(self) -> dict[str, Any]:
        """Let it take its turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"A way ended with exit code {self._process.wait()}.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def with_loader(overrides: list[str], crop: str, patients: int) -> dict[str, float]:
    """Images a second and data wait of the second epoch of a training from crops on disk.

    The rows of the table are repeated until an epoch has 100 batches and more: with fewer, what is
    measured is how long the loader takes to begin.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = prepared(Path(folder), crop, patients)
        _repeat(output / "prepared" / "rsna" / crop / "train.csv", _composed(overrides).batch_size)
        command = [
            *(sys.executable, "-m", "rsna_bcd.train", *overrides, f"paths.output={output}"),
            *("name=loader", "fold=all", "epochs=2", "negatives_per_positive=null"),
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
        rows = (output / "runs" / "loader" / "foldall" / "timings.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    return {key: float(last[key]) for key in ("images_per_second", "data_wait")}


def _repeat(table: Path, batch_size: int) -> None:
    rows = pd.read_csv(table, dtype={"image_id": str})
    copies = -(-100 * batch_size // len(rows))
    parts = [rows.assign(image_id=rows["image_id"] + f"_{copy}") for copy in range(copies)]
    pd.concat(parts).to_csv(table, index=False)


def _peak(answer: dict[str, Any]) -> float | None:
    """The device's highest rate, in TFLOP/s, where it is known."""
    for (device, precision), rate in _PEAK.items():
        if device in answer["device"] and answer["precision"] == precision:
            return rate
    return None


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiments", nargs="*", default=["lite0"])
    parser.add_argument("--trainer", default="cpu")
    parser.add_argument("--batch-size", type=int, help="instead of the experiment's")
    parser.add_argument("--overrides", nargs="*", default=[], help="further ones, of train")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--loader", action="store_true", help="train from crops on disk as well")
    parser.add_argument("--patients", type=int, default=24, help="of these crops")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        answer = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the trainer prints is no answer
        way, overrides, rounds, steps = json.loads(arguments.work)
        train(way, overrides, rounds, steps, answer)
        return
    table = Table(
        "experiment", "way", "ms a step", "images / s", "trainer /", "TFLOP/s, of peak", "GB"
    )
    results, loaded = [], {}
    for name in arguments.experiments:
        overrides = [
            f"experiment={name}", f"trainer={arguments.trainer}", "network.pretrained=false",
            "checkpoint_path=null", "ema.decay=null",
            *([f"batch_size={arguments.batch_size}"] if arguments.batch_size else []),
            *arguments.overrides,
        ]  # fmt: skip
        turns = _interleaved(overrides, arguments.rounds, arguments.steps)
        for way, answers in turns.items():
            row = _row(answers, turns[TRAINER], arguments.steps)
            results.append({"experiment": name, "way": way, **row})
            table.add_row(name, way, *_cells(row))
        if arguments.loader:
            crop = _composed(overrides).crop.name
            loaded[name] = with_loader(overrides, crop, arguments.patients)
    console = Console(width=110)
    console.print(f"{arguments.rounds} rounds of {arguments.steps} steps; median (range)")
    console.print(table)
    for name, row in loaded.items():
        console.print(
            f"{name} from crops on disk: {row['images_per_second']:.1f} images a second, "
            f"{row['data_wait']:.1%} of the time waiting for them",
            highlight=False,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"results": results, "loader": loaded}, indent=1))


def _interleaved(overrides: list[str], rounds: int, steps: int) -> dict[str, list[dict[str, Any]]]:
    """The answers of every way, turn by turn."""
    with tempfile.TemporaryDirectory() as folder:
        rest = [*overrides, f"paths.output={folder}"]
        workers = {way: Worker(way, rest, rounds, steps) for way in WAYS}
        turns: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        everything = list(itertools.product(range(rounds), WAYS))
        for _, way in track(everything, overrides[0], console=Console(stderr=True)):
            turns[way].append(workers[way].turn())
    return turns


def _composed(overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_dir

    from rsna_bcd._stage import CONF

    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", overrides)


def _row(answers: list[dict[str, Any]], ours: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Figures of a way, by round."""
    seconds = [answer["seconds"] / steps for answer in answers]
    peak = _peak(answers[0])
    return {
        "device": answers[0]["device"],
        "seconds": seconds,
        "images_per_second": [answers[0]["images"] / s for s in seconds],
        "trainer_over_it": [
            ours[i]["seconds"] / answer["seconds"] for i, answer in enumerate(answers)
        ],
        "tflops": answers[0]["flops"] / statistics.median(seconds) / 1e12,
        "peak_tflops": peak,
        "peak_gb": answers[-1]["peak_gb"],
    }


def _cells(row: dict[str, Any]) -> list[str]:
    share = f", {row['tflops'] / row['peak_tflops']:.1%}" if row["peak_tflops"] else ""
    return [
        shown([1000 * s for s in row["seconds"]], 0),
        f"{statistics.median(row['images_per_second']):.1f}",
        shown(row["trainer_over_it"], 3),
        f"{row['tflops']:.3g}{share}",
        f"{row['peak_gb']:.1f}" if row["peak_gb"] else "",
    ]


if __name__ == "__main__":
    main()
