"""Where networks go: the device that is asked for, if it is there."""

import torch

from rsna_bcd.errors import InputError


def device_named(name: str) -> torch.device:
    """The device named, `auto` being a GPU where there is one.

    Raises:
        InputError: it is unknown, or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name}: {error}. Choose auto, cpu or cuda.") from error
    return device
