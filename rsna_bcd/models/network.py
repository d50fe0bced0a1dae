"""A timm backbone, a pooling and one logit.

Contract, the same in training, inference and export (`models.prediction`): input float32
(B, 1, H, W) in [0, 1], tissue bright; output `logit` (B,). The normalisation that the pretrained
weights expect is part of the network.
"""

from _pickle import UnpicklingError  # what torch raises for foreign files; nothing is pickled here
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.models.prediction import Unit

Pooling = Literal["avg", "max", "gem"]
_SHOWN = 3  # parameters named in a message
# What a file that holds no weights gives rise to, depending on its first bytes.
_UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, RuntimeError, UnpicklingError, SafetensorError,
)  # fmt: skip


class GeM(nn.Module):
    """Generalised-mean pooling with a learned exponent (Radenovic et al., 2018).

    mean(x ** p) ** (1 / p): the average at p = 1, close to the maximum for a large p. Features are
    taken as non-negative: values below `eps` count as `eps`.

    Args:
        p: initial exponent.
        eps: keeps the gradient of the root finite.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Pool (B, C, h, w) to (B, C)."""
        powers = features.float().clamp(min=self.eps).pow(self.p)  # float16 would overflow
        return powers.mean(dim=(-2, -1)).pow(1 / self.p)


class ImageClassifier(nn.Module):
    """The logit of cancer for one image.

    Args:
        backbone: name of a timm network that yields a feature map, e.g. `tf_efficientnet_b5`.
        pretrained: start from the weights that timm downloads for this name.
        checkpoint_path: start from this file instead, a state dict of the same timm network
            (`.pth` or `.safetensors`).
        pooling: of the feature map over its area.
        dropout: before the last layer.
        drop_path_rate: stochastic depth; None leaves the backbone's own default.
        channels_last: memory layout; see `conf/network/` for what it is worth.

    Raises:
        InputError: an unknown backbone or pooling, weights that cannot be had, or weights of
            another network.
    """

    unit: Unit = "image"
    inputs: tuple[str, ...] = ()
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        *,
        pretrained: bool = True,
        checkpoint_path: str | Path | None = None,
        pooling: Pooling = "avg",
        dropout: float = 0.0,
        drop_path_rate: float | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise InputError(f"network.pooling is {', '.join(get_args(Pooling))}, not {pooling!r}.")
        self.backbone: Any = _create(
            backbone, pretrained and checkpoint_path is None, drop_path_rate
        )
        if checkpoint_path is not None:
            load_backbone(self.backbone, Path(checkpoint_path), backbone)
        # Three equal channels with a mean each are one channel with the averaged mean, as far as a
        # grey image is concerned; the same for the standard deviation.
        statistics = self.backbone.pretrained_cfg
        self.register_buffer("mean", torch.tensor(statistics["mean"]).mean())
        self.register_buffer("std", torch.tensor(statistics["std"]).mean())
        self.pool = _make_pool(pooling)
        self.dropout = nn.Dropout(dropout)
        # MobileNets widen their features in the head, which comes with the backbone.
        width = getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features
        self.head = nn.Linear(width, 1)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self._layout)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute `logit` (B,) of images (B, 1, H, W) in [0, 1]."""
        images = ((images - self.mean) / self.std).contiguous(memory_format=self._layout)
        features = self.backbone(images)
        if features.ndim != 4 or features.shape[1] != self.head.in_features:
            raise InputError(
                f"network.backbone gives {tuple(features.shape)} instead of a feature map "
                f"(B, {self.head.in_features}, h, w). Choose a convolutional network."
            )
        return {"logit": self.head(self.dropout(self.pool(features)))[:, 0]}


def _make_pool(pooling: Pooling) -> nn.Module:
    """Make the layer from (B, C, h, w) to (B, C)."""
    if pooling == "gem":
        return GeM()
    pool = nn.AdaptiveAvgPool2d(1) if pooling == "avg" else nn.AdaptiveMaxPool2d(1)
    return nn.Sequential(pool, nn.Flatten())


def _create(name: str, pretrained: bool, drop_path_rate: float | None) -> Any:
    """Make a timm backbone of one input channel that returns its feature map."""
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name.split('.')[0][:8]}*")[:5]
        hint = f" Did you mean {', '.join(similar)}?" if similar else ""
        raise InputError(f"timm has no network {name!r} (network.backbone).{hint}")
    try:
        return timm.create_model(
            name,
            pretrained=pretrained,
            in_chans=1,
            num_classes=0,
            global_pool="",
            drop_path_rate=drop_path_rate,
        )
    except OSError as error:  # what the hub raises without a connection
        raise InputError(
            f"The pretrained weights of {name} could not be downloaded ({type(error).__name__}). "
            "Give a local file with checkpoint_path=, or start from scratch with "
            "network.pretrained=false."
        ) from error


def load_backbone(backbone: Any, file: Path, name: str) -> None:
    """Load a local state dict of the same timm network into a backbone of one channel.

    The first convolution's weights for three channels are summed to one, as timm does. Its
    classifier is left out; all else must match.

    Args:
        backbone: made by timm with `num_classes=0`.
        file: `.safetensors`, or anything that torch reads with `weights_only=True`.
        name: of the backbone, for messages.

    Raises:
        InputError: the file is absent, is not a state dict, or belongs to another network.
    """
    state = _read_state(file)
    config = backbone.pretrained_cfg
    stem = f"{config['first_conv']}.weight"
    if stem in state and state[stem].ndim == 4:
        state[stem] = adapt_input_conv(1, state[stem], base_chans=state[stem].shape[1])
    own = backbone.state_dict()
    classifier = config["classifier"] + "."
    unexpected = [k for k in state if k not in own and not k.startswith(classifier)]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    shapes = [k for k in state if k in own and state[k].shape != own[k].shape]
    if unexpected or missing or shapes:
        found = "; ".join(
            f"{len(keys)} {what} ({', '.join(keys[:_SHOWN])}{', ...' if keys[_SHOWN:] else ''})"
            for what, keys in (
                ("missing", missing),
                ("unknown", unexpected),
                ("of another shape", shapes),
            )
            if keys
        )
        raise InputError(
            f"checkpoint_path={file} does not hold the weights of {name}. Parameters: {found}. "
            "Choose the network= that the file belongs to."
        )
    backbone.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def _read_state(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise InputError(f"checkpoint_path={file} does not exist.")
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise InputError(
            f"checkpoint_path={file} cannot be read as weights ({type(error).__name__})."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(
            f"checkpoint_path={file} is not a plain state dict of tensors. "
            "Save it with torch.save(network.state_dict(), ...)."
        )
    return state
