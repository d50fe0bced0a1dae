"""Figures of groups: intervals beside each other, and how alike the members are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from rsna_bcd.reporting.figures import ACCENT, INK, MUTED, PAPER, RULE, drawing, to_svg
from rsna_bcd.scoring.intervals import Interval

_LINE, _HEAD, _FOOT = 22.0, 28.0, 30.0  # pixels: a row; what is above and below all rows
_MARGIN, _GAP = 6.0, 28.0


@dataclass(frozen=True)
class _Layout:
    """Widths in pixels: of the names, of the counts beside them, of a panel; size of the text."""

    names: float
    counts: float
    panel: float
    font: float

    @property
    def left(self) -> float:
        """Where the panels begin."""
        return _MARGIN + self.names + self.counts

    @property
    def columns(self) -> tuple[float, float]:
        """Where the counts end."""
        return self.left - 0.52 * self.counts, self.left - 4


_WIDE, _NARROW = _Layout(174, 120, 166, 12), _Layout(132, 94, 104, 10.5)


@dataclass(frozen=True)
class Row:
    """A line of a forest plot.

    Attributes:
        name: at its beginning.
        counts: of breasts and of cancers.
        intervals: for each panel; None where nothing is known.
        factor: what it is a part by; a rule and this name are above the first of a factor.
    """

    name: str
    counts: tuple[int, int]
    intervals: tuple[Interval | None, ...]
    factor: str = ""


def forest(
    rows: Sequence[Row],
    panels: Sequence[str],
    starts: Sequence[float],
    key: str,
    label: str,
    *,
    narrow: bool = False,
) -> str:
    """Intervals of groups under each other, a panel for each score.

    A group without a score keeps its line: its counts are shown, in grey. The dashed line is the
    first row's score, which is that of all.

    Args:
        rows: in the order of showing.
        panels: names of the scores, which lie in [0, 1].
        starts: where the axis of each begins, from `axis_start`; all end at 1.
        key: name of the figure on its page.
        label: what it shows.
        narrow: for the width of a phone; with one panel.
    """
    layout = _NARROW if narrow else _WIDE
    lines = _lines(rows)
    height = _HEAD + _LINE * len(lines) + _FOOT
    left = layout.left
    width = left + len(panels) * (layout.panel + _GAP)
    with drawing(width, height) as figure:
        figure.set_layout_engine("none")
        words = figure.add_axes((0, 0, 1, 1), frameon=False)
        words.set_xlim(0, width)
        words.set_ylim(height, 0)
        words.set_axis_off()
        for place, row in enumerate(lines):
            _write(words, row, _HEAD + _LINE * (place + 0.5), width, layout)
        small = layout.font - 1
        for x, heading in zip(layout.columns, ("breasts", "cancers"), strict=True):
            words.text(x, 14, heading, color=MUTED, fontsize=small, ha="right")
        for number, panel in enumerate(panels):
            start = (left + _GAP / 2 + number * (layout.panel + _GAP)) / width
            axes = figure.add_axes(
                (start, _FOOT / height, layout.panel / width, _LINE * len(lines) / height)
            )
            _panel(axes, lines, number, starts[number], small)
            words.text(start * width, 14, panel, color=INK, fontweight="bold", fontsize=layout.font)
        return to_svg(figure, key, label)


def axis_start(intervals: Iterable[Interval | None]) -> float:
    """Where an axis that shows all these and ends at 1 begins, in tenths."""
    drawn = [interval for interval in intervals if interval is not None]
    low = min([i.low for i in drawn if np.isfinite(i.low)] + [i.value for i in drawn] + [0.9])
    return max(0.0, float(np.floor(10 * low - 0.05)) / 10)


def correlation_figure(names: Sequence[str], matrix: NDArray[np.float64]) -> str:
    """Rank correlation of the members: the darker, the more alike."""
    n = len(names)
    with drawing(max(300.0, 56.0 * n + 110), 44.0 * n + 60) as figure:
        axes = figure.add_subplot()
        axes.grid(visible=False)
        axes.set_frame_on(False)
        for (row, column), value in np.ndenumerate(matrix):
            strength = float(np.nan_to_num(np.clip(value, 0, 1)))
            axes.fill_between(
                [column - 0.48, column + 0.48], row - 0.46, row + 0.46,
                color=ACCENT, alpha=0.08 + 0.62 * strength**3, linewidth=0,
            )  # fmt: skip
            axes.text(column, row, f"{value:.2f}", ha="center", va="center")
        axes.set_xlim(-0.5, n - 0.5)
        axes.set_ylim(n - 0.5, -0.5)
        axes.set_yticks(range(n), names, parse_math=False)
        axes.set_xticks(range(n), [f"{i + 1}" if n > 4 else name for i, name in enumerate(names)],
                        parse_math=False)  # fmt: skip
        axes.tick_params(length=0)
        return to_svg(figure, "correlation", "Rank correlation of the members' probabilities")


def _lines(rows: Sequence[Row]) -> list[Row | str]:
    """The rows with a line for the name of each factor that has more than one."""
    lines: list[Row | str] = []
    for place, row in enumerate(rows):
        if row.factor and (place == 0 or rows[place - 1].factor != row.factor):
            lines.append(row.factor)
        lines.append(row)
    return lines


def _write(axes: Axes, row: Row | str, y: float, width: float, layout: _Layout) -> None:
    """The words of a line."""
    if isinstance(row, str):
        axes.plot([_MARGIN, width - _MARGIN], [y - _LINE / 2 + 2] * 2, color=RULE, linewidth=0.8)
        axes.text(_MARGIN, y + 2, row, va="center", color=MUTED, fontsize=layout.font - 1,
                  parse_math=False)  # fmt: skip
        return
    known = any(row.intervals)
    indent = 10 if row.factor else 0
    axes.text(
        _MARGIN + indent,
        y,
        _short(row.name, int(layout.names / layout.font * 1.75)),
        va="center",
        color=INK if known else MUTED,
        fontsize=layout.font,
        fontweight="normal" if row.factor else "bold",
        parse_math=False,
    )
    for x, count in zip(layout.columns, row.counts, strict=True):
        axes.text(x, y, f"{count:,}", va="center", ha="right", color=INK if known else MUTED,
                  fontsize=layout.font)  # fmt: skip


def _panel(axes: Axes, lines: Sequence[Row | str], number: int, low: float, small: float) -> None:
    """One score of all rows."""
    found = [
        (place, row, row.intervals[number])
        for place, row in enumerate(lines)
        if not isinstance(row, str)
    ]
    total = found[0][2]
    if total is not None:
        axes.axvline(total.value, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    for place, row, interval in found:
        if interval is None:
            if number == 0 and not any(row.intervals):
                axes.text(low, place, "too few", va="center", color=MUTED, fontsize=small)
            continue
        if np.isfinite(interval.low):
            axes.plot([interval.low, interval.high], [place, place], color=ACCENT, linewidth=2)
        axes.plot(
            interval.value, place, "o" if row.factor else "D", color=ACCENT, markersize=6,
            markeredgecolor=PAPER, clip_on=False,
        )  # fmt: skip
    axes.set_xlim(low, 1)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(labelsize=small)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
