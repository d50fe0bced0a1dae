"""Log the curves and the worst mistakes of a finished run to Weights & Biases."""

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import pandas as pd
import wandb
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from rsna_bcd.scoring.metrics import Floats

Picture = NDArray[np.uint8]  # (H, W)
MISSED, FALSE_ALARM = "missed cancer", "false alarm"
_TALLEST = 512  # pixels
_POINTS = 1000  # of a curve; W&B draws no more than 10,000


def log_results(
    run: Any,
    oof: pd.DataFrame,
    images: pd.DataFrame,
    read: Callable[[str], Picture],
    scores: Mapping[str, Any],
    *,
    cases: int = 16,
) -> None:
    """Log the ROC and precision-recall curves and the hardest breasts with their pictures.

    Args:
        run: of `wandb`.
        oof: out-of-fold predictions by breast, as in `oof.csv`.
        images: the held-out images: `prediction_id, path`, and `view` for the caption.
        read: gives the crop at a `path`, (H, W) uint8, tissue bright.
        scores: of the out-of-fold predictions, for the run's summary.
        cases: missed cancers, and as many false alarms.
    """
    labels, probabilities = oof["label"].to_numpy(), oof["probability"].to_numpy()
    logged: dict[str, Any] = {}
    if 0 < labels.sum() < len(labels):
        fpr, tpr, _ = roc_curve(labels, probabilities, drop_intermediate=False)
        roc = np.stack([fpr, tpr], axis=1)
        precisions, recall, _ = precision_recall_curve(labels, probabilities)
        # By ascending recall; without the point at recall 0, which scikit-learn adds.
        precision = np.stack([recall, precisions], axis=1)[-2::-1]
        logged["roc"] = _chart("ROC out of fold", roc, ["1 - specificity", "sensitivity"])
        logged["precision_recall"] = _chart(
            "Precision and recall out of fold", precision, ["recall", "precision"]
        )
    # In the table, W&B keeps pictures as an artifact; as panels, with the run's own files.
    panels: dict[str, list[Any]] = {MISSED: [], FALSE_ALARM: []}
    table = wandb.Table(columns=["mistake", "prediction_id", "label", "probability", "images"])
    for case in hardest(oof, cases).itertuples():
        rows = images[images["prediction_id"] == case.prediction_id]
        views = ", ".join(rows["view"].astype(str)) if "view" in rows else ""
        picture = wandb.Image(
            side_by_side([read(path) for path in rows["path"]]),
            caption=f"{case.prediction_id} {views} {case.probability:.3f}",
        )
        panels[str(case.mistake)].append(picture)
        table.add_data(case.mistake, case.prediction_id, case.label, case.probability, picture)
    run.log(
        {**logged, "hardest": table, **{name: shown for name, shown in panels.items() if shown}}
    )
    run.summary.update({f"oof/{name}": score for name, score in scores.items()})


def hardest(oof: pd.DataFrame, n: int) -> pd.DataFrame:
    """The cancers that were thought least of, and the healthy breasts that were thought worst of.

    Breasts that could not be read are left out: nothing was thought of them.

    Args:
        oof: out-of-fold predictions by breast, as in `oof.csv`.
        n: of each.

    Returns:
        `mistake, prediction_id, label, probability`, the worst first, cancers before healthy ones.
    """
    read = oof[oof["unread"] == 0].sort_values(
        ["probability", "prediction_id"], kind="stable", ignore_index=True
    )
    missed = read[read["label"] == 1].head(n).assign(mistake=MISSED)
    alarms = read[read["label"] == 0].iloc[::-1].head(n).assign(mistake=FALSE_ALARM)
    columns = ["mistake", "prediction_id", "label", "probability"]
    return pd.concat([missed, alarms], ignore_index=True)[columns]


def side_by_side(pictures: list[Picture]) -> Picture:
    """Put pictures beside each other, none taller than 512 pixels: (H, W) uint8."""
    shrunk = []
    for picture in pictures:
        height, width = picture.shape
        scale = min(1.0, _TALLEST / height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        shrunk.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    tallest = max(picture.shape[0] for picture in shrunk)
    padded = [np.pad(p, ((0, tallest - p.shape[0]), (0, 0))) for p in shrunk]
    return np.concatenate(padded, axis=1).astype(np.uint8)


def _chart(title: str, points: Floats, columns: list[str]) -> Any:
    keep = np.unique(np.linspace(0, len(points) - 1, min(_POINTS, len(points))).round().astype(int))
    table = wandb.Table(data=points[keep].tolist(), columns=columns)
    return wandb.plot.line(table, *columns, title=title)
