"""Weights that a network starts from: of ImageNet, or of an earlier run of ours."""

import logging
from _pickle import UnpicklingError  # what torch raises for foreign files; nothing is pickled here
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.models.encoder import Encoder

State = dict[str, Tensor]

_log = logging.getLogger(__name__)
_COUNTER = "num_batches_tracked"  # of BatchNorm; old files lack it
_SHOWN = 3  # parameters named in a message
# What a file that holds no weights gives rise to, depending on its first bytes.
_UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, RuntimeError, UnpicklingError, SafetensorError,
)  # fmt: skip
_OF_RUN = "network."  # of the network's parameters in a checkpoint of a run
_COMPILED = "_orig_mod."  # what torch.compile puts into names
# What encoders consist of, and where networks keep theirs: a network that derives from Encoder is
# one itself. Where a file has several, the first that fits is taken.
_BACKBONE = "backbone."
_ENCODER = (_BACKBONE, "mean", "std", "pool.")
_PLACES = ("", "local_encoder.", "global_encoder.")


def start_from(network: nn.Module, file: Path) -> list[str]:
    """Load the weights that a network starts from.

    The file holds the state dict of the timm network that is the backbone, or a checkpoint of a run
    of ours (`checkpoints/last.ckpt`; averaged weights, where the run has them), or the state dict
    of a network of ours. Of timm's, the first convolution is summed to one channel, as timm does,
    and the classifier is left out.

    What our networks share is the encoder: the backbone, the normalisation it was trained with, its
    pooling. The backbone must fit. Of a run, all else (heads, aggregator) is taken where names and
    shapes agree; what then begins afresh is logged.

    Args:
        network: is an encoder, or has some.
        file: `.safetensors`, or anything that torch reads with `weights_only=True`.

    Returns:
        Names of encoders that the file does not fit, if it fits another one of the network.

    Raises:
        InputError: the file is absent, holds no weights, or those of another backbone.
    """
    state, is_ours = _read(file)
    if is_ours:
        sources = {place: part for place in _PLACES if (part := _encoder_at(place, state))}
    else:
        sources = {"": {_BACKBONE + k: v for k, v in state.items()}}
    own = network.state_dict()
    taken: State = {}
    misfits: dict[str, str] = {}
    encoders = {name: m for name, m in network.named_modules() if isinstance(m, Encoder)}
    for name, encoder in encoders.items():
        place = f"{name}." if name else ""
        wanted = _encoder_at(place, own)
        differences = []
        for source in sorted(sources, key=lambda s: s != place):  # preferably from the same place
            part = sources[source] if is_ours else _adapted(sources[source], encoder.backbone)
            difference = _difference(part, wanted)
            if not difference:
                taken |= {place + k: v for k, v in part.items() if _fits(k, v, wanted)}
                break
            differences.append(difference)
        else:
            misfits[name] = f"the weights of {encoder.architecture}. Parameters: {differences[0]}"
    if len(misfits) == len(encoders):
        raise InputError(
            f"checkpoint_path={file} does not hold {next(iter(misfits.values()))}. "
            "Choose the network= that the file belongs to."
        )
    if is_ours:
        shared = tuple(place + part for place in sources for part in _ENCODER)
        taken |= {k: v for k, v in state.items() if not k.startswith(shared) and _fits(k, v, own)}
    network.load_state_dict(taken, strict=False)
    afresh = [k for k in own if k not in taken and not k.endswith(("mean", "std", _COUNTER))]
    if is_ours and afresh:
        rank_zero_only(_log.info)(
            "%s has nothing that fits these, which begin afresh: %s", file, ", ".join(afresh)
        )
    return list(misfits)


def record_in(file: Path) -> dict[str, Any] | None:
    """The settings of the run that a checkpoint is of (`models.history.Record`); None in others.

    Others may have a `config`, too: a run's says of which data and folds it is.
    """
    if file.suffix == ".safetensors" or not file.is_file():
        return None
    try:  # mapped: its tensors are not read
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE:
        return None  # which `start_from` will say
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict) or not {"name", "fold"} <= config.keys():
        return None
    parts = config.get("dataset"), config.get("folds")
    is_run = all(isinstance(part, dict) for part in parts) and "strategy" in config["folds"]
    return config if is_run else None


def _encoder_at(place: str, state: State) -> State:
    """Entries of an encoder, under the names that it has for them; none, if it is not there."""
    names = tuple(place + part for part in _ENCODER)
    part = {k.removeprefix(place): v for k, v in state.items() if k.startswith(names)}
    return part if any(k.startswith(_BACKBONE) for k in part) else {}


def _adapted(weights: State, backbone: Any) -> State:
    """Turn timm's weights of a network into those of its backbone for one channel."""
    config = backbone.pretrained_cfg
    classifier = f"{_BACKBONE}{config['classifier']}."
    state = {k: v for k, v in weights.items() if not k.startswith(classifier)}
    stem = f"{_BACKBONE}{config['first_conv']}.weight"
    if stem in state and state[stem].ndim == 4:
        state[stem] = adapt_input_conv(1, state[stem], base_chans=state[stem].shape[1])
    return state


def _fits(name: str, value: Tensor, wanted: State) -> bool:
    return name in wanted and value.shape == wanted[name].shape


def _difference(found: State, wanted: State) -> str:
    """Say how the backbones of two encoders differ; "" if they do not."""
    found, wanted = (
        {k.removeprefix(_BACKBONE): v for k, v in state.items() if k.startswith(_BACKBONE)}
        for state in (found, wanted)
    )
    differing = {
        "missing": [k for k in wanted if k not in found and not k.endswith(_COUNTER)],
        "unknown": [k for k in found if k not in wanted],
        "of another shape": [k for k in found if k in wanted and not _fits(k, found[k], wanted)],
    }
    return "; ".join(
        f"{len(keys)} {what} ({', '.join(keys[:_SHOWN])}{', ...' if keys[_SHOWN:] else ''})"
        for what, keys in differing.items()
        if keys
    )


def _read(file: Path) -> tuple[State, bool]:
    """Read a state dict, and whether it is one of a network of ours."""
    if not file.is_file():
        raise InputError(
            f"checkpoint_path={file} does not exist. Give a file of weights or a run's "
            "checkpoints/last.ckpt, or start from timm's with checkpoint_path=null."
        )
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise InputError(
            f"checkpoint_path={file} cannot be read as weights ({type(error).__name__})."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(
            f"checkpoint_path={file} is not a plain state dict of tensors. "
            "Save it with torch.save(network.state_dict(), ...)."
        )
    state = {k.replace(_COMPILED, "").removeprefix(_OF_RUN): v for k, v in state.items()}
    return state, any(_encoder_at(place, state) for place in _PLACES)
