"""`python -m rsna_bcd.train`: one fold of one experiment, from crops to out-of-fold predictions."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from rsna_bcd._records import check_same_config, select_settings, write_record
from rsna_bcd.data.datamodule import CropDataModule, shared_memory_failure
from rsna_bcd.errors import InputError
from rsna_bcd.files import atomic_file, file_sha256, locked, write_csv
from rsna_bcd.imaging.crops import in_8_bits, read_crop
from rsna_bcd.models.callbacks import ConfigInCheckpoint, Ending, FiniteGuard, find_ending
from rsna_bcd.models.checkpoint import check_unseen, is_optimistic, read_intact, starts_from
from rsna_bcd.models.classifier import Classifier, breast_metrics, gather_logits, sigmoid
from rsna_bcd.models.launch import (
    another_has_lock,
    end_with_parent,
    keep_freed_memory,
    n_ranks_to_start,
    quieten_lightning,
    run_ranks,
    started_outside,
    synchronise_norms,
)
from rsna_bcd.models.memory import is_out_of_memory, out_of_memory
from rsna_bcd.models.prediction import check_network, network_unit
from rsna_bcd.models.tracking import ID_FILE, finish_wandb, wandb_run
from rsna_bcd.reporting.figures import learning_curves
from rsna_bcd.scoring.metrics import logit
from rsna_bcd.stages._training_checks import check_training
from rsna_bcd.tables.metadata import TRAINING_DOMAIN_FILE, training_domain, write_training_domain
from rsna_bcd.tables.predictions import OOF_COLUMNS, OOF_IMAGE_COLUMNS, to_breasts, with_unreadable

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
    "max_steps", "max_time",  # a run that they cut is not finished
}  # fmt: skip
_RESULTS = (
    "checkpoints", "metrics.csv", "timings.csv", "curves.png", "oof.csv", "oof_images.csv",
    "metrics.json", TRAINING_DOMAIN_FILE, ID_FILE,
)  # fmt: skip


def train(cfg: DictConfig) -> None:
    """Train one fold and predict what it held out.

    Writes `config.yaml`, `seen.json` (the machines and views of the training images),
    `checkpoints/`, `metrics.csv`, and at the end `oof.csv`, `oof_images.csv` and `metrics.json`,
    whose presence says that the run is finished.

    Raises:
        InputError: crops, fold, weights or settings are not fit for it; the folder holds another
            run, or an unfinished one and not `resume`; a loss or weight is not finite; or a limit
            of the trainer ended training before its last epoch.
    """
    check_training(cfg)
    if cfg.trainer.get("fast_dev_run"):
        with tempfile.TemporaryDirectory() as folder:
            cfg.run_dir = folder
            _try_out(cfg)
    elif another_has_lock():
        _train(cfg)
    else:
        with locked(Path(cfg.run_dir), "choose another name="):
            _train(cfg)


def _train(cfg: DictConfig) -> None:
    run_dir = Path(cfg.run_dir)
    record = _record(cfg)
    if _finished(run_dir, record, cfg):
        return
    if n_ranks := _n_ranks_to_start(cfg.trainer):
        _train_on_ranks(cfg, n_ranks)
        return
    classifier, data = _network_and_data(cfg)
    checkpoint = _checkpoint_to_resume(run_dir, cfg)
    same = check_same_config(run_dir / "config.yaml", record, overwrite=True, root="train", cfg=cfg)
    _begin(run_dir, record, data.training_images, overwrite=cfg.overwrite or not same)
    exit_code = 1
    try:
        trainer: pl.Trainer = instantiate(cfg.trainer, sync_batchnorm=False)
        trainer.callbacks[:0] = [ConfigInCheckpoint(record), FiniteGuard()]  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            logger.log_hyperparams(select_settings(cfg, *map(str, cfg)))
        _fit(trainer, classifier, data, cfg, checkpoint)
        end = find_ending(trainer)
        _draw_curves(run_dir)
        if not end.is_finished:
            raise InputError(f"{run_dir}: {end.reason}")
        oof = _predict_held_out(trainer, classifier, data, cfg) if len(data.expected) else None
        scores: dict[str, Any] = {}
        if oof is not None:
            scores = {**breast_metrics(oof), "unread_breasts": int(oof["unread"].sum())}
        _finish(run_dir, {**_facts(data, trainer, record), **scores}, end)
        if oof is not None and wandb_run() is not None:  # last: the run is finished without it
            _show_in_wandb(oof, data, scores, Path(cfg.prepared_dir))
        exit_code = 0
    except InputError as error:  # from a worker process, it comes wrapped in a traceback
        raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from error
    except RuntimeError as error:
        if remedy := shared_memory_failure(error):
            raise InputError(f"{remedy} Finished epochs are kept.") from error
        raise
    finally:  # else the next job of a sweep goes on logging into this one's run
        finish_wandb(exit_code)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _network_and_data(cfg: DictConfig) -> tuple[Classifier, CropDataModule]:
    """Prepare this process for training."""
    end_with_parent()
    quieten_lightning()
    keep_freed_memory()
    pl.seed_everything(cfg.seed, verbose=False)
    classifier: Classifier = instantiate(cfg.classifier)
    if cfg.trainer.get("sync_batchnorm", False):
        on_processor = cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available()
        classifier.network = synchronise_norms(classifier.network, on_processor=on_processor)
    data: CropDataModule = instantiate(cfg.data, workers=_workers(cfg), unit=classifier.unit)
    data.setup()
    check_network(classifier.network, data.sample_batch())
    held_out = data.held_out["label"]
    if (cfg.select == "best" or cfg.patience is not None) and held_out.nunique() < 2:
        what = "cancer" if held_out.sum() == 0 else "breast without cancer"
        raise InputError(
            f"fold={cfg.fold} holds out no {what} that can be read, so that no epoch has an AUROC: "
            "select=last and patience=null, or other folds."
        )
    return classifier, data


def _try_out(cfg: DictConfig) -> None:
    """Train and validate on a few batches, as `trainer.fast_dev_run` says, and keep nothing."""
    if n_ranks := _n_ranks_to_start(cfg.trainer):
        _train_on_ranks(cfg, n_ranks)
        return
    classifier, data = _network_and_data(cfg)
    trainer: pl.Trainer = instantiate(cfg.trainer, sync_batchnorm=False)
    trainer.fit(classifier, datamodule=data)
    rank_zero_only(print)(
        f"Tried out: batches of training and validation, {int(cfg.trainer.fast_dev_run)} of each at"
        " most. Nothing was kept."
    )


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


def _record(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide about the result, resolved."""
    prepared = OmegaConf.load(Path(cfg.prepared_dir) / "config.yaml")
    trainer = select_settings(cfg.trainer, *sorted(set(map(str, cfg.trainer)) - _NEUTRAL))
    record = {
        **select_settings(cfg, *_RECORDED),
        "dataset": {"name": cfg.dataset.name},
        # By content: under other folds, a resumed run would be scored on patients it has seen.
        "folds": {"strategy": cfg.folds.strategy, "sha256": file_sha256(Path(cfg.folds_csv))},
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


def _finished(run_dir: Path, record: dict[str, Any], cfg: DictConfig) -> bool:
    """Whether there is nothing to do, for the folder holds this run, finished.

    All ranks come to the same answer: what the first one writes before the others have looked
    changes nothing about it.
    """
    if cfg.overwrite:
        return False
    has_last = (run_dir / "checkpoints" / "last.ckpt").exists()
    is_finished = (run_dir / "metrics.json").exists()
    if not (has_last or is_finished or list(run_dir.glob("hpc_ckpt_*"))):
        return False  # of a command that failed before its first epoch: nothing to lose
    check_same_config(run_dir / "config.yaml", record, overwrite=False, root="train", cfg=cfg)
    if is_finished:
        lost = [name for name in _tables(cfg) if not (run_dir / name).exists()]
        state = f"has lost {' and '.join(lost)}" if lost else "is finished already"
        if lost and not has_last:
            raise InputError(f"{run_dir} {state}, and checkpoints/last.ckpt: overwrite=true.")
        remedy = ": it is predicted again." if lost else "; overwrite=true trains it afresh."
        rank_zero_only(print)(f"{run_dir} {state}{remedy}")
        return not lost
    if has_last and not cfg.resume:
        raise InputError(
            f"{run_dir} holds an unfinished run. Leave resume=false out to resume it, or "
            "train again from the first epoch with overwrite=true."
        )
    return False


def _tables(cfg: DictConfig) -> tuple[str, ...]:
    """The out-of-fold tables that a finished run has."""
    if cfg.fold == "all":
        return ()
    kind = get_object(cfg.network._target_)
    by_image = isinstance(kind, type) and network_unit(kind) == "image"
    return ("oof.csv", "oof_images.csv") if by_image else ("oof.csv",)


def _checkpoint_to_resume(run_dir: Path, cfg: DictConfig) -> Path | None:
    """The last epoch's checkpoint, intact; None to begin with the first epoch."""
    last = run_dir / "checkpoints" / "last.ckpt"
    is_wanted = cfg.resume or (run_dir / "metrics.json").exists()  # finished: a table was lost
    if not is_wanted or cfg.overwrite or not last.exists():
        return None
    read_intact(last)
    return last


def _workers(cfg: DictConfig) -> int:
    return min(8, len(os.sched_getaffinity(0))) if cfg.workers is None else cfg.workers


@rank_zero_only
def _begin(run_dir: Path, record: dict[str, Any], images: pd.DataFrame, *, overwrite: bool) -> None:
    """Clear the folder if asked, and write the record: all guards have passed."""
    found = [run_dir / name for name in _RESULTS]
    found += run_dir.glob("hpc_ckpt_*")  # saved by Lightning for SLURM, and resumed from
    for path in found if overwrite else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_record(run_dir / "config.yaml", record)
    write_training_domain(training_domain(images), run_dir / TRAINING_DOMAIN_FILE)


def _fit(
    trainer: pl.Trainer,
    classifier: Classifier,
    data: CropDataModule,
    cfg: DictConfig,
    checkpoint: Path | None,
) -> None:
    """Train; where a batch does not fit into memory, say which would."""
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
    classifier.load_state_dict(read_intact(file)["state_dict"])
    loader = data.val_dataloader()
    predicted: Any = trainer.predict(classifier, loader) if loader else []
    probability = sigmoid(gather_logits(predicted, len(data.held_out)))
    samples = data.held_out.assign(probability=probability, logit=logit(pd.Series(probability)))
    breasts = samples.assign(unread=0)
    if classifier.unit == "image":
        breasts = to_breasts(samples, cfg.breast_rule)
        images = samples[list(OOF_IMAGE_COLUMNS)]
        rank_zero_only(write_csv)(images, Path(cfg.run_dir) / "oof_images.csv")
    oof = with_unreadable(breasts[list(OOF_COLUMNS)], data.expected, data.prevalence)
    rank_zero_only(write_csv)(oof, Path(cfg.run_dir) / "oof.csv")
    return oof


def _show_in_wandb(
    oof: pd.DataFrame, data: CropDataModule, scores: dict[str, Any], folder: Path
) -> None:
    """Curves, and the hardest breasts with their pictures."""
    from rsna_bcd.reporting.wandb import log_results  # deferred: needs W&B

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
        "prior": data.prevalence,
    }


