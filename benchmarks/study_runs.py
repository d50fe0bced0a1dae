"""Train a run of a study, and predict the rows that other variants derive from it."""

import gc
import json
import shutil
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig
from study_config import Place, Run, Study, Variant, compose_run, definition, run_name, set_values

from rsna_bcd.errors import InputError
from rsna_bcd.files import file_sha256, write_csv, write_file

RECORD = "study.json"  # in the folder of a run, or beside predictions: the request, and seconds


@dataclass(frozen=True)
class Task:
    """A run, with all that a process must know to do it.

    Attributes:
        run: the run.
        study: which it belongs to.
        place: where and how it is trained.
    """

    run: Run
    study: Study
    place: Place

    @property
    def folder(self) -> Path:
        """The folder of the run, as `rsna_bcd.train` has it."""
        return run_folder(self.place.output, self.run.name, self.run.fold)

    def predicted_csv(self, variant: Variant) -> Path:
        """The out-of-fold table of a variant that is predicted with the run."""
        folder = self.place.output / "predicted" / run_name(variant.name, self.run.seed)
        return folder / f"fold{self.run.fold}.csv"


def run_folder(output: Path, name: str, fold: int) -> Path:
    """The folder of a run."""
    return output / "runs" / name / f"fold{fold}"


def is_trained(task: Task) -> bool:
    """Whether a run is finished, by the overrides that the study has now.

    Raises:
        InputError: it was trained with others, or from other weights.
    """
    folder, record = task.folder, task.folder / RECORD
    if not (folder / "metrics.json").is_file() or not record.is_file():
        return False
    found = json.loads(record.read_text())
    changed = sorted({*found["overrides"]} ^ {*task.run.overrides})
    weights = {found.get("weights"), _weights_sha256(task)} - {None}  # None: no file, or not known
    if len(weights) > 1:
        changed.append("other weights")
    if changed:
        raise InputError(
            f"{folder} was trained with other settings ({', '.join(changed)}). Choose another "
            f"name for the variant {task.run.variant}, another output=, or delete the folder."
        )
    return True


def is_predicted(task: Task, variant: Variant) -> bool:
    """Whether the predictions of a variant are there, made as the study has it now."""
    csv = task.predicted_csv(variant)
    record = csv.with_suffix(".json")
    if not csv.is_file() or not record.is_file():
        return False
    is_newer = csv.stat().st_mtime_ns >= (task.folder / "oof.csv").stat().st_mtime_ns
    same = set_values(json.loads(record.read_text())["variant"]) == definition(variant)
    return is_newer and same


def is_done(task: Task) -> bool:
    """Whether nothing of a task is left to do."""
    return is_trained(task) and all(is_predicted(task, v) for v in task.run.predicted)


def do_run(task: Task) -> float:
    """Train an unfinished run, and make missing predictions; return the seconds.

    Its teachers are trained first; the seconds in its record are those of all of them.
    """
    from rsna_bcd.stages.train import train  # heavy: imported once per process

    begin = time.monotonic()
    run, folder = task.run, task.folder
    cfg = compose_run(run, task.study, task.place)
    if not is_trained(task):
        before = 0.0
        for teacher in (replace(task, run=teacher) for teacher in run.teachers):
            do_run(teacher)
            before += json.loads((teacher.folder / RECORD).read_text())["seconds"] or 0.0
        started = time.monotonic()
        is_new = not (folder / "metrics.json").is_file()
        if (folder / "checkpoints" / "last.ckpt").is_file():  # epochs of an earlier start
            before += pd.read_csv(folder / "timings.csv")["seconds"].sum()
        train(cfg)  # returns at once, after a look at the settings, if the command has finished it
        seconds = before + time.monotonic() - started if is_new else None
        record = {"overrides": list(run.overrides), "weights": _weights_sha256(task)}
        _write(folder / RECORD, record, seconds)
    for variant in run.predicted:
        if not is_predicted(task, variant):
            started = time.monotonic()
            csv = task.predicted_csv(variant)
            _predict(cfg, variant, folder, csv)
            content = {"variant": definition(variant)}
            _write(csv.with_suffix(".json"), content, time.monotonic() - started)
    if not task.study.keep_checkpoints and not run.predicted:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    gc.collect()  # a trainer refers to itself: its memory on the device is free only now
    return time.monotonic() - begin


def _write(file: Path, content: dict[str, Any], seconds: float | None) -> None:
    rounded = None if seconds is None else round(seconds, 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, json.dumps({**content, "seconds": rounded}).encode() + b"\n")


def _weights_sha256(task: Task) -> str | None:
    """SHA-256 of the file of weights that a run starts from; None: there is none, or none left."""
    for override in task.run.overrides:
        if "{weights}" in override and task.place.weights is not None:
            file = task.place.weights / override.partition("{weights}")[2].strip("/'\"")
            return _sha256(file) if file.is_file() else None
    return None


_sha256 = cache(file_sha256)


def _predict(cfg: DictConfig, variant: Variant, folder: Path, csv: Path) -> None:
    """Write the out-of-fold table of a variant that starts from a trained run."""
    import torch
    from hydra.utils import instantiate

    from rsna_bcd.inference.run import load_run

    device = _device(cfg)
    run = load_run(folder, torch.device(device))
    data = instantiate(cfg.data, workers=cfg.workers, level=run.level)
    data.setup()
    if variant.flips:
        probability = _flipped(run.network, data, variant, device)
        _write_oof(cfg, data, data.held_out, run.level, probability, csv)
        return
    if run.level != "image" or run.network.inputs:
        raise InputError(f"{variant.name} starts from {variant.of}, which must see images alone.")
    from study_heads import attention_head, extract_features

    features = extract_features(run.network, data, folder, Path(cfg.prepared_dir), device)
    probability = attention_head(features, data, other_breast=variant.other_breast, seed=cfg.seed)
    breasts = data.held_out_images.drop_duplicates("prediction_id")
    _write_oof(cfg, data, breasts, "breast", probability, csv)


def _device(cfg: DictConfig) -> str:
    """The device that the run was trained on."""
    if cfg.trainer.accelerator == "cpu":
        return "cpu"
    devices = cfg.trainer.devices
    return "cuda" if isinstance(devices, int) else f"cuda:{devices[0]}"


def _flipped(network: Any, data: Any, variant: Variant, device: str) -> NDArray[np.float64]:
    """Probabilities of the held-out samples: logits of an image and its flips, averaged."""
    from rsna_bcd.models.prediction import predict_logits

    probabilities = []
    for batch in data.val_dataloader():
        there = {name: tensor.to(device) for name, tensor in batch.items()}
        logits = predict_logits(network, there, variant.flips)
        probabilities.append(logits.double().sigmoid().cpu().numpy())
    return np.concatenate(probabilities)


def _write_oof(
    cfg: DictConfig,
    data: Any,
    samples: pd.DataFrame,
    level: str,
    probability: NDArray[np.float64],
    csv: Path,
) -> None:
    """Write probabilities of held-out images or breasts as the `oof.csv` of a run."""
    from rsna_bcd.scoring.metrics import logit
    from rsna_bcd.tables.predictions import OOF_COLUMNS, to_breasts, with_unreadable

    logits = logit(probability)
    samples = samples.assign(probability=probability, logit=logits)
    breasts = to_breasts(samples, cfg.breast_rule) if level == "image" else samples.assign(unread=0)
    write_csv(with_unreadable(breasts[list(OOF_COLUMNS)], data.expected, data.prevalence), csv)
