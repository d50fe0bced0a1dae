"""Losses: classes that take (logits, targets), both (B,), and return a scalar.

Targets are 0 or 1, or between them where samples were mixed. A loss of the whole batch (the F1, the
ranking) sees that of all ranks: `models.criterion` gathers it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy, with positives optionally taught as less than certain, or weighted.

    Args:
        positive_target: what a label of 1 is taught as. The competition's winner used .8 to .9:
            the label belongs to the breast, and not every image of it shows the cancer.
        positive_weight: how much a positive counts; a negative counts 1. It moves the level of
            the probabilities, and `positive_target` stays where a positive is learnt best.
    """

    def __init__(self, positive_target: float = 1.0, positive_weight: float = 1.0) -> None:
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

    def __init__(self, gamma: float = 2.0, positive_weight: float = 1.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.positive_weight = positive_weight

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits; a target between 0 and 1 is that share of each."""
        positive = self.positive_weight * targets * self._of_positive(logits)
        return (positive + (1 - targets) * self._of_positive(-logits)).mean()

    def _of_positive(self, logits: Tensor) -> Tensor:
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

    def __init__(self, entropy: float = 0.0) -> None:
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

    def __init__(self, entropy: float = 0.1) -> None:
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
