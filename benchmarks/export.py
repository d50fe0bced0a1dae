"""ONNX Runtime beside torch on a processor: the same network, from its ONNX file.

    python benchmarks/export.py                                  # lite0's network, 1024 x 512
    python benchmarks/export.py effnet_b5 --height 1536 --width 768 --rounds 3

The network of an experiment, untrained, as inference runs it: float32, in inference mode, batches
of images in memory. `torch` has its convolutions channels last, as the networks are configured,
`torch, plain` has them in torch's own layout. The pipelines are measured in turns (A B C A B ...).
Seconds are those of the clock; CPU seconds are those of all threads of this process, and mean more
on a busy machine.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from commands import composed
from hydra.utils import instantiate
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import median_and_range

from rsna_bcd.inference.export import OnnxNetwork
from rsna_bcd.models.exporting import capture, network_inputs, random_batch, save_onnx
from rsna_bcd.models.prediction import Batch, predict_logits

Pipeline = Callable[[Batch], torch.Tensor]


def untrained_network(experiment: str, *overrides: str) -> Any:
    """An experiment's network, untrained."""
    without_files = ["network.pretrained=false", "checkpoint_path=null"]
    cfg = composed(f"experiment={experiment}", *without_files, *overrides)
    torch.manual_seed(0)
    return instantiate(cfg.network).eval()


def make_pipelines(
    experiment: str, height: int, width: int, threads: list[int]
) -> dict[str, Pipeline]:
    """The compared pipelines, by name."""
    last = untrained_network(experiment)
    plain = untrained_network(experiment, "network.channels_last=false")
    inputs = network_inputs(last, height, width)
    pipelines: dict[str, Pipeline] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        save_onnx(capture(last, inputs), inputs, file, json.dumps({"unit": last.unit}))
        for number in threads:
            pipelines[f"torch, {number}"] = _with_threads(last, number)
            pipelines[f"torch, plain, {number}"] = _with_threads(plain, number)
            pipelines[f"ONNX Runtime, {number}"] = _with_threads(
                OnnxNetwork(file, threads=number), number
            )
    return pipelines


def _with_threads(network: Any, threads: int) -> Pipeline:
    def pipeline(batch: Batch) -> torch.Tensor:
        torch.set_num_threads(threads)
        return predict_logits(network, batch, ())

    return pipeline


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiment", nargs="?", default="lite0")
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    size = arguments.height, arguments.width
    pipelines = make_pipelines(arguments.experiment, *size, arguments.threads)
    inputs = network_inputs(untrained_network(arguments.experiment), *size)
    # By breast, of one image each, so that an image means the same.
    batch = random_batch(inputs, arguments.batch_size, 1, torch.Generator().manual_seed(0))
    for pipeline in pipelines.values():
        pipeline(batch)  # so that all are warm
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in track(range(arguments.rounds), console=Console(stderr=True)):
        for name, pipeline in pipelines.items():
            started, used = time.perf_counter(), time.process_time()
            pipeline(batch)
            seconds[name].append((time.perf_counter() - started) / arguments.batch_size)
            cpu_seconds[name].append((time.process_time() - used) / arguments.batch_size)
    _show(arguments, seconds, cpu_seconds)
    if arguments.json:
        settings = {key: value for key, value in vars(arguments).items() if key != "json"}
        results = {"settings": settings, "seconds": seconds, "cpu_seconds": cpu_seconds}
        arguments.json.write_text(json.dumps(results, indent=1))


def _show(
    arguments: argparse.Namespace,
    seconds: dict[str, list[float]],
    cpu_seconds: dict[str, list[float]],
) -> None:
    table = Table("pipeline, threads", "ms/image", "CPU ms/image", "CPU, torch's /")
    for name in seconds:
        reference = cpu_seconds[f"torch, {name.split(', ')[-1]}"]
        ratios = [a / b for a, b in zip(reference, cpu_seconds[name], strict=True)]
        table.add_row(
            name,
            median_and_range([1000 * s for s in seconds[name]], 0),
            median_and_range([1000 * s for s in cpu_seconds[name]], 0),
            f"{statistics.median(ratios):.2f}",
        )
    console = Console(width=110)
    console.print(
        f"{arguments.experiment}, {arguments.height} x {arguments.width}, batches of "
        f"{arguments.batch_size}, {arguments.rounds} rounds; median (range)",
        highlight=False,
    )
    console.print(table)


if __name__ == "__main__":
    main()
