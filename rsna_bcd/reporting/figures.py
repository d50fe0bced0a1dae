"""Figures of the report, as SVG that takes the fonts and colours of the page.

To add a figure, write a function that draws on an empty figure and returns its caption, and
decorate it with `report_figure`; the page shows it in the section that is named there.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsna_bcd.reporting import captions
from rsna_bcd.reporting.evaluation import PUBLISHED, Evaluation
from rsna_bcd.reporting.subgroups import Subgroup
from rsna_bcd.scoring.intervals import ConfidenceBand, Interval, wilson

# Placeholders for the colours of the style sheet (`--ink`, ...): one drawing serves a light page, a
# dark page and a print. Not black, which the SVG writer leaves out.
_COLOURS = {
    f"#{0x010203 + number:06x}": name
    for number, name in enumerate(
        ("ink", "muted", "rule", "paper", "accent", "cancer", "healthy", "second")
    )
}
INK, MUTED, RULE, PAPER, ACCENT, CANCER, NEGATIVE, SECOND = _COLOURS
_STYLE: Any = {
    "svg.fonttype": "none",  # text that can be searched and copied
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_DOTTED = (0, (2, 3))
_MARKER: Any = {"markeredgecolor": PAPER, "clip_on": False}
_COLUMN = 450  # pixels, of two on the page

Draw = Callable[[Evaluation, Figure], str | None]


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report."""

    section: str  # key of `page.SECTIONS`
    key: str  # letters, digits and underscores; unique on the page
    label: str  # for screen readers
    size: tuple[float, float]  # width and height in pixels of the page; `draw` may change it
    draw: Draw  # on an empty figure; returns the caption, or None where there is nothing to show


@dataclass(frozen=True)
class DrawnFigure:
    """A figure on the page."""

    key: str
    svg: str  # element
    caption: str
    is_wide: bool  # takes both columns of the page


FIGURES: list[ReportFigure] = []  # in the order of the page


def report_figure(
    section: str, label: str, width: float = 340, height: float = 295
) -> Callable[[Draw], Draw]:
    """Add the decorated function to the report; arguments as of `ReportFigure`."""

    def register(draw: Draw) -> Draw:
        FIGURES.append(ReportFigure(section, draw.__name__, label, (width, height), draw))
        return draw

    return register


def draw_figures(evaluation: Evaluation) -> dict[str, list[DrawnFigure]]:
    """All figures that have something to show, by section."""
    drawn: dict[str, list[DrawnFigure]] = {}
    for one in FIGURES:
        with rc_context({**_STYLE, "svg.hashsalt": one.key}):
            figure = Figure(layout="constrained")
            _resize(figure, *one.size)
            caption = one.draw(evaluation, figure)
            if caption is not None:
                svg, is_wide = to_svg(figure, one.key, one.label), one.size[0] > _COLUMN
                drawn.setdefault(one.section, []).append(
                    DrawnFigure(one.key, svg, caption, is_wide)
                )
    return drawn


def to_svg(figure: Figure, key: str, label: str) -> str:
    """`<svg>` with variables of the style sheet as colours, described by `caption-<key>`.

    Without size, fonts, metadata or ids of groups, which would repeat on a page.
    """
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue().decode()
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    text = text[text.index(">", box.end()) + 1 :]  # the root element and all before it
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"<defs>\s*</defs>", "", re.sub(r'<g id="[^"]*"', "<g", text))
    # Coordinates in hundredths of a pixel; texts between the tags keep their digits.
    text = re.sub(r"(\d\.\d\d)\d+(?=[^<>]*>)", r"\1", text)
    for colour, name in _COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    described = f'role="img" aria-label="{label}" aria-describedby="caption-{key}"'
    return f"<svg {box[0]} {described}>{text.strip()}"


def _resize(figure: Figure, width: float, height: float) -> None:
    """Set the size in pixels of the page: a point of the drawing is a pixel."""
    figure.set_size_inches(width / 72, height / 72)


def _axes(figure: Figure, xlabel: str, ylabel: str) -> Axes:
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return axes


