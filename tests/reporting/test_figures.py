"""Figures of the report: the registry, the SVG on the page, learning curves."""

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from rsna_bcd.reporting import captions, figures
from rsna_bcd.reporting.evaluation import Evaluation
from rsna_bcd.reporting.figures import draw_figures, learning_curves, report_figure
from rsna_bcd.reporting.page import SECTIONS

HISTORY = pd.DataFrame(
    [(0, 0.7, 0.7, 0.5, 0.1), (1, 0.5, 0.6, 0.6, None), (2, 0.3, 0.65, 0.7, 0.3)],
    columns=["epoch", "train_loss", "valid_loss", "auroc", "average_precision"],
)
NOTHING: Any = None  # an evaluation that no test figure reads


def two_lines(_: Evaluation, figure: Figure) -> str:
    axes = figure.add_subplot()
    axes.set_xlabel("x < y & more")
    axes.plot([0, 1], [0.123456789, 1], "o-", color=figures.ACCENT)
    axes.set_xlim(0.2, 1)  # clips
    axes.annotate("$5.678 & <b>", (0.5, 0.5), color=figures.INK)
    return "A caption."


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> list[figures.ReportFigure]:
    registered: list[figures.ReportFigure] = []
    monkeypatch.setattr(figures, "FIGURES", registered)
    return registered


def test_figures_are_registered_in_one_place(registry: list[figures.ReportFigure]) -> None:
    @report_figure("folds", "A new figure", 300, 200)
    def added(evaluation: Evaluation, figure: Figure) -> str:
        return two_lines(evaluation, figure)

    @report_figure("folds", "Nothing to show")
    def empty(evaluation: Evaluation, figure: Figure) -> None:
        return None

    assert [one.key for one in registry] == ["added", "empty"]
    (drawn,) = draw_figures(NOTHING)["folds"]
    assert (drawn.key, drawn.caption) == ("added", "A caption.")
    assert 'aria-label="A new figure" aria-describedby="caption-added"' in drawn.svg
    assert 'viewBox="0 0 300 200"' in drawn.svg


def test_figures_have_their_sections_and_unique_keys() -> None:
    keys = [one.key for one in figures.FIGURES]
    assert len(keys) == len(set(keys))
    assert {one.section for one in figures.FIGURES} <= set(SECTIONS)


def test_figures_svg_takes_colours_and_fonts_of_the_page(
    registry: list[figures.ReportFigure],
) -> None:
    for key in ("one", "two"):
        registry.append(figures.ReportFigure("data", key, "label", (300, 200), two_lines))
    with rc_context({"axes.facecolor": "red"}):
        first, second = draw_figures(NOTHING)["data"]
    assert (first, second) == tuple(draw_figures(NOTHING)["data"])  # reproducible
    assert "var(--accent)" in first.svg
    assert not re.findall(r"#0102[0-9a-f]{2}", first.svg)
    for foreign in ("<style", "<metadata", "xmlns", "red"):
        assert foreign not in first.svg
    root = ElementTree.fromstring(first.svg.replace("xlink:href", "href"))
    texts = ["".join(text.itertext()) for text in root.iter("text")]
    assert {"x < y & more", "$5.678 & <b>"} <= set(texts)
    ids = []
    for drawn in (first, second):
        own = re.findall(r' id="([^"]+)"', drawn.svg)
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', drawn.svg)
        assert {a or b for a, b in used} <= set(own)
        ids += own
    assert len(ids) == len(set(ids)) > 0


def test_learning_curves_have_a_panel_for_losses_and_one_for_scores() -> None:
    axes: list[Any] = learning_curves({"fold0": HISTORY, "fold1": HISTORY}).axes
    losses, scores = axes
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["training", "held out"]
    assert len(losses.lines) == len(scores.lines) == 4
    assert losses.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert losses.lines[0].get_ydata().tolist() == HISTORY["train_loss"].tolist()
    assert scores.lines[0].get_ydata().tolist() == HISTORY["auroc"].tolist()
    losses, scores = learning_curves({"foldall": HISTORY[["epoch", "train_loss"]]}).axes
    assert len(losses.lines) == 1
    assert not scores.axison  # nothing was held out


def test_learning_caption_names_the_best_epochs() -> None:
    nothing_held_out = HISTORY[["epoch", "train_loss"]]
    assert captions.learning({"fold 0": HISTORY, "fold 1": nothing_held_out}, "b5") == (
        "Learning curves of b5. fold 0, 3 epochs: the held-out loss is lowest in epoch 2, the "
        "AUROC is highest in epoch 3; fold 1, 3 epochs: nothing was held out."
    )
