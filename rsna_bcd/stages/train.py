"""`python -m rsna_bcd.train`: one fold of one experiment, from crops to out-of-fold predictions."""

import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from rsna_bcd._records import check_same_config, select_settings, write_record
from rsna_bcd.data.datamodule import CropDataModule, shared_memory_failure, split_batch
from rsna_bcd.errors import InputError
from rsna_bcd.files import locked
from rsna_bcd.models.callbacks import ConfigInCheckpoint, FiniteGuard, find_ending
from rsna_bcd.models.checkpoint import read_checkpoint
from rsna_bcd.models.classifier import Classifier, breast_metrics
from rsna_bcd.models.launch import (
    another_has_lock,
    end_with_parent,
    quieten_lightning,
    run_ranks,
    synchronise_norms,
)
from rsna_bcd.models.memory import is_out_of_memory, out_of_memory
from rsna_bcd.models.prediction import check_network
from rsna_bcd.models.tracking import ID_FILE, finish_wandb, wandb_run
from rsna_bcd.processes import keep_freed_memory, usable_cores
from rsna_bcd.stages._earlier_results import (
    DeleteEarlier,
    put_aside,
    restore,
    wait_until_restored,
)
from rsna_bcd.stages._training_checks import (
    check_training,
    is_finished,
    make_record,
    n_ranks_for,
    refusals,
    soft_targets,
)
from rsna_bcd.stages._training_results import (
    describe_run,
    draw_curves,
    finish,
    predict_held_out,
    show_in_wandb,
)
from rsna_bcd.tables.metadata import TRAINING_DOMAIN_FILE, training_domain, write_training_domain

_RESULTS = (
    "checkpoints", "metrics.csv", "timings.csv", "curves.png", "oof.csv", "oof_images.csv",
    "metrics.json", TRAINING_DOMAIN_FILE, ID_FILE,
)  # fmt: skip


