"""Results of a training: out-of-fold tables, `metrics.json`, learning curves."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from rich.table import Table

from rsna_bcd.data.datamodule import CropDataModule
from rsna_bcd.files import atomic_file, write_csv
from rsna_bcd.imaging.crops import in_8_bits, read_crop
from rsna_bcd.models.callbacks import Ending
from rsna_bcd.models.checkpoint import is_optimistic, read_checkpoint
from rsna_bcd.models.classifier import Classifier, gather_logits, sigmoid
from rsna_bcd.models.tracking import wandb_run
from rsna_bcd.reporting.console import make_console
from rsna_bcd.reporting.figures import learning_curves
from rsna_bcd.scoring.metrics import logit
from rsna_bcd.tables.predictions import (
    OOF_COLUMNS,
    OOF_IMAGE_COLUMNS,
    to_breasts,
    with_unreadable,
)


def predict_held_out(
    trainer: pl.Trainer, classifier: Classifier, data: CropDataModule, cfg: DictConfig
) -> pd.DataFrame:
    """Write the out-of-fold tables and return that of the breasts.

    Predicted with the weights in the file, as the test set will be: the module's own are others
    where nothing was left to train (a run killed just now) and the average is kept.
    """
    file = Path(cfg.run_dir) / "checkpoints" / f"{cfg.select}.ckpt"
    classifier.load_state_dict(read_checkpoint(file, checksums=True)["state_dict"])
    loader = data.val_dataloader()
    predicted: Any = trainer.predict(classifier, loader) if loader else []
    probability = sigmoid(gather_logits(predicted, len(data.held_out)))
    samples = data.held_out.assign(probability=probability, logit=logit(pd.Series(probability)))
    breasts = samples.assign(unread=0)
    if classifier.level == "image":
        breasts = to_breasts(samples, cfg.breast_rule)
        images = samples[list(OOF_IMAGE_COLUMNS)]
        rank_zero_only(write_csv)(images, Path(cfg.run_dir) / "oof_images.csv")
    oof = with_unreadable(breasts[list(OOF_COLUMNS)], data.expected, data.prevalence)
    rank_zero_only(write_csv)(oof, Path(cfg.run_dir) / "oof.csv")
    return oof


def show_in_wandb(
    oof: pd.DataFrame, data: CropDataModule, scores: dict[str, Any], folder: Path
) -> None:
    """Curves, and the hardest breasts with their pictures."""
    from rsna_bcd.reporting.wandb import log_results  # deferred: needs W&B

    images = data.held_out_images
    log_results(wandb_run(), oof, images, lambda path: in_8_bits(read_crop(folder / path)), scores)


def describe_run(
    data: CropDataModule, trainer: pl.Trainer, record: dict[str, Any]
) -> dict[str, Any]:
    """The data that the scores were measured on, for `metrics.json`."""
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
def draw_curves(run_dir: Path) -> None:
    """Draw the learning curves of a run that has finished epochs."""
    if (run_dir / "metrics.csv").is_file():
        picture = learning_curves({run_dir.name: pd.read_csv(run_dir / "metrics.csv")})
        with atomic_file(run_dir / "curves.png", sync=True) as file:
            picture.savefig(file, format="png")


@rank_zero_only
def finish(run_dir: Path, metrics: dict[str, Any], end: Ending) -> None:
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
    console = make_console()
    console.print(table, soft_wrap=False)
    console.print(run_dir / "metrics.json")
    console.print(end.reason)
