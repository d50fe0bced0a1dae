"""Training steps from crops in memory: speed, share of the GPU's peak, memory.

Steps `throughput` and `memory` of `gpu.py`; without a GPU they have tiny networks. By itself, for
what the trainer costs on a processor:

    python benchmarks/gpu_throughput.py lite0 trainer=cpu batch_size=8 < /dev/null
"""

import atexit
import copy
import gc
import json
import math
import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from commands import composed
from gpu import EXPERIMENTS, Context, Row
from torch.utils.flop_counter import FlopCounterMode

from rsna_bcd.models.memory import TrainingStep
from rsna_bcd.models.prediction import Batch, network_outputs

COMPILED, OURS, BARE, FLOAT32 = "ours, compiled", "ours", "bare loop", "float32 eager"
BARE_COMPILED = "bare loop, compiled"
WAYS = (COMPILED, BARE_COMPILED, OURS, BARE, FLOAT32)
# Dense bf16 matrix products with float32 sums, in TFLOP/s, from the vendors' data sheets. The first
# name whose words the device's name contains counts.
PEAKS = {
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200": 989.0, "A100": 312.0,
    "A10G": 70.0, "A10": 125.0, "L40S": 362.0, "L4": 121.0, "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip
CAPS = (16, 24, 40)  # GiB
_CONTEXT = 0.75  # GiB of a card that torch does not allocate: CUDA's context, other programs
_WARM = 3  # steps
_TINY = {"lite0": "test_efficientnet", "effnet_b5": "test_efficientnet"}
_TINY_OTHERS = "test_convnext"


def overrides(name: str, small: bool) -> list[str]:
    """Overrides of `train` for an experiment from scratch; small: tiny network and crop."""
    result = [
        f"experiment={name}", "network.pretrained=false", "checkpoint_path=null", "ema.decay=null",
        f"trainer={'cpu' if small else 'gpu'}",
    ]  # fmt: skip
    if small:
        result += [
            "crop.height=64",
            "crop.width=32",
            "batch_size=4",
            "trainer.precision=bf16-mixed",
        ]
        backbone = _TINY.get(name, _TINY_OTHERS)
        if name == "global_local":
            # Larger: on maps of one cell, weight gradients of oneDNN's convolutions in bf16 are NaN
            # at times (torch 2.15, processors with AMX).
            result += ["crop.height=128", "crop.width=64", "network.patch=32"]
            result += ["network.global_backbone=test_efficientnet"]
            backbone = "test_resnet"
        result.append(f"network.backbone={backbone}")
    return result


def experiments() -> list[str]:
    """All experiments of `conf/` at real size, the three of the throughput first."""
    from rsna_bcd._stage import CONF

    names = sorted(file.stem for file in (Path(CONF) / "experiment").glob("*.yaml"))
    return [*EXPERIMENTS, *(n for n in names if n not in (*EXPERIMENTS, "demo"))]


def make_classifier(cfg: Any) -> Any:
    """The `Classifier` of a configuration, its weights drawn from a fixed seed."""
    from hydra.utils import instantiate

    torch.manual_seed(0)
    return instantiate(cfg.classifier)


def images_per_sample(cfg: Any, level: str) -> int:
    """Images of a random sample: one; of a breast CC and MLO, and those of the other breast."""
    return (4 if cfg.views.other_breast else 2) if level == "breast" else 1


def random_batch(cfg: Any, level: str, size: int) -> Batch:
    """Noise of the size of an experiment's crops, as its dataset would give it."""
    from hydra.utils import instantiate

    samples = torch.arange(size)
    places = torch.arange(images_per_sample(cfg, level)) if level == "breast" else None
    shape = () if places is None else (len(places),)
    generator = torch.Generator().manual_seed(size)
    batch = {
        "image": torch.randint(
            0, 256, (size, *shape, 1, cfg.crop.height, cfg.crop.width), dtype=torch.uint8,
            generator=generator,
        ),
        "label": samples.remainder(2).float(),
        "index": samples,
        **{f"target_{name}": torch.zeros(size) for name in cfg.auxiliary},
    }  # fmt: skip
    if cfg.metadata is not None:
        batch["metadata"] = torch.zeros(size, instantiate(cfg.metadata).width)
    if places is not None:
        batch["mask"] = torch.ones(size, len(places), dtype=torch.bool)
        batch["view"] = places.remainder(2).repeat(size, 1)
        batch["other"] = (places >= 2).repeat(size, 1)
    return batch


def make_step(cfg: Any, classifier: Any, device: torch.device, *, compiled: bool) -> TrainingStep:
    """The bare loop's step: the optimizer, precision and clipping of the experiment."""
    from hydra.utils import instantiate

    classifier.network.to(device).train()
    precision = str(cfg.trainer.precision)
    scaled = precision.startswith("16")
    optimizer = instantiate(cfg.rates).make_optimizer(
        instantiate(cfg.optimizer), classifier.network, batch_size=cfg.batch_size, fused=not scaled
    )
    network = classifier.trained_network() if compiled else classifier.network
    return TrainingStep(
        network, classifier.criterion, optimizer, precision, cfg.trainer.gradient_clip_val
    )


def step_flops(cfg: Any, classifier: Any) -> float:
    """Floating-point operations of a forward and backward pass on one sample (no data needed)."""
    network = copy.deepcopy(classifier.network).cpu().to("meta").eval()
    batch = {k: v.to("meta") for k, v in random_batch(cfg, classifier.level, 1).items()}
    with FlopCounterMode(display=False) as counter:
        network_outputs(network, batch)["logit"].sum().backward()
    return float(counter.get_total_flops())


def peak_tflops(device_name: str) -> float | None:
    """The card's dense bf16 peak; None where it is not known, or for a part of a card."""
    if "MIG" in device_name:
        return None
    found = (rate for name, rate in PEAKS.items() if re.search(rf"\b{name}\b", device_name))
    return next(found, None)


# Throughput


def throughput(context: Context) -> Iterator[Row]:
    """Rows of experiment and pipeline; each experiment in a process, which compiles beside others.

    They are measured one after the other, pipelines in turns (A B C A B C ...).
    """
    names = [name for name in EXPERIMENTS if not context.has(f"{name}, {FLOAT32}")]
    at_once = len(names) if context.cores > 4 else 1
    for first in range(0, len(names), max(1, at_once)):
        workers = {name: _start_worker(name, context) for name in names[first : first + at_once]}
        # Compiling takes the cores: wait for all, but no longer than half of the time.
        until = (time.monotonic() + context.deadline) / 2
        for worker in workers.values():
            assert worker.stdout is not None
            select.select([worker.stdout], [], [], max(0.0, until - time.monotonic()))
        for name, worker in workers.items():
            yield from _measured(name, worker, context)


def _start_worker(name: str, context: Context) -> "subprocess.Popen[str]":
    log = (context.folder / f"throughput_{name}.log").open("w")
    return subprocess.Popen(
        [sys.executable, __file__, name, *(["small"] if context.small else [])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip


def _measured(name: str, worker: "subprocess.Popen[str]", context: Context) -> Iterator[Row]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    if worker.stdout.readline():  # it has compiled
        worker.stdin.write("\n")
        worker.stdin.flush()
    for line in worker.stdout:
        yield json.loads(line)
    if worker.wait():
        yield {
            "name": name,
            "error": f"ended with exit code {worker.returncode}, "
            f"see {context.folder / f'throughput_{name}.log'}",
        }


def work(name: str, more: list[str], answer: Any, wait: Callable[[], Any]) -> None:
    """Compile, wait for the turn, measure all pipelines of an experiment, write rows.

    Args:
        name: of the experiment.
        more: overrides of `train`; or `small`, for tiny networks on the processor.
        answer: gets a line when all is compiled, and then the rows.
        wait: returns when it is this process's turn.
    """
    from rsna_bcd.models.launch import quieten_lightning
    from rsna_bcd.processes import keep_freed_memory

    quieten_lightning()
    keep_freed_memory()
    small = more == ["small"]
    device = torch.device("cpu" if small or "trainer=cpu" in more else "cuda")
    if small:  # a C++ compiler takes minutes, and compiled code is measured on a GPU only
        torch.compile = partial(torch.compile, backend="aot_eager")
    settings = overrides(name, small) + ([] if small else more)
    is_compiled = small or device.type == "cuda"
    cfg = composed(*settings)
    flops = step_flops(cfg, make_classifier(cfg))
    loops = {way: _Loop(settings, way, device, flops) for way in (OURS, FLOAT32)}
    loops[BARE], compile_seconds = loops[OURS], 0.0
    errors: dict[str, str] = {}
    if is_compiled:
        loops[COMPILED] = loops[BARE_COMPILED] = _Loop(settings, COMPILED, device, flops)
        try:
            compile_seconds = loops[COMPILED].warm_up()
        except torch.OutOfMemoryError:  # beside others; in its turn it has the GPU to itself
            traceback.print_exc()
            loops[COMPILED].release()
        except Exception as error:  # noqa: BLE001  (compilers fail in many ways; the row says so)
            traceback.print_exc()
            lines = str(error).strip().split("\n")
            errors[COMPILED] = errors[BARE_COMPILED] = f"{type(error).__name__}: {lines[0]}"
    print("ready", file=answer, flush=True)
    wait()
    rounds, steps = (2, 2) if small else (3, 8) if device.type == "cuda" else (10, 4)
    ways = [way for way in WAYS if way in loops]
    turns: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        again = [way for way in ways if way not in errors]
        for way in again:
            out_of_memory = ""
            try:
                turns[way].append(loops[way].turn(way in (COMPILED, OURS), steps))
            except torch.OutOfMemoryError as error:
                out_of_memory = str(error).split("\n")[0]
            loops[way].release()
            if out_of_memory and way == FLOAT32 and loops[way].batch_size > 1:
                loops[way].halve_batch()  # images/s still compare; the row has the batch
                again.append(way)
            elif out_of_memory:
                errors[way] = out_of_memory
        if number in (0, rounds - 1):  # results so far, in case the time is used up
            for way in ways:
                row: Row = {"error": errors.get(way)}
                if way not in errors and turns[way]:
                    row = loops[way].row(turns[way]) | _over_bare(way, turns)
                if way == COMPILED:
                    row["compile_seconds"] = round(compile_seconds, 1) or None
                print(json.dumps({"name": f"{name}, {way}", **row}), file=answer, flush=True)


def _over_bare(way: str, turns: dict[str, list[tuple[float, float]]]) -> Row:
    """For a pipeline of ours, the bare loop's time over its own: the median of the rounds."""
    bare = {COMPILED: BARE_COMPILED, OURS: BARE}.get(way)
    if bare is None or not turns[bare]:
        return {}
    ratios = [b[0] / o[0] for b, o in zip(turns[bare], turns[way], strict=False)]
    return {"over_bare": round(statistics.median(ratios), 3)}


class _Loop:
    """An experiment's network, trained through Lightning or in a bare loop."""

    def __init__(self, settings: list[str], way: str, device: torch.device, flops: float) -> None:
        more = {
            COMPILED: ["compile=true"],
            OURS: [],
            FLOAT32: ["trainer.precision=32-true", "network.channels_last=false"],
        }[way]
        quiet = ["~callbacks.progress", "~callbacks.last", "~callbacks.best"]
        quiet += ["+trainer.enable_progress_bar=false", "+trainer.enable_checkpointing=false"]
        output = tempfile.mkdtemp(prefix="throughput_")
        atexit.register(shutil.rmtree, output, ignore_errors=True)
        self._cfg = composed(*settings, *more, *quiet, f"paths.output={output}")
        self._device, self._compiled = device, way == COMPILED
        self._classifier = make_classifier(self._cfg)
        self._batch = random_batch(self._cfg, self._classifier.level, self._cfg.batch_size)
        if device.type == "cuda":
            self._batch = {key: value.pin_memory() for key, value in self._batch.items()}
        self._flops_per_sample = flops

    @property
    def batch_size(self) -> int:
        """Samples per step."""
        return len(self._batch["label"])

    def halve_batch(self) -> None:
        """Take the first half of the samples from now on."""
        half = self.batch_size // 2
        self._batch = {key: value[:half] for key, value in self._batch.items()}

    def warm_up(self) -> float:
        """Compile; return the seconds that it takes."""
        begin = time.perf_counter()
        step = make_step(self._cfg, self._classifier, self._device, compiled=self._compiled)
        step(self._batch)
        self._synchronize()
        self.release()
        return time.perf_counter() - begin

    def turn(self, with_lightning: bool, steps: int) -> tuple[float, float]:
        """Seconds per step, and the most memory allocated in GB."""
        moments: list[float] = []

        def note(step: int) -> None:
            if step in (_WARM, _WARM + steps):
                self._synchronize()
                moments.append(time.perf_counter())
                if step == _WARM and self._device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()

        (self._with_lightning if with_lightning else self._bare)(note, _WARM + steps + 1)
        cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
        return (moments[1] - moments[0]) / steps, peak

    def row(self, turns: list[tuple[float, float]]) -> Row:
        """Figures of all turns."""
        seconds = statistics.median(turn[0] for turn in turns)
        images = self.batch_size * images_per_sample(self._cfg, self._classifier.level)
        rate = self._flops_per_sample * self.batch_size / seconds / 1e12
        cuda = self._device.type == "cuda"
        peak = peak_tflops(torch.cuda.get_device_name()) if cuda else None
        return {
            "crop": f"{self._cfg.crop.height} x {self._cfg.crop.width}",
            "batch": self.batch_size,
            "images_per_second": round(images / seconds, 1),
            "ms_per_step": round(1000 * seconds, 1),
            "tflops": float(f"{rate:.3g}"),
            "of_peak": None if peak is None else round(rate / peak, 3),
            "gb": round(max(turn[1] for turn in turns), 1) if cuda else None,
            "rounds": len(turns),
        }

    def _bare(self, note: Callable[[int], None], steps: int) -> None:
        from hydra.utils import instantiate

        step = make_step(self._cfg, self._classifier, self._device, compiled=self._compiled)
        scheduler = instantiate(self._cfg.scheduler)(step.optimizer, steps)
        for number in range(steps):
            note(number)
            step(self._batch)
            scheduler.step()

    def _with_lightning(self, note: Callable[[int], None], steps: int) -> None:
        """Train as `train` does, on the same batch again and again: loading is measured apart."""
        import pandas as pd
        import pytorch_lightning as pl
        from hydra.utils import instantiate
        from torch.utils.data import DataLoader

        batch = self._batch

        class Note(pl.Callback):
            """Notes when steps begin."""

            def on_train_batch_start(self, *arguments: Any) -> None:
                """Begin step `arguments[-1]`."""
                note(arguments[-1])

        class Data(pl.LightningDataModule):
            """So many equal batches."""

            batches_per_epoch = steps
            held_out = pd.DataFrame()

            def train_dataloader(self) -> Any:
                """One batch per index."""
                return DataLoader([batch] * steps, batch_size=None)  # type: ignore[arg-type]

        trainer = instantiate(self._cfg.trainer, max_epochs=1, limit_val_batches=0)
        trainer.callbacks.append(Note())
        self._classifier.data = data = Data()
        trainer.fit(self._classifier, datamodule=data)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def release(self) -> None:
        """Leave the GPU to the others."""
        self._classifier.zero_grad()
        self._classifier.cpu()
        gc.collect()  # a trainer refers to itself
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


# Memory


def memory(context: Context) -> Iterator[Row]:
    """The memory of each experiment's step at two batch sizes, and the micro-batches within it.

    On a GPU those of three experiments are then tried, under a cap on the allocator.
    """
    device = torch.device("cpu" if context.small else "cuda")
    total = CAPS[-1] if context.small else torch.cuda.get_device_properties(0).total_memory / 2**30
    rows = [(name, False) for name in experiments()]
    rows += [(name, True) for name in EXPERIMENTS if device.type == "cuda"]
    for experiment, tried in rows:
        name = f"{experiment}, tried" if tried else experiment
        if context.has(name):
            continue
        try:
            row: Row = _memory_row(experiment, tried, device, total)
        except RuntimeError as error:  # out of memory, or a kernel refuses a tensor of this size
            traceback.print_exc()
            row = {"error": str(error).split("\n")[0]}
        yield {"name": name, **row}
        gc.collect()  # else the next experiment's peak would contain what cycles hold of this one
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()


def _memory_row(name: str, tried: bool, device: torch.device, total: float) -> Row:
    cfg = composed(*overrides(name, device.type == "cpu"))
    classifier = make_classifier(cfg)
    level = classifier.level
    step = make_step(cfg, classifier, device, compiled=False)
    used = {n: step_memory(step, random_batch(cfg, level, n), device) / 2**30 for n in (2, 4)}
    line = fitted_line(used)
    row: Row = {
        "crop": f"{cfg.crop.height} x {cfg.crop.width}",
        "images_per_sample": images_per_sample(cfg, level),
        "gib_fixed": float(f"{line[0]:.3g}"),
        "gib_per_sample": float(f"{line[1]:.3g}"),
        "batch": int(cfg.batch_size),
    }
    for cap in (*CAPS, None):
        capacity = (total if cap is None else cap) - _CONTEXT
        if cap is not None and cap > total:
            continue
        most = samples_within(capacity, line)
        if tried:
            torch.cuda.set_per_process_memory_fraction(min(1.0, capacity / total))
            while most and not step.fits(random_batch(cfg, level, most)):
                most -= max(1, most // 16)
        row["card" if cap is None else f"{cap} GB"] = most
    return row


def step_memory(step: TrainingStep, batch: Batch, device: torch.device) -> int:
    """Bytes that a training step takes at its peak.

    On a processor, which keeps no such account: weights, gradients, the optimizer's state and what
    is kept for the backward pass.
    """
    step(batch)  # makes the optimizer's state
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step(batch)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step(batch)
    fixed = 0
    for group in step.optimizer.param_groups:
        for parameter in group["params"]:
            state = step.optimizer.state[parameter].values()
            tensors = [parameter, parameter.grad, *(s for s in state if torch.is_tensor(s))]
            fixed += sum(t.nbytes for t in tensors if t is not None)
            kept.pop(parameter.untyped_storage().data_ptr(), None)
    return fixed + sum(kept.values())


def fitted_line(used: dict[int, float]) -> tuple[float, float]:
    """Intercept and slope through memory at two batch sizes."""
    (n1, m1), (n2, m2) = sorted(used.items())
    slope = (m2 - m1) / (n2 - n1)
    return m1 - slope * n1, slope


def samples_within(capacity: float, line: tuple[float, float]) -> int:
    """The most samples of a line that a capacity holds, 4 % of it left to fragmentation."""
    fixed, slope = line
    return max(0, math.floor((0.96 * capacity - fixed) / slope))


if __name__ == "__main__":
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout
    work(sys.argv[1], sys.argv[2:], protocol, sys.stdin.readline)
