"""Exported networks: ONNX Runtime or `torch.export` in place of torch."""

import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import as_training_input, read_crop
from rsna_bcd.inference.predictor import device_of
from rsna_bcd.inference.run import Run
from rsna_bcd.models.exporting import (
    DESCRIPTION,
    MISSING_EXTRA,
    OUTPUTS,
    Input,
    capture,
    fingerprint,
    network_inputs,
    random_batch,
    save_onnx,
)
from rsna_bcd.models.prediction import PASSES, Batch, predict_logits, to_input
from rsna_bcd.tables.views import Unit

Engine = Literal["torch", "onnx", "auto"]
Forward = Callable[..., dict[str, Tensor]]

ONNX_FILE, TORCH_FILE = "model.onnx", "model.pt2"


class OnnxNetwork(nn.Module):
    """A network that ONNX Runtime executes, on the processor.

    Args:
        file: written by `rsna_bcd.export`.
        threads: of one call; None for as many as torch uses.

    Attributes:
        description: what the file says of itself.
        unit: what it looks at: an image or a breast.
        inputs: entries of a batch that it looks at besides the image.

    Raises:
        InputError: the file is absent, damaged or not of ours, or ONNX Runtime is not installed.
    """

    unit: Unit
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
                f"{file} cannot be read as ONNX ({type(error).__name__}). Make it anew:\n"
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
    """Load a `.pt2` file, to be called with the entries of a batch by name.

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
            f"{file} cannot be read by torch.export.load ({type(error).__name__}). Make it anew:\n"
            f"  {_command(file)} overwrite=true"
        ) from error
    _description(file, extra[DESCRIPTION])
    forward: Forward = program.module()
    return forward


def with_engine(run: Run, engine: Engine, file: Path, threads: int | None = None) -> Run:
    """Let a run be executed by another engine.

    Args:
        run: as `load_run` gives it.
        engine: `torch` leaves it as it is. `onnx` insists on ONNX Runtime. `auto` takes it where it
            can be had: on the processor, installed, and with a file of these very weights.
        file: written by `rsna_bcd.export` (`<output>/exports/<name>/fold<k>/model.onnx`).
        threads: of one call of ONNX Runtime; None for as many as torch uses.

    Raises:
        InputError: an unknown engine; or `onnx` cannot be had, with the reason.
    """
    if engine not in get_args(Engine):
        raise InputError(f"engine is {' or '.join(get_args(Engine))}, not {engine!r}.")
    if engine == "torch":
        return run
    on_processor = next(run.network.parameters(), torch.empty(0)).device.type == "cpu"
    if engine == "auto" and not (on_processor and _is_installed("onnxruntime") and file.is_file()):
        return run
    if not on_processor:
        raise InputError("engine=onnx is for the processor: add device=cpu, or take engine=torch.")
    network = OnnxNetwork(file, threads)
    if network.description["weights_sha256"] == fingerprint(run.network):
        return dataclasses.replace(run, network=network)
    if engine == "auto":
        return run
    raise InputError(
        f"{file} has other weights than the run in {run.folder}. Make it anew:\n"
        f"  {_command(file)} overwrite=true"
    )


def _description(file: Path, text: str | None) -> dict[str, Any]:
    """Read what an exported file says of itself."""
    try:
        description = json.loads(text or "")
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file} was not written by this package. Make it:\n  {_command(file)}"
        ) from error
    assert isinstance(description, dict)
    return description


def _command(file: Path) -> str:
    """What would make a file of that name in that folder."""
    name, fold = file.parent.parent.name, file.parent.name.removeprefix("fold")
    made = "torch" if file.suffix == Path(TORCH_FILE).suffix else "onnx"
    return f"python -m rsna_bcd.export name={name} fold={fold} format={made}"


TOLERANCE = 1e-4  # of probabilities
# Batches of one, a few and more samples; by breast, of one, two and three images.
SIZES = ((1, 3), (2, 1), (5, 2))

Images = Literal["crops", "random"]


@dataclass(frozen=True)
class Parity:
    """How far an exported file was from its network.

    Attributes:
        images: what both were shown: prepared crops, or blots and noise.
        batches: samples of each batch.
        probability: the largest difference of two probabilities.
        logit: the largest difference of two logits.
        lowest: probability that the network gave.
        highest: probability that the network gave; close to the lowest, agreement says little.
    """

    images: Images
    batches: tuple[int, ...]
    probability: float
    logit: float
    lowest: float
    highest: float

    @property
    def holds(self) -> bool:
        """Whether all probabilities agree; not if one is no number."""
        return self.probability <= TOLERANCE


def measure_parity(
    network: Any,
    exported: Forward,
    inputs: Sequence[Input],
    crops: Tensor | None = None,
    seed: int = 0,
) -> Parity:
    """Show the same batches of several sizes to a network and to what was made of it.

    Args:
        network: in eval mode, on the processor.
        exported: takes the entries of a batch by name.
        inputs: of both.
        crops: (N, H, W) float32 in [0, 1], to draw from; None for blots and noise.
        seed: of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    expected, logits, probabilities = [], [], []
    for batch, views in SIZES:
        shown = random_batch(inputs, batch, views, generator, crops)
        with torch.inference_mode():
            expected.append(predict_logits(network, shown, "none").double())
            outputs = exported(**{entry.name: shown[entry.name] for entry in inputs})
        logits.append(outputs["logit"].double())
        probabilities.append(outputs["probability"].double())
    wanted = torch.cat(expected)
    return Parity(
        images="random" if crops is None else "crops",
        batches=tuple(batch for batch, _ in SIZES),
        probability=_largest(torch.cat(probabilities) - wanted.sigmoid()),
        logit=_largest(torch.cat(logits) - wanted),
        lowest=float(wanted.sigmoid().min()),
        highest=float(wanted.sigmoid().max()),
    )


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())  # NaN if there is one


def prepared_crops(folder: Path, height: int, width: int, most: int = 16) -> Tensor | None:
    """Read a few of the crops that a run was trained with.

    Args:
        folder: prepared, or absent.
        height: that they have.
        width: that they have.
        most: how many.

    Returns:
        (N, height, width) float32 in [0, 1]; None where there are none of this size.
    """
    table = folder / "train.csv"
    if not table.is_file():
        return None
    paths = pd.read_csv(table, dtype=str)["path"].dropna()
    spread = paths.iloc[np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)]
    crops: list[NDArray[Any]] = []
    for path in spread:
        try:
            crops.append(as_training_input(read_crop(folder / path)))
        except InputError:
            continue  # deleted since
    fitting = [crop for crop in crops if crop.shape == (height, width)]
    if not fitting:
        return None
    return torch.stack([to_input(torch.from_numpy(crop)) for crop in fitting])


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
