"""`python -m rsna_bcd.train`: one fold of one experiment, from crops to out-of-fold predictions."""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from timm.layers import convert_sync_batchnorm
from torch import nn

from rsna_bcd._stage import CONF, record_of, refuse_detours, settle, stage, write_record
from rsna_bcd.data.datamodule import CropDataModule
from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import in_8_bits, read_crop
from rsna_bcd.models.classifier import Classifier, breast_metrics, gather_logits, sigmoid
from rsna_bcd.models.history import Record
from rsna_bcd.models.lineage import check_unseen, is_optimistic, starts_from
from rsna_bcd.models.memory import is_out_of_memory, keep_freed_memory, out_of_memory
from rsna_bcd.models.prediction import TTA
from rsna_bcd.models.ranks import end_with_parent, n_ranks_to_start, run_ranks, started_outside
from rsna_bcd.models.tracking import ID_FILE, finish_wandb, wandb_run
from rsna_bcd.tables.predictions import (
    OOF_COLUMNS,
    OOF_IMAGE_COLUMNS,
    Rule,
    logit,
    to_breasts,
    with_unread,
    write_csv,
)
from rsna_bcd.tables.seen import SEEN_FILE, seen_values, write_seen

# What decides about the result, and is kept in config.yaml; all else only says how to get there.
_RECORDED = (
    "name", "fold", "seed", "epochs", "batch_size", "learning_rate", "negatives_per_positive",
    "positives_per_batch", "checkpoint_path", "breast_rule", "tta", "select", "patience", "ema",
    "mix", "rates", "deep_weight", "penalties", "compile", "crop", "augment", "views", "metadata",
    "auxiliary", "network", "loss", "optimizer", "scheduler",
)  # fmt: skip
# Of the trainer's settings the other way round: a new one is recorded until it is listed here.
_NEUTRAL = {
    "_target_", "_convert_", "accelerator", "devices", "num_nodes", "strategy", "callbacks",
    "logger", "plugins", "profiler", "default_root_dir", "use_distributed_sampler",
    "num_sanity_val_steps", "log_every_n_steps", "enable_checkpointing", "enable_model_summary",
    "enable_progress_bar", "deterministic", "benchmark", "inference_mode", "detect_anomaly",
}  # fmt: skip
# What takes its settings from keys of the root, and must not have others.
_WIRED = ("data", "classifier", "callbacks.average", "callbacks.patience")
_RESULTS = (
    "checkpoints", "metrics.csv", "timings.csv", "oof.csv", "oof_images.csv", "metrics.json",
    SEEN_FILE, ID_FILE,
)  # fmt: skip


