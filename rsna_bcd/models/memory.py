"""Memory: a batch that does not fit is split, or refused with the micro-batch that fits."""

import gc
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from rsna_bcd.errors import InputError
from rsna_bcd.models.prediction import Batch, network_outputs

_LIBRARIES_OUT_OF_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory",
    "unable to find an engine to execute this computation",  # cuDNN, without room for a workspace
)  # fmt: skip
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that the memory of a GPU ran out: torch's own, or that of a library."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error) for text in _LIBRARIES_OUT_OF_MEMORY
    )


class MemoryLimit:
    """Splits batches that do not fit into the memory of a GPU, and remembers the size that fits.

    Only for predictions, where a sample's result does not depend on the rest of its batch.

    Attributes:
        samples: the largest number of samples that may fit; None as long as every batch did.
    """

    def __init__(self) -> None:
        self.samples: int | None = None

    def split(
        self, predict: Callable[[Batch], Tensor], batch: Batch, at_most: int | None = None
    ) -> Iterator[tuple[slice, Tensor | None]]:
        """Predict a batch in as few parts as memory allows.

        Args:
            predict: from a part of the batch to its logits.
            batch: tensors whose first dimension is the sample.
            at_most: samples in one part, even where more would fit.

        Yields:
            Parts in order, and their logits; None for a single sample that does not fit.
        """
        size, start = len(batch["image"]), 0
        while start < size:
            end = min(size, start + min(at_most or size, self.samples or size))
            part = {name: tensor[start:end] for name, tensor in batch.items()}
            logits: Tensor | None
            try:
                logits = predict(part)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                logits = None  # freed below: here the exception still holds the batch's memory
            if logits is None:
                _free_memory()
                if end - start > 1:
                    self.samples = (end - start) // 2
                    continue
            yield slice(start, end), logits
            start = end


class TrainingStep:
    """A training step in plain PyTorch, the same arithmetic as `Classifier` under Lightning.

    Args:
        network: in training mode, on its device; may be compiled.
        criterion: of its outputs.
        optimizer: of its parameters.
        precision: as Lightning names it: `32-true`, `bf16-mixed` or `16-mixed`.
        clip: largest norm of the gradient; None leaves it alone.

    Attributes:
        optimizer: as given.
    """

    def __init__(
        self,
        network: Any,
        criterion: nn.Module,
        optimizer: Optimizer,
        precision: str,
        clip: float | None = None,
    ) -> None:
        self._network, self._criterion = network, criterion
        self.optimizer = optimizer
        self._dtype = _AUTOCAST.get(precision)
        self._clip = clip
        parameter = optimizer.param_groups[0]["params"][0]
        self._device: torch.device = parameter.device
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._dtype is torch.float16)

    def __call__(self, batch: Batch) -> Tensor:
        """Take one step on a batch, which may be on another device; return its loss."""
        batch = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
        autocast = torch.autocast(self._device.type, self._dtype) if self._dtype else nullcontext()
        with autocast:
            loss: Tensor = self._criterion(network_outputs(self._network, batch), batch)["loss"]
        self.optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        if self._clip:
            self._scaler.unscale_(self.optimizer)
            parameters = itertools.chain(*(g["params"] for g in self.optimizer.param_groups))
            clip_grad_norm_(parameters, self._clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return loss.detach()

    def fits(self, batch: Batch) -> bool:
        """Whether two steps fit into memory (the optimizer's state comes with the first)."""
        fits = True
        try:
            for _ in range(2):
                self(batch)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        self.optimizer.zero_grad()
        _free_memory()
        return fits


def largest_that_fits(fits: Callable[[int], bool], too_many: int) -> int:
    """The largest number below `too_many` for which `fits` holds, by bisection; 0 if none does."""
    low, high = 0, too_many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def out_of_memory(classifier: Any, trainer: pl.Trainer, loader: Any, batch_size: int) -> InputError:
    """Measure which micro-batch would have fitted, after a training ran out of memory.

    With several ranks nothing is measured: the others wait in a collective operation.

    Args:
        classifier: the `Classifier` that was trained.
        trainer: the one that failed.
        loader: of the training batches.
        batch_size: over all ranks.

    Returns:
        The error to raise. It names the remedy.
    """
    ranks, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    device = trainer.strategy.root_device
    largest = batch_size // ranks // 2
    measured = "half of it (with several ranks, no other was tried)"
    if ranks == 1:
        largest = _measured(classifier, trainer, loader, batch_size)
        measured = f"{largest} (measured, without compile)"
    problem = (
        f"A training step with a micro-batch of {batch_size // ranks} {classifier.level}s needs "
        f"more memory than {_device_name(device)} has."
    )
    if largest < 1:
        return InputError(
            f"{problem} Not even one {classifier.level} fits. Set network.grad_checkpointing=true, "
            "or choose a smaller crop= or network.backbone=."
        )
    micro = max(n for n in range(1, largest + 1) if batch_size // ranks % n == 0)
    parts = batch_size // ranks // micro
    return InputError(
        f"{problem} The largest micro-batch that fits is {measured}. Set batch_size="
        f"{micro * ranks} trainer.accumulate_grad_batches={parts * accumulated}: as many "
        f"{classifier.level}s per optimizer step, in {parts * accumulated} micro-batches of "
        f"{micro}. This is not the same training (and another run in its record): BatchNorm, mix "
        "and losses that compare samples see one micro-batch at a time. "
        "network.grad_checkpointing=true keeps the batch and takes about a third more time."
    )


def _measured(classifier: Any, trainer: pl.Trainer, loader: Any, batch_size: int) -> int:
    """The largest micro-batch below `batch_size` that fits on the trainer's device."""
    if not trainer.optimizers:
        return 0  # the network alone did not fit
    device, optimizer = trainer.strategy.root_device, trainer.optimizers[0]
    _free_memory()
    try:
        network = classifier.network.to(device).train()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0
    optimizer.state.clear()  # which Lightning has moved to the processor; the first step makes it
    step = TrainingStep(
        network, classifier.criterion, optimizer, str(trainer.precision), trainer.gradient_clip_val
    )
    keys = list(itertools.islice(iter(loader.sampler), batch_size))
    samples = [loader.dataset[key] for key in keys]
    largest = largest_that_fits(lambda n: step.fits(loader.collate_fn(samples[:n])), batch_size)
    optimizer.state.clear()  # the error's traceback keeps all this alive; leave the GPU to others
    classifier.cpu()
    _free_memory()
    return largest


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} ({properties.total_memory / 2**30:.1f} GiB)"


def _free_memory() -> None:
    """Free the memory of objects that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
