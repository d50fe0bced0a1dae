"""Losses, and the criterion that adds them up over outputs and ranks.

A loss is a module that takes (logits, targets), both (B,), and returns a scalar. Targets are 0 or
1, or between them where samples were mixed. `takes_soft_targets` of its class says whether it may
learn from probabilities as well (`distillation.teachers`).

With several ranks each has a part of the batch. A mean over parts is not the loss of the batch if
the loss compares samples, or if targets are missing; so outputs and targets of all ranks are
gathered first, and each rank computes the loss of the whole batch.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, distributed, nn
from torch.nn import functional

from rsna_bcd.errors import InputError
from rsna_bcd.models.prediction import Batch
from rsna_bcd.tables.metadata import TARGETS

_DEEP, _PENALTY = "logit_", "penalty_"  # how outputs of the contract begin
Above = Annotated[float, Field(gt=0)]
AtLeastZero = Annotated[float, Field(ge=0)]


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy, with positives optionally weighted, or as targets below 1.

    Args:
        positive_target: target for a label of 1. The competition's winner used .8 to .9:
            the label belongs to the breast, and not every image of it shows the cancer.
        positive_weight: how much a positive counts; a negative counts 1. It moves the level of
            the probabilities, and `positive_target` stays where a positive is learnt best.
    """

    takes_soft_targets = True

    def __init__(
        self,
        positive_target: Annotated[float, Field(gt=0, le=1)] = 1.0,
        positive_weight: Above = 1.0,
    ) -> None:
        super().__init__()
        self.positive_target = positive_target
        self.positive_weight = positive_weight

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the batch, not over the weights: batches stay comparable."""
        weights = None if self.positive_weight == 1 else 1 + (self.positive_weight - 1) * targets
        return functional.binary_cross_entropy_with_logits(
            logits, targets * self.positive_target, weight=weights
        )


class Focal(nn.Module):
    """Focal loss (Lin et al., 2017): cross-entropy times (1 - p_true) ** gamma.

    Args:
        gamma: how much easy images are played down; 0 is cross-entropy.
        positive_weight: how much a positive counts; a negative counts 1.
    """

    takes_soft_targets = True

    def __init__(self, gamma: AtLeastZero = 2.0, positive_weight: Above = 1.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.positive_weight = positive_weight

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits; a target between 0 and 1 is that share of each."""
        positive = self.positive_weight * targets * self._positive_loss(logits)
        return (positive + (1 - targets) * self._positive_loss(-logits)).mean()

    def _positive_loss(self, logits: Tensor) -> Tensor:
        # (1 - p) ** gamma by its logarithm: the power has no gradient where p is 1
        easiness = torch.exp(self.gamma * functional.logsigmoid(-logits))
        return -easiness * functional.logsigmoid(logits)


class SoftF1(nn.Module):
    """1 - pF1 of the batch (`scoring.metrics.pf1`), which has a gradient.

    A batch without positives has a loss of 1 and no gradient: draw some into every batch
    (`negatives_per_positive`). The score of a small batch is a noisy and biased estimate of that of
    the whole table.

    Args:
        entropy: weight of the cross-entropy that is added. Where every probability is near 0 the F1
            hardly has a gradient; a little cross-entropy leads out of there.
    """

    def __init__(self, entropy: AtLeastZero = 0.0) -> None:
        super().__init__()
        self.entropy = entropy

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return 1 - pF1, in [0, 1], and the share of cross-entropy."""
        probabilities = logits.float().sigmoid()
        total = (probabilities.sum() + targets.sum()).clamp(min=torch.finfo(torch.float32).tiny)
        loss = 1 - 2 * (targets * probabilities).sum() / total
        return _with_entropy(loss, logits, targets, self.entropy)


class PairwiseRanking(nn.Module):
    """The chance that a positive ranks below a negative (1 - AUROC), made smooth.

    The mean of softplus(negative - positive) over all pairs of the batch: the logistic surrogate
    (RankNet, Burges et al., 2005). A batch of one class has a loss of 0.

    Args:
        entropy: weight of the cross-entropy that is added. Ranks alone leave the level of the
            probabilities open, on which means over images and the threshold depend.
    """

    def __init__(self, entropy: AtLeastZero = 0.1) -> None:
        super().__init__()
        self.entropy = entropy

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over pairs, and the share of cross-entropy."""
        # Rows that are positive to some share, against columns that are negative to some: of a
        # whole table, all pairs would be gigabytes.
        rows, columns = targets > 0, targets < 1
        pairs = targets[rows][:, None] * (1 - targets[columns])[None]
        below = functional.softplus(logits[columns].float()[None] - logits[rows].float()[:, None])
        loss = (pairs * below).sum() / pairs.sum().clamp(min=torch.finfo(torch.float32).tiny)
        return _with_entropy(loss, logits, targets, self.entropy)


