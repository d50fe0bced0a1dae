"""How a network is trained and judged. Knows Lightning; owns neither data nor files."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rsna_bcd.models.prediction import TTA, Batch, outputs_of, predict_logits
from rsna_bcd.scoring.metrics import DECISION, RANKING
from rsna_bcd.tables.predictions import Rule, to_breasts

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer, int], LRScheduler]  # the int: total optimizer steps


class Classifier(pl.LightningModule):
    """Trains a network on images and scores it on breasts.

    The datamodule must have `batches_per_epoch` and, for validation, `held_out`, the table whose
    rows the batches' `index` names.

    Args:
        network: see `models.prediction`.
        loss: (logits, targets), both (B,), to a scalar.
        optimizer: makes the optimizer of the parameters.
        scheduler: makes the schedule of the optimizer and the number of its steps.
        rule: from the probabilities of a breast's images to its own.
        tta: test-time augmentation of out-of-fold and test predictions (not of validation).
        seed: of dropout and stochastic depth.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler,
        *,
        rule: Rule,
        tta: TTA,
        seed: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._rule = rule
        self._tta = tta
        self._seed = seed
        self._validated: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout from the step, so that a resumed run goes on as if it had not stopped."""
        torch.manual_seed(hash((self._seed, self.global_step, self.global_rank)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch."""
        loss: Tensor = self.loss(outputs_of(self.network, batch)["logit"], batch["label"])
        self.log(
            "train_loss", loss, on_step=False, on_epoch=True, prog_bar=True,
            batch_size=len(batch["label"]), sync_dist=True,
        )  # fmt: skip
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits of a batch until the epoch ends."""
        logits = predict_logits(self.network, batch, "none")
        self._validated.append({"index": batch["index"], "logit": logits})

    def on_validation_epoch_end(self) -> None:
        """Score the breasts, with those of all ranks together."""
        images: pd.DataFrame = self.trainer.datamodule.held_out  # type: ignore[attr-defined]
        logits = gather_logits(self._validated, len(images))
        self._validated.clear()
        loss = self.loss(
            torch.from_numpy(logits), torch.from_numpy(images["label"].to_numpy(np.float32))
        )
        breasts = to_breasts(images.assign(probability=sigmoid(logits)), self._rule)
        self.log_dict({"valid_loss": loss, **breast_metrics(breasts)}, prog_bar=False)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Predict a batch as test images are predicted: `index` and `logit`, both (B,)."""
        logits = predict_logits(self.network, batch, self._tta)
        return {"index": batch["index"], "logit": logits}

    def configure_optimizers(self) -> Any:
        """Make the optimizer and its schedule by step."""
        optimizer = self._optimizer(self.network.parameters())
        # Lightning's own estimate would open the training data before a checkpoint is restored, and
        # a resumed run would begin with the samples of epoch 0.
        batches: int = self.trainer.datamodule.batches_per_epoch  # type: ignore[attr-defined]
        epochs = self.trainer.max_epochs
        assert epochs is not None, "the schedule must know its end"
        steps = math.ceil(batches / self.trainer.accumulate_grad_batches) * epochs
        scheduler = self._scheduler(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def gather_logits(predicted: Sequence[dict[str, Tensor]], n_rows: int) -> np.ndarray:
    """Put predictions of all batches and ranks into the order of their table.

    Args:
        predicted: batches of this rank: `index` and `logit`, both (B,).
        n_rows: of the table.

    Returns:
        (n_rows,) float32, the same on every rank.
    """
    index = [i for batch in predicted for i in batch["index"].tolist()]
    logit = [x for batch in predicted for x in batch["logit"].float().tolist()]
    shards = [(index, logit)]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # As objects: shards differ in length, for none is padded.
        shards = [([], [])] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(shards, (index, logit))
    rows = np.concatenate([np.asarray(index, dtype=np.int64) for index, _ in shards])
    assert np.array_equal(np.sort(rows), np.arange(n_rows)), "a row was predicted twice or never"
    logits = np.empty(n_rows, dtype=np.float32)
    logits[rows] = np.concatenate([np.asarray(logit, dtype=np.float32) for _, logit in shards])
    return logits


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities, (N,) float64, without overflow."""
    return torch.from_numpy(logits.astype(np.float64)).sigmoid().numpy()


def breast_metrics(breasts: pd.DataFrame) -> dict[str, float]:
    """Score a table of breasts (`label`, `probability`).

    Sensitivity, specificity and accuracy are those at .5, pF1 is of the probabilities themselves:
    choosing a threshold is the ensemble stage's business. What is not defined is NaN.
    """
    labels, probabilities = breasts["label"].to_numpy(), breasts["probability"].to_numpy()
    return {
        name: metric(labels, probabilities, weights=None)
        for name, metric in (RANKING | DECISION).items()
    }
