"""Ways to train the network of an experiment: with our trainer, and in a bare loop."""

import json
import os
import sys
import time
from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

from rsna_bcd.models.prediction import outputs_of

TRAINER, BARE, PLAIN = "our trainer", "bare loop", "plain"
WAYS = (TRAINER, BARE, PLAIN)
_WARM = 3  # steps
_PLAIN = ("trainer.precision=32-true", "network.channels_last=false", "++compile=false")


def train(way: str, overrides: list[str], rounds: int, steps: int, answer: Any) -> None:
    """Train in turns, in this process, which ends with the last; see `_Turns` for the answers.

    Args:
        way: of `WAYS`.
        overrides: of train.
        rounds: number of turns.
        steps: of a turn.
        answer: where the answers go.
    """
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    import rsna_bcd.train  # noqa: F401  (albumentations is silenced before Hydra imports it)
    from rsna_bcd._stage import CONF
    from rsna_bcd.models.process import keep_freed_memory, quieten_lightning

    quieten_lightning()
    keep_freed_memory()
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", [*overrides, *(_PLAIN if way == PLAIN else ())])
    torch.manual_seed(0)
    classifier = instantiate(cfg.classifier)
    trainer = instantiate(cfg.trainer, max_epochs=1, limit_val_batches=0)
    device = trainer.strategy.root_device
    batch = _batch(cfg, classifier.unit, device)
    facts = {
        "flops": _flops(classifier.network, batch),
        "precision": str(cfg.trainer.precision),
        "images": cfg.batch_size * images_of(cfg, classifier.unit),
    }
    turns = _Turns(device, facts, rounds, steps, answer)
    if way == TRAINER:
        _with_lightning(trainer, classifier, batch, turns)
    else:
        _bare(classifier.network, batch, turns, cfg, device)


class _Turns:
    """Answers with a line of JSON where a turn ends, and waits for a line before the next.

    The first answer says that it is warm.
    """

    def __init__(
        self, device: torch.device, facts: dict[str, Any], rounds: int, steps: int, answer: Any
    ) -> None:
        self.total = _WARM + rounds * steps + 1
        self._cuda = device.type == "cuda"
        self._facts = {
            **facts,
            "device": torch.cuda.get_device_name() if self._cuda else "processor",
        }
        self._rounds, self._steps, self._answer = rounds, steps, answer
        self._start = 0.0

    def begin(self, step: int) -> None:
        """Called as a step begins."""
        done, rest = divmod(step - _WARM, self._steps)
        if step < _WARM or rest:
            return
        if self._cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._start
        peak = torch.cuda.max_memory_allocated() / 1e9 if self._cuda else 0.0
        answer = {"seconds": seconds, "peak_gb": peak, **self._facts}
        print(json.dumps(answer), file=self._answer, flush=True)
        if done == self._rounds:
            os._exit(0)
        sys.stdin.readline()
        self._start = time.perf_counter()


def images_of(cfg: Any, unit: str) -> int:
    """How many images a sample has here."""
    return (4 if cfg.views.other_breast else 2) if unit == "breast" else 1


def _batch(cfg: Any, unit: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Random crops of the experiment's size; of breasts, CC and MLO (of both, if it sees both)."""
    samples = torch.arange(cfg.batch_size)
    places = torch.arange(images_of(cfg, unit)) if unit == "breast" else None
    shape = () if places is None else (len(places),)
    size = (cfg.batch_size, *shape, 1, cfg.crop.height, cfg.crop.width)
    batch = {
        "image": torch.randint(0, 256, size, dtype=torch.uint8),
        "label": samples.remainder(2).float(),
        "index": samples,
        **{f"target_{name}": torch.zeros(cfg.batch_size) for name in cfg.auxiliary},
    }
    if places is not None:
        batch["mask"] = torch.ones(cfg.batch_size, len(places), dtype=torch.bool)
        batch["view"] = places.remainder(2).repeat(cfg.batch_size, 1)
        batch["other"] = (places >= 2).repeat(cfg.batch_size, 1)
    if device.type == "cuda":
        batch = {key: value.pin_memory() for key, value in batch.items()}
    return batch


def _with_lightning(trainer: Any, classifier: Any, batch: Any, turns: _Turns) -> None:
    """Train as `train` does, on the same batch again and again."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader

    class Take(pl.Callback):
        """Takes turns."""

        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            """A step begins."""
            turns.begin(batch_idx)

    class Data(pl.LightningDataModule):
        """The same batch again and again: what loading costs is measured apart."""

        batches_per_epoch = turns.total

        def train_dataloader(self) -> Any:
            """One batch an index."""
            return DataLoader([batch] * turns.total, batch_size=None)  # type: ignore[arg-type]

    trainer.callbacks.append(Take())
    trainer.fit(classifier, datamodule=Data())


def _bare(network: Any, batch: Any, turns: _Turns, cfg: Any, device: torch.device) -> None:
    """Train as one writes it, for the label alone."""
    from hydra.utils import instantiate

    precision = str(cfg.trainer.precision)
    half = torch.bfloat16 if "bf16" in precision else torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=precision.startswith("16"))
    network = network.to(device).train()
    optimizer = instantiate(cfg.rates).optimizer(  # the very same, fused where ours is
        instantiate(cfg.optimizer),
        network,
        batch_size=cfg.batch_size,
        fused=not (scaler.is_enabled() and cfg.trainer.gradient_clip_val),
    )
    scheduler = instantiate(cfg.scheduler)(optimizer, turns.total)
    trained: Any = torch.compile(network) if cfg.compile else network
    for step in range(turns.total):
        turns.begin(step)
        here = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        with torch.autocast(device.type, half, enabled="mixed" in precision):
            logits = outputs_of(trained, here)["logit"]
            loss = functional.binary_cross_entropy_with_logits(logits, here["label"])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if cfg.trainer.gradient_clip_val:
            scaler.unscale_(optimizer)
            clip_grad_norm_(network.parameters(), cfg.trainer.gradient_clip_val)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()


def _flops(network: Any, batch: Any) -> float:
    """Floating-point operations of a step, forward and backward, counted on one image."""
    one = {key: value[:1] for key, value in batch.items()}
    network.eval()  # batch normalisation of a single image is undefined
    with FlopCounterMode(display=False) as counter:
        outputs_of(network, one)["logit"].sum().backward()
    network.zero_grad()
    network.train()
    return float(counter.get_total_flops()) * len(batch["label"])
