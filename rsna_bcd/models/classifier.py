"""Training and validation of a network under Lightning."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.models.losses import Criterion
from rsna_bcd.models.memory import MemoryLimit
from rsna_bcd.models.mixing import Mix
from rsna_bcd.models.optim import MakeOptimizer, MakeScheduler, ParameterGroups
from rsna_bcd.models.prediction import (
    TTA,
    Batch,
    network_level,
    network_outputs,
    predict_logits,
)
from rsna_bcd.scoring.metrics import DECISION, RANKING, Aggregation
from rsna_bcd.tables.predictions import to_breasts
from rsna_bcd.tables.views import Level


class TrainingData(Protocol):
    """Facts about the data that the module needs.

    Attributes:
        held_out: samples of validation, images or breasts as the network's level; a batch's
            `index` is the row.
    """

    held_out: pd.DataFrame

    @property
    def batches_per_epoch(self) -> int:
        """Training batches of each rank."""


class Classifier(pl.LightningModule):
    """Trains a network on images or breasts and scores it on breasts.

    Set `data` before training.

    Whatever is drawn by chance while training depends on (seed, step) alone, and for dropout and
    stochastic depth on the rank, so that a resumed run equals a straight one.

    Args:
        network: see `models.prediction`.
        criterion: of its outputs.
        optimizer: makes the optimizer of groups of parameters.
        rates: of single parameters.
        scheduler: makes the schedule of the optimizer and the number of its steps.
        mix: blends batches.
        rule: from the probabilities of a breast's images to its own; for a network that looks at
            breasts there is nothing to do.
        tta: transforms of out-of-fold and test predictions (not of validation).
        seed: of dropout, stochastic depth and blends (of which all ranks draw the same).
        batch_size: over all ranks.
        compile: train through torch.compile. Predictions never are compiled: those of test images
            are not, and all must agree.

    Raises:
        InputError: batches cannot be blended so for this network.
    """

    def __init__(
        self,
        network: nn.Module,
        criterion: Criterion,
        optimizer: MakeOptimizer,
        rates: ParameterGroups,
        scheduler: MakeScheduler,
        mix: Mix,
        *,
        rule: Aggregation,
        tta: TTA,
        seed: int,
        batch_size: int,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.criterion = criterion
        self._optimizer = optimizer
        self._rates = rates
        self._scheduler = scheduler
        self._mix = mix
        self._rule = rule
        self._tta = tta
        self._seed = seed
        self._batch_size = batch_size
        self._compile = compile
        self._compiled: list[Any] = []  # no submodule: its parameters would be there twice
        self._validated: list[dict[str, Tensor]] = []
        self._memory_limit = MemoryLimit()
        self.data: TrainingData | None = None
        mix.check(self.level)

    @property
    def level(self) -> Level:
        """The kind of sample that the network takes: image, breast or patient."""
        return network_level(self.network)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout from the step, so that a resumed run equals a straight one."""
        torch.manual_seed(hash((self._seed, self._draw(batch_idx), self.global_rank)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, and log its parts."""
        batch = self._mix(batch, (self._seed, self._draw(batch_idx)))
        losses = self.criterion(network_outputs(self.trained_network(), batch), batch)
        has_parts = len(losses) > len(("loss", "total", "label"))
        for name in [n for n in losses if n != "loss"] if has_parts else ["total"]:
            self.log(
                "train_loss" if name == "total" else f"train_loss_{name}", losses[name],
                on_step=False, on_epoch=True, prog_bar=name == "total",
                batch_size=len(batch["label"]),
            )  # fmt: skip
        return losses["loss"]

    def _draw(self, batch_idx: int) -> int:
        """The number of this batch in the whole training, as optimizer steps count them."""
        accumulated = self.trainer.accumulate_grad_batches
        return self.global_step * accumulated + batch_idx % accumulated

    def trained_network(self) -> Any:
        """The network as it is trained, compiled at its first use."""
        if not self._compile:
            return self.network
        if not self._compiled:
            self._compiled.append(torch.compile(self.network))
        return self._compiled[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits of a batch until the epoch ends.

        In the precision of the training, which is faster on a GPU: in mixed precision `metrics.csv`
        may differ from the scores of the out-of-fold predictions in the third digit.
        """
        logits = self._predict(batch, (), in_float32=False)
        self._validated.append({"index": batch["index"], "logit": logits})

    def on_validation_epoch_end(self) -> None:
        """Score the breasts, with those of all ranks together."""
        if getattr(self.trainer, "fast_dev_run", False):  # a part of them
            self._validated.clear()
            return
        assert self.data is not None
        samples = self.data.held_out
        logits = gather_logits(self._validated, len(samples))
        self._validated.clear()
        labels = torch.from_numpy(samples["label"].to_numpy(np.float32))
        loss = self.criterion.loss(torch.from_numpy(logits), labels)
        breasts = samples.assign(probability=sigmoid(logits))
        if self.level == "image":
            breasts = to_breasts(breasts, self._rule)
        self.log_dict({"valid_loss": loss, **breast_metrics(breasts)}, prog_bar=False)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Predict a batch as test images are predicted: `index` and `logit`, both (B,)."""
        return {"index": batch["index"], "logit": self._predict(batch, self._tta)}

    def _predict(self, batch: Batch, tta: TTA, *, in_float32: bool = True) -> Tensor:
        """Logits (B,), also of a batch that memory holds only in parts.

        Training may need less than float32 does here: by mixed precision or checkpointing.
        """

        def predict(part: Batch) -> Tensor:
            return predict_logits(self.network, part, tta, in_float32=in_float32)

        parts = [logits for _, logits in self._memory_limit.split(predict, batch)]
        if any(logits is None for logits in parts):
            raise InputError(
                f"Not even one {self.level} fits into memory for prediction in float32. Choose a "
                "smaller crop= or network.backbone=, or predict elsewhere."
            )
        return torch.cat([logits for logits in parts if logits is not None])

    def configure_optimizers(self) -> Any:
        """Make the optimizer and its schedule by step."""
        accumulated = self.trainer.accumulate_grad_batches
        # Gradients of float16 are scaled, and a fused optimizer unscales them itself: too late to
        # clip them.
        scaled = self.trainer.scaler is not None
        optimizer: Any = self._rates.make_optimizer(
            self._optimizer,
            self.network,
            batch_size=self._batch_size * accumulated,
            fused=not (scaled and self.trainer.gradient_clip_val),
        )
        if not scaled:  # else Lightning refuses to clip those of bfloat16, too
            optimizer._step_supports_amp_scaling = False
        # Lightning's own estimate would open the training data before a checkpoint is restored, and
        # a resumed run would begin with the samples of epoch 0.
        assert self.data is not None
        batches = self.data.batches_per_epoch
        epochs = self.trainer.max_epochs
        assert epochs is not None, "the schedule must know its end"
        steps = math.ceil(batches / accumulated) * epochs
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

    Raises:
        InputError: a prediction is not finite.
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
    if broken := int((~np.isfinite(logits)).sum()):
        raise InputError(
            f"{broken} of {n_rows} held-out predictions are not finite, though the weights are. "
            "Train again with trainer.precision=32-true or a lower learning_rate=, and "
            "overwrite=true."
        )
    return logits


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities, (N,) float64, without overflow."""
    return torch.from_numpy(logits.astype(np.float64)).sigmoid().numpy()


def breast_metrics(breasts: pd.DataFrame) -> dict[str, float]:
    """Score a table of breasts (`label`, `probability`).

    Sensitivity, specificity and accuracy are those at .5, pF1 is of the probabilities themselves:
    choosing a threshold is the ensemble stage's business. Undefined scores are NaN.
    """
    labels, probabilities = breasts["label"].to_numpy(), breasts["probability"].to_numpy()
    return {
        name: metric(labels, probabilities, weights=None)
        for name, metric in (RANKING | DECISION).items()
    }