def train(cfg: DictConfig) -> None:
    """Train one fold and predict what it held out.

    Writes `config.yaml`, `seen.json` (the machines and views of the training images),
    `checkpoints/`, `metrics.csv`, and at the end `oof.csv`, `oof_images.csv` and `metrics.json`,
    whose presence says that the run is finished.

    Raises:
        InputError: crops, fold, weights or settings are not fit for it; or the folder holds
            another run, or an unfinished one and not `resume`.
    """
    _check(cfg)
    run_dir = Path(cfg.run_dir)
    record = _record(cfg)
    if _finished(run_dir, record, cfg):
        return
    if n_ranks := _n_ranks_to_start(cfg.trainer):
        _train_on_ranks(cfg, n_ranks)
        return
    end_with_parent()
    _quieten_lightning()
    keep_freed_memory()
    pl.seed_everything(cfg.seed, verbose=False)
    classifier: Classifier = instantiate(cfg.classifier)
    _synchronise_norms(classifier, cfg.trainer)
    data: CropDataModule = instantiate(cfg.data, workers=_workers(cfg), unit=classifier.unit)
    data.setup()
    _begin(run_dir, record, data.training_images, overwrite=cfg.overwrite)
    exit_code = 1
    try:
        trainer: pl.Trainer = instantiate(cfg.trainer, sync_batchnorm=False)
        trainer.callbacks.insert(0, Record(record))  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            logger.log_hyperparams(record_of(cfg, *map(str, cfg)))
        _fit(trainer, classifier, data, cfg)
        oof = _predict_held_out(trainer, classifier, data, cfg) if len(data.expected) else None
        scores = {} if oof is None else _scores(oof)
        _finish(run_dir, {**_facts(data, trainer, record), **scores})
        if oof is not None and wandb_run() is not None:  # last: the run is finished without it
            _show_in_wandb(oof, data, scores, Path(cfg.prepared_dir))
        exit_code = 0
    except InputError as error:  # from a worker process, it comes wrapped in a traceback
        raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from error
    finally:  # else the next job of a sweep goes on logging into this one's run
        finish_wandb(exit_code)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _check(cfg: DictConfig) -> None:
    """Check the settings and that the crops are there, made as they are asked for."""
    choices = {"select": ("last", "best"), "tta": get_args(TTA), "breast_rule": get_args(Rule)}
    for key, known in choices.items():
        if cfg[key] not in known:
            raise InputError(f"{key}={cfg[key]}: choose {' or '.join(known)}.")
    if cfg.fold != "all" and not isinstance(cfg.fold, int):
        raise InputError(f"fold={cfg.fold}: give a number from 0 on, or all.")
    if started_outside() and _is_sweep_in_this_process():
        raise InputError(
            "torchrun and srun start the processes of one job: in a sweep (-m) they would part at "
            "the first failure. Start each job by itself, or the sweep as a single process: "
            "trainer=ddp starts the processes of each job, and hydra/launcher=slurm the jobs."
        )
    if cfg.fold == "all" and (cfg.select == "best" or cfg.patience is not None):
        raise InputError("fold=all holds out nothing, which select=best and patience= need.")
    refuse_detours(cfg, "train", _WIRED)
    # `dataset.name=` alone is for data in the competition's layout; others have a file of theirs.
    is_known = (Path(CONF) / "dataset" / f"{cfg.dataset.name}.yaml").is_file()
    command = (
        f"python -m rsna_bcd.prepare {'dataset' if is_known else 'dataset.name'}="
        f"{cfg.dataset.name} crop={cfg.crop.name} "
        f"paths.data={cfg.paths.data} paths.output={cfg.paths.output}"
    )
    folder = Path(cfg.prepared_dir)
    for file in (folder / "config.yaml", folder / "train.csv", Path(cfg.folds_csv)):
        if not file.is_file():
            raise InputError(f"There is no {file}. Make the crops first:\n  {command}")
    made = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    wanted = record_of(cfg, "crop")["crop"]
    assert isinstance(made, dict)
    if made["crop"] != wanted:
        raise InputError(
            f"The crops in {folder} were made with crop={made['crop']}, but crop={wanted} is "
            f"asked for. Give yours a name (crop.name=...), or make them anew:\n"
            f"  {command} overwrite=true"
        )


def _is_sweep_in_this_process() -> bool:
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return "submitit" not in HydraConfig.get().launcher["_target_"]


def _n_ranks_to_start(trainer: DictConfig) -> int:
    devices = trainer.devices
    if not OmegaConf.is_list(devices) and not isinstance(devices, int):
        raise InputError(
            f"trainer.devices={devices}: give a number, -1 for every GPU, or a list ([0,2])."
        )
    return n_ranks_to_start(
        strategy=trainer.get("strategy", "auto"),
        devices=len(devices) if OmegaConf.is_list(devices) else devices,
        nodes=trainer.get("num_nodes", 1),
        gpus=0 if trainer.accelerator == "cpu" else torch.cuda.device_count(),
    )


def _train_on_ranks(cfg: DictConfig, n_ranks: int) -> None:
    """Run this job in several processes: by its own settings, whatever sweep it belongs to."""
    if cfg.batch_size % n_ranks:
        raise InputError(
            f"batch_size={cfg.batch_size} is over all ranks and must be a multiple of their "
            f"number, {n_ranks}."
        )
    with tempfile.TemporaryDirectory() as folder:
        OmegaConf.save(cfg, Path(folder) / "job.yaml")
        run_dir = str(cfg.run_dir).replace("\\", "\\\\").replace("'", "\\'")
        command = [
            *(sys.executable, "-m", "rsna_bcd.train"),
            *(f"--config-path={folder}", "--config-name=job"),
            *(f"hydra.run.dir='{run_dir}'", "hydra.output_subdir=null", "hydra.mode=RUN"),
            *("hydra/job_logging=none", "hydra/hydra_logging=none"),
        ]
        run_ranks(command, n_ranks)


