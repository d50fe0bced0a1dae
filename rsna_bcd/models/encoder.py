"""From images to features: a timm backbone, the normalisation of its weights, and a pooling.

Every network is built on it, so that one may start from the weights of another.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self, TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsna_bcd.errors import InputError
from rsna_bcd.models.backbone import Size, backbone_groups, create_backbone

Pooling = Literal["avg", "max", "gem"]


class EncoderSettings(TypedDict, total=False):
    """Arguments of `Encoder` that the networks pass on to it."""

    pooling: Pooling
    drop_path_rate: float | None
    channels_last: bool
    grad_checkpointing: bool
    freeze_backbone: bool
    image_size: Sequence[int] | None


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


class Encoder(nn.Module):
    """Features of an image, (B, C); the base of networks with one backbone.

    Args:
        backbone: name of a timm network, e.g. `tf_efficientnet_b5`, see `models.backbone`.
        pretrained: start from the weights that timm downloads for this name.
        pooling: of the feature map over its area.
        drop_path_rate: stochastic depth; None leaves the backbone's own default.
        channels_last: memory layout; see `conf/network/` for its effect.
        grad_checkpointing: keep less for the backward pass and compute it again: about a third more
            time for a fraction of the memory, and the same gradients.
        freeze_backbone: the backbone keeps its weights and its BatchNorm statistics, and has
            neither dropout nor stochastic depth.
        image_size: height and width of the images, for backbones that are built for one size.

    Attributes:
        architecture: name of the backbone.
        width: number of features C.

    Raises:
        InputError: an unknown backbone or pooling, weights that cannot be had, or a backbone that
            gives no feature map of such images or cannot compute again.
    """

    _side_by_side = 1  # images that are one picture for the backbone
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        *,
        pretrained: bool = True,
        pooling: Pooling = "avg",
        drop_path_rate: float | None = None,
        channels_last: bool = True,
        grad_checkpointing: bool = False,
        freeze_backbone: bool = False,
        image_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise InputError(f"network.pooling is {', '.join(get_args(Pooling))}, not {pooling!r}.")
        self.architecture = backbone
        size: Size | None = None
        if image_size is not None:
            size = (image_size[0], image_size[1] * self._side_by_side)
        self.backbone: Any
        self.backbone, self.layout = create_backbone(
            backbone,
            pretrained=pretrained,
            drop_path_rate=drop_path_rate,
            image_size=size,
        )
        # Three equal channels with a mean each are one channel with the averaged mean, as far as a
        # grey image is concerned; the same for the standard deviation.
        statistics = self.backbone.pretrained_cfg
        if lacking := [key for key in ("mean", "std") if not statistics.get(key)]:
            raise InputError(
                f"network.backbone={backbone} does not say with which {' and '.join(lacking)} its "
                "images were normalised. Add pretrained_cfg.mean and .std to its config.json."
            )
        self.register_buffer("mean", torch.tensor(statistics["mean"]).mean())
        self.register_buffer("std", torch.tensor(statistics["std"]).mean())
        self.last_map = nn.Identity()  # a layer that saliency maps hook
        self.pool = _make_pool(pooling)
        self.width = self.layout.width
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.dim() == 4:  # a convolution in three dimensions has no such format
                tensor.data = tensor.data.contiguous(memory_format=self._memory_format)
        self._frozen = freeze_backbone
        if freeze_backbone:
            self.backbone.requires_grad_(False).eval()
        self._momenta: dict[str, float | None] = {}
        if grad_checkpointing and not freeze_backbone:  # frozen, nothing is kept anyway
            _compute_again(self.backbone, backbone)
            self._momenta = {name: norm.momentum for name, norm in _batch_norms(self.backbone)}

    def feature_map(self, images: Tensor) -> Tensor:
        """Compute features (B, C, h, w) of images (B, 1, H, W) in [0, 1].

        Of ConvNeXts and some others, they have not been through the norm of pooled features.
        """
        images = (self.layout.pad(images) - self.mean) / self.std
        images = images.contiguous(memory_format=self._memory_format)
        if self._momenta:  # only now: computed again, a batch must not be counted twice
            for name, norm in _batch_norms(self.backbone):
                norm.momentum = self._momenta[name]
        features = self.layout.feature_map(self.backbone, images)
        if self._momenta:
            for _, norm in _batch_norms(self.backbone):
                norm.momentum = 0.0
        return self.last_map(features)

    def encode(self, images: Tensor) -> Tensor:
        """Compute features (B, C) of images (B, 1, H, W) in [0, 1]."""
        return self.pooled(self.feature_map(images))

    def pooled(self, feature_map: Tensor) -> Tensor:
        """Pool (B, C, h, w) to (B, C), and normalise where the backbone does so after pooling."""
        return self.layout.norm_pooled(self.backbone, self.pool(feature_map))

    def train(self, mode: bool = True) -> Self:
        """Switch to training, except for a frozen backbone."""
        super().train(mode)
        if self._frozen:
            self.backbone.eval()
        return self

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Group all parameters by depth, for learning rates by layer.

        Returns:
            The stem first, then block by block, and last the layers after the backbone: pooling,
            aggregator and heads. Each parameter once; frozen ones too.
        """
        groups = backbone_groups(self.backbone)
        return [*groups, the_rest(self, groups)]


def the_rest(network: nn.Module, groups: Iterable[list[nn.Parameter]]) -> list[nn.Parameter]:
    """Parameters of a network that are in none of the groups."""
    known = {id(parameter) for group in groups for parameter in group}
    return [parameter for parameter in network.parameters() if id(parameter) not in known]


def _make_pool(pooling: Pooling) -> nn.Module:
    """Make the layer from (B, C, h, w) to (B, C)."""
    if pooling == "gem":
        return GeM()
    pool = nn.AdaptiveAvgPool2d(1) if pooling == "avg" else nn.AdaptiveMaxPool2d(1)
    return nn.Sequential(pool, nn.Flatten())


def _batch_norms(backbone: nn.Module) -> list[tuple[str, _BatchNorm]]:
    # Looked up each time: SyncBatchNorm takes their places later.
    return [(name, m) for name, m in backbone.named_modules() if isinstance(m, _BatchNorm)]


def _compute_again(backbone: Any, name: str) -> None:
    try:
        backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"{name} cannot compute its activations again. Set network.grad_checkpointing=false, "
            "or choose another network.backbone."
        ) from error
