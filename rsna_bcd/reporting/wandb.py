"""Log the curves and the hardest breasts of a finished run to Weights & Biases."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import wandb
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from rsna_bcd.reporting.contact_sheet import to_uint8
from rsna_bcd.scoring.metrics import Floats

Picture = NDArray[np.uint8]  # (H, W)
POSITIVE, NEGATIVE = "hardest positives", "hardest negatives"  # names of panels
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
        run: W&B run.
        oof: out-of-fold predictions by breast, as in `oof.csv`.
        images: the held-out images: `prediction_id, path`, and `view` for the caption.
        read: returns the crop at a `path`, (H, W) uint8, tissue bright.
        scores: of `oof`, for the run's summary.
        cases: number of hardest positives, and of hardest negatives.
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
    # W&B keeps pictures of a table as an artifact, those of panels with the run's files.
    panels: dict[str, list[Any]] = {POSITIVE: [], NEGATIVE: []}
    table = wandb.Table(columns=["panel", "prediction_id", "label", "probability", "images"])
    for case in hardest(oof, cases).itertuples():
        rows = images[images["prediction_id"] == case.prediction_id]
        views = ", ".join(rows["view"].astype(str)) if "view" in rows else ""
        picture = wandb.Image(
            side_by_side([read(path) for path in rows["path"]]),
            caption=f"{case.prediction_id} {views} {case.probability:.3f}",
        )
        panels[str(case.panel)].append(picture)
        table.add_data(case.panel, case.prediction_id, case.label, case.probability, picture)
    run.log({**logged, "hardest": table, **{k: panel for k, panel in panels.items() if panel}})
    run.summary.update({f"oof/{name}": score for name, score in scores.items()})


def hardest(oof: pd.DataFrame, n: int) -> pd.DataFrame:
    """The positives with the lowest probabilities, and the negatives with the highest.

    Args:
        oof: as of `log_results`; unreadable breasts are left out.
        n: of each.

    Returns:
        `panel, prediction_id, label, probability`, positives first, the most extreme first.
    """
    readable = oof[oof["unread"] == 0].sort_values(
        ["probability", "prediction_id"], kind="stable", ignore_index=True
    )
    positives = readable[readable["label"] == 1].head(n).assign(panel=POSITIVE)
    negatives = readable[readable["label"] == 0].iloc[::-1].head(n).assign(panel=NEGATIVE)
    columns = ["panel", "prediction_id", "label", "probability"]
    return pd.concat([positives, negatives], ignore_index=True)[columns]


def side_by_side(pictures: list[Picture]) -> Picture:
    """Put pictures beside each other, each at most 512 pixels tall: (H, W) uint8."""
    shrunk = [to_uint8(picture, _TALLEST, np.inf) for picture in pictures]
    tallest = max(len(picture) for picture in shrunk)
    padded = [np.pad(picture, ((0, tallest - len(picture)), (0, 0))) for picture in shrunk]
    return np.concatenate(padded, axis=1)


def _chart(title: str, points: Floats, columns: list[str]) -> Any:
    keep = np.unique(np.linspace(0, len(points) - 1, min(_POINTS, len(points))).round().astype(int))
    table = wandb.Table(data=points[keep].tolist(), columns=columns)
    return wandb.plot.line(table, *columns, title=title)
