"""What executes each network: ONNX Runtime where it says the same in less time, else torch."""

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rsna_bcd.inference.exported import ONNX_FILE, Engine, OnnxNetwork, with_engine
from rsna_bcd.inference.parity import TOLERANCE
from rsna_bcd.inference.precision import device_of
from rsna_bcd.inference.runs import Run
from rsna_bcd.models.exporting import (
    Input,
    capture,
    fingerprint,
    network_inputs,
    random_batch,
    save_onnx,
)
from rsna_bcd.models.prediction import PASSES, Batch, predict_logits

# Seconds of torch at which a file is worth making: it costs 12 to 26 s of a core (networks of 3 to
# 50 million parameters at the size of their crops), and saves three quarters of the time and more.
_WORTH = 120
_SOME = 2  # images, or breasts, on which engines are compared
_EXPORTER = ("onnx", "onnxscript", "onnxruntime")


def engines_of(runs: Sequence[Run]) -> list[Engine]:
    """What executes each run's network."""
    return ["onnx" if isinstance(run.network, OnnxNetwork) else "torch" for run in runs]


def choose_engines(
    runs: Sequence[Run],
    engine: Engine,
    *,
    exports: Path,
    made: Path,
    images: int,
    before: Sequence[Engine],
    tell: Callable[[str], None],
) -> list[Run]:
    """Let each run be executed by the engine asked for, or by what is faster here.

    Args:
        runs: as `load_run` gives them.
        engine: `torch`; `onnx`, which wants a file in `exports` for each run; or `auto`, which on
            the processor takes ONNX Runtime where it is installed, faster, and says the same.
        exports: the folder that `rsna_bcd.export` writes into.
        made: a folder for files that are made here, under `auto`, where there are none.
        images: to be predicted: a little work is not worth a file.
        before: what executed each run in an earlier process: `auto` stays with it if it can.
        tell: called with what the user should know.

    Raises:
        InputError: an unknown engine; or `onnx` cannot be had, with the reason.
    """
    if engine != "auto":
        return [with_engine(run, engine, _exported(run, exports)) for run in runs]
    chosen = []
    for number, run in enumerate(runs):
        known = before[number] if before else None
        if known == "torch" or device_of(run).type != "cpu" or not _is_installed("onnxruntime"):
            chosen.append(run)
            continue
        other = run
        try:
            other = _by_onnx(run, exports, made, images, tell)
            is_better = other is not run and (known == "onnx" or _is_better(run, other))
        except Exception as error:  # noqa: BLE001  (whatever it is, torch can do without)
            tell(f"{_name(run)} stays with torch: {type(error).__name__}: {error}")
            is_better = False
        chosen.append(other if is_better else run)
    return chosen


def _by_onnx(run: Run, exports: Path, made: Path, images: int, tell: Callable[[str], None]) -> Run:
    """The run by ONNX Runtime; itself where there is no file for it and none is worth making."""
    own = made / _name(run).replace(" ", "_") / ONNX_FILE
    for file in (_exported(run, exports), own):
        other = with_engine(run, "auto", file)
        if other is not run:
            return other
    seconds = images * PASSES[run.tta] * _timed(run, _some(run))[1] / _SOME
    if seconds < _WORTH or not all(map(_is_installed, _EXPORTER)):
        return run
    tell(f"Makes {own}: torch would take {seconds / 3600:.1g} h of {_name(run)} alone.")
    inputs = _inputs(run)
    description = {"unit": run.unit, "weights_sha256": fingerprint(run.network)}
    own.parent.mkdir(parents=True, exist_ok=True)
    unfinished = own.with_name(f"unfinished_{own.name}")
    save_onnx(capture(run.network, inputs), inputs, unfinished, json.dumps(description))
    unfinished.replace(own)
    return with_engine(run, "auto", own)


def _is_better(run: Run, other: Run) -> bool:
    """Whether another engine says the same of a few images, in less time."""
    batch = _some(run)
    ours, seconds = _timed(run, batch)
    theirs, other_seconds = _timed(other, batch)
    same = (ours - theirs).abs().max() <= TOLERANCE  # not where one is no number
    return bool(same) and other_seconds < seconds


def _some(run: Run) -> Batch:
    """A few images, blots and noise; by breast, of two images each."""
    return random_batch(_inputs(run), _SOME, 2, torch.Generator().manual_seed(0))


def _timed(run: Run, batch: Batch) -> tuple[torch.Tensor, float]:
    """Probabilities, and the seconds of a second look."""
    predict_logits(run.network, batch, "none")
    begun = time.perf_counter()
    logits = predict_logits(run.network, batch, "none")
    return logits.sigmoid(), time.perf_counter() - begun


def _inputs(run: Run) -> tuple[Input, ...]:
    width = 0 if run.metadata is None else run.metadata.width
    return network_inputs(run.network, run.crop.height, run.crop.width, width)


def _exported(run: Run, exports: Path) -> Path:
    return exports / run.folder.parent.name / run.folder.name / ONNX_FILE


def _name(run: Run) -> str:
    return f"{run.folder.parent.name} {run.folder.name}"


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
