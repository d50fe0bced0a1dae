"""Figures of the scores: curves with bands, the threshold, distributions, reliability."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    MultipleLocator,
    NullFormatter,
)
from numpy.typing import NDArray

from rsna_bcd.reporting.figures import (
    ACCENT,
    CANCER,
    HEALTHY,
    INK,
    MUTED,
    PAPER,
    RULE,
    SECOND,
    axes_of,
    drawing,
    thinned,
    to_svg,
)
from rsna_bcd.reporting.judged import JudgedBreasts
from rsna_bcd.reporting.performance import PUBLISHED
from rsna_bcd.scoring.calibration import ReliabilityCurve
from rsna_bcd.scoring.intervals import ConfidenceBand, wilson
from rsna_bcd.scoring.thresholds import Plateau, ThresholdCurve

_WIDTH, _HEIGHT = 340.0, 295.0
_BINS = 25
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")


def roc_figure(band: ConfidenceBand, point: tuple[float, float]) -> str:
    """Sensitivity over 1 - specificity, and the operating point: (1 - specificity, sensitivity)."""
    with drawing(_WIDTH, _HEIGHT) as figure:
        axes = axes_of(figure, "1 − specificity (false alarms)", "sensitivity")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        axes.annotate("chance", (0.6, 0.6), xytext=(6, -12), textcoords="offset points",
                      color=MUTED, fontsize=10)  # fmt: skip
        _band(axes, band)
        _point(axes, *point, right=point[0] < 0.6)
        _shares(axes)
        return to_svg(figure, "roc", "ROC curve with 95 % band and the chosen operating point")


def precision_figure(band: ConfidenceBand, point: tuple[float, float], prevalence: float) -> str:
    """Precision over recall, and the operating point: (sensitivity, PPV)."""
    with drawing(_WIDTH, _HEIGHT) as figure:
        axes = axes_of(figure, "sensitivity (recall)", "PPV (precision)")
        axes.axhline(prevalence, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        axes.annotate("chance: the prevalence", (0.02, prevalence),
                      xytext=(0, -12 if prevalence > 0.1 else 4),
                      textcoords="offset points", color=MUTED, fontsize=10)  # fmt: skip
        _band(axes, band)
        if np.isfinite(point[1]):
            _point(axes, *point, right=point[0] < 0.6, above=point[0] < 0.6)
        _shares(axes)
        return to_svg(figure, "precision", "Precision-recall curve with 95 % band")


def screening_figure(band: ConfidenceBand, point: tuple[float, float]) -> str:
    """Sensitivity where specificity is high, beside the challenge's published points.

    Args:
        band: over 1 - specificity, on points above 0 that are close near 0.
        point: (1 - specificity, sensitivity) of the chosen threshold. What lies to the left of the
            band is drawn at its edge, see `beyond_edge`.
    """
    with drawing(_WIDTH, _HEIGHT) as figure:
        axes = axes_of(figure, "specificity", "sensitivity")
        axes.set_xscale("log")
        _band(axes, band)
        lowest = float(band.x[0])
        for marker, published in zip("sDv", PUBLISHED, strict=True):
            axes.plot(
                max(1 - published.specificity, lowest), published.sensitivity, marker, color=SECOND,
                markersize=7, label=published.name, markeredgecolor=PAPER, clip_on=False,
            )  # fmt: skip
        _point(axes, max(point[0], lowest), point[1], right=point[0] < 0.05)
        axes.set_xlim(lowest, 1)
        axes.set_ylim(0, 1.03)
        ticks = [tick for tick in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0) if tick >= lowest]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * (1 - x):.3g}%"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
        axes.yaxis.set_major_formatter(_PERCENT)
        figure.legend(loc="outside lower center", ncols=2, columnspacing=1, handletextpad=0.2)
        return to_svg(figure, "screening", "Sensitivity at high specificity, and published points")


def beyond_edge(band: ConfidenceBand, point: tuple[float, float]) -> list[str]:
    """Which points `screening_figure` draws at its edge, as their specificity is higher."""
    places = {"the chosen threshold": point[0]}
    places |= {published.name: 1 - published.specificity for published in PUBLISHED}
    return [name for name, place in places.items() if place < float(band.x[0]) - 1e-9]


def threshold_figure(
    curve: ThresholdCurve,
    plateau: Plateau,
    chosen: float,
    fitted: Sequence[float],
    scores: tuple[float, float],
) -> str:
    """PF1 at every threshold in sample, the plateau, and where cross-fitting ends.

    Args:
        curve: of all breasts.
        plateau: of all breasts.
        chosen: threshold of the model.
        fitted: thresholds that the other patients chose for each group.
        scores: pF1 in sample and cross-fitted.
    """
    with drawing(_WIDTH, _HEIGHT) as figure:
        axes = axes_of(figure, "threshold", "pF1")
        axes.axvspan(plateau.low, plateau.high, color=ACCENT, alpha=0.14, linewidth=0)
        x, y = thinned(curve.thresholds, curve.pf1)
        axes.plot(x, y, color=ACCENT, label="in sample, at every threshold")
        axes.axvline(chosen, color=INK, linewidth=1.2)
        for score, style, words in (
            (scores[0], (0, (1, 2)), "in sample"),
            (scores[1], "-", "cross-fitted"),
        ):
            axes.axhline(
                score, color=CANCER, linewidth=1.1, linestyle=style, label=f"{words}, chosen"
            )
        at = np.interp(fitted, curve.thresholds[::-1], curve.pf1[::-1])
        axes.plot(fitted, at, "o", color=CANCER, markeredgecolor=PAPER, markersize=6.5,
                  label="chosen on other patients")  # fmt: skip
        top = float(np.nanmax(curve.pf1))
        axes.set_ylim(0.45 * top, 1.06 * top)  # what is far below is of no interest
        low, high = float(curve.thresholds.min()), float(curve.thresholds.max())
        axes.set_xlim(low, high)
        right = chosen > (low + high) / 2
        axes.annotate(
            f"{chosen:.3f}", (chosen, 0.45 * top), xytext=(-5 if right else 5, 5),
            textcoords="offset points", ha="right" if right else "left",
        )  # fmt: skip
        figure.legend(loc="outside lower center", ncols=2, columnspacing=1, handlelength=1.4)
        return to_svg(figure, "threshold", "pF1 over the threshold, with its plateau")


def distribution_figure(judged: JudgedBreasts, chosen: float) -> str:
    """Where the probabilities of both classes lie."""
    with drawing(_WIDTH, _HEIGHT) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        edges = np.linspace(0, 1, _BINS + 1)
        for axes, label, colour, words in (
            (upper, 1, CANCER, "with cancer"),
            (lower, 0, HEALTHY, "without cancer"),
        ):
            own = judged.probabilities[judged.labels == label]
            share = np.histogram(own, edges)[0] / max(len(own), 1)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.35, linewidth=0)
            axes.stairs(share, edges, color=colour, linewidth=1.4)
            axes.axvline(chosen, color=INK, linewidth=1.2)
            axes.set_title(f"{len(own):,} breasts {words}", loc="left", color=colour, fontsize=11)
            axes.yaxis.set_major_formatter(_PERCENT)
            axes.set_xlim(0, 1)
            axes.grid(visible=False, axis="x")
        lower.set_xlabel("probability out of fold; the line is the threshold")
        figure.supylabel("share of breasts", color=MUTED, fontsize=11)
        return to_svg(figure, "scores", "Distribution of probabilities with and without cancer")


def reliability_figure(curves: Sequence[tuple[str, ReliabilityCurve]]) -> str:
    """Share with cancer over the probability given, by name of what gave it."""
    with drawing(_WIDTH, _HEIGHT) as figure:
        axes = axes_of(figure, "mean probability of the bin", "share with cancer")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        ends: list[float] = []
        for (name, found), colour in zip(curves, (ACCENT, CANCER), strict=False):
            intervals = [
                wilson(share * n, int(n))
                for share, n in zip(found.observed, found.counts, strict=True)
            ]
            ends += [float(found.predicted.max()), *(i.high for i in intervals)]
            below = found.observed - [i.low for i in intervals]
            above = [i.high for i in intervals] - found.observed
            axes.errorbar(
                found.predicted, found.observed, yerr=[below, above], color=colour, marker="o",
                markersize=5, markeredgecolor=PAPER, elinewidth=1, linewidth=1.2, label=name,
            )  # fmt: skip
        highest = min(1.0, 1.08 * max(ends, default=1.0))
        axes.annotate("perfect", (0.8 * highest, 0.8 * highest), xytext=(4, -13), color=MUTED,
                      textcoords="offset points", fontsize=10)  # fmt: skip
        _shares(axes)
        if highest < 0.9:  # in screening, all probabilities are small
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(5))
            axes.set_xlim(-0.01 * highest, highest)
            axes.set_ylim(-0.01 * highest, highest)
        if len(curves) > 1:
            axes.legend(loc="upper left")
        return to_svg(figure, "reliability", "Share with cancer over the probability given")


def ages_figure(ages_with: NDArray[np.float64], ages_without: NDArray[np.float64]) -> str:
    """Ages of both classes, each as shares of its own."""
    with drawing(_WIDTH, 220) as figure:
        axes = axes_of(figure, "age in years", "share of breasts")
        known = np.concatenate([ages_with, ages_without])
        edges = np.arange(5 * np.floor(known.min() / 5), known.max() + 5.1, 5)
        for ages, colour, words in (
            (ages_without, HEALTHY, "without cancer"),
            (ages_with, CANCER, "with cancer"),
        ):
            share = np.histogram(ages, edges)[0] / max(len(ages), 1)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
            axes.stairs(share, edges, color=colour, linewidth=1.6, label=words)
        axes.set_xlim(edges[0], edges[-1])
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.xaxis.set_major_locator(MultipleLocator(10))
        figure.legend(loc="outside lower center", ncols=2)
        return to_svg(figure, "ages", "Ages with and without cancer")


def _band(axes: Axes, band: ConfidenceBand) -> None:
    """A curve and what resampled patients make of it."""
    x, value, low, high = thinned(band.x, band.value, band.low, band.high, step=1 / 300)
    if np.isfinite(low).all():
        axes.fill_between(x, low, high, color=ACCENT, alpha=0.18, linewidth=0)
    axes.plot(x, value, color=ACCENT)


def _point(axes: Axes, x: float, y: float, *, right: bool, above: bool = False) -> None:
    """The chosen threshold, its name beside it where the curve is not."""
    axes.plot(x, y, "o", color=CANCER, markersize=8, markeredgecolor=PAPER, zorder=5,
              clip_on=False)  # fmt: skip
    words = axes.annotate(
        "chosen threshold", (x, y), xytext=(8 if right else -6, 6 if above else -13), color=CANCER,
        textcoords="offset points", ha="left" if right else "right",
    )  # fmt: skip
    words.set_in_layout(False)  # the axes keep their width


def _shares(axes: Axes) -> None:
    """Both axes from 0 to 1, in percent."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(0.2))
        axis.set_major_formatter(_PERCENT)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.03)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_color(RULE)
