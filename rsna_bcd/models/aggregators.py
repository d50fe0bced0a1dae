"""From the images of a breast to the breast: any number of them, in any order.

An aggregator is called with

    features (B, V, C) of the images, zeros where there is none
    mask     (B, V) bool, True where there is an image that counts
    view     (B, V) int64: 0 CC, 1 MLO, 2 any other
    other    (B, V) bool, True for images of the patient's other breast

and gives (B, `width`). One that has `context` takes the other breast into account; to the rest it
is not shown. One that is `late` reduces logits instead of features, (B, V) to (B,).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsna_bcd.errors import InputError

N_VIEWS = 3


class Aggregator(nn.Module):
    """Base of the aggregators.

    Args:
        features: number of features C of an image.
        width: number of features of the breast; as many, unless given.
    """

    context = False
    late = False

    def __init__(self, features: int, width: int | None = None) -> None:
        super().__init__()
        self.width = features if width is None else width


class Mean(Aggregator):
    """The mean of the features; as the head is linear, that of the images' logits as well."""

    def forward(self, features: Tensor, mask: Tensor, view: Tensor, other: Tensor) -> Tensor:
        """Reduce (B, V, C) to (B, C)."""
        return masked_mean(features, mask)


class Max(Aggregator):
    """The largest value of each feature among the images."""

    def forward(self, features: Tensor, mask: Tensor, view: Tensor, other: Tensor) -> Tensor:
        """Reduce (B, V, C) to (B, C)."""
        return features.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)


class MeanProbability(Aggregator):
    """The logit of the images' mean probability: `breast_rule=mean`, in training too."""

    late = True

    def forward(self, logits: Tensor, mask: Tensor, view: Tensor, other: Tensor) -> Tensor:
        """Reduce (B, V) to (B,)."""
        # log(sum p) - log(sum (1 - p)), finite where p is 0 or 1 in floating point
        logits = logits.float()
        gone = ~mask
        present = F.logsigmoid(logits).masked_fill(gone, -torch.inf).logsumexp(dim=1)
        absent = F.logsigmoid(-logits).masked_fill(gone, -torch.inf).logsumexp(dim=1)
        return present - absent


class MaxProbability(Aggregator):
    """The largest of the images' logits: `breast_rule=max`, in training too."""

    late = True

    def forward(self, logits: Tensor, mask: Tensor, view: Tensor, other: Tensor) -> Tensor:
        """Reduce (B, V) to (B,)."""
        return logits.masked_fill(~mask, -torch.inf).amax(dim=1)


class ViewEmbedding(nn.Module):
    """Add learned embeddings of the view and the side to the features of an image.

    Args:
        width: number of features.
        std: of the vectors at the start.
    """

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.view = nn.Embedding(N_VIEWS, width)
        self.other = nn.Embedding(2, width)
        for embedding in (self.view, self.other):
            nn.init.normal_(embedding.weight, std=std)

    def forward(self, features: Tensor, view: Tensor, other: Tensor) -> Tensor:
        """Add to (B, V, C)."""
        roles: Tensor = features + self.view(view) + self.other(other.long())
        return roles


class GatedAttention(nn.Module):
    """Weights of the members of a bag (Ilse, Tomczak and Welling, 2018, equation 9).

    Args:
        features: number of features C of a member.
        hidden: width of the layer between.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.value = nn.Linear(features, hidden)
        self.gate = nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)  # softmax does not see a bias

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Compute weights (B, V) of members (B, V, C): their sum is 1, and 0 outside the mask."""
        hidden = self.value(features).tanh() * self.gate(features).sigmoid()
        scores = self.score(hidden)[..., 0].float()
        return scores.masked_fill(~mask, -torch.inf).softmax(dim=1)


class Attention(Aggregator):
    """The mean of the features, weighted by attention to them.

    The embeddings of view and side begin at zero: at first, attention depends on the features
    alone.

    Args:
        features: number of features C of an image.
        hidden: width of the layer that weighs.
    """

    context = True

    def __init__(self, features: int, hidden: int = 128) -> None:
        super().__init__(features)
        self.roles = ViewEmbedding(features, std=0.0)
        self.attention = GatedAttention(features, hidden)

    def forward(self, features: Tensor, mask: Tensor, view: Tensor, other: Tensor) -> Tensor:
        """Reduce (B, V, C) to (B, C)."""
        features = self.roles(features, view, other)
        weights = self.attention(features, mask)
        return (weights[..., None] * features).sum(dim=1)

    def weights(self, features: Tensor, mask: Tensor, view: Tensor, other: Tensor) -> Tensor:
        """Compute how much each image counts, (B, V), for explanations."""
        weights: Tensor = self.attention(self.roles(features, view, other), mask)
        return weights


class Transformer(Aggregator):
    """A transformer over the images; a token of its own reads off the breast.

    Args:
        features: number of features C of an image.
        width: of the tokens.
        depth: number of blocks.
        heads: of each attention; they divide `width`.
        dropout: in the blocks.

    Raises:
        InputError: `heads` does not divide `width`.
    """

    context = True

    def __init__(
        self, features: int, width: int = 256, depth: int = 2, heads: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(features, width)
        if width % heads:
            raise InputError(f"aggregator.heads={heads} must divide aggregator.width={width}.")
        self.project = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))
        self.roles = ViewEmbedding(width, std=0.02)
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, mask: Tensor, view: Tensor, other: Tensor) -> Tensor:
        """Reduce (B, V, C) to (B, width)."""
        images = self.roles(self.project(features), view, other)
        tokens = torch.cat(
            [self.token.to(images.dtype).expand(images.shape[0], 1, -1), images], dim=1
        )
        mask = F.pad(mask, (1, 0), value=True)  # the token before the images is always there
        for block in self.blocks:
            tokens = block(tokens, mask)
        breast: Tensor = self.norm(tokens[:, 0])
        return breast


class Block(nn.Module):
    """Attention and two layers, each normalised before and added to its input.

    torch's own block takes another path in inference than in training, which gives slightly other
    numbers and cannot be exported.

    Args:
        width: of the tokens.
        heads: of the attention.
        dropout: of the residual branch.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm_layers = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Turn tokens (B, T, D) into such; only those within the mask (B, T) are attended to."""
        split = self.queries_keys_values(self.norm_attention(tokens)).unflatten(
            -1, (3, self.heads, -1)
        )
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / heads)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        tokens = tokens + self.dropout(self.mix(seen.transpose(1, 2).flatten(2)))
        layered: Tensor = tokens + self.dropout(self.layers(self.norm_layers(tokens)))
        return layered


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average values (B, V, ...) over V within the mask (B, V), in which no row is empty."""
    weights = mask / mask.sum(dim=1, keepdim=True)
    return (values * weights.reshape(*mask.shape, *[1] * (values.ndim - 2))).sum(dim=1)
