"""Learning rates by optimizer step; the peak is the optimizer's own `lr`."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


def warmup_cosine(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.1) -> LRScheduler:
    """Rise linearly to the peak, then fall to zero along half a cosine.

    Args:
        optimizer: its `lr` is the peak.
        total_steps: of the whole training.
        warmup: share of the steps that rise.
    """
    rising = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        falling = (step - rising) / max(1, total_steps - rising)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, falling)))

    return LambdaLR(optimizer, factor)


def one_cycle(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.3) -> LRScheduler:
    """Smith's one-cycle policy as torch has it: momentum moves against the learning rate.

    Args:
        optimizer: its `lr` is the peak.
        total_steps: of the whole training.
        warmup: share of the steps that rise.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=peaks, total_steps=total_steps, pct_start=warmup)
