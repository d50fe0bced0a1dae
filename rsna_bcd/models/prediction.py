"""Logits of prepared images: the one way in which OOF and test are predicted."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from rsna_bcd.errors import InputError

TTA = Literal["none", "hflip"]  # test-time augmentation


def to_input(images: Tensor) -> Tensor:
    """Turn crops (B, 1, H, W) into the network's input, float32 in [0, 1].

    uint8 is divided by 255; floating point (crops of 16 bits) is in [0, 1] already.
    """
    return images if images.is_floating_point() else images.float() / 255


@torch.inference_mode()
def predict_logits(network: nn.Module, images: Tensor, tta: TTA) -> Tensor:
    """Predict crops in float32.

    Args:
        network: in eval mode, on the device of `images`.
        images: (B, 1, H, W), uint8 or float32 in [0, 1].
        tta: `hflip` averages the logits of the image and of its mirror image.

    Returns:
        (B,) float32.
    """
    if tta not in get_args(TTA):
        raise InputError(f"tta is {' or '.join(get_args(TTA))}, not {tta!r}.")
    x = to_input(images)
    # Whatever precision trained the network, its predictions must not depend on who asks.
    with torch.autocast(images.device.type, enabled=False):
        logits: Tensor = network(x)
        if tta == "hflip":
            logits = (logits + network(x.flip(-1))) / 2
    return logits
