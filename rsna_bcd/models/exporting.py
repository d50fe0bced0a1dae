"""A network as a graph for other software, with its inputs and outputs.

The graph has the inputs of the contract (`models.prediction`), `logit` and `probability` as its
outputs. Of its sizes, those of the batch and, by breast, of the views are free; height and width
are those of the crops.
"""

import copy
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rsna_bcd.errors import InputError
from rsna_bcd.models.prediction import Batch, extra_inputs, network_level

DESCRIPTION = "rsna_bcd"  # the metadata entry of an exported file
OPSET = 18  # of ONNX: the default of torch's exporter; ONNX Runtime knows it since 1.14
OUTPUTS = ("logit", "probability")
MISSING_EXTRA = "needs onnx, onnxscript and onnxruntime: pip install 'rsna_bcd[export]'."

_TRACED_BATCH, _TRACED_VIEWS = 2, 3  # with a size of 1, torch would take it for fixed
_DTYPES = {"float32": torch.float32, "bool": torch.bool, "int64": torch.int64}
# Metadata that torch keeps of each operation: lines of source, with paths.
_SOURCES = ("stack_trace", "from_node", "source_fn_stack")


@dataclass(frozen=True)
class Input:
    """An input of an exported network.

    Attributes:
        name: as in a batch.
        shape: numbers, and "batch" or "views" where any number goes.
        dtype: of the tensor.
        low: its smallest value.
        high: its largest value.
        meaning: in words.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32", "bool", "int64"]
    low: float
    high: float
    meaning: str


def network_inputs(
    network: Any, height: int, width: int, metadata_width: int = 0
) -> tuple[Input, ...]:
    """Describe the inputs of a network, the image first.

    Args:
        network: keeps the contract of `models.prediction`.
        height: of a crop.
        width: of a crop.
        metadata_width: how many numbers it is given besides.

    Raises:
        InputError: it looks at something that no batch of ours holds.
    """
    by_breast = network_level(network) == "breast"
    sample: tuple[str, ...] = ("batch", "views") if by_breast else ("batch",)
    known = [
        Input("image", (*sample, 1, height, width), "float32", 0, 1,
              "crops, tissue bright, background 0; zeros where there is no image"
              if by_breast else "crops, tissue bright, background 0"),
        Input("mask", sample, "bool", 0, 1,
              "true where there is an image; at least one of the breast itself"),
        Input("view", sample, "int64", 0, 2, "0 CC, 1 MLO, 2 any other, or no image"),
        Input("other", sample, "bool", 0, 1, "true for images of the patient's other breast"),
        Input("metadata", ("batch", metadata_width), "float32", -5.75, 6.15,
              "(age - 58.5) / 10 of ages 1 to 120; everything else 0 to 1; see `metadata`"),
    ]  # fmt: skip
    wanted = ("image", *extra_inputs(network))
    unknown = [name for name in wanted if name not in {entry.name for entry in known}]
    if unknown:
        raise InputError(
            f"The network looks at {', '.join(unknown)}, which cannot be exported. Known are "
            f"{', '.join(entry.name for entry in known)}: see rsna_bcd/models/exporting.py."
        )
    return tuple(entry for entry in known if entry.name in wanted)


class Exportable(nn.Module):
    """A network with named parameters for its inputs, and the probability beside the logit.

    Args:
        network: keeps the contract of `models.prediction`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).float().cpu().eval()
        if hasattr(self.network, "dense"):
            self.network.dense = True  # no shape may depend on data
        for module in self.network.modules():
            if hasattr(module, "fused_attn"):  # of timm: the same in plain products, for ONNX
                module.fused_attn = False

    def forward(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        view: Tensor | None = None,
        other: Tensor | None = None,
        metadata: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute `logit` and `probability`, (B,) each."""
        given = {"mask": mask, "view": view, "other": other, "metadata": metadata}
        inputs = {name: given[name] for name in extra_inputs(self.network)}
        outputs = self.network(image, **inputs)
        logit = outputs["logit"].float()
        return {"logit": logit, "probability": logit.sigmoid()}


def random_batch(
    inputs: Sequence[Input],
    batch: int,
    views: int,
    generator: torch.Generator,
    images: Tensor | None = None,
) -> Batch:
    """Make a batch that a network may be given.

    Args:
        inputs: of the network.
        batch: number of samples.
        views: images of a breast, one of its own at least; void by image.
        generator: of all that is drawn.
        images: (N, H, W) float32 in [0, 1], to draw from; None for blots and noise.
    """
    free = {"batch": batch, "views": views}
    made: Batch = {}
    for entry in inputs:
        shape = [free[size] if isinstance(size, str) else size for size in entry.shape]
        values = torch.rand(shape, generator=generator)
        if entry.name == "image":
            values = _images(values, images, generator)
        elif entry.dtype == "bool":
            values = (values < 0.7) == (entry.name == "mask")
            values[:, 0] = entry.name == "mask"  # one that is there, and of this breast
        elif entry.dtype == "int64":
            values = values * (entry.high + 1 - entry.low) + entry.low
        elif entry.name == "metadata":
            values = 2 * values - 1
        made[entry.name] = values.to(_DTYPES[entry.dtype])
    return made


def _images(noise: Tensor, images: Tensor | None, generator: torch.Generator) -> Tensor:
    """Images of the shape of noise (..., 1, H, W): of those given, or blots under the noise."""
    flat = noise.flatten(0, -4)
    if images is not None:
        chosen = torch.randint(len(images), (len(flat),), generator=generator)
        return images[chosen].reshape(noise.shape)
    blots = torch.rand(len(flat), 1, 8, 4, generator=generator)
    blots = nn.functional.interpolate(blots, size=noise.shape[-2:], mode="bilinear")
    return (0.8 * blots + 0.2 * flat).reshape(noise.shape)


def capture(network: Any, inputs: Sequence[Input]) -> ExportedProgram:
    """Trace a network to a graph, with noise as its input.

    Args:
        network: keeps the contract of `models.prediction`.
        inputs: as `network_inputs` describes them.
    """
    shown = random_batch(inputs, _TRACED_BATCH, _TRACED_VIEWS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = torch.export.export(
            Exportable(network), (), dict(shown), dynamic_shapes=_free_sizes(inputs), strict=False
        )
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in _SOURCES:
                    node.meta.pop(key, None)
    return program


def _free_sizes(inputs: Sequence[Input]) -> dict[str, dict[int, Any]]:
    free = {name: Dim(name) for name in ("batch", "views")}
    return {
        entry.name: {
            axis: free[size] for axis, size in enumerate(entry.shape) if isinstance(size, str)
        }
        for entry in inputs
    }


def save_torch(program: ExportedProgram, file: Path, description: str) -> None:
    """Write a `.pt2` file for `torch.export.load`, with the description as an extra file."""
    with warnings.catch_warnings():
        # That weights laid out channels last are not contiguous: nothing is lost.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(program, file, extra_files={DESCRIPTION: description})


def save_onnx(
    program: ExportedProgram, inputs: Sequence[Input], file: Path, description: str
) -> None:
    """Write an ONNX file, weights included, with the description among its metadata.

    Raises:
        InputError: the packages for it are not installed.
    """
    try:
        import onnxscript  # noqa: F401  (torch imports it itself, and its message names no extra)
    except ImportError as error:
        raise InputError(f"format=onnx {MISSING_EXTRA}") from error
    for name in ("onnxscript", "onnx_ir"):  # which log their clean-up
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that batch, the size, is the same of all inputs
        exported: Any = torch.onnx.export(
            program,
            kwargs=dict(program.example_inputs[1]),
            input_names=[entry.name for entry in inputs],
            output_names=list(OUTPUTS),
            dynamic_shapes=_free_sizes(inputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    graph = exported.model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()  # lines of source, with paths
    exported.model.metadata_props[DESCRIPTION] = description
    exported.save(file, external_data=False)
