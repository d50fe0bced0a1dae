"""Saliency: a map per image of the pixels that raise the logit, for any network.

The map is HiResCAM (Draelos and Carin, 2020): gradient of the logit times activation, cell by cell,
summed over channels; negative values are cut off. Two choices were measured on the demo
(`benchmarks/saliency.py`), where the place of each cancer is known:

- Cell by cell, not Grad-CAM, which averages the gradient over the area first. Our poolings (GeM,
  max) have large gradients at a finding; averaged, these are lost. Of the images of detected
  cancers, 98 % have the largest cell in the cancer or beside it; by Grad-CAM, 46 %.
- The last map of stride 16, not the last of all, of stride 32 (96 %, although larger cells allow
  more): lesions are smaller than that. On real mammograms the latter lights up half the breast;
  maps of stride 8, as good on the demo, are specks there.

LayerCAM, which drops negative gradients before it multiplies, does as well there. But it takes
activations to be non-negative, and those of EfficientNets and ConvNeXts are not.

A map shows the regions that raised the logit, not the cancer: it explains a score, it does not
segment.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, LayerActivation, LayerGradientXActivation
from numpy.typing import NDArray
from torch import Tensor, nn

from rsna_bcd.data.dataset import breast_sample, collate_breasts
from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import Crop, as_training_input, read_crop
from rsna_bcd.inference.run import Run, check_prepared_crops, load_run
from rsna_bcd.models.aggregators import Aggregator
from rsna_bcd.models.backbone import Size
from rsna_bcd.models.breast import BreastClassifier, SideBySide, side_by_side
from rsna_bcd.models.encoder import Encoder
from rsna_bcd.models.global_local import GlobalLocal
from rsna_bcd.models.prediction import (
    TTA,
    Batch,
    network_outputs,
    plain_float32,
    to_input,
    transform,
)
from rsna_bcd.scoring.ensemble import Ensemble
from rsna_bcd.tables.images import read_images
from rsna_bcd.tables.predictions import read_run

STRIDE = 16  # pixels of the picture a cell has, for the deepest layer that has as few
# Results of `deepest_layer`, by name: layers that refer to their encoder would keep it alive.
_LAYERS: WeakKeyDictionary[Encoder, dict[tuple[Size, int], tuple[str | None, int]]] = (
    WeakKeyDictionary()
)


def saliency_maps(network: Any, batch: Batch, tta: TTA = ()) -> Tensor:
    """Compute maps of a batch.

    - Networks of image level: a map of each image. `GlobalLocal` has one of its own, the
      probability of cancer by which it chooses its patches.
    - `BreastClassifier`: a map of each image, of the one logit of the breast. Their values compare:
      an image that adds nothing has a faint map. Where the images have logits of their own (`late`
      aggregators), of these: the mean of probabilities hardly grows with an image that is certain,
      and its gradient would point to the others.
    - `SideBySide`: the map of the joint image, split into its two halves.
    - Other networks: gradient times pixel, averaged over cells of 16 x 16 pixels.

    Args:
        network: in eval mode, on the device of the batch; keeps the contract of
            `models.prediction`. Its parameters and their gradients stay as they are.
        batch: `image`, uint8 or float32 in [0, 1], and the inputs that `network.inputs` names.
        tta: the mean over the images and these transforms of them, as with predictions: the maps
            of these are transformed back.

    Returns:
        Float32 on the CPU, not negative, over the whole image: (B, h, w), of breasts (B, V, h, w).
        NaN for images that the network does not take. Except for `GlobalLocal`, a cell's value is
        its contribution to the logit, to first order.
    """
    assert not network.training, "maps of a network in training: BatchNorm would see one batch"
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors of inference mode take no part in gradients; their copies do.
        batch = {name: tensor.clone() for name, tensor in batch.items()}
        image = to_input(batch["image"])
        with plain_float32(image.device.type):
            maps = _maps(network, batch, image)
            for name in tta:
                own = _maps(network, batch, transform(image, name))
                maps = maps + transform(own, name, back=True)
            if tta:
                maps = maps / (1 + len(tta))
    return maps.detach().float().cpu()


def _maps(network: Any, batch: Batch, image: Tensor) -> Tensor:
    """The maps without test-time augmentation."""
    explained = network

    def logits(image: Tensor) -> Tensor:
        return network_outputs(explained, batch, image)["logit"]

    attribution: Any
    if isinstance(network, GlobalLocal):
        attribution = LayerActivation(logits, network.saliency).attribute(image)
        return attribution[:, 0].sigmoid()
    if not isinstance(network, Encoder):
        attribution = InputXGradient(logits).attribute(image.detach().requires_grad_())
        pixels = attribution.squeeze(-3).relu()
        height, width = (max(1, side // STRIDE) for side in pixels.shape[-2:])
        return F.adaptive_avg_pool2d(pixels, (height, width))
    size = _picture_size(network, image)
    if isinstance(network, BreastClassifier) and network.aggregator.late:
        explained = _with_summed_logits(network)
    layer, channel = deepest_layer(network, size)
    with whole_layers(network), _gradients_after(layer, network):
        attribution = LayerGradientXActivation(logits, layer).attribute(image)
    maps = _without_padding(attribution.sum(dim=channel).relu(), network, size)
    if isinstance(network, SideBySide):
        return _split_halves(maps, batch)
    return _place_maps(network, maps, batch) if isinstance(network, BreastClassifier) else maps


def deepest_layer(encoder: Encoder, size: Size, stride: int = STRIDE) -> tuple[nn.Module, int]:
    """The deepest layer with cells of at most `stride` pixels, and the dimension of its channels.

    A picture is tried once for each network, size and stride. It is the last map where timm names
    none, or one that gives something else than one map, and of plain transformers, inside of which
    there are no maps.

    Args:
        encoder: in eval mode.
        size: height and width of a picture.
        stride: in pixels.
    """
    known = _LAYERS.setdefault(encoder, {})
    if (size, stride) not in known:
        known[size, stride] = _find_layer(encoder, size, stride)
    name, channel = known[size, stride]
    return encoder.last_map if name is None else encoder.backbone.get_submodule(name), channel


def _find_layer(encoder: Encoder, size: Size, stride: int) -> tuple[str | None, int]:
    """The layer's name in the backbone, None for the last map, and the dimension of channels."""
    features = getattr(encoder.backbone, "feature_info", [])
    named = [f for f in getattr(features, "info", features) if f["reduction"] <= stride]
    if not named or encoder.layout.source in ("tokens", "raw_tokens"):
        return None, 1
    name = str(named[-1]["module"])
    outputs: list[Any] = []
    hook = encoder.backbone.get_submodule(name).register_forward_hook(
        lambda _, inputs, output: outputs.append(output)
    )
    with whole_layers(encoder), hook, torch.no_grad():
        encoder.feature_map(encoder.mean.new_zeros(1, 1, *size))
    if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
        return None, 1
    return name, 1 if outputs[0].shape[1] == named[-1]["num_chs"] else -1


