"""The figure of a study: the AUROC of each row, and its difference from the reference."""

from collections.abc import Sequence

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
    colours = [_COLOURS[_side_of_zero(row)] for _, row in rows.iterrows()]
    _draw_intervals(left, rows[["auroc", "low", "high"]], colours)
    _draw_intervals(right, rows[["difference", "difference_low", "difference_high"]], colours)
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


def _side_of_zero(row: pd.Series) -> str:
    """Which colour a row has: its difference's interval lies above 0, below, or includes it."""
    if row["difference_low"] > 0:
        return "higher"
    return "lower" if row["difference_high"] < 0 else "interval includes 0"


def _draw_intervals(axes: Axes, values: pd.DataFrame, colours: Sequence[str]) -> None:
    """Draw value, lower and upper bound (the three columns) of each row."""
    for y, (colour, (value, low, high)) in enumerate(zip(colours, values.to_numpy(), strict=True)):
        axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(value, y, "o", color=colour, markersize=6)
    axes.grid(visible=True, axis="x", linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10)
    axes.tick_params(labelsize=9)


def _label(row: pd.Series, all_folds: str) -> str:
    """The name of a row, with its folds where they are others than those of the reference."""
    name, folds = str(row["variant"]), str(row["folds"])
    return name if folds == all_folds else f"{name} (fold{'s' if ',' in folds else ''} {folds})"
