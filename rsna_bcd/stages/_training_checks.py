"""Settings of training: checks, the record of a run, and the state of its folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from rsna_bcd._records import (
    check_same_config,
    load_option,
    prepare_command,
    recorded_keys,
    refuse_unrecorded,
    select_settings,
    selected_option,
    with_defaults,
)
from rsna_bcd._stage import CONF
from rsna_bcd._validation import to_plain
from rsna_bcd.data.augment import turns_upside_down
from rsna_bcd.errors import InputError, difference
from rsna_bcd.files import file_sha256
from rsna_bcd.models.checkpoint import check_unseen, starts_from
from rsna_bcd.models.launch import n_ranks_to_start, started_outside
from rsna_bcd.models.prediction import network_level
from rsna_bcd.settings import Train, tta_transforms
from rsna_bcd.tables.distillation import SoftTargets, check_teachers, read_soft_targets
from rsna_bcd.tables.folds import read_folds
from rsna_bcd.tables.metadata import TARGETS
from rsna_bcd.tables.views import Level
from rsna_bcd.targets import read_record, takes_argument

# Sections that take their settings from keys of the root, and must not have others.
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

# Keys that are left out of the record where they have these values, as in earlier versions.
_OFF = {"left_out_folds": [], "training_share": 1.0}

# Settings of the trainer that are not recorded; all others are, also those to come.
_NEUTRAL = {
    "_target_", "_convert_", "accelerator", "devices", "num_nodes", "strategy", "callbacks",
    "logger", "plugins", "profiler", "default_root_dir", "use_distributed_sampler",
    "num_sanity_val_steps", "log_every_n_steps", "enable_checkpointing", "enable_model_summary",
    "enable_progress_bar", "deterministic", "benchmark", "inference_mode", "detect_anomaly",
    "max_steps", "max_time",  # a run that they cut is not finished
}  # fmt: skip


def check_training(cfg: DictConfig) -> None:
    """Check the settings of training, and that there are crops and folds made with them.

    Args:
        cfg: of `train`, composed; its `tta` becomes a list, and its network gets the size of the
            crops, if it takes one.

    Raises:
        InputError: settings that do not go together, or that a run cannot be resumed or scored
            with; or no such crops.
    """
    if started_outside() and _is_local_sweep():
        raise InputError(
            "torchrun and srun start the processes of one job: in a sweep (-m) they would part at "
            "the first failure. Start each job by itself, or the sweep as a single process: "
            "trainer=ddp starts the processes of each job, and hydra/launcher=slurm the jobs."
        )
    if cfg.fold == "all" and (cfg.select == "best" or cfg.patience is not None):
        raise InputError("fold=all holds out nothing, which select=best and patience= need.")
    try:
        cfg.tta = tta_transforms(to_plain(cfg.tta))
    except ValueError as error:
        raise InputError(f"tta={cfg.tta}: {error}.") from error
    refuse_unrecorded(cfg, "train", _WIRED)
    _set_image_size(cfg)
    compares_places = getattr(get_object(cfg.network._target_), "compares_places", False)
    size = cfg.crop.height, cfg.crop.width
    if compares_places and turns_upside_down(instantiate(cfg.augment), size):
        raise InputError(
            "augment= turns images upside down, one by one, and the network compares the places of "
            "both breasts: choose augment=upright."
        )
    if unknown := [name for name in map(str, cfg.auxiliary) if name not in TARGETS]:
        raise InputError(
            f"auxiliary.{unknown[0]}: {unknown[0]} is no auxiliary target. There are "
            f"{', '.join(TARGETS)}."
        )
    _check_callbacks(cfg)
    _check_trainer(cfg)
    _check_folds(cfg)
    _check_loss(cfg)
    if cfg.checkpoint_path is not None and cfg.network.get("checkpoint_path") is None:
        raise InputError(
            f"checkpoint_path={cfg.checkpoint_path}: {cfg.network._target_} would not get it. Add "
            "checkpoint_path: ${checkpoint_path} to the YAML of network=, or leave it out."
        )
    _check_crops(cfg)


def _check_loss(cfg: DictConfig) -> None:
    """With teachers, refuse a loss that would not learn from their targets as they are."""
    if cfg.distillation.teachers is None:
        return
    if not getattr(get_object(cfg.loss._target_), "takes_soft_targets", False):
        raise InputError(
            f"distillation.teachers=: {cfg.loss._target_} is not defined for soft targets. Choose "
            "loss=bce or loss=focal, or set takes_soft_targets = True in your own loss."
        )
    for key in ("positive_target", "positive_weight"):
        if cfg.loss.get(key, 1) != 1:
            raise InputError(
                f"loss.{key}={cfg.loss[key]} would change the soft targets of "
                f"distillation.teachers=. Set loss.{key}=1."
            )


def _set_image_size(cfg: DictConfig) -> None:
    """Give a network that takes it the size of the crops, as `load_run` does: no setting of it."""
    size, given = [cfg.crop.height, cfg.crop.width], cfg.network.get("image_size")
    if given is not None and list(given) != size:
        raise InputError(
            f"network.image_size={list(given)}: it is the size of the crops, {size}. Leave it out."
        )
    if takes_argument(get_object(cfg.network._target_), "image_size"):
        with open_dict(cfg.network):
            cfg.network.image_size = size


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
    for key in ("max_epochs", "accumulate_grad_batches", "num_nodes", "log_every_n_steps"):
        number = cfg.trainer.get(key)
        if number is not None and number < 1:
            raise InputError(f"trainer.{key}={cfg.trainer[key]}: should be at least 1.")
    if cfg.trainer.get("enable_progress_bar") is False and "progress" in cfg.callbacks:
        raise InputError(
            "trainer.enable_progress_bar=false: the bar is a callback. Leave it out with "
            "'~callbacks.progress' instead."
        )


@contextmanager
def refusals(section: str) -> Iterator[None]:
    """Raise the error by which a library refuses settings as one line that names their section."""
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"{section}: {text} ({type(error).__name__}). Change a key of {section}."
        ) from error


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
        made = read_record(record_file)
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


def make_record(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide about the result, resolved."""
    prepared = OmegaConf.load(Path(cfg.prepared_dir) / "config.yaml")
    trainer = select_settings(cfg.trainer, *sorted(set(map(str, cfg.trainer)) - _NEUTRAL))
    record = {
        **select_settings(cfg, *recorded_keys(Train)),
        "dataset": {"name": cfg.dataset.name},
        # By content: under other folds, a resumed run would be scored on patients it has seen.
        "folds": {"strategy": cfg.folds.strategy, "sha256": file_sha256(Path(cfg.folds_csv))},
        "source": prepared.source,
        "trainer": trainer,
    }
    own = Path(cfg.run_dir) / "config.yaml"
    if not own.is_file() or "micro_batch" in OmegaConf.load(own):  # older records lack it
        ranks = started_outside() or n_ranks_for(cfg.trainer) or 1
        record["micro_batch"] = cfg.batch_size // ranks  # of BatchNorm and mix
    for key, off in _OFF.items():
        if record[key] == off:
            del record[key]
    if record["distillation"]["teachers"] is None:
        del record["distillation"]
    else:
        record["distillation"] |= _check_teachers(cfg, record)
    record["network"].pop("image_size", None)  # the crop's, which is recorded
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