def _with_entropy(loss: Tensor, logits: Tensor, targets: Tensor, weight: float) -> Tensor:
    if weight == 0:
        return loss
    return loss + weight * functional.binary_cross_entropy_with_logits(logits, targets)


class Criterion(nn.Module):
    """Adds up the losses of a network's outputs (`models.prediction`).

    loss(logit) + deep_weight * the sum of loss(logit_<name>)
    + auxiliary[column] * the loss of <column> + penalties[name] * penalty_<name>

    A column's loss is the cross-entropy of its kind, or smooth L1 for a continuous one; samples
    without a value do not count.

    Args:
        loss: (logits, targets), both (B,), to a scalar.
        deep_weight: of the losses of a network's further logits.
        penalties: weight of each penalty; 1 for those not named.
        auxiliary: weight of each column, one of `tables.metadata.TARGETS`.
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        deep_weight: float = 1.0,
        penalties: Mapping[str, float] | None = None,
        auxiliary: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self._deep_weight = deep_weight
        self._penalties = dict(penalties or {})
        self._auxiliary = dict(auxiliary or {})

    def check(self) -> None:
        """Compute the loss of a negative and a positive, before training does.

        Raises:
            InputError: it is no scalar, or has no gradient.
        """
        loss: Any = self.loss(torch.zeros(2, requires_grad=True), torch.tensor([0.0, 1.0]))
        name = f"loss {type(self.loss).__name__}"
        if not (isinstance(loss, Tensor) and loss.ndim == 0):
            found = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise InputError(
                f"{name} returns {found} for 2 logits. Return a scalar tensor, such as loss.mean()."
            )
        if not loss.requires_grad:
            raise InputError(f"{name} has no gradient. Compute it from the logits in torch.")

    def forward(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            outputs: of the network, for this rank's part of the batch.
            batch: `label` (B,) and `target_<column>` (B,).

        Returns:
            By name: `loss`, whose gradient averaged over the ranks is that of the whole batch's
            loss; and for the log, detached and the same on every rank, `total`, `label`,
            and the unweighted loss of each further output.
        """
        ranks = distributed.get_world_size() if _several_ranks() else 1
        labels = gather(batch["label"])
        parts = {"label": self.loss(gather(outputs["logit"].float()), labels)}
        weights = {"label": 1.0}
        for name in (n for n in outputs if n.startswith(_DEEP)):
            parts[name] = self.loss(gather(outputs[name].float()), labels)
            weights[name] = self._deep_weight
        for column, weight in self._auxiliary.items():
            output, target = self._output(column, outputs), batch[f"target_{column}"]
            parts[column] = auxiliary_loss(column, gather(output.float()), gather(target))
            weights[column] = weight
        whole = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        penalties = {n: value.float() for n, value in outputs.items() if n.startswith(_PENALTY)}
        # Every rank has the gradient of the whole by way of its own outputs alone, and DDP takes
        # their mean where the sum is right. A penalty is of the rank's own part: a mean is right.
        loss, total = ranks * whole, whole.detach()
        for name, value in penalties.items():
            weight = self._penalties.get(name.removeprefix(_PENALTY), 1.0)
            loss = loss + weight * value
            parts[name] = gather(value.detach()[None]).mean()
            total = total + weight * parts[name]
        return {
            "loss": loss,
            "total": total,
            **{name: part.detach() for name, part in parts.items()},
        }

    def _output(self, column: str, outputs: Mapping[str, Tensor]) -> Tensor:
        if column not in outputs:
            raise InputError(
                f"auxiliary.{column}: the network has no output for it ({', '.join(outputs)}). "
                "Choose a network= with auxiliary heads, or leave it out."
            )
        return outputs[column]


def auxiliary_loss(column: str, output: Tensor, target: Tensor) -> Tensor:
    """The mean loss of the samples whose target is known; 0 where none is.

    Args:
        column: one of `tables.metadata.TARGETS`.
        output: (B,), or (B, K) for a categorical column.
        target: (B,), NaN where unknown; a share between 0 and 1 for a binary column is allowed.
    """
    known = ~target.isnan()
    if not known.any():
        return output.sum() * 0  # with a gradient, so that all ranks have the same graph
    output, target = output[known], target[known]
    if TARGETS[column].kind == "binary":
        return functional.binary_cross_entropy_with_logits(output, target)
    if TARGETS[column].kind == "categorical":
        return functional.cross_entropy(output, target.long())
    return functional.smooth_l1_loss(output, target)


def gather(mine: Tensor) -> Tensor:
    """The rows of all ranks, (ranks * B, ...), rank by rank; those of this rank keep their graph.

    Every rank must have equally many.
    """
    if not _several_ranks():
        return mine
    parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, mine.detach().contiguous())
    parts[distributed.get_rank()] = mine
    return torch.cat(parts)


def _several_ranks() -> bool:
    return distributed.is_available() and distributed.is_initialized()
