"""Exported networks: run them in place of torch, compare them with it, choose the faster."""

import contextlib
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import as_training_input, read_crop
from rsna_bcd.inference.run import Run
from rsna_bcd.models.checkpoint import weights_sha256
from rsna_bcd.models.exporting import (
    DESCRIPTION,
    MISSING_EXTRA,
    OUTPUTS,
    Input,
    capture,
    network_inputs,
    random_batch,
    save_onnx,
)
from rsna_bcd.models.prediction import Batch, predict_logits, to_input
from rsna_bcd.tables.views import Level

Engine = Literal["torch", "onnx", "auto"]
Forward = Callable[..., dict[str, Tensor]]

ONNX_FILE, TORCH_FILE = "model.onnx", "model.pt2"
TOLERANCE = 1e-4  # of probabilities
# Batches of one, a few and more samples; of breast level, with three, one and two images each.
_SIZES = ((1, 3), (2, 1), (5, 2))
# Seconds of torch from which on an export pays: it costs 12 to 26 s of a core (networks of 3 to
# 50 million parameters at the size of their crops), and saves three quarters of the time and more.
_WORTH = 120
_SAMPLES = 2  # images, or breasts, that engines are compared on
_EXPORTER = ("onnx", "onnxscript", "onnxruntime")


class OnnxNetwork(nn.Module):
    """A network that ONNX Runtime executes, on the processor.

    Args:
        file: written by `rsna_bcd.export`.
        threads: of one call; None for as many as torch uses.

    Attributes:
        description: of the network, from the file.
        unit: image or breast level.
        inputs: entries of a batch that it takes besides the image.

    Raises:
        InputError: the file is absent, damaged or not of ours, or ONNX Runtime is not installed.
    """

    unit: Level
    inputs: tuple[str, ...]

    def __init__(self, file: Path, threads: int | None = None) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(f"ONNX {MISSING_EXTRA}") from error
        if not file.is_file():
            raise InputError(f"{file} does not exist. Make it:\n  {_command(file)}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        # Threads that wait by spinning take the cores from the processes that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001  (its own classes derive from nothing narrower)
            raise InputError(
                f"{file} cannot be read as ONNX ({type(error).__name__}). Make it again:\n"
                f"  {_command(file)} overwrite=true"
            ) from error
        self.description = _description(
            file, self._session.get_modelmeta().custom_metadata_map.get(DESCRIPTION)
        )
        self.unit = self.description["unit"]
        names = [entry.name for entry in self._session.get_inputs()]
        self.inputs = tuple(name for name in names if name != "image")

    def forward(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        view: Tensor | None = None,
        other: Tensor | None = None,
        metadata: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute `logit` and `probability`, (B,) each, of float32 images and their like."""
        given = {"image": image, "mask": mask, "view": view, "other": other, "metadata": metadata}
        feed = {
            name: np.ascontiguousarray(tensor.cpu().numpy())
            for name, tensor in given.items()
            if tensor is not None
        }
        values = self._session.run(list(OUTPUTS), feed)
        return {name: torch.from_numpy(v) for name, v in zip(OUTPUTS, values, strict=True)}


def load_program(file: Path) -> Forward:
    """Load a `.pt2` file as a function of the entries of a batch by name.

    Raises:
        InputError: the file is absent, damaged or not of ours.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist. Make it:\n  {_command(file)}")
    extra = {DESCRIPTION: ""}
    try:
        program = torch.export.load(file, extra_files=extra)
    except Exception as error:  # noqa: BLE001  (whatever the bytes lead it to)
        raise InputError(
            f"{file} cannot be read by torch.export.load ({type(error).__name__}). Make it again:\n"
            f"  {_command(file)} overwrite=true"
        ) from error
    _description(file, extra[DESCRIPTION])
    forward: Forward = program.module()
    return forward


def with_engine(run: Run, engine: Engine, file: Path, threads: int | None = None) -> Run:
    """Execute a run by another engine.

    Args:
        run: as `load_run` gives it.
        engine: `torch` leaves it as it is. `onnx` requires ONNX Runtime. `auto` uses it where
            possible: on the processor, installed, and with a file of the same weights.
        file: written by `rsna_bcd.export` (`<output>/exports/<name>/fold<k>/model.onnx`).
        threads: as of `OnnxNetwork`.

    Raises:
        InputError: `onnx` is impossible; with the reason.
    """
    if engine == "torch":
        return run
    on_processor = run.device.type == "cpu"
    if engine == "auto" and not (on_processor and _is_installed("onnxruntime") and file.is_file()):
        return run
    if not on_processor:
        raise InputError("engine=onnx is for the processor: add device=cpu, or take engine=torch.")
    network = OnnxNetwork(file, threads)
    if network.description["weights_sha256"] == weights_sha256(run.network.state_dict()):
        return replace(run, network=network)
    if engine == "auto":
        return run
    raise InputError(
        f"{file} has other weights than the run in {run.folder}. Make it again:\n"
        f"  {_command(file)} overwrite=true"
    )


def _description(file: Path, text: str | None) -> dict[str, Any]:
    """Parse the description inside an exported file."""
    try:
        description = json.loads(text or "")
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file} was not written by this package. Make it:\n  {_command(file)}"
        ) from error
    assert isinstance(description, dict)
    return description