def _check_teachers(cfg: DictConfig, record: dict[str, Any]) -> dict[str, Any]:
    """Check the teachers; for folders that are gone, take the record of when this run began."""
    own = Path(cfg.run_dir) / "config.yaml"
    recorded = read_record(own).get("distillation", {}) if own.is_file() else {}
    if recorded.get("teachers") != cfg.distillation.teachers:
        recorded = {}
    level = network_level(get_object(cfg.network._target_))
    return check_teachers(_teachers(cfg), record, _training_folds(cfg), level, recorded)


def soft_targets(cfg: DictConfig, level: Level) -> SoftTargets | None:
    """The targets that the teachers of a run give, if it has some."""
    if cfg.distillation.teachers is None:
        return None
    weight = cfg.distillation.weight
    return read_soft_targets(_teachers(cfg), _training_folds(cfg), level, weight)


def _teachers(cfg: DictConfig) -> Path:
    """The folder of the runs that give a run its soft targets."""
    return Path(cfg.paths.output) / "runs" / cfg.distillation.teachers


def _training_folds(cfg: DictConfig) -> list[int]:
    """The folds that a run is trained on, ascending."""
    folds = read_folds(Path(cfg.folds_csv))["fold"].unique().tolist()
    trained = sorted(set(folds) - {cfg.fold} - set(cfg.left_out_folds))
    if not trained:
        raise InputError(
            f"fold={cfg.fold} left_out_folds={list(cfg.left_out_folds)} leave no fold to train on: "
            f"{cfg.folds_csv} has the folds {', '.join(map(str, sorted(folds)))}."
        )
    return trained


