"""timm networks as backbones: a name and a size of image become a feature map (B, C, h, w).

Most convolutional networks give one of any image. Others are told the size when they are built,
take only multiples of their stride, put channels last, or give tokens instead of a map. A network
is tried out on torch's meta device, which has shapes and no values, before its weights are made:
so one that does not fit is refused at once, in one line.
"""

import dataclasses
import difflib
import functools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers import NormMlpClassifierHead
from timm.models import group_parameters, load_model_config_from_hf
from torch import Tensor, nn

from rsna_bcd.errors import InputError

Size = tuple[int, int]  # height and width in pixels
Options = dict[str, Any]
Source = Literal["output", "channels_last", "features", "tokens", "raw_tokens"]

_INPUT: Options = {"in_chans": 1, "num_classes": 0}
_HUB, _FOLDER = "hf-hub:", "local-dir:"
# Modules of timm whose networks give a map of any image: nothing is to be tried out.
_SIMPLE = tuple(f"timm.models.{name}" for name in ("convnext", "efficientnet", "resnet"))
_ANY_SIZE: Size = (230, 150)  # tried where no size is given: a multiple of nothing
_FACTORS = (1, 2, 4, 8)  # of the stride: multiples that are tried
_MOST_PADDED = 2  # a padded image has less than this times the area of the image
# Raised by networks for options and images that they do not take.
REFUSALS = (
    AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
_SHOWN = 160  # characters of an error of timm's in a message


@dataclass(frozen=True)
class Layout:
    """How the feature map of a backbone is read.

    Attributes:
        source: `output` of the network; the same with `channels_last`; its `features`, before a
            norm of pooled features in the head; or `tokens`, of which those of no place (class,
            registers) are dropped; `raw_tokens` where timm gives them before the final norm alone.
        width: number of features C.
        multiple: height and width are padded to multiples of this, at the bottom and on the right.
        norms_pooled: pooled features go through a norm of the backbone.
        unused: names of parameters without influence on the map.
    """

    source: Source = "output"
    width: int = 0
    multiple: int = 1
    norms_pooled: bool = False
    unused: tuple[str, ...] = ()

    def pad(self, images: Tensor) -> Tensor:
        """Pad images (B, 1, H, W) with background."""
        if self.multiple == 1:
            return images
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))

    def feature_map(self, backbone: Any, images: Tensor) -> Tensor:
        """Compute (B, C, h, w) of padded, normalised images."""
        features: Tensor
        if self.source == "output":
            features = backbone(images)
        elif self.source == "features":
            features = backbone.forward_features(images)
        elif self.source == "channels_last":
            features = backbone(images).permute(0, 3, 1, 2)
        else:
            features = _tokens(backbone, images, norm=self.source == "tokens")
        return features

    def norm_pooled(self, backbone: Any, features: Tensor) -> Tensor:
        """Normalise pooled features (B, C) where the backbone does."""
        if not self.norms_pooled:
            return features
        normed: Tensor
        if self.source in ("tokens", "raw_tokens"):
            normed = backbone.fc_norm(features)
        else:
            normed = backbone.head(features[..., None, None]).flatten(1)
        return normed


def _tokens(backbone: Any, images: Tensor, *, norm: bool) -> Tensor:
    """The last map that timm takes from inside of a network, after its final norm or before."""
    maps: list[Tensor] = backbone.forward_intermediates(
        images, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True
    )
    return maps[-1]


def create_backbone(
    name: str, *, pretrained: bool, drop_path_rate: float | None, image_size: Size | None
) -> tuple[Any, Layout]:
    """Make a timm network of one input channel.

    Args:
        name: of timm, or `hf-hub:<owner>/<name>`; `timm/` and `hf-hub:timm/` may be before a name.
        pretrained: with the weights that timm downloads for it.
        drop_path_rate: stochastic depth; None leaves the network's default, or none.
        image_size: of the images, for networks that are built for one; else it may be None.

    Raises:
        InputError: an unknown name, weights that cannot be had, stochastic depth that the network
            does not have, or a network that gives no feature map of such images.
    """
    name = _known_name(name)
    is_simple = timm.is_model(name) and timm.models.model_entrypoint(name).__module__ in _SIMPLE
    options: Options = {"global_pool": ""}
    layout = Layout()
    try:
        if not is_simple:
            options, layout = _find_layout(name, image_size)
    except OSError as error:
        raise InputError(
            f"network.backbone={name}: its description could not be read ({type(error).__name__}). "
            "Try again with a connection, or train with the timm name of its architecture and a "
            "local file, checkpoint_path=."
        ) from error
    try:
        backbone = timm.create_model(
            name, pretrained=pretrained, drop_path_rate=drop_path_rate, **_INPUT, **options
        )
    except OSError as error:  # raised by the hub without a connection
        raise InputError(
            f"The pretrained weights of {name} could not be downloaded ({type(error).__name__}). "
            "Give a local file with checkpoint_path=, or start from scratch with "
            "network.pretrained=false."
        ) from error
    except RuntimeError as error:  # an unknown tag of weights
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        known = f" Known are {', '.join(tags)}." if tags else ""
        raise InputError(f"network.backbone={name}: {error}{known}") from error
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise InputError(
            f"network.backbone={name} has no stochastic depth: set network.drop_path_rate=null."
        ) from error
    if is_simple:
        norms_pooled = _has_pooled_norm(backbone)
        source: Source = "features" if norms_pooled else "output"
        layout = Layout(source, feature_width(backbone), norms_pooled=norms_pooled)
    for unused in layout.unused:  # else ranks would wait for their gradients
        backbone.get_parameter(unused).requires_grad_(False)
    return backbone, layout