def train(cfg: DictConfig) -> None:
    """Train one fold and predict its held-out images.

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
        run_dir = Path(cfg.run_dir)
        with tempfile.TemporaryDirectory() as folder:
            cfg.run_dir = folder
            make_record(cfg)  # refuses weights and teachers that have seen held-out patients
            _try_out(cfg)
        _remove_log(run_dir)
    elif another_has_lock():
        _train(cfg)
    else:
        with locked(Path(cfg.run_dir), "choose another name="):
            _train(cfg)


def _train(cfg: DictConfig) -> None:
    run_dir = Path(cfg.run_dir)
    restore(run_dir, _RESULTS)  # a start was killed before its first step
    if another_has_lock() and not cfg.overwrite:  # else the first rank puts results aside
        wait_until_restored(run_dir)
    record = make_record(cfg)
    if is_finished(run_dir, record, cfg):
        return
    if n_ranks := n_ranks_for(cfg.trainer):
        try:
            _train_on_ranks(cfg, n_ranks)
        finally:  # ranks that were killed have not
            restore(run_dir, _RESULTS)
        return
    classifier, data = _make_classifier_and_data(cfg)
    checkpoint = _checkpoint_to_resume(run_dir, cfg)
    guards = ConfigInCheckpoint(record), FiniteGuard(), DeleteEarlier(run_dir)
    trainer = _make_trainer(cfg, *guards)
    _check_optimizer(classifier, trainer)
    same = check_same_config(run_dir / "config.yaml", record, overwrite=True, root="train", cfg=cfg)
    exit_code = 1
    try:
        _begin(run_dir, record, data.training_images, overwrite=cfg.overwrite or not same)
        # After the folder was cleared: a logger of W&B resumes the run whose id is there.
        if OmegaConf.is_list(loggers := cfg.trainer.get("logger")):
            trainer.loggers = [instantiate(one, _convert_="all") for one in loggers]
        for logger in trainer.loggers:
            logger.log_hyperparams(select_settings(cfg, *map(str, cfg)))
        _fit(trainer, classifier, data, cfg, checkpoint)
        end = find_ending(trainer)
        draw_curves(run_dir)
        if not end.is_finished:
            raise InputError(f"{run_dir}: {end.reason}")
        oof = predict_held_out(trainer, classifier, data, cfg) if len(data.expected) else None
        scores: dict[str, Any] = {}
        if oof is not None:
            scores = {**breast_metrics(oof), "unread_breasts": int(oof["unread"].sum())}
        finish(run_dir, {**describe_run(data, trainer, record), **scores}, end)
        if oof is not None and wandb_run() is not None:  # last: the run is finished without it
            show_in_wandb(oof, data, scores, Path(cfg.prepared_dir))
        exit_code = 0
    except InputError as error:  # from a worker process, it comes wrapped in a traceback
        raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from error
    except RuntimeError as error:
        if remedy := shared_memory_failure(error):
            raise InputError(f"{remedy} Finished epochs are kept.") from error
        raise
    finally:  # else the next job of a sweep would log into the W&B run of this one
        finish_wandb(exit_code)
        restore(run_dir, _RESULTS)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _train_on_ranks(cfg: DictConfig, n_ranks: int) -> None:
    """Run this job in several processes, by its own settings, outside of its sweep."""
    split_batch(cfg.batch_size, n_ranks)  # both refuse before processes start
    quieten_lightning()
    _make_trainer(cfg)
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


def _make_classifier_and_data(cfg: DictConfig) -> tuple[Classifier, CropDataModule]:
    """Prepare this process for training, and make the module and the data of a run."""
    end_with_parent()
    quieten_lightning()
    keep_freed_memory()
    pl.seed_everything(cfg.seed, verbose=False)
    classifier: Classifier = instantiate(cfg.classifier)
    if cfg.trainer.get("sync_batchnorm", False):
        on_cpu = cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available()
        classifier.network = synchronise_norms(classifier.network, on_cpu=on_cpu)
    workers = min(8, usable_cores()) if cfg.workers is None else cfg.workers
    level = classifier.level
    data: CropDataModule = instantiate(
        cfg.data, workers=workers, level=level, soft_targets=soft_targets(cfg, level)
    )
    data.setup()
    classifier.data = data
    check_network(classifier.network, data.sample_batch())
    classifier.criterion.check()
    held_out = data.held_out["label"]
    if (cfg.select == "best" or cfg.patience is not None) and held_out.nunique() < 2:
        absent = "cancer" if held_out.sum() == 0 else "breast without cancer"
        raise InputError(
            f"fold={cfg.fold} holds out no {absent} that can be read, so that no epoch has an "
            "AUROC: select=last and patience=null, or other folds."
        )
    return classifier, data


def _make_trainer(cfg: DictConfig, *first: pl.Callback) -> pl.Trainer:
    """Make Lightning's Trainer, without a list of loggers.

    Callbacks run in the order in which they are given.
    """
    settings: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    if isinstance(settings.get("logger"), list):
        settings["logger"] = False
    make = instantiate({k: v for k, v in settings.items() if k != "callbacks"}, _partial_=True)
    callbacks = [*first, *instantiate(cfg.callbacks).values()]
    with refusals("trainer"):
        trainer: pl.Trainer = make(callbacks=callbacks, sync_batchnorm=False)
    return trainer


def _check_optimizer(classifier: Classifier, trainer: pl.Trainer) -> None:
    """Make the optimizer and its schedule once, before training does."""
    classifier.trainer = trainer
    with refusals("optimizer or scheduler"):
        classifier.configure_optimizers()


def _try_out(cfg: DictConfig) -> None:
    """Train and validate on a few batches, as `trainer.fast_dev_run` says, and keep nothing."""
    if n_ranks := n_ranks_for(cfg.trainer):
        _train_on_ranks(cfg, n_ranks)
        return
    classifier, data = _make_classifier_and_data(cfg)
    trainer = _make_trainer(cfg)
    _check_optimizer(classifier, trainer)
    trainer.fit(classifier, datamodule=data)
    rank_zero_only(print)(
        f"Tried out: batches of training and validation, {int(cfg.trainer.fast_dev_run)} of each at"
        " most. Nothing was kept."
    )


@rank_zero_only
def _remove_log(run_dir: Path) -> None:
    """Remove the folder of this job, if it has Hydra's log and settings alone, and its run's."""
    if HydraConfig.initialized():
        folder = Path(HydraConfig.get().runtime.output_dir)
        if {path.name for path in folder.glob("*")} == {".hydra", "train.log"}:
            shutil.rmtree(folder / ".hydra")
            (folder / "train.log").unlink()
            with suppress(OSError):  # the run has other folds, or it is a link
                folder.rmdir()
                if folder.resolve() == run_dir.resolve():  # none that hydra.run.dir= names
                    folder.parent.rmdir()


def _checkpoint_to_resume(run_dir: Path, cfg: DictConfig) -> Path | None:
    """The last epoch's checkpoint, intact; None to begin with the first epoch."""
    last = run_dir / "checkpoints" / "last.ckpt"
    is_wanted = cfg.resume or (run_dir / "metrics.json").exists()  # finished: a table was lost
    if not is_wanted or cfg.overwrite or not last.exists():
        return None
    read_checkpoint(last, checksums=True)
    return last


@rank_zero_only
def _begin(run_dir: Path, record: dict[str, Any], images: pd.DataFrame, *, overwrite: bool) -> None:
    """Put earlier results aside if asked, and write the record: all guards have passed."""
    found = [run_dir / name for name in _RESULTS]
    found += run_dir.glob("hpc_ckpt_*")  # saved by Lightning for SLURM, and resumed from
    if overwrite and (found := [path for path in found if path.exists()]):
        put_aside(run_dir, found)
    write_record(run_dir / "config.yaml", record)
    write_training_domain(training_domain(images), run_dir / TRAINING_DOMAIN_FILE)


def _fit(
    trainer: pl.Trainer,
    classifier: Classifier,
    data: CropDataModule,
    cfg: DictConfig,
    checkpoint: Path | None,
) -> None:
    """Train; if a batch does not fit into memory, raise an error that says which would."""
    try:
        trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise  # measured below: here the exception still holds the step's memory
    raise out_of_memory(classifier, trainer, data.train_dataloader(), cfg.batch_size)