def _set_unit_axes(axes: Axes, end: float = 1.0) -> None:
    """Both axes from 0 to `end`, in percent."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.MultipleLocator(0.2) if end == 1 else ticker.MaxNLocator(5))
        axis.set_major_formatter(ticker.PercentFormatter(1, decimals=0 if end > 0.1 else 1))
    axes.set(xlim=(-0.01 * end, 1.01 * end), ylim=(-0.01 * end, 1.03 * end))
    axes.tick_params(length=0)


def _annotate(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **kwargs: Any
) -> None:
    """Text beside a point; it does not shrink the axes."""
    style: dict[str, Any] = {"color": MUTED, "fontsize": 10, "textcoords": "offset points"} | kwargs
    axes.annotate(text, at, xytext=offset, **style).set_in_layout(False)


def _draw_band(axes: Axes, band: ConfidenceBand) -> None:
    if np.isfinite(band.low).all():
        axes.fill_between(band.x, band.low, band.high, color=ACCENT, alpha=0.18, linewidth=0)
    axes.plot(band.x, band.value, color=ACCENT)


def _draw_operating_point(axes: Axes, x: float, y: float, *, above: bool = False) -> None:
    """The cross-fitted operating point, its name on the side where there is room."""
    left, right = axes.get_xlim()
    place = (x - left) / (right - left) if axes.get_xscale() == "linear" else float(x >= 0.05)
    axes.plot(x, y, "o", color=CANCER, markersize=8, zorder=5, **_MARKER)
    offset = (8 if place < 0.6 else -6), (6 if above and place < 0.6 else -13)
    _annotate(axes, "chosen threshold", (x, y), offset, color=CANCER, fontsize=11,
              ha="left" if place < 0.6 else "right")  # fmt: skip


def _draw_histogram(
    axes: Axes,
    values: NDArray[np.float64],
    edges: NDArray[np.float64],
    colour: str,
    *,
    alpha: float,
    width: float,
    label: str | None = None,
) -> None:
    """Shares of the values in each bin."""
    share = np.histogram(values, edges)[0] / max(len(values), 1)
    axes.stairs(share, edges, fill=True, color=colour, alpha=alpha, linewidth=0)
    axes.stairs(share, edges, color=colour, linewidth=width, label=label)
    axes.set_xlim(edges[0], edges[-1])
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))


@report_figure("data", "Ages with and without cancer", height=220)
def ages(e: Evaluation, figure: Figure) -> str | None:
    """Ages of both classes, each as shares of its own."""
    known = np.concatenate([e.cohort.ages_with, e.cohort.ages_without])
    if not len(known):
        return None
    axes = _axes(figure, "age in years", "share of breasts")
    edges = np.arange(5 * np.floor(known.min() / 5), known.max() + 5.1, 5)
    without = e.cohort.ages_without
    _draw_histogram(axes, without, edges, NEGATIVE, alpha=0.22, width=1.6, label="without cancer")
    with_ = e.cohort.ages_with
    _draw_histogram(axes, with_, edges, CANCER, alpha=0.22, width=1.6, label="with cancer")
    axes.xaxis.set_major_locator(ticker.MultipleLocator(10))
    figure.legend(loc="outside lower center", ncols=2)
    return captions.ages(e.cohort)


@report_figure("ranking", "ROC curve with 95 % band and the operating point")
def roc(e: Evaluation, figure: Figure) -> str:
    """Sensitivity over 1 - specificity."""
    axes = _axes(figure, "1 − specificity (false positive rate)", "sensitivity")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DOTTED)
    _annotate(axes, "chance", (0.6, 0.6), (6, -12))
    _draw_band(axes, e.roc)
    _set_unit_axes(axes)
    _draw_operating_point(axes, 1 - e.scores["specificity"].value, e.scores["sensitivity"].value)
    return captions.roc(e.scores, e.delong)


@report_figure("ranking", "Precision-recall curve with 95 % band")
def precision_recall(e: Evaluation, figure: Figure) -> str:
    """PPV over sensitivity."""
    axes = _axes(figure, "sensitivity (recall)", "PPV (precision)")
    prevalence = e.cohort.prevalence
    axes.axhline(prevalence, color=MUTED, linewidth=1, linestyle=_DOTTED)
    _annotate(axes, "chance: the prevalence", (0.02, prevalence),
              (0, -12 if prevalence > 0.1 else 4))  # fmt: skip
    _draw_band(axes, e.precision)
    _set_unit_axes(axes)
    if np.isfinite(e.scores["ppv"].value):
        point = e.scores["sensitivity"].value, e.scores["ppv"].value
        _draw_operating_point(axes, *point, above=True)
    return captions.precision(e.scores, prevalence)


@report_figure("threshold", "pF1 over the threshold, with its plateau")
def threshold(e: Evaluation, figure: Figure) -> str:
    """PF1 at every threshold in sample, the plateau, and the cross-fitted thresholds."""
    ensemble, curve = e.inputs.ensemble, e.curve
    plateau, chosen = ensemble.plateau, ensemble.threshold
    axes = _axes(figure, "threshold", "pF1")
    axes.axvspan(plateau.low, plateau.high, color=ACCENT, alpha=0.14, linewidth=0)
    axes.plot(curve.thresholds, curve.pf1, color=ACCENT, label="in sample, at every threshold")
    axes.axvline(chosen, color=INK, linewidth=1.2)
    for score, style, label in (
        (e.in_sample["pf1"].value, ":", "in sample, chosen"),
        (e.scores["pf1"].value, "-", "cross-fitted, chosen"),
    ):
        axes.axhline(score, color=CANCER, linewidth=1.1, linestyle=style, label=label)
    fitted = ensemble.cross_fitted_thresholds
    at = np.interp(fitted, curve.thresholds[::-1], curve.pf1[::-1])
    axes.plot(fitted, at, "o", color=CANCER, markersize=6.5, label="chosen on other patients",
              markeredgecolor=PAPER)  # fmt: skip
    top = float(np.nanmax(curve.pf1))
    low, high = float(curve.thresholds.min()), float(curve.thresholds.max())
    axes.set(xlim=(low, high), ylim=(0.45 * top, 1.06 * top))
    right = chosen > (low + high) / 2
    _annotate(axes, f"{chosen:.3f}", (chosen, 0.45 * top), (-5 if right else 5, 5), color=INK,
              fontsize=11, ha="right" if right else "left")  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2, columnspacing=1, handlelength=1.4)
    return captions.threshold(plateau, chosen, fitted, e.optimism)


@report_figure("operating", "Sensitivity at high specificity, and published points")
def screening(e: Evaluation, figure: Figure) -> str:
    """Sensitivity where specificity is high; points beyond the band lie at the left edge."""
    axes = _axes(figure, "specificity", "sensitivity")
    axes.set_xscale("log")
    _draw_band(axes, e.screening)
    lowest = float(e.screening.x[0])
    axes.set(xlim=(lowest, 1), ylim=(0, 1.03))
    points = {"the chosen threshold": 1 - e.scores["specificity"].value}
    for marker, published in zip("sDv", PUBLISHED, strict=True):
        points[published.name] = 1 - published.specificity
        x = max(points[published.name], lowest)
        axes.plot(x, published.sensitivity, marker, color=SECOND, markersize=7, **_MARKER,
                  label=published.name)  # fmt: skip
    x = max(points["the chosen threshold"], lowest)
    _draw_operating_point(axes, x, e.scores["sensitivity"].value)
    ticks = [tick for tick in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0) if tick >= lowest]
    axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * (1 - x):.3g}%")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    figure.legend(loc="outside lower center", ncols=2, columnspacing=1, handletextpad=0.2)
    beyond = [name for name, place in points.items() if place < lowest - 1e-9]
    return captions.screening(e.screening, e.cohort.prevalence, beyond)


@report_figure("scores", "Distribution of the probabilities with and without cancer")
def distribution(e: Evaluation, figure: Figure) -> str:
    """Probabilities of both classes, with the threshold."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    edges = np.linspace(0, 1, 26)
    breasts = e.in_sample_breasts
    for axes, label, colour, name in (
        (upper, 1, CANCER, "with cancer"),
        (lower, 0, NEGATIVE, "without cancer"),
    ):
        own = breasts.probabilities[breasts.labels == label]
        _draw_histogram(axes, own, edges, colour, alpha=0.35, width=1.4)
        axes.axvline(e.inputs.ensemble.threshold, color=INK, linewidth=1.2)
        axes.set_title(f"{len(own):,} breasts {name}", loc="left", color=colour, fontsize=11)
    lower.set_xlabel("probability out of fold; the line is the threshold")
    figure.supylabel("share of breasts", color=MUTED, fontsize=11)
    return captions.distributions(breasts)


