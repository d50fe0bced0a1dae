"""Losses: classes that take (logits, targets), both (B,), and return a scalar."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy, with positives optionally taught as less than certain.

    Args:
        positive_target: what a label of 1 is taught as. The competition's winner used .8 to .9:
            the label belongs to the breast, and not every image of it shows the cancer.
    """

    def __init__(self, positive_target: float = 1.0) -> None:
        super().__init__()
        self.positive_target = positive_target

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits against targets in {0, 1}."""
        return functional.binary_cross_entropy_with_logits(logits, targets * self.positive_target)


class Focal(nn.Module):
    """Focal loss (Lin et al., 2017): cross-entropy times (1 - p_true) ** gamma.

    Args:
        gamma: how much easy images are played down; 0 is cross-entropy.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits against targets in {0, 1}."""
        entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        # (1 - p_true) ** gamma by its logarithm: the power has no gradient where p_true is 1
        easiness = torch.exp(self.gamma * functional.logsigmoid(logits * (1 - 2 * targets)))
        return (easiness * entropy).mean()
