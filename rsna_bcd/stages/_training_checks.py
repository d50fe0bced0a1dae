"""Whether settings make a run of training that can be resumed, scored and trusted."""

from pathlib import Path
from typing import Any, get_args

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rsna_bcd._records import (
    load_option,
    prepare_command,
    refuse_detours,
    select_settings,
    selected_option,
    with_defaults,
)
from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError, difference
from rsna_bcd.models.launch import started_outside
from rsna_bcd.models.prediction import TTA
from rsna_bcd.scoring.metrics import Aggregation
from rsna_bcd.targets import with_current_targets

# What takes its settings from keys of the root, and must not have others.
_WIRED = ("data", "classifier", "callbacks.average", "callbacks.patience")
# Arguments of Lightning's Trainer, and the values with which all predictions and files are there.
_WHOLE = {
    "limit_val_batches": 1.0,
    "limit_test_batches": 1.0,
    "limit_predict_batches": 1.0,
    "overfit_batches": 0.0,
    "enable_checkpointing": True,
    "barebones": False,
}


def check_training(cfg: DictConfig) -> None:
    """Check the settings of training, and that there are crops and folds made with them.

    Args:
        cfg: of `train`, composed.

    Raises:
        InputError: settings that do not go together, or that a run cannot be resumed or scored
            with; or no such crops.
    """
    choices = {
        "select": ("last", "best"),
        "tta": get_args(TTA),
        "breast_rule": get_args(Aggregation),
    }
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
    _check_callbacks(cfg)
    _check_trainer(cfg)
    _check_folds(cfg)
    if cfg.checkpoint_path is not None and cfg.network.get("checkpoint_path") is None:
        raise InputError(
            f"checkpoint_path={cfg.checkpoint_path}: {cfg.network._target_} would not get it. Add "
            "checkpoint_path: ${checkpoint_path} to the YAML of network=, or leave it out."
        )
    _check_crops(cfg)


def _check_callbacks(cfg: DictConfig) -> None:
    """Check that the callbacks that write a run's files are there as `train.yaml` has them."""
    usual = OmegaConf.load(Path(CONF) / "train.yaml")
    for name in ("last", "best", "history"):
        key = f"callbacks.{name}"
        expected, found = (
            OmegaConf.to_container(part) if OmegaConf.is_config(part) else part
            for part in (OmegaConf.select(usual, key), OmegaConf.select(cfg, key))
        )
        if name == "last" and isinstance(found, dict):
            found.pop("every_n_epochs", None)  # how often it is saved changes no result
        if found is None and (name != "best" or cfg.select == "best"):
            raise InputError(f"~{key}: a run is resumed and predicted from its files. Leave it in.")
        if found is not None and found != expected:
            raise InputError(
                f"{next(difference(expected, found, key))}: a run is resumed and scored from the "
                "files of this callback. Leave it, and add one of yours beside it: +callbacks.mine."
            )


def _check_trainer(cfg: DictConfig) -> None:
    """Refuse arguments of Lightning's Trainer that leave a run without whole predictions."""
    for key, usual in _WHOLE.items():
        value = cfg.trainer.get(key, usual)
        # By kind, too: of 1.0 batches all are taken, of 1 a single one.
        if value is not None and (type(value), value) != (type(usual), usual):
            raise InputError(
                f"trainer.{key}={value}: a run is scored on all that its fold holds out, and kept "
                "in checkpoints. To try a few batches, +trainer.fast_dev_run=true."
            )
    if not cfg.trainer.get("limit_train_batches", 1):
        raise InputError("trainer.limit_train_batches=0: nothing would be trained. Leave it out.")
    for key in ("accumulate_grad_batches", "num_nodes", "log_every_n_steps"):
        if cfg.trainer.get(key, 1) < 1:
            raise InputError(f"trainer.{key}={cfg.trainer[key]}: should be at least 1.")
    if cfg.trainer.get("enable_progress_bar") is False and "progress" in cfg.callbacks:
        raise InputError(
            "trainer.enable_progress_bar=false: the bar is a callback. Leave it out with "
            "'~callbacks.progress' instead."
        )


def _check_folds(cfg: DictConfig) -> None:
    """Refuse settings of how folds are assigned, which training only reads."""
    option = load_option("folds", selected_option("folds", cfg))
    assign = OmegaConf.to_container(cfg.folds.assign, resolve=False)
    for line in difference(option["assign"], assign, "folds.assign") if option else ():
        raise InputError(
            f"{line}: training does not assign patients to folds, it reads {cfg.folds_csv}. Give "
            "this to python -m rsna_bcd.prepare, with overwrite_folds=true."
        )


def _check_crops(cfg: DictConfig) -> None:
    folder = Path(cfg.prepared_dir)
    record_file = folder / "config.yaml"
    made: dict[str, Any] = {}
    if record_file.is_file():
        made = with_current_targets(OmegaConf.to_container(OmegaConf.load(record_file)))
    command = prepare_command(cfg, made)
    for file in (record_file, folder / "train.csv", Path(cfg.folds_csv)):
        if not file.is_file():
            raise InputError(f"There is no {file}. Make the crops first:\n  {command}")
    wanted = select_settings(cfg, "crop")
    instantiate(cfg.crop).check_algorithm()
    existing = with_defaults({"crop": made["crop"]}, wanted, "train")
    differing = "\n".join(f"  {line}" for line in difference(existing, wanted))
    if differing:
        raise InputError(
            f"The crops in {folder} were made with other settings (there -> now):\n{differing}\n"
            f"Give yours a name (crop.name=...), or make them again:\n  {command} overwrite=true"
        )


def _is_sweep_in_this_process() -> bool:
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return "submitit" not in HydraConfig.get().launcher["_target_"]