@report_figure("scores", "Reliability: share with cancer over the predicted probability")
def reliability(e: Evaluation, figure: Figure) -> str:
    """Share with cancer over the mean probability of each bin, with Wilson's intervals."""
    axes = _axes(figure, "mean probability of the bin", "share with cancer")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DOTTED)
    highest = 0.0
    for (name, curve), colour in zip(e.reliability.items(), (ACCENT, CANCER), strict=False):
        bins = zip(curve.observed, curve.counts, strict=True)
        intervals = [wilson(share * n, int(n)) for share, n in bins]
        below = curve.observed - [i.low for i in intervals]
        above = [i.high for i in intervals] - curve.observed
        axes.errorbar(
            curve.predicted, curve.observed, yerr=[below, above], color=colour, marker="o",
            markersize=5, markeredgecolor=PAPER, elinewidth=1, linewidth=1.2, label=name,
        )  # fmt: skip
        highest = max(highest, float(curve.predicted.max()), *(i.high for i in intervals))
    end = 1.08 * highest if 0 < 1.08 * highest < 0.9 else 1.0  # small in screening
    _annotate(axes, "perfect", (0.8 * end, 0.8 * end), (4, -13))
    _set_unit_axes(axes, end)
    if len(e.reliability) > 1:
        axes.legend(loc="upper left")
    return captions.calibration(e.calibration, e.cohort.prevalence)


