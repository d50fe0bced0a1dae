"""Learning curves: losses and held-out scores by epoch, of one fold or of several."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rsna_bcd.reporting.svg import ACCENT, CANCER, SECOND, drawing, to_svg

# Columns of metrics.csv by panel, and what the legend calls them.
_PANELS: Mapping[str, Mapping[str, str]] = {
    "loss": {"train_loss": "training", "valid_loss": "held out"},
    "held-out score": {"auroc": "AUROC", "average_precision": "average precision"},
}
_PLAIN = ("#2a6f97", "#c8553d")  # of the picture
_WIDTH, _HEIGHT = 700.0, 260.0  # in the page


def learning_curves(folds: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw a picture of the learning curves.

    Args:
        folds: the tables `metrics.csv` by name of the fold, one row per epoch.

    Returns:
        A figure to save; two panels, losses and scores, a line for each fold.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    _draw(figure, folds, _PLAIN)
    figure.suptitle(", ".join(folds))
    return figure


def learning_figure(folds: Mapping[str, pd.DataFrame], key: str, name: str) -> str:
    """Draw the same as SVG for a page.

    Args:
        folds: as of `learning_curves`.
        key: of the figure on its page.
        name: of the run.
    """
    with drawing(_WIDTH, _HEIGHT) as figure:
        _draw(figure, folds, (ACCENT, CANCER if len(folds) > 1 else SECOND))
        return to_svg(figure, key, f"Learning curves of {name}: loss and scores by epoch")


def learning_caption(folds: Mapping[str, pd.DataFrame], name: str) -> str:
    """Say what the figure shows: of each fold, the best epoch of the loss and of the AUROC."""
    parts = []
    for fold, table in folds.items():
        said = []
        for column, what, best in (
            ("valid_loss", "the held-out loss is lowest", "idxmin"),
            ("auroc", "the AUROC is highest", "idxmax"),
        ):
            if column in table and table[column].notna().any():
                epoch = int(table.loc[getattr(table[column], best)(), "epoch"]) + 1
                said.append(f"{what} in epoch {epoch}")
        parts.append(f"{fold}, {len(table)} epochs: {', '.join(said) or 'nothing was held out'}")
    return f"Learning curves of {name}. {'; '.join(parts)}."


def _draw(figure: Figure, folds: Mapping[str, pd.DataFrame], colours: tuple[str, str]) -> None:
    for axes, (label, columns) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
        for (column, name), colour in zip(columns.items(), colours, strict=True):
            for number, table in enumerate(folds.values()):
                if column not in table or table[column].isna().all():
                    continue
                axes.plot(
                    table["epoch"] + 1, table[column], color=colour, linewidth=1.4, marker="o",
                    markersize=3, alpha=1.0 if len(folds) == 1 else 0.7,
                    label=None if number else name,
                )  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend()
        else:
            axes.set_axis_off()
