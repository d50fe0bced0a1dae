"""Where a network looked: one map an image, for any of our networks.

The map is HiResCAM (Draelos and Carin, 2020): gradient of the logit times activation, cell by cell,
summed over channels; what speaks against cancer is cut off. Two choices were measured on the demo
(`benchmarks/saliency.py`), where the place of each cancer is known:

- Cell by cell, not Grad-CAM, which averages the gradient over the area first. Our poolings (GeM,
  max) have large gradients where something is found; averaged, these are lost. Of the images of
  cancers that were found, 96 % have the largest cell in the cancer or beside it; by Grad-CAM, 59 %.
- The last map of stride 16, not the last of all, of stride 32 (89 %, although larger cells allow
  more): lesions are smaller than that. On real mammograms the latter lights up half the breast;
  maps of stride 8, as good on the demo, are specks there.

LayerCAM, which drops negative gradients before it multiplies, does as well there. But it takes
activations to be non-negative, and those of EfficientNets and ConvNeXts are not.

A map says what raised the logit, not what is cancer: it explains a score, and finds no outlines.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, LayerActivation, LayerGradientXActivation
from torch import Tensor, nn

from rsna_bcd.models.aggregators import Aggregator
from rsna_bcd.models.breast import BreastClassifier, SideBySide, side_by_side
from rsna_bcd.models.encoder import Encoder
from rsna_bcd.models.global_local import GlobalLocal
from rsna_bcd.models.prediction import TTA, Batch, outputs_of, plain_float32, to_input

STRIDE = 16  # pixels of the picture a cell has, for the deepest layer that has as few


def saliency_maps(network: Any, batch: Batch, tta: TTA = "none") -> Tensor:
    """Compute maps of a batch.

    - Networks of single images: a map of each. `GlobalLocal` has one of its own, the probability of
      cancer by which it chooses its patches: that is taken, and not what it saw in the patches.
    - `BreastClassifier`: a map of each image, of the one logit of the breast. Their values compare:
      an image that adds nothing has a faint map. Where the images have logits of their own (`late`
      aggregators), of these: the mean of probabilities hardly grows with an image that is certain,
      and its gradient would point to the others.
    - `SideBySide`: the map of the picture, cut back to its two images.
    - Networks of others: gradient times pixel, averaged over cells of 16 x 16 pixels.

    Args:
        network: in eval mode, on the device of the batch; keeps the contract of
            `models.prediction`. Its parameters and their gradients stay as they are.
        batch: `image`, uint8 or float32 in [0, 1], and what `network.inputs` names.
        tta: with `hflip`, as with predictions, the mean over the images and their mirror images.

    Returns:
        Float32 on the CPU, not negative, over the whole image: (B, h, w), of breasts (B, V, h, w).
        NaN for images that the network was not shown. Except for `GlobalLocal`, a cell's value is
        its part of the logit, to first order.
    """
    assert not network.training, "maps of a network in training: BatchNorm would see one batch"
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors of inference mode take no part in gradients; their copies do.
        batch = {name: tensor.clone() for name, tensor in batch.items()}
        image = to_input(batch["image"])
        with plain_float32(image.device.type):
            maps = _maps(network, batch, image)
            if tta == "hflip":
                maps = (maps + _maps(network, batch, image.flip(-1)).flip(-1)) / 2
    return maps.detach().float().cpu()


def _maps(network: Any, batch: Batch, image: Tensor) -> Tensor:
    """The maps of the images as they are."""
    if isinstance(network, GlobalLocal):
        scores: Any = LayerActivation(_logit_of(network, batch), network.saliency).attribute(image)
        return scores[:, 0].sigmoid()
    layer = layer_of(network) if isinstance(network, Encoder) else None
    if layer is None:
        pixels: Any = InputXGradient(_logit_of(network, batch)).attribute(
            image.detach().requires_grad_()
        )
        return _of_pixels(pixels.squeeze(-3))
    explained = network
    if isinstance(network, BreastClassifier) and network.aggregator.late:
        explained = _summing(network)
    with _gradients_from(layer, network):
        gradient = LayerGradientXActivation(_logit_of(explained, batch), layer)
        attribution: Any = gradient.attribute(image)
    maps = attribution.sum(dim=1).relu()
    if isinstance(network, SideBySide):
        return _halves(maps, batch)
    return _of_breasts(network, maps, batch) if isinstance(network, BreastClassifier) else maps


def _logit_of(network: Any, batch: Batch) -> Any:
    """From images to logits, as captum calls it."""
    return lambda image: outputs_of(network, batch, image)["logit"]


def layer_of(encoder: Encoder, stride: int = STRIDE) -> nn.Module | None:
    """The deepest layer whose cells have `stride` pixels at most; None where timm names none."""
    features = getattr(encoder.backbone, "feature_info", [])
    names = [f["module"] for f in getattr(features, "info", features) if f["reduction"] <= stride]
    layer: nn.Module | None = encoder.backbone.get_submodule(names[-1]) if names else None
    return layer


class _Sum(Aggregator):
    """The sum of the images' logits: each has the gradient of its own."""

    late = True

    def forward(self, logits: Tensor, mask: Tensor, view: Tensor, other: Tensor) -> Tensor:
        """Reduce (B, V) to (B,)."""
        return logits.masked_fill(~mask, 0).sum(dim=1)