def _command(file: Path) -> str:
    """The command that exports to such a file."""
    name, fold = file.parent.parent.name, file.parent.name.removeprefix("fold")
    file_format = "torch" if file.suffix == Path(TORCH_FILE).suffix else "onnx"
    return f"python -m rsna_bcd.export name={name} fold={fold} format={file_format}"


@dataclass(frozen=True)
class Parity:
    """Differences between an exported file and its network.

    Attributes:
        images: of the batches: prepared crops, or blots and noise.
        batches: samples of each batch.
        probability: the largest difference of probabilities.
        logit: the largest difference of logits.
        lowest: probability of the network.
        highest: probability of the network; close to the lowest, agreement says little.
    """

    images: Literal["crops", "random"]
    batches: tuple[int, ...]
    probability: float
    logit: float
    lowest: float
    highest: float

    @property
    def holds(self) -> bool:
        """Whether all probabilities agree; false if one is NaN."""
        return self.probability <= TOLERANCE


def measure_parity(
    network: Any,
    exported: Forward,
    inputs: Sequence[Input],
    crops: Tensor | None = None,
    seed: int = 0,
) -> Parity:
    """Predict the same batches of several sizes by a network and by its exported file.

    Args:
        network: in eval mode, on the processor.
        exported: takes the entries of a batch by name.
        inputs: of both.
        crops: (N, H, W) float32 in [0, 1], to draw from; None for blots and noise.
        seed: of the batches.
    """
    generator = torch.Generator().manual_seed(seed)
    expected, logits, probabilities = [], [], []
    for size, views in _SIZES:
        batch = random_batch(inputs, size, views, generator, crops)
        with torch.inference_mode():
            expected.append(predict_logits(network, batch, ()))
            outputs = exported(**{entry.name: batch[entry.name] for entry in inputs})
        logits.append(outputs["logit"])
        probabilities.append(outputs["probability"])
    logit = torch.cat(expected).double()
    probability = logit.sigmoid()
    return Parity(
        images="random" if crops is None else "crops",
        batches=tuple(size for size, _ in _SIZES),
        probability=float((torch.cat(probabilities).double() - probability).abs().max()),
        logit=float((torch.cat(logits).double() - logit).abs().max()),
        lowest=float(probability.min()),
        highest=float(probability.max()),
    )


def prepared_crops(folder: Path, height: int, width: int, most: int = 16) -> Tensor | None:
    """Read up to `most` of the crops of a prepared folder.

    Returns:
        (N, height, width) float32 in [0, 1]; None if there are none of this size.
    """
    table = folder / "train.csv"
    if not table.is_file():
        return None
    paths = pd.read_csv(table, dtype=str)["path"].dropna()
    spread = paths.iloc[np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)]
    crops = []
    for path in spread:
        with contextlib.suppress(InputError):  # deleted since
            crop = as_training_input(read_crop(folder / path))
            if crop.shape == (height, width):
                crops.append(to_input(torch.from_numpy(crop)))
    return torch.stack(crops) if crops else None


