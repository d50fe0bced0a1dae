"""The moving average of the weights: what is validated, saved and predicted with."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average(WeightAveraging):
    """Exponential moving average of weights and buffers, one update an optimizer step.

    Checkpoints hold the average as `state_dict`, so that whoever loads a run has it, and the
    weights that training goes on with as `current_model_state`. Until the average begins it is a
    copy of these: Lightning's own callback would validate and save those of before the first step.

    Args:
        decay: share that the average keeps at each step; null averages nothing.
        start: optimizer step at which the average begins, as a copy of the weights.
    """

    def __init__(self, decay: float | None, start: int = 0) -> None:
        # All tensors at once; and an average of equal values is that value, digit for digit.
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(0.0 if decay is None else decay))
        self._is_on = decay is not None
        self._start = start

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the average has begun."""
        return self._is_on and step_idx is not None and step_idx >= self._start

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the module where training will be; it has not been moved there yet."""
        if self._is_on:
            self._device = trainer.strategy.root_device
            super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average in the place of the weights."""
        if self._average_model is not None:
            self._follow(pl_module)
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore both."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the module."""
        if self._average_model is not None:
            self._follow(pl_module)
            super().on_train_end(trainer, pl_module)

    def _follow(self, pl_module: pl.LightningModule) -> None:
        """Copy the weights while there is nothing to average."""
        average = self._average_model
        if average is not None and average.n_averaged == 0:
            average.module.load_state_dict(pl_module.state_dict())