def _picture_size(encoder: Encoder, image: Tensor) -> Size:
    """Height and width that the backbone sees at a time."""
    height, width = image.shape[-2:]
    return height, 2 * width if isinstance(encoder, SideBySide) else width


def _without_padding(maps: Tensor, encoder: Encoder, size: Size) -> Tensor:
    """Drop the cells (B, h, w) of the encoder's padding."""
    height, width = size
    padded = encoder.layout.pad(maps.new_empty(1, 1, height, width)).shape[-2:]
    rows, columns = maps.shape[-2:]
    return maps[..., : -(-rows * height // padded[0]), : -(-columns * width // padded[1])]


class _Sum(Aggregator):
    """The sum of the images' logits: each has the gradient of its own."""

    late = True

    def forward(self, logits: Tensor, mask: Tensor, view: Tensor, other: Tensor) -> Tensor:
        """Reduce (B, V) to (B,)."""
        return logits.masked_fill(~mask, 0).sum(dim=1)


def _with_summed_logits(network: BreastClassifier) -> BreastClassifier:
    """The same network and parameters with the sum as its aggregator."""
    summed = copy.copy(network)
    summed._modules = {**network._modules, "aggregator": _Sum(network.width)}
    return summed


@contextmanager
def whole_layers(encoder: Encoder) -> Iterator[None]:
    """Switch gradient checkpointing off: it runs through blocks and calls no layer as a whole."""
    parts: list[Any] = [m for m in encoder.modules() if getattr(m, "grad_checkpointing", False)]
    for part in parts:
        part.grad_checkpointing = False
    try:
        yield
    finally:
        for part in parts:
            part.grad_checkpointing = True


@contextmanager
def _gradients_after(layer: nn.Module, encoder: Encoder) -> Iterator[None]:
    """Compute gradients from a layer on only: the layers before it take most of the memory."""
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]

    def begin(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.detach().requires_grad_().clone()  # later layers may work in place

    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with layer.register_forward_hook(begin):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _place_maps(network: BreastClassifier, maps: Tensor, batch: Batch) -> Tensor:
    """Put the maps (N, h, w) of images that were encoded into their places (B, V, h, w)."""
    mask = network.encoded_mask(batch["mask"], batch["other"])
    rows = mask.flatten()
    if len(maps) == len(rows):  # `dense`: padding was encoded as well
        maps = maps[rows]
    placed = maps.new_full((len(rows), *maps.shape[1:]), torch.nan)
    placed[rows] = maps
    return placed.unflatten(0, mask.shape)


def _split_halves(maps: Tensor, batch: Batch) -> Tensor:
    """Cut maps (B, h, w) of two images next to each other: (B, V, h, w / 2) in their places."""
    mask = batch["mask"] & ~batch["other"]
    if maps.shape[-1] % 2:  # a cell on the seam
        size = (maps.shape[-2], maps.shape[-1] + 1)
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    # Images of one pixel that hold the number of their place show which place is in which half.
    numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=torch.float32)
    numbers = numbers.expand(mask.shape)[..., None, None, None]
    places = side_by_side(numbers, mask, batch["view"])[:, 0, 0]  # (B, 2), 0 where it is black
    placed = maps.new_full((*mask.shape, maps.shape[-2], maps.shape[-1] // 2), torch.nan)
    for half, own in enumerate(maps.chunk(2, dim=-1)):
        for breast, number in enumerate(places[:, half].int().tolist()):
            if number:
                placed[breast, number - 1] = own[breast]
    return placed


@dataclass(frozen=True)
class ExplainedImage:
    """An image of a breast, and its saliency map.

    Attributes:
        image_id: the image.
        view: `CC`, `MLO` or another; None if unknown.
        crop: (H, W) uint8 or uint16, as prepared.
        saliency: (h, w) over the whole crop, not negative, see `saliency_maps`; None if the run
            does not take the image, or was not asked.
    """

    image_id: str
    view: str | None
    crop: Crop
    saliency: NDArray[np.float32] | None


class Explainer:
    """Explains breasts of a run by the network of the fold that held them out, loaded on use.

    Args:
        run: `<output>/runs/<name>`.
        prepared: `<output>/prepared/<dataset>/<crop>`, of the run's crops.
        folds: of the run; None takes all that were started.
        device: where the networks go.

    Attributes:
        images: the table of images.
        name: of the run.

    Raises:
        InputError: the run or its crops are absent, unfinished or damaged.
    """

    def __init__(
        self,
        run: Path,
        prepared: Path,
        folds: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        csv = prepared / "train.csv"
        if not csv.is_file():
            raise InputError(
                f"{csv} does not exist: {run.name} was trained on these crops. Run "
                f"`python -m rsna_bcd.prepare dataset={prepared.parent.name} crop={prepared.name}`."
            )
        self.images = read_images(csv, "train")
        if "path" not in self.images:
            raise InputError(f"{csv} has no column path: it was not written by prepare.")
        oof = read_run(run, folds)
        self._fold = dict(zip(oof["prediction_id"], oof["fold"], strict=True))
        readable = self.images[self.images["path"].notna()]
        self._breasts = {str(k): rows for k, rows in self.images.groupby("prediction_id")}
        self._patients = {str(k): rows for k, rows in readable.groupby("patient_id")}
        self.name = run.name
        self._run, self._prepared, self._device = run, prepared, device
        self._loaded: dict[int, Run] = {}

    @classmethod
    def for_ensemble(
        cls, ensemble: Ensemble, output: Path, device: torch.device | str = "cpu"
    ) -> Self:
        """Explain by the first member of the largest weight; `output` has its runs and crops."""
        member = max(ensemble.members, key=lambda m: m.weight)
        prepared = output / "prepared" / member.dataset / member.crop
        return cls(output / "runs" / member.name, prepared, member.folds, device)

    def __call__(self, prediction_id: str) -> list[ExplainedImage]:
        """Explain a breast.

        Returns:
            Its readable images, in the order of the table.

        Raises:
            InputError: the run did not predict this breast, or a crop is absent or damaged.
        """
        run = self.held_out_run(prediction_id)
        rows = self._breasts[prediction_id]
        if rows["path"].isna().all():
            return []
        readable = self._patients[str(rows["patient_id"].iloc[0])]
        is_other = readable["prediction_id"] != prediction_id
        needed = readable
        if not (run.level == "breast" and run.views.other_breast):
            needed = readable[~is_other]
        paths = zip(needed["image_id"], needed["path"], strict=True)
        crops = {image_id: self._crop(run, path) for image_id, path in paths}
        patient = pd.concat([rows, readable[is_other]])
        return explain_breast(run, patient, prediction_id, crops)

    def without_maps(self, prediction_id: str) -> list[ExplainedImage]:
        """The readable images of a breast alone; needs no network.

        Raises:
            InputError: a crop is absent or damaged.
        """
        rows = self._breasts[prediction_id]
        rows = rows[rows["path"].notna()]
        columns = rows["image_id"], _views(rows), rows["path"]
        return [
            ExplainedImage(image_id, view, read_crop(self._prepared / path), None)
            for image_id, view, path in zip(*columns, strict=True)
        ]

    def held_out_run(self, prediction_id: str) -> Run:
        """The run whose fold held a breast out.

        Raises:
            InputError: there is none.
        """
        if prediction_id not in self._fold or prediction_id not in self._breasts:
            raise InputError(
                f"{self._run} has no out-of-fold prediction of {prediction_id}, or "
                f"{self._prepared / 'train.csv'} no row. Train and prepare from one table."
            )
        fold = int(self._fold[prediction_id])
        if fold not in self._loaded:
            run = load_run(self._run / f"fold{fold}", self._device)
            check_prepared_crops(run, self._prepared)
            self._loaded[fold] = run
        return self._loaded[fold]

    def _crop(self, run: Run, path: str) -> Crop:
        crop = read_crop(self._prepared / path)
        wanted = run.crop.height, run.crop.width
        if crop.shape != wanted:
            raise InputError(
                f"{self._prepared / path} is {crop.shape[0]} x {crop.shape[1]}, and {run.folder} "
                f"was trained on {wanted[0]} x {wanted[1]}. Prepare as it was, or train again."
            )
        return crop


def explain_breast(
    run: Run, images: pd.DataFrame, prediction_id: str, crops: Mapping[str, Crop]
) -> list[ExplainedImage]:
    """Explain the logit of one breast.

    Args:
        run: the network, executed by torch.
        images: rows of the patient: `image_id, prediction_id, view`, and the columns that runs
            take as metadata; unreadable images of the breast included.
        prediction_id: the breast.
        crops: by `image_id`, as prepared for the run, of readable images: of the breast and, if
            the run takes it, of the other one.

    Returns:
        The images of the breast that have a crop, in the order of the table.
    """
    is_own = images["prediction_id"] == prediction_id
    is_readable = images["image_id"].isin([*crops])
    own, other = images[is_own & is_readable], images[~is_own & is_readable]
    if own.empty:
        return []
    maps: list[NDArray[np.float32] | None] = [None] * len(own)
    if run.level == "image":  # one after the other: gradients of several need as much more memory
        metadata = None if run.metadata is None else torch.from_numpy(run.metadata.encode(own))
        for row, image_id in enumerate(own["image_id"]):
            batch = {"image": torch.from_numpy(as_training_input(crops[image_id]))[None, None]}
            if metadata is not None:
                batch["metadata"] = metadata[row : row + 1]
            maps[row] = _run_maps(run, batch)[0]
    else:

        def load(position: int, is_other: bool) -> NDArray[Any]:
            return as_training_input(crops[(other if is_other else own)["image_id"].iloc[position]])

        batch = collate_breasts([breast_sample(run.views, _views(own), _views(other), load)])
        if run.metadata is not None:
            encoded = run.metadata.encode_breasts(images[is_own])
            batch["metadata"] = torch.from_numpy(encoded)
        places = run.views.places(_views(own), _views(other))
        for place, saliency in zip(places, _run_maps(run, batch)[0], strict=True):
            if place.position is not None and not place.other and not np.isnan(saliency).any():
                maps[place.position] = saliency
    return [
        ExplainedImage(image_id, view, crops[image_id], saliency)
        for image_id, view, saliency in zip(own["image_id"], _views(own), maps, strict=True)
    ]


def _run_maps(run: Run, batch: Batch) -> NDArray[np.float32]:
    batch = {name: tensor.to(run.device) for name, tensor in batch.items()}
    return saliency_maps(run.network, batch, run.tta).numpy()


def _views(rows: pd.DataFrame) -> list[str | None]:
    return [None if pd.isna(view) else str(view) for view in rows["view"]]