def engine_names(runs: Sequence[Run]) -> list[Engine]:
    """The engine of each run's network."""
    return ["onnx" if isinstance(run.network, OnnxNetwork) else "torch" for run in runs]


def run_inputs(run: Run) -> tuple[Input, ...]:
    """The inputs of a run's network."""
    width = 0 if run.metadata is None else run.metadata.width
    return network_inputs(run.network, run.crop.height, run.crop.width, width)


def choose_engines(
    runs: Sequence[Run],
    engine: Engine,
    *,
    exports: Path,
    own_exports: Path,
    images: int,
    before: Sequence[Engine],
    log: Callable[[str], None],
) -> list[Run]:
    """Set the engine of each run to the given one, or to the faster one.

    Args:
        runs: as `load_run` gives them.
        engine: `torch`; `onnx`, which requires a file in `exports` for each run; or `auto`: on the
            processor ONNX Runtime where it is installed, faster, and agrees with torch.
        exports: folder of `rsna_bcd.export`.
        own_exports: folder for files that `auto` writes where there are none.
        images: number to be predicted: few of them are not worth a file.
        before: the engines of an earlier process, which `auto` keeps if possible.
        log: called with messages for the user.

    Raises:
        InputError: `onnx` is impossible; with the reason.
    """
    if engine != "auto":
        return [with_engine(run, engine, _exported_file(run, exports)) for run in runs]
    chosen = []
    for number, run in enumerate(runs):
        known = before[number] if before else None
        if known == "torch" or run.device.type != "cpu" or not _is_installed("onnxruntime"):
            chosen.append(run)
            continue
        try:
            other = _with_onnx(run, exports, own_exports, images, log)
            if other is not run and known != "onnx":
                other = _faster(run, other)
        except Exception as error:  # noqa: BLE001  (torch is left in any case)
            log(f"{run.name} stays with torch: {type(error).__name__}: {error}")
            other = run
        chosen.append(other)
    return chosen


def _with_onnx(
    run: Run, exports: Path, own_exports: Path, images: int, log: Callable[[str], None]
) -> Run:
    """The run in ONNX Runtime; itself where there is no file and none is worth the time."""
    own = own_exports / run.name.replace(" ", "_") / ONNX_FILE
    for file in (_exported_file(run, exports), own):
        other = with_engine(run, "auto", file)
        if other is not run:
            return other
    inputs = run_inputs(run)
    batch = random_batch(inputs, _SAMPLES, 2, torch.Generator().manual_seed(0))
    seconds = images * (1 + len(run.tta)) * _timed(run, batch)[1] / _SAMPLES
    if seconds < _WORTH or not all(map(_is_installed, _EXPORTER)):
        return run
    log(f"Makes {own}: torch would take {seconds / 3600:.1g} h of {run.name} alone.")
    description = {"unit": run.level, "weights_sha256": weights_sha256(run.network.state_dict())}
    own.parent.mkdir(parents=True, exist_ok=True)
    unfinished = own.with_name(f"unfinished_{own.name}")
    save_onnx(capture(run.network, inputs), inputs, unfinished, json.dumps(description))
    unfinished.replace(own)
    return with_engine(run, "auto", own)


def _faster(run: Run, other: Run) -> Run:
    """The second, if it predicts the same for a few images in less time; else the first."""
    batch = random_batch(run_inputs(run), _SAMPLES, 2, torch.Generator().manual_seed(0))
    (expected, seconds), (found, other_seconds) = _timed(run, batch), _timed(other, batch)
    agrees = bool((expected - found).abs().max() <= TOLERANCE)  # not if one is NaN
    return other if agrees and other_seconds < seconds else run


def _timed(run: Run, batch: Batch) -> tuple[torch.Tensor, float]:
    """Probabilities, and the seconds of the second of two passes."""
    predict_logits(run.network, batch, ())
    started = time.perf_counter()
    logits = predict_logits(run.network, batch, ())
    return logits.sigmoid(), time.perf_counter() - started


def _exported_file(run: Run, exports: Path) -> Path:
    return exports / run.folder.parent.name / run.folder.name / ONNX_FILE


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
