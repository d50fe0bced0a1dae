"""When training ends: at the first value that is not finite, or for a reason that is printed."""

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer

from rsna_bcd.errors import InputError
from rsna_bcd.models.checkpoints import Patience, is_cut
from rsna_bcd.models.prediction import Batch

_PENDING = 50  # steps between two looks at the losses on a GPU, each of which waits for it
_SHOWN = 3  # tensors named in a message


class FiniteGuard(pl.Callback):
    """Ends training at the first loss or weight that is not finite, before it is saved.

    Losses are looked at after each step on a processor, and after every 50 on a GPU, where each
    look would make the process wait; weights and buffers before validation and after each epoch.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[torch.Tensor, int]] = []  # a loss, and its step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check what training starts from."""
        if broken := non_finite(pl_module.state_dict()):
            raise InputError(
                f"Training would start from weights that are not finite: {_named(broken)}. "
                "Choose another checkpoint_path=, or train again with overwrite=true."
            )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Note the loss of a step."""
        steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        step = trainer.global_step + (0 if steps else 1)
        self._pending.append((outputs["loss"].detach(), step))
        if pl_module.device.type == "cpu" or len(self._pending) >= _PENDING:
            self._check_losses(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check losses and weights before they are scored and saved as the best."""
        self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check losses and weights before they are saved as the last."""
        self._check(trainer, pl_module)

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_losses(trainer)
        if broken := non_finite(pl_module.state_dict()):
            self._stop(trainer, f"Weights are not finite ({_named(broken)})", trainer.global_step)

    def _check_losses(self, trainer: pl.Trainer) -> None:
        if not self._pending:
            return
        losses = torch.stack([loss.float() for loss, _ in self._pending]).tolist()
        steps = [step for _, step in self._pending]
        self._pending.clear()
        for loss, step in zip(losses, steps, strict=True):
            if not abs(loss) < float("inf"):
                self._stop(trainer, f"The loss is {loss}", step)

    def _stop(self, trainer: pl.Trainer, what: str, step: int) -> None:
        rate = max(group["initial_lr"] for group in trainer.optimizers[0].param_groups)
        remedies = [f"a lower learning_rate= (it is {rate:g})"]
        if trainer.gradient_clip_val is None:
            remedies.append("trainer.gradient_clip_val=1.0")
        if trainer.precision != "32-true":
            remedies.append(f"trainer.precision=32-true (it is {trainer.precision})")
        raise InputError(
            f"{what} in epoch {trainer.current_epoch + 1}, step {step}: training has stopped, and "
            f"nothing of this epoch is kept. Train again with {' or '.join(remedies)}, and "
            "overwrite=true."
        )


def non_finite(state: dict[str, torch.Tensor]) -> list[str]:
    """Names of the floating-point tensors that hold an infinite value or NaN."""
    floating = {name: t for name, t in state.items() if t.is_floating_point()}
    if not floating:
        return []
    finite = torch.stack([t.isfinite().all() for t in floating.values()]).tolist()
    return [name for name, is_finite in zip(floating, finite, strict=True) if not is_finite]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


@dataclass(frozen=True)
class Ending:
    """Why training ended.

    Attributes:
        is_finished: whether nothing of it is left to do.
        reason: one sentence.
    """

    is_finished: bool
    reason: str


def ending(trainer: pl.Trainer) -> Ending:
    """Why a trainer's `fit` has come back."""
    cut = is_cut(trainer)
    progress: Any = trainer.fit_loop.epoch_progress.current
    epochs = progress.processed - int(cut)
    of_all = f"{epochs} of {trainer.max_epochs} epochs"
    patience = next((c for c in trainer.callbacks if isinstance(c, Patience)), None)  # type: ignore[attr-defined]
    if not cut and epochs >= (trainer.max_epochs or 0):
        return Ending(True, f"Finished: all {epochs} epochs are trained.")
    if not cut and patience is not None and patience.is_exhausted:
        return Ending(
            True,
            f"Finished after {of_all}: no better AUROC for patience={patience.patience} "
            f"epochs (the best is {float(patience.best_score):.4f}).",
        )
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        limit = f"trainer.max_steps={trainer.max_steps}"
    elif any(isinstance(c, Timer) and (c.time_remaining() or 0) <= 0 for c in trainer.callbacks):  # type: ignore[attr-defined]
        limit = "trainer.max_time"
    else:
        limit = "a callback"
    return Ending(
        False,
        f"Not finished: {limit} ended training after {of_all}. Run it again without that "
        "limit, or with a larger one, to resume.",
    )
