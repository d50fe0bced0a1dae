"""A finished run in Weights & Biases."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.reporting import wandb as wandb_results
from rsna_bcd.reporting.wandb import hardest, log_results, side_by_side

OOF = pd.DataFrame(
    {
        "prediction_id": ["a", "b", "c", "d", "e", "f"],
        "label": [1, 0, 1, 0, 0, 1],
        "probability": [0.9, 0.8, 0.2, 0.1, 0.8, 0.05],
        "unread": [0, 0, 0, 0, 0, 1],
    }
)


def test_the_hardest_come_first() -> None:
    cases = hardest(OOF, 2)
    assert cases["prediction_id"].tolist() == ["c", "a", "e", "b"]  # not f, which was not read
    assert cases["panel"].tolist() == ["hardest positives"] * 2 + ["hardest negatives"] * 2


def test_pictures_are_side_by_side_and_not_too_large() -> None:
    tall = np.full((1024, 256), 200, dtype=np.uint8)
    small = np.full((64, 32), 100, dtype=np.uint8)
    picture = side_by_side([tall, small])
    assert picture.shape == (512, 128 + 32)
    assert (picture[:, :128] == 200).all()
    assert (picture[:64, 128:] == 100).all()
    assert not picture[64:, 128:].any()


class _Table:
    """In the place of W&B's."""

    def __init__(self, columns: list[str], data: list[Any] | None = None) -> None:
        self.columns, self.data = columns, data or []

    def add_data(self, *row: Any) -> None:
        self.data.append(row)


def test_curves_and_cases_are_logged_with_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    run = SimpleNamespace(log=logged.update, summary=summary)
    images = pd.DataFrame(
        {"prediction_id": ["a", "c", "c", "e"], "view": "CC", "path": list("1234")}
    )
    images = pd.concat([images, images.assign(prediction_id="b"), images.assign(prediction_id="d")])
    fake = SimpleNamespace(
        Table=_Table,
        Image=lambda pixels, caption: (pixels.shape, caption),
        plot=SimpleNamespace(line=lambda table, *_, title: table.data),
    )
    monkeypatch.setattr(wandb_results, "wandb", fake)
    crop = np.zeros((4, 2), dtype=np.uint8)
    log_results(run, OOF, images, lambda path: crop, {"auroc": 0.6}, cases=1)
    assert summary == {"oof/auroc": 0.6}
    assert logged["roc"][0] == [0, 0]
    assert logged["roc"][-1] == [1, 1]
    positive, negative = logged["hardest"].data
    assert positive[:4] == ("hardest positives", "c", 1, 0.2)
    assert positive[4] == ((4, 4), "c CC, CC 0.200")  # both of its images
    assert negative[1] == "e"
    assert logged["hardest positives"] == [positive[4]]
