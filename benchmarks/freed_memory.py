"""A network on the processor with and without `keep_freed_memory`: CPU time and peak memory.

    python benchmarks/freed_memory.py              # about five minutes on a quiet core
    OMP_NUM_THREADS=2 python benchmarks/freed_memory.py

tf_efficientnet_lite0: training on 16 images of 344 x 192 with batches of 5 and 11 between, as of a
last batch, and inference on pairs of 1024 x 512, as `submit engine=torch` does.
"""

import argparse
import json
import os
import resource
import statistics
from typing import Any

from timing import cpu_seconds, measure_in_process, median_and_range

STEPS = {"train": [(16, 344)] * 4 + [(5, 344), (11, 344)], "infer": [(2, 1024)] * 6}


def measure(part: str, is_kept: bool) -> dict[str, float]:
    """CPU seconds of the steps of a part, and the peak memory of this process in MB."""
    import timm
    import torch

    from rsna_bcd.processes import keep_freed_memory

    if is_kept:
        keep_freed_memory()
    network = timm.create_model("tf_efficientnet_lite0", num_classes=1, in_chans=1)
    network = network.train(part == "train").to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    start = 0.0
    for number, (size, height) in enumerate(STEPS[part][:2] + STEPS[part]):  # two to warm up
        if number == 2:
            start = cpu_seconds()
        images = torch.rand(size, 1, height, {344: 192, 1024: 512}[height])
        with torch.set_grad_enabled(part == "train"):
            loss = network(images.contiguous(memory_format=torch.channels_last)).mean()
        if part == "train":
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": cpu_seconds() - start, "peak": peak}


def main() -> None:
    """Measure in turns, and print the ratios of both settings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*json.loads(arguments.measure))))
        return
    unset = ("MALLOC_", "GLIBC_TUNABLES")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(unset)}
    environment = {"OMP_NUM_THREADS": "1", **environment}
    for part in STEPS:
        rounds: list[list[dict[str, Any]]] = [
            [measure_in_process(__file__, (part, kept), environment) for kept in (False, True)]
            for _ in range(arguments.rounds)
        ]
        faster = [returned["seconds"] / kept["seconds"] for returned, kept in rounds]
        larger = [kept["peak"] / returned["peak"] for returned, kept in rounds]
        print(f"{part}: {median_and_range(faster, 2)} times as fast, ", end="")
        print(f"peak {statistics.median(r['peak'] for r, _ in rounds):.0f} MB, ", end="")
        print(f"{median_and_range(larger, 2)} times as large")


if __name__ == "__main__":
    main()
