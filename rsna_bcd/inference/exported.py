"""Networks out of exported files, in the place of those that torch runs.

Each keeps the contract of `models.prediction`, so that whatever predicts with a network, TTA
included, predicts with it as well.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.inference.runs import Run
from rsna_bcd.models.exporting import DESCRIPTION, MISSING_EXTRA, OUTPUTS, fingerprint
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
    if engine == "auto" and not (on_processor and _is_installed() and file.is_file()):
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


def _is_installed() -> bool:
    return importlib.util.find_spec("onnxruntime") is not None


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
