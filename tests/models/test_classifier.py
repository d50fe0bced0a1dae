"""Gathering predictions over batches and ranks, and scoring breasts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import multiprocessing

from rsna_bcd.models.classifier import breast_metrics, gather_logits, sigmoid
from rsna_bcd.scoring.metrics import OPERATING

N_ROWS = 101  # no multiple of two ranks


def prediction_batches(rows: np.ndarray, batch_size: int = 8) -> list[dict[str, torch.Tensor]]:
    """Predictions whose logit is the row's number / 10."""
    parts = np.array_split(rows, max(1, len(rows) // batch_size))
    return [{"index": torch.from_numpy(r), "logit": torch.from_numpy(r / 10)} for r in parts]


@pytest.mark.parametrize("rows", [[0, 1, 1], [0, 2], [0, 1, 2, 3]], ids=["twice", "never", "more"])
def test_the_set_of_rows_is_asserted(rows: list[int]) -> None:
    with pytest.raises(AssertionError, match="twice or never"):
        gather_logits(prediction_batches(np.array(rows)), 3)


def gather_on_a_rank(rank: int, folder: str) -> None:
    """One of two processes, with its own part of the rows."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    rows = np.random.default_rng(0).permutation(N_ROWS)[rank::2]
    logits = gather_logits(prediction_batches(rows), N_ROWS)
    np.save(f"{folder}/{rank}.npy", logits)
    torch.distributed.destroy_process_group()


def test_one_and_two_ranks_gather_rows_in_the_order_of_the_table(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).permutation(N_ROWS)
    assert gather_logits(prediction_batches(rows), N_ROWS) == pytest.approx(np.arange(N_ROWS) / 10)
    multiprocessing.start_processes(
        gather_on_a_rank, (str(tmp_path),), nprocs=2, start_method="fork"
    )
    for rank in (0, 1):
        assert np.load(tmp_path / f"{rank}.npy") == pytest.approx(np.arange(N_ROWS) / 10)


def test_sigmoid_neither_overflows_nor_rounds() -> None:
    found = sigmoid(np.array([-1000, -20, 0, 20, 1000], np.float32))
    assert found.dtype == np.float64
    assert found == pytest.approx([0, 1 / (1 + np.exp(20.0)), 0.5, 1 / (1 + np.exp(-20.0)), 1])


def test_metrics_are_those_of_scikit_learn_or_undefined() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 60)
    p = (labels * 0.2 + generator.random(60) * 0.8).round(2)
    found = breast_metrics(pd.DataFrame({"label": labels, "probability": p}))
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, p))
    assert found["average_precision"] == pytest.approx(average_precision_score(labels, p))
    names = ("sensitivity", "specificity", "accuracy", "pf1")
    expected = {n: OPERATING[n](labels, p if n == "pf1" else p >= 0.5) for n in names}
    assert {name: found[name] for name in names} == expected
    found = breast_metrics(pd.DataFrame({"label": [0, 0], "probability": [0.1, 0.2]}))
    assert np.isnan(found["auroc"])
    assert np.isnan(found["sensitivity"])
    assert found["specificity"] == 1