def feature_width(backbone: Any) -> int:
    """Number of features of a backbone."""
    # MobileNets widen their features in the head, which comes with the backbone.
    return getattr(backbone, "head_hidden_size", None) or backbone.num_features


def backbone_groups(backbone: Any) -> list[list[nn.Parameter]]:
    """Group the parameters of a timm network by depth, from its input on.

    As timm does; where it has no rule, or one that fails, by the first two parts of their names,
    in the order in which they are defined.
    """
    try:
        matcher = backbone.group_matcher(coarse=False)
        by_depth = group_parameters(backbone, matcher, return_values=True)
    except (AttributeError, NotImplementedError, AssertionError, TypeError, ValueError):
        by_part: dict[str, list[nn.Parameter]] = {}
        for name, parameter in backbone.named_parameters():
            by_part.setdefault(".".join(name.split(".")[:2]), []).append(parameter)
        return list(by_part.values())
    return [by_depth[depth] for depth in sorted(by_depth)]


def _known_name(name: str) -> str:
    """The name of a network for timm.

    Raises:
        InputError: timm has none of this name, it is no name of the hub, or the folder has no
            `config.json`.
    """
    if name.startswith("hf_hub:"):
        raise InputError(f"network.backbone={name}: write {_HUB}{name.removeprefix('hf_hub:')}.")
    short = name.removeprefix(_HUB).removeprefix("timm/")
    if not name or name[-1] in "/.":
        raise InputError(f"network.backbone={name} is no name of a network.")
    if timm.is_model(short):  # also of the hub's timm/: the same weights, described without it
        return short
    if name.startswith(_HUB) and not name.startswith(f"{_HUB}timm/"):
        if not re.fullmatch(r"[^/\s]+/[^/\s]+", name.removeprefix(_HUB)):
            raise InputError(f"network.backbone={name}: should be {_HUB}<owner>/<name>.")
        return name
    if name.startswith(_FOLDER):
        description = Path(name.removeprefix(_FOLDER)) / "config.json"
        if not description.is_file():
            raise InputError(f"network.backbone={name}: there is no {description}.")
        return name
    if "/" in short:
        raise InputError(
            f"network.backbone={name} is no name of timm. A network of the hub is {_HUB}{short}."
        )
    architecture = short.split(".")[0].lower().replace("-", "_")
    known = timm.list_models()
    similar = difflib.get_close_matches(architecture, known, n=5)
    part = architecture.replace("_", "")  # swin_v2 of swinv2_base_window16_256
    similar = similar or [model for model in known if part in model.replace("_", "")][:5]
    hint = f"Did you mean {', '.join(similar)}?" if similar else "timm.list_models() has all."
    raise InputError(f"timm has no network {name!r} (network.backbone). {hint}")


def describe_backbone(name: str) -> str | None:
    """The content of `config.json` of a network of the hub or of a folder, as timm reads it.

    Returns:
        None for a network that timm knows by its name.

    Raises:
        OSError: it is not in the hub's cache, and the hub cannot be reached.
        InputError: it is no name of the hub, or the folder has no `config.json`.
    """
    known = _known_name(name) if name.startswith((_HUB, _FOLDER)) else ""
    if known.startswith(_FOLDER):
        return (Path(known.removeprefix(_FOLDER)) / "config.json").read_text(encoding="utf-8")
    if not known.startswith(_HUB):
        return None
    weights, architecture, arguments = load_model_config_from_hf(known.removeprefix(_HUB))
    content = {"architecture": architecture, "pretrained_cfg": weights, "model_args": arguments}
    return json.dumps(content, indent=1)


