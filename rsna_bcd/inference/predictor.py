"""A run's network on a batch: in the precision of the device, in parts that fit into its memory."""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import Run
from rsna_bcd.models.memory import MemoryLimit
from rsna_bcd.models.prediction import Batch, predict_logits

Precision = Literal["auto", "float32", "fp16", "bf16"]

# On a processor, at a time: Lite0 at 1024 x 512 takes .20 s/image of torch in pairs and .32 s in
# sixteens (two cores), .058 s of ONNX Runtime in both, and 1 GB instead of 3.5.
_PIXELS_AT_ONCE = 2**20

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_precision(precision: Precision, device: str) -> Precision:
    """Resolve `auto`: fp16 on a GPU, float32 on a processor, which is slow at anything less.

    Args:
        precision: of the settings.
        device: type of the device, `cuda` or `cpu`.

    Raises:
        InputError: an unknown precision.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision is {' or '.join(get_args(Precision))}, not {precision!r}.")
    if precision != "auto":
        return precision
    return "fp16" if device == "cuda" else "float32"


class Predictor:
    """Predicts batches with a run's network, and survives a lack of memory and overflow.

    Args:
        run: the network and its TTA.
        precision: of the device's arithmetic; weights and logits stay float32.
    """

    def __init__(self, run: Run, precision: Precision) -> None:
        self._run = run
        self.device = run.device
        self._dtype = _AUTOCAST.get(resolve_precision(precision, self.device.type))
        self.limit = MemoryLimit()

    def predict(self, batch: Batch) -> tuple[NDArray[np.float64], str | None]:
        """Predict a batch.

        A processor is given few samples at a time, which costs it less memory and no time. What
        does not fit into the memory of a GPU is halved and tried again, down to one sample. If a
        precision below float32 gives a logit that is not finite, the batch is repeated in float32.

        Args:
            batch: inputs of the network (`models.prediction`), on any device.

        Returns:
            Probabilities (B,), and why some of them are NaN; None where none is.
        """
        size = len(batch["image"])
        at_most = size
        if self.device.type == "cpu":
            at_most = max(1, _PIXELS_AT_ONCE // batch["image"][0].numel())
        values = np.full(size, np.nan)
        reason: str | None = None
        for part, logits in self.limit.split(self._logits, batch, at_most):
            if logits is None:
                reason = f"{self._run.name} needs more memory than {self.device} has"
                continue
            values[part] = logits.double().sigmoid().cpu().numpy()
            if not np.isfinite(values[part]).all():
                reason = f"{self._run.name} gave no finite value"
        return values, reason

    def _logits(self, batch: Batch) -> torch.Tensor:
        """Logits (B,) of a batch on any device; NaN for infinity, which is no certainty."""
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        network, tta = self._run.network, self._run.tta
        if self._dtype is not None:
            with torch.autocast(self.device.type, dtype=self._dtype):
                logits = predict_logits(network, batch, tta, in_float32=False)
            if logits.isfinite().all():
                return logits
        logits = predict_logits(network, batch, tta)
        return torch.where(logits.isfinite(), logits, torch.nan)
