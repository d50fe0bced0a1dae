"""The figure of a study: the AUROC of each row, and its difference from the reference."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_TOLD_APART, _OTHER = "#0b6e4f", "#7a7a7a"


def study_figure(table: pd.DataFrame) -> Figure:
    """Draw AUROCs and paired differences with their 95 % intervals, the reference first.

    Rows without a score, and those that are not comparable, are left out. Green: the interval of
    the difference excludes 0 (not corrected for the number of rows).

    Args:
        table: as `study_table` makes it.
    """
    is_compared = np.isfinite(table["p"])
    is_compared.iloc[0] = np.isfinite(table["auroc"].iloc[0])
    rows = table[is_compared].reset_index(drop=True)
    figure = Figure(figsize=(8.5, 1.0 + 0.27 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_intervals(left, rows, "auroc", "low", "high")
    _draw_intervals(right, rows, "difference", "difference_low", "difference_high")
    left.set_yticks(range(len(rows)), [_label(row) for _, row in rows.iterrows()])
    left.set(title="AUROC (95 %)", ylim=(max(len(rows), 1) - 0.5, -0.5))
    right.set(title="Difference from the reference (95 %)")
    right.axvline(0, color=_OTHER, linewidth=1, linestyle="--")
    if is_compared.iloc[0]:
        left.axvline(rows["auroc"][0], color=_OTHER, linewidth=1, linestyle="--")
    return figure


def _draw_intervals(axes: Axes, rows: pd.DataFrame, value: str, low: str, high: str) -> None:
    for y, (_, row) in enumerate(rows.iterrows()):
        excludes_0 = row["difference_low"] > 0 or row["difference_high"] < 0
        colour = _TOLD_APART if excludes_0 else _OTHER
        axes.plot([row[low], row[high]], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(row[value], y, "o", color=colour, markersize=6)
    axes.grid(visible=True, axis="x", linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10)
    axes.tick_params(labelsize=9)


def _label(row: pd.Series) -> str:
    """The name of a row, with its folds where some are missing."""
    name = str(row["variant"])
    return f"{name} (fold {row['folds']})" if "fold" in str(row["missing"]) else name