def is_finished(run_dir: Path, record: dict[str, Any], cfg: DictConfig) -> bool:
    """Whether there is nothing to do, for the folder holds this run, finished.

    All ranks decide alike: files that the first one writes before the others have looked
    changes nothing about it.
    """
    if cfg.overwrite:
        return False
    has_last = (run_dir / "checkpoints" / "last.ckpt").exists()
    is_finished = (run_dir / "metrics.json").exists()
    if not (has_last or is_finished or list(run_dir.glob("hpc_ckpt_*"))):
        return False  # of a command that failed before its first epoch: nothing to lose
    if not (run_dir / "config.yaml").is_file():
        raise InputError(
            f"{run_dir} has lost config.yaml, the record of its settings. Restore the file, or "
            "train from scratch with overwrite=true."
        )
    check_same_config(run_dir / "config.yaml", record, overwrite=False, root="train", cfg=cfg)
    if is_finished:
        lost = [name for name in _oof_tables(cfg) if not (run_dir / name).exists()]
        state = f"has lost {' and '.join(lost)}" if lost else "is finished already"
        if lost and not has_last:
            raise InputError(f"{run_dir} {state}, and checkpoints/last.ckpt: overwrite=true.")
        remedy = ": it is predicted again." if lost else "; overwrite=true trains it from scratch."
        rank_zero_only(print)(f"{run_dir} {state}{remedy}")
        return not lost
    if has_last and not cfg.resume:
        raise InputError(
            f"{run_dir} holds an unfinished run. Leave resume=false out to resume it, or "
            "train again from the first epoch with overwrite=true."
        )
    return False


def _oof_tables(cfg: DictConfig) -> tuple[str, ...]:
    """The out-of-fold tables that a finished run has."""
    if cfg.fold == "all":
        return ()
    kind = get_object(cfg.network._target_)
    by_image = isinstance(kind, type) and network_level(kind) == "image"
    return ("oof.csv", "oof_images.csv") if by_image else ("oof.csv",)


def n_ranks_for(trainer: DictConfig) -> int:
    """Number of processes to start for a trainer's settings; 0 to train in this one."""
    devices = trainer.devices
    if not OmegaConf.is_list(devices) and not isinstance(devices, int):
        raise InputError(
            f"trainer.devices={devices}: give a number, -1 for every GPU, or a list ([0,2])."
        )
    strategy = trainer.get("strategy", "auto")
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if strategy == "auto" and trainer.accelerator in ("gpu", "cuda") and not has_gpu:
        raise InputError("There is no GPU for trainer=gpu. On the processor: trainer=cpu.")
    return n_ranks_to_start(
        strategy=strategy,
        devices=len(devices) if OmegaConf.is_list(devices) else devices,
        nodes=trainer.get("num_nodes", 1),
        gpus=0 if trainer.accelerator == "cpu" else torch.cuda.device_count(),
    )


def _is_local_sweep() -> bool:
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return "submitit" not in HydraConfig.get().launcher["_target_"]
