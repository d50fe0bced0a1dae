"""Decode, augment, collate: our loader beside a plain one, in images per second on one core.

    python benchmarks/loader.py                                        # synthetic crops
    python benchmarks/loader.py --output output --dataset rsna --json loader.json

The plain datasets read with Pillow and do the operations of `augment=light` with torchvision's
transforms, on Pillow's images or on tensors; ours is the loader of `train`, in its own process. See
`timing`. CPU seconds count, after two batches to warm up.
"""

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crops import prepared
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import measure_in_process, median_and_range

OURS, PILLOW, TENSORS = "ours", "plain, on Pillow's images", "plain, on tensors"
PIPELINES = (OURS, PILLOW, TENSORS)
_WARM = 2  # batches


def load(pipeline: str, overrides: list[str], seconds: float) -> dict[str, float]:
    """Load for some CPU seconds, in this process.

    Returns:
        Images per CPU second, and their size.
    """
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    batches = _batches(pipeline, overrides)
    for _ in range(_WARM):
        shape = next(batches).shape
    images, start = 0, time.process_time()
    while (used := time.process_time() - start) < seconds:
        images += len(next(batches))
    return {"rate": images / used, "height": shape[-2], "width": shape[-1]}


def _batches(pipeline: str, overrides: list[str]) -> Iterator[Any]:
    """Batches (B, 1, H, W) without end."""
    from commands import composed
    from hydra.utils import instantiate

    cfg = composed("name=x", "fold=all", "augment=light", *overrides)
    data = instantiate(cfg.data, workers=0, negatives_per_positive=None)
    data.setup()
    if pipeline == OURS:
        for _ in itertools.count():
            yield from (batch["image"] for batch in data.train_dataloader())
    from torch.utils.data import DataLoader

    files = [Path(cfg.prepared_dir) / path for path in data.training["path"]]
    labels = data.training["label"].tolist()
    plain = _plain(files, labels, on_tensors=pipeline == TENSORS)
    for _ in itertools.count():
        loader = DataLoader(plain, batch_size=cfg.batch_size, shuffle=True, drop_last=True)
        yield from (image for image, _ in loader)


def _plain(files: list[Path], labels: list[int], *, on_tensors: bool) -> Any:
    """A dataset as one writes it: Pillow and torchvision, the operations of `augment=light`."""
    from PIL import Image
    from torch.utils.data import Dataset
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional

    affine = v2.RandomAffine(
        15, translate=(0.06, 0.06), scale=(0.85, 1.15), shear=(-5, 5, -5, 5),
        interpolation=v2.InterpolationMode.BILINEAR,
    )  # fmt: skip
    transform = v2.Compose(
        [
            *([v2.PILToTensor()] if on_tensors else []),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomVerticalFlip(0.5),
            v2.RandomApply([affine], 0.7),
            v2.RandomApply([v2.ColorJitter(brightness=0.15, contrast=0.2)], 0.5),
            v2.RandomApply(
                [v2.Lambda(lambda x: functional.adjust_gamma(x, random.uniform(0.8, 1.25)))], 0.3
            ),
            *([] if on_tensors else [v2.PILToTensor()]),
        ]
    )

    class Plain(Dataset[Any]):
        """Images and labels."""

        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            with Image.open(files[index]) as image:
                return transform(image.convert("L")), labels[index]

    return Plain()


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--crops", nargs="+", default=["h512", "h1024", "h1536"])
    parser.add_argument("--output", type=Path, help="paths.output with crops of all these")
    parser.add_argument("--dataset", default="rsna", help="name of the data set in there")
    parser.add_argument("--patients", type=int, default=12, help="of the synthetic crops")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10, help="of a measurement")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(load(*json.loads(arguments.measure))))
        return
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        overrides = {}
        for crop in arguments.crops:
            output = arguments.output or prepared(Path(folder), crop, arguments.patients)
            overrides[crop] = [
                f"crop={crop}", f"paths.output={output}", f"batch_size={arguments.batch_size}",
                f"dataset.name={arguments.dataset}",
            ]  # fmt: skip
            rounds[crop] = [{} for _ in range(arguments.rounds)]
        runs = [(c, r, w) for c in arguments.crops for r in rounds[c] for w in PIPELINES]
        for crop, round_, pipeline in track(runs, "Measuring", console=Console(stderr=True)):
            round_[pipeline] = measure_in_process(
                __file__, [pipeline, overrides[crop], arguments.seconds]
            )
    origin = str(arguments.output or "synthetic crops")
    table = Table("crop", "size", "pipeline", "images per CPU second", "ours /")
    results = []
    for crop, pipeline in itertools.product(arguments.crops, PIPELINES):
        rates = [round_[pipeline]["rate"] for round_ in rounds[crop]]
        ratios = [round_[OURS]["rate"] / round_[pipeline]["rate"] for round_ in rounds[crop]]
        first = rounds[crop][0][pipeline]
        size = f"{first['height']} x {first['width']}"
        table.add_row(crop, size, pipeline, median_and_range(rates, 1), median_and_range(ratios, 2))
        results.append({"crop": crop, "pipeline": pipeline, "rates": rates, "ours_over_it": ratios})
    console = Console(width=100)
    console.print(f"{origin}, {arguments.rounds} rounds; median (lowest to highest round)")
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"crops": origin, "results": results}, indent=1))


if __name__ == "__main__":
    main()