@report_figure("groups", "Scores of subgroups, with 95 % intervals", 860)
def forest(e: Evaluation, figure: Figure) -> str:
    """Scores of subgroups below each other. Dashed: all breasts."""
    lines: list[tuple[str, Subgroup | None]] = []  # a label, and its subgroup; None for a factor
    for place, group in enumerate(e.groups):
        if group.name and group.factor != e.groups[place - 1].factor:
            lines.append((group.factor, None))
        name = _shorten(group.name or group.factor)
        # An em space: SVG merges plain ones.
        lines.append((f"{name}\u2003{group.cancers:,} / {group.breasts:,}", group))
    _resize(figure, 860, 21 * len(lines) + 60)
    panels = figure.subplots(1, 3, sharey=True)
    rates = [i for g in e.groups for i in (g.sensitivity, g.specificity)]
    starts = _axis_start([g.auroc for g in e.groups]), _axis_start(rates), _axis_start(rates)
    keys = "auroc", "sensitivity", "specificity"
    for axes, key, start in zip(panels, keys, starts, strict=True):
        for y, (_, own) in enumerate(lines):
            interval = getattr(own, key, None)
            if interval is None:
                continue
            if own is e.groups[0]:
                axes.axvline(interval.value, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
            if np.isfinite(interval.low):
                axes.plot([interval.low, interval.high], [y, y], color=ACCENT, linewidth=2)
            marker = "D" if own is e.groups[0] else "o"
            axes.plot(interval.value, y, marker, color=ACCENT, markersize=6, **_MARKER)
        axes.set(xlim=(start, 1), ylim=(len(lines) - 0.5, -0.5))
        axes.set_title("AUROC" if key == "auroc" else key.capitalize(), loc="left", color=INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
    panels[0].set_yticks(range(len(lines)), [label for label, _ in lines])
    for tick, (_, own) in zip(panels[0].get_yticklabels(), lines, strict=True):
        tick.set_color(INK if own and own.scored else MUTED)
        tick.set_fontweight("bold" if own in (None, e.groups[0]) else "normal")
    return captions.forest(e.inputs.band_resamples)


def _shorten(name: str, letters: int = 28) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _axis_start(intervals: Sequence[Interval | None]) -> float:
    """The start of an axis that shows all intervals and ends at 1, in tenths."""
    known = [i for i in intervals if i is not None]
    low = min([i.low for i in known if np.isfinite(i.low)] + [i.value for i in known] + [0.9])
    return max(0.0, float(np.floor(10 * low - 0.05)) / 10)


@report_figure("members", "Rank correlation of the members' probabilities")
def correlation(e: Evaluation, figure: Figure) -> str | None:
    """Spearman's correlation of the members: the darker, the more alike."""
    names = [member.name for member in e.members]
    n = len(names)
    if n < 2:
        return None
    _resize(figure, max(300, 56 * n + 110), 44 * n + 60)
    axes = figure.add_subplot()
    axes.set_frame_on(False)
    axes.grid(visible=False)
    for (row, column), value in np.ndenumerate(e.correlation):
        alpha = 0.08 + 0.62 * float(np.nan_to_num(np.clip(value, 0, 1))) ** 3
        width = [column - 0.48, column + 0.48]
        axes.fill_between(width, row - 0.46, row + 0.46, color=ACCENT, alpha=alpha, linewidth=0)
        axes.text(column, row, f"{value:.2f}", ha="center", va="center")
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
    axes.set_yticks(range(n), names)
    axes.set_xticks(range(n), [f"{i + 1}" if n > 4 else name for i, name in enumerate(names)])
    axes.tick_params(length=0)
    return captions.correlation(names, e.correlation)


@report_figure("members", "Learning curves: loss and scores by epoch", 700)
def learning(e: Evaluation, figure: Figure) -> str | None:
    """Losses and held-out scores by epoch: a line of panels per member, a curve per fold."""
    histories = e.inputs.histories
    if not histories:
        return None
    _resize(figure, 700, 250 * len(histories))
    parts: Any = figure.subfigures(len(histories), 1, squeeze=False)
    for part, (name, folds) in zip(parts.flat, histories.items(), strict=True):
        part.suptitle(name, fontsize=11, x=0.01, ha="left")
        _draw_learning_curves(part, folds, (ACCENT, CANCER))
    return " ".join(captions.learning(folds, name) for name, folds in histories.items())


# Columns of metrics.csv by panel, and their names.
_LEARNING: Mapping[str, Mapping[str, str]] = {
    "loss": {"train_loss": "training", "valid_loss": "held out"},
    "held-out score": {"auroc": "AUROC", "average_precision": "average precision"},
}


def learning_curves(folds: Mapping[str, pd.DataFrame]) -> Figure:
    """Learning curves of a run, for a file.

    Args:
        folds: the tables `metrics.csv` by name of the fold, one row per epoch.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    _draw_learning_curves(figure, folds, ("#2a6f97", "#c8553d"))
    figure.suptitle(", ".join(folds))
    return figure


def _draw_learning_curves(
    figure: Any, folds: Mapping[str, pd.DataFrame], colours: tuple[str, str]
) -> None:
    for axes, (label, columns) in zip(figure.subplots(1, 2), _LEARNING.items(), strict=True):
        for (column, name), colour in zip(columns.items(), colours, strict=True):
            for number, table in enumerate(folds.values()):
                if column in table and table[column].notna().any():
                    axes.plot(
                        table["epoch"] + 1, table[column], color=colour, linewidth=1.4, marker="o",
                        markersize=3, alpha=1.0 if len(folds) == 1 else 0.7,
                        label=None if number else name,
                    )  # fmt: skip
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        if axes.lines:
            axes.legend()
        else:
            axes.set_axis_off()