def _synchronise_norms(classifier: Classifier, trainer: DictConfig) -> None:
    """Take the statistics of BatchNorm over all ranks, if asked.

    By timm's converter: Lightning's own is torch's, which knows nothing of the activations that
    timm's norms contain, and drops them.
    """
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in classifier.modules())
    if not norms or not trainer.get("sync_batchnorm", False):
        return
    if trainer.accelerator == "cpu":  # torch would say so in the first batch
        raise InputError("Processors have no SyncBatchNorm: trainer.sync_batchnorm=false.")
    classifier.network = convert_sync_batchnorm(classifier.network)


def _record(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide about the result, resolved."""
    prepared = OmegaConf.load(Path(cfg.prepared_dir) / "config.yaml")
    trainer = record_of(cfg.trainer, *sorted(set(map(str, cfg.trainer)) - _NEUTRAL))
    record = {
        **record_of(cfg, *_RECORDED),
        "dataset": {"name": cfg.dataset.name},
        # By content: under other folds, a resumed run would be scored on patients it has seen.
        "folds": {"strategy": cfg.folds.strategy, "sha256": _sha256(Path(cfg.folds_csv))},
        "source": prepared.source,
        "trainer": trainer,
    }
    own = Path(cfg.run_dir) / "config.yaml"
    if not own.is_file() or "micro_batch" in OmegaConf.load(own):  # older records lack it
        ranks = started_outside() or _n_ranks_to_start(cfg.trainer) or 1
        record["micro_batch"] = cfg.batch_size // ranks  # what BatchNorm and mix see
    start = record["network"].get("checkpoint_path")  # the one that is loaded
    if start is not None and (runs := _starts_from(Path(start), Path(cfg.run_dir))):
        record["starts_from"] = runs
    check_unseen(record)
    return record


def _starts_from(file: Path, run_dir: Path) -> list[dict[str, Any]]:
    """The runs that a file comes from; where it is gone, as this run noted them when it began."""
    own = run_dir / "config.yaml"
    if file.is_file() or not own.is_file():
        return starts_from(file)
    noted: Any = OmegaConf.to_container(OmegaConf.load(own))
    same = noted["network"].get("checkpoint_path") == str(file)
    return noted.get("starts_from", []) if same else []


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _finished(run_dir: Path, record: dict[str, Any], cfg: DictConfig) -> bool:
    """Whether there is nothing to do, for the folder holds this run, finished.

    All ranks come to the same answer: what the first one writes before the others have looked
    changes nothing about it.
    """
    if cfg.overwrite:
        return False
    settle(run_dir / "config.yaml", record, overwrite=False)
    if (run_dir / "metrics.json").exists():
        rank_zero_only(print)(f"{run_dir} is finished already; overwrite=true trains it afresh.")
        return True
    if (run_dir / "checkpoints" / "last.ckpt").exists() and not cfg.resume:
        raise InputError(
            f"{run_dir} holds an unfinished run. Go on with resume=true, or start afresh with "
            "overwrite=true."
        )
    return False


def _workers(cfg: DictConfig) -> int:
    return min(8, len(os.sched_getaffinity(0))) if cfg.workers is None else cfg.workers


def _quieten_lightning() -> None:
    """Silence Lightning's remarks on what was decided here on purpose."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for remark in (
        "Checkpoint directory .* exists and is not empty",  # a resumed run
        ".isinstance.treespec, LeafSpec.. is deprecated",  # torch's, about Lightning
        "The number of training batches .* is smaller than the logging interval",
        "You defined a `validation_step` but have no `val_dataloader`",  # fold=all
        "Total length of .* across ranks is zero",
        "The .* does not have many workers",
        "Found .* module.s. in eval mode",
        "It is recommended to use `self.log",  # every rank has gathered the same metrics
    ):
        warnings.filterwarnings("ignore", message=f".*{remark}")


@rank_zero_only
def _begin(run_dir: Path, record: dict[str, Any], images: pd.DataFrame, *, overwrite: bool) -> None:
    """Clear the folder if asked, and write the record: all guards have passed."""
    # hpc_ckpt_*: what Lightning saves when SLURM asks for the machine, and would resume from.
    found = [run_dir / name for name in _RESULTS] + list(run_dir.glob("hpc_ckpt_*"))
    for path in found if overwrite else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_record(run_dir / "config.yaml", record)
    write_seen(seen_values(images), run_dir / SEEN_FILE)


