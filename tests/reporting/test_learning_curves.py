"""Learning curves, as a picture and in a page."""

import io
from typing import Any

import pandas as pd
import pytest

from rsna_bcd.reporting.figures import learning_caption, learning_curves, learning_figure

FOLD = pd.DataFrame(
    {
        "epoch": [0, 1, 2],
        "train_loss": [0.7, 0.5, 0.3],
        "valid_loss": [0.7, 0.6, 0.65],
        "auroc": [0.5, 0.6, 0.7],
        "average_precision": [0.1, None, 0.3],
    }
)
HELD_OUT_NOTHING = FOLD[["epoch", "train_loss"]]


def test_a_panel_each_for_losses_and_scores() -> None:
    figure = learning_curves({"fold0": FOLD, "fold1": FOLD})
    axes: list[Any] = figure.axes
    losses, scores = axes
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["training", "held out"]
    assert len(losses.lines) == len(scores.lines) == 4
    assert losses.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert losses.lines[0].get_ydata().tolist() == FOLD["train_loss"].tolist()
    assert scores.lines[0].get_ydata().tolist() == FOLD["auroc"].tolist()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")


def test_where_nothing_was_held_out_there_are_losses_only() -> None:
    losses, scores = learning_curves({"foldall": HELD_OUT_NOTHING}).axes
    assert len(losses.lines) == 1
    assert not scores.lines
    assert not scores.axison


@pytest.mark.parametrize("tables", [{"fold 0": FOLD}, {"fold 0": FOLD, "fold 1": FOLD}])
def test_the_page_has_the_same_in_its_own_colours(tables: dict[str, pd.DataFrame]) -> None:
    svg = learning_figure(tables, "learning-0", "b5")
    assert svg.startswith("<svg")
    assert "Learning curves of b5" in svg
    assert "#0102" not in svg


def test_the_caption_says_which_epoch_was_best() -> None:
    said = learning_caption({"fold 0": FOLD, "fold 1": HELD_OUT_NOTHING}, "b5")
    assert said == (
        "Learning curves of b5. fold 0, 3 epochs: the held-out loss is lowest in epoch 2, the "
        "AUROC is highest in epoch 3; fold 1, 3 epochs: nothing was held out."
    )
