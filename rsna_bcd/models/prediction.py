"""Inputs and outputs of networks, and logits: the one way in which OOF and test are predicted.

A network is an `nn.Module` that maps images to logits. It may have two attributes: `inputs` names
the entries of a batch that it takes besides the image (none without it), `unit` says whether a
sample is an "image" (without it) or a "breast":

    network(image, **{name: batch[name] for name in network.inputs}) -> {"logit": (B,), ...}

`image` is float32 in [0, 1], (B, 1, H, W) or, by breast, (B, V, 1, H, W). Outputs beside `logit`
have names of their own, for auxiliary losses.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsna_bcd.errors import InputError
from rsna_bcd.tables.views import Level

TTA = Sequence[str]  # test-time augmentation: names of transforms
Batch = dict[str, Tensor]
_FLIPS = {"hflip": (-1,), "vflip": (-2,), "both": (-2, -1)}


def network_level(network: Any) -> Level:
    """Whether a sample of a network is an image or a breast."""
    level: Level = getattr(network, "unit", "image")
    return level


def extra_inputs(network: Any) -> tuple[str, ...]:
    """The entries of a batch that a network takes besides the image."""
    return tuple(getattr(network, "inputs", ()))


def check_network(network: Any, batch: Batch) -> None:
    """Run a network once, before training does, and check that it keeps the contract above.

    Classes that themselves say `contract_is_tested` are not run: the tests of this package check
    them, and some take a minute on a processor.

    Args:
        network: on the processor; comes back in the mode that it was in.
        batch: as the datamodule makes it.

    Raises:
        InputError: it does not; the message names the fault.
    """
    if vars(type(network)).get("contract_is_tested", False):
        return
    name, inputs, n_samples = type(network).__name__, extra_inputs(network), len(batch["label"])
    if absent := [entry for entry in inputs if entry not in batch]:
        raise InputError(
            f"network {name} takes {', '.join(absent)}, which a batch does not have: there are "
            f"{', '.join(sorted(batch.keys() - {'image', 'label', 'index'})) or 'no others'}. "
            "Metadata needs metadata=; mask, view and other need unit = 'breast'."
        )
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            outputs: Any = network_outputs(network, batch)
    except Exception as error:
        shape = tuple(batch["image"].shape)
        error.add_note(
            f"network {name} failed on a first batch: image {shape} float32 in [0, 1]"
            f"{''.join(f', {entry} {tuple(batch[entry].shape)}' for entry in inputs)}. "
            "The contract of a network is in rsna_bcd/models/prediction.py."
        )
        raise
    finally:
        network.train(was_training)
    logit = outputs.get("logit") if isinstance(outputs, dict) else None
    if not isinstance(logit, Tensor):
        found = list(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise InputError(
            f'network {name} returns {found} instead of a dictionary: {{"logit": (B,)}} is needed, '
            "see rsna_bcd/models/prediction.py."
        )
    if logit.shape != (n_samples,) or not logit.is_floating_point():
        raise InputError(
            f"network {name} returns a logit {tuple(logit.shape)} {logit.dtype} of {n_samples} "
            f"samples: ({n_samples},) in floating point is needed, for instance logit[:, 0]."
        )


def to_input(images: Tensor) -> Tensor:
    """Turn crops (..., H, W) into the network's input, float32 in [0, 1].

    uint8 is divided by 255; floating point (crops of 16 bits) is in [0, 1] already.
    """
    return images if images.is_floating_point() else images.float() / 255


def network_outputs(network: Any, batch: Batch, image: Tensor | None = None) -> dict[str, Tensor]:
    """Run a network on a batch.

    Args:
        network: keeps the contract above.
        batch: `image`, uint8 or float32 in [0, 1], and the inputs that `extra_inputs` names.
        image: float32 in [0, 1], in the place of that of the batch.

    Returns:
        Its outputs by name, `logit` (B,) among them.
    """
    image = to_input(batch["image"]) if image is None else image
    outputs: dict[str, Tensor] = network(
        image, **{name: batch[name] for name in extra_inputs(network)}
    )
    return outputs


@torch.inference_mode()
def predict_logits(network: Any, batch: Batch, tta: TTA, *, in_float32: bool = True) -> Tensor:
    """Predict a batch.

    Args:
        network: in eval mode, on the device of the batch; keeps the contract above.
        batch: `image`, uint8 or float32 in [0, 1], and the inputs that `extra_inputs` names.
        tta: the mean of the logits of the images and of each of these transforms of them.
        in_float32: whatever precision trained the network, so that predictions do not depend on who
            asks. False leaves it to the caller's autocast: faster on a GPU, and not to be kept.

    Returns:
        (B,) float32.
    """
    image = to_input(batch["image"])
    with plain_float32(image.device.type) if in_float32 else nullcontext():
        logits = network_outputs(network, batch, image)["logit"]
        for name in tta:
            logits = logits + network_outputs(network, batch, transform(image, name))["logit"]
        if tta:
            logits = logits / (1 + len(tta))
    return logits.float()


def transform(images: Tensor, name: str, *, back: bool = False) -> Tensor:
    """Transform images for test-time augmentation.

    - `hflip`, `vflip`, `both`: mirrored from left to right, upside down, or rotated by 180 degrees.
    - `scale_1.1`: enlarged 1.1 times about the middle of the left side, where the chest wall is.
    - `shift_0.05_-0.02`: shifted by 5 % of the width to the right and 2 % of the height upwards.

    The size stays; scales and shifts are bilinear, and pixels from outside are 0.

    Args:
        images: floating point (..., H, W).
        name: of the transform.
        back: the inverse: a map of the transformed image to one of the image.

    Raises:
        InputError: an unknown transform.
    """
    kind, *numbers = name.split("_")
    if kind in _FLIPS:
        return images.flip(_FLIPS[kind])
    try:
        values = [float(number) for number in numbers]
        # Where each pixel comes from; width and height go from -1 to 1.
        if kind == "scale":
            (scale,) = values
            factor = scale if back else 1 / scale
            theta = [[factor, 0, factor - 1], [0, factor, 0]]
        elif kind == "shift":
            x, y = (2 * share if back else -2 * share for share in values)
            theta = [[1, 0, x], [0, 1, y]]
        else:
            raise ValueError(name)
    except ValueError as error:
        raise InputError(f"tta: this version has no transform {name}.") from error
    flat = images.reshape(-1, 1, *images.shape[-2:])
    matrix = torch.tensor([theta], dtype=images.dtype, device=images.device)
    grid = F.affine_grid(matrix, [1, *flat.shape[1:]], align_corners=False)
    moved = F.grid_sample(flat, grid.expand(len(flat), -1, -1, -1), align_corners=False)
    return moved.reshape(images.shape)


@contextmanager
def plain_float32(device: str) -> Iterator[None]:
    """Neither autocast nor TF32, of ten bits, in which cuDNN convolves by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
