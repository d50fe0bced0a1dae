"""The figure of a study: the AUROC of each row, and its difference from the reference."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

_COLOURS = {"higher": "#0b6e4f", "lower": "#b5473c", "interval includes 0": "#7a7a7a"}


def study_figure(table: pd.DataFrame) -> Figure:
    """Draw AUROCs and paired differences with their 95 % intervals, the reference first.

    Rows without a score, and those that are not comparable, are left out. The tick beside an AUROC
    is the reference over the same folds. Intervals are not corrected for the number of rows.

    Args:
        table: as `study_table` makes it.
    """
    is_compared = np.isfinite(table["p"])
    is_compared.iloc[0] = np.isfinite(table["auroc"].iloc[0])
    rows = table[is_compared].reset_index(drop=True)
    figure = Figure(figsize=(8.5, 1.4 + 0.27 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_intervals(left, rows, "auroc", "low", "high")
    _draw_intervals(right, rows, "difference", "difference_low", "difference_high")
    reference = rows["auroc"] - rows["difference"]
    left.plot(reference, rows.index, "|", color="black", markersize=11)
    right.axvline(0, color="black", linewidth=1)
    all_folds = table["folds"].iloc[0]
    left.set_yticks(rows.index, [_label(row, all_folds) for _, row in rows.iterrows()])
    left.set(title="AUROC (95 %)", ylim=(max(len(rows), 1) - 0.5, -0.5))
    right.set(title="Difference from the reference (95 %)")
    handles = [Line2D([], [], color=c, marker="o", label=name) for name, c in _COLOURS.items()]
    handles.append(Line2D([], [], color="black", marker="|", linestyle="", label="the reference"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _draw_intervals(axes: Axes, rows: pd.DataFrame, value: str, low: str, high: str) -> None:
    for y, (_, row) in enumerate(rows.iterrows()):
        higher, lower = row["difference_low"] > 0, row["difference_high"] < 0
        colour = _COLOURS["higher" if higher else "lower" if lower else "interval includes 0"]
        axes.plot([row[low], row[high]], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(row[value], y, "o", color=colour, markersize=6)
    axes.grid(visible=True, axis="x", linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10)
    axes.tick_params(labelsize=9)


def _label(row: pd.Series, all_folds: str) -> str:
    """The name of a row, with its folds where they are others than those of the reference."""
    name = str(row["variant"])
    return name if row["folds"] == all_folds else f"{name} (folds {row['folds']})"