def _has_pooled_norm(backbone: Any) -> bool:
    """Whether the norm in the head of a network is of pooled features, as in ConvNeXts."""
    head = getattr(backbone, "head", None)
    return isinstance(head, NormMlpClassifierHead) and not head.hidden_size


@functools.cache  # the folds of a run have one
def _find_layout(name: str, image_size: Size | None) -> tuple[Options, Layout]:
    """Find the options with which a network takes images of a size, and how its map is read.

    Raises:
        InputError: there are none.
    """
    size = image_size or _ANY_SIZE
    make = functools.cache(lambda **options: timm.create_model(name, **_INPUT, **options).eval())
    errors: list[Exception] = []
    with torch.device("meta"):
        try:
            attempts = list(_attempts(make(), image_size))
        except REFUSALS as error:
            raise InputError(f"timm cannot make network.backbone={name}: {error}") from error
        for multiple, options, is_map in attempts:
            try:
                layout = _try_out(make(**options), size, multiple, is_map=is_map)
            except TypeError as error:  # options that the network does not have
                errors.insert(0, error)
            except REFUSALS as error:
                errors.append(error)
            else:
                return options, layout
    if image_size is None:
        raise InputError(
            f"network.backbone={name} is built for one size of image: give image_size."
        )
    reason = " ".join(str(errors[-1]).split())[:_SHOWN] or "it does not take this size"
    raise InputError(
        f"network.backbone={name} gives no feature map of images of {size[0]} x {size[1]} pixels "
        f"({reason}). Choose another, or another size of crop."
    ) from errors[-1]


def _attempts(backbone: Any, image_size: Size | None) -> Iterator[tuple[int, Options, bool]]:
    """Multiples of the size, options, and whether the output is taken for a map; best first."""
    features = getattr(backbone, "feature_info", None)
    strides = [entry["reduction"] for entry in getattr(features, "info", features) or ()]
    stride = int(max(strides, default=32))
    known: list[Options] = [{"dynamic_img_size": True}]
    if not backbone.pretrained_cfg.get("fixed_input_size"):
        known.insert(0, {})
    height, width = image_size or _ANY_SIZE
    multiples = [
        multiple
        for multiple in (stride * factor for factor in _FACTORS)
        if math.prod(_round_up((height, width), multiple)) < _MOST_PADDED * height * width
    ]
    # A pooling by attention, as SigLIP has it, would be without use.
    pools = getattr(backbone, "attn_pool", None) is not None
    token_options: Options = {"global_pool": ""} if pools else {}
    tried = [(multiple, options) for options in known for multiple in (1, *multiples)]
    if image_size is not None:
        sizes = {multiple: _round_up(image_size, multiple) for multiple in (1, *multiples)}
        tried += [(multiple, {"img_size": size}) for multiple, size in sizes.items()]
    for multiple, options in tried:
        yield multiple, {"global_pool": "", **options}, True
        if multiple > 1:  # else patches at the edge would be left out
            yield multiple, {**token_options, **options}, False


def _round_up(size: Size, multiple: int) -> Size:
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def _try_out(backbone: Any, size: Size, multiple: int, *, is_map: bool) -> Layout:
    """Run a network on the meta device, forwards and backwards.

    Raises:
        Exception: of any kind: the network does not take these images.
    """
    images = torch.empty(1, 1, *_round_up(size, multiple))
    layout = Layout(multiple=multiple, width=feature_width(backbone))
    if not is_map:
        fc_norm = getattr(backbone, "fc_norm", nn.Identity())
        norms_pooled = not isinstance(fc_norm, nn.Identity)
        layout = dataclasses.replace(layout, source="tokens", norms_pooled=norms_pooled)
        try:
            layout.feature_map(backbone, images)
        except AssertionError:
            layout = dataclasses.replace(layout, source="raw_tokens")
    elif _has_pooled_norm(backbone):
        layout = dataclasses.replace(layout, source="features", norms_pooled=True)
    elif backbone(images).shape[3] == layout.width:
        layout = dataclasses.replace(layout, source="channels_last")
    features = layout.feature_map(backbone, images)
    if features.ndim != 4 or (is_map and features.shape[1] != layout.width):
        raise ValueError(f"it gives {tuple(features.shape)} instead of (B, {layout.width}, h, w)")
    layout.norm_pooled(backbone, features.mean((2, 3))).sum().backward()
    trained = [(name, p) for name, p in backbone.named_parameters() if p.requires_grad]
    unused = tuple(name for name, p in trained if p.grad is None)
    return dataclasses.replace(layout, width=features.shape[1], unused=unused)