def _fit(
    trainer: pl.Trainer, classifier: Classifier, data: CropDataModule, cfg: DictConfig
) -> None:
    """Train; where a batch does not fit into memory, say which would."""
    last = Path(cfg.run_dir) / "checkpoints" / "last.ckpt"
    # What another rank is about to delete must not be seen by this one.
    checkpoint = last if cfg.resume and not cfg.overwrite and last.exists() else None
    try:
        trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise  # else measured below: here the exception still holds what the step took
    raise out_of_memory(classifier, trainer, data.train_dataloader(), cfg.batch_size)


def _predict_held_out(
    trainer: pl.Trainer, classifier: Classifier, data: CropDataModule, cfg: DictConfig
) -> pd.DataFrame:
    """Write the out-of-fold tables and return that of the breasts.

    Predicted with the weights in the file, as the test set will be: the module's own are others
    where nothing was left to train (a run killed just now) and the average is kept.
    """
    file = Path(cfg.run_dir) / "checkpoints" / f"{cfg.select}.ckpt"
    weights = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    classifier.load_state_dict(weights)
    loader = data.val_dataloader()
    predicted: Any = trainer.predict(classifier, loader) if loader else []
    probability = sigmoid(gather_logits(predicted, len(data.held_out)))
    samples = data.held_out.assign(probability=probability, logit=logit(pd.Series(probability)))
    breasts = samples.assign(unread=0)
    if classifier.unit == "image":
        breasts = to_breasts(samples, cfg.breast_rule)
        images = samples[list(OOF_IMAGE_COLUMNS)]
        rank_zero_only(write_csv)(images, Path(cfg.run_dir) / "oof_images.csv")
    oof = with_unread(breasts[list(OOF_COLUMNS)], data.expected, data.prior)
    rank_zero_only(write_csv)(oof, Path(cfg.run_dir) / "oof.csv")
    return oof


def _scores(oof: pd.DataFrame) -> dict[str, Any]:
    return {**breast_metrics(oof), "unread_breasts": int(oof["unread"].sum())}


def _show_in_wandb(
    oof: pd.DataFrame, data: CropDataModule, scores: dict[str, Any], folder: Path
) -> None:
    """Curves, and the hardest breasts with their pictures."""
    from rsna_bcd.reporting.wandb_results import log_results  # deferred: needs W&B

    images = data.held_out_images
    log_results(wandb_run(), oof, images, lambda path: in_8_bits(read_crop(folder / path)), scores)


def _facts(data: CropDataModule, trainer: pl.Trainer, record: dict[str, Any]) -> dict[str, Any]:
    """What the scores were measured on, and how."""
    breasts = data.expected.drop_duplicates("prediction_id")
    progress: Any = trainer.fit_loop.epoch_progress.current
    return {
        "name": record["name"],
        "fold": record["fold"],
        "epochs": progress.processed,
        "steps": trainer.global_step,
        "select": record["select"],
        "optimistic": is_optimistic(record),
        "training_images": len(data.training_images),
        "held_out_images": len(data.held_out_images),
        "held_out_breasts": len(breasts),
        "held_out_positives": int(breasts["label"].sum()),
        "prior": data.prior,
    }


@rank_zero_only
def _finish(run_dir: Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json` (undefined scores as null) and show it."""
    plain = {k: None if v != v else v for k, v in metrics.items()}  # NaN is no JSON
    unfinished = run_dir / "metrics.json.part"
    unfinished.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(run_dir / "metrics.json")
    optimistic = " (optimistic: an epoch chosen on it)" if metrics["optimistic"] else ""
    title = f"{metrics['name']}, fold {metrics['fold']}{optimistic}"
    table = Table("", "", title=title, show_header=False)
    for name, value in plain.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    console = Console()
    console.print(table)
    console.print(run_dir / "metrics.json", highlight=False, soft_wrap=True)


@stage("train", go_on="Finished epochs are kept: resume=true goes on.")
def main(cfg: DictConfig) -> None:
    """Run the stage."""
    train(cfg)


if __name__ == "__main__":
    main()