def _summing(network: BreastClassifier) -> BreastClassifier:
    """The same network, its parameters shared, with the sum in the place of its aggregator."""
    twin = copy.copy(network)
    twin._modules = {**network._modules, "aggregator": _Sum(network.width)}
    return twin


@contextmanager
def _gradients_from(layer: nn.Module, encoder: Encoder) -> Iterator[None]:
    """Compute no gradients but those from a layer on: what comes before has most of the memory.

    Without gradient checkpointing, too: it runs through blocks and calls no layer as a whole.
    """
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    parts: list[Any] = [m for m in encoder.modules() if getattr(m, "grad_checkpointing", False)]

    def begin(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.detach().requires_grad_().clone()  # what follows may work in place

    hook = layer.register_forward_hook(begin)
    for parameter in trained:
        parameter.requires_grad_(False)
    for part in parts:
        part.grad_checkpointing = False
    try:
        yield
    finally:
        hook.remove()
        for parameter in trained:
            parameter.requires_grad_(True)
        for part in parts:
            part.grad_checkpointing = True


def _of_pixels(attribution: Tensor) -> Tensor:
    """Average what pixels (B, ..., H, W) add, over cells."""
    height, width = (max(1, side // STRIDE) for side in attribution.shape[-2:])
    return F.adaptive_avg_pool2d(attribution.relu(), (height, width))


def _of_breasts(network: BreastClassifier, maps: Tensor, batch: Batch) -> Tensor:
    """Put the maps (N, h, w) of images that were encoded into their places (B, V, h, w)."""
    mask = batch["mask"] if network.aggregator.context else batch["mask"] & ~batch["other"]
    rows = mask.flatten()
    if len(maps) == len(rows):  # `dense`: padding was encoded as well
        maps = maps[rows]
    placed = maps.new_full((len(rows), *maps.shape[1:]), torch.nan)
    placed[rows] = maps
    return placed.unflatten(0, mask.shape)


def _halves(maps: Tensor, batch: Batch) -> Tensor:
    """Cut maps (B, h, w) of two images next to each other: (B, V, h, w / 2) in their places."""
    mask = batch["mask"] & ~batch["other"]
    if maps.shape[-1] % 2:  # a cell on the seam
        size = (maps.shape[-2], maps.shape[-1] + 1)
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    # Which place is in which half: what becomes of images that hold the number of theirs.
    numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=torch.float32)
    numbers = numbers.expand(mask.shape)[..., None, None, None]
    shown = side_by_side(numbers, mask, batch["view"])[:, 0, 0]  # (B, 2), 0 where it is black
    placed = maps.new_full((*mask.shape, maps.shape[-2], maps.shape[-1] // 2), torch.nan)
    for half, of_half in enumerate(maps.chunk(2, dim=-1)):
        for breast, number in enumerate(shown[:, half].int().tolist()):
            if number:
                placed[breast, number - 1] = of_half[breast]
    return placed