@rank_zero_only
def _draw_curves(run_dir: Path) -> None:
    """Draw the learning curves of a run that has finished epochs."""
    if (run_dir / "metrics.csv").is_file():
        picture = learning_curves({run_dir.name: pd.read_csv(run_dir / "metrics.csv")})
        with atomic_file(run_dir / "curves.png", sync=True) as file:
            picture.savefig(file, format="png")


@rank_zero_only
def _finish(run_dir: Path, metrics: dict[str, Any], end: Ending) -> None:
    """Write `metrics.json` (undefined scores as null), show it, and say why training ended."""
    plain = {k: None if v != v else v for k, v in metrics.items()}  # NaN is no JSON
    text = json.dumps(plain, indent=2, allow_nan=False) + "\n"
    with atomic_file(run_dir / "metrics.json", "w", sync=True, encoding="utf-8") as file:
        file.write(text)
    optimistic = " (optimistic: an epoch chosen on it)" if metrics["optimistic"] else ""
    title = f"{metrics['name']}, fold {metrics['fold']}{optimistic}"
    table = Table("", "", title=title, show_header=False)
    for name, value in plain.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    console = Console(markup=False)
    console.print(table)
    console.print(run_dir / "metrics.json", highlight=False, soft_wrap=True)
    console.print(end.reason, highlight=False, soft_wrap=True)
