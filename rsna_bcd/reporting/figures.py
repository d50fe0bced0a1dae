"""Figures of the report, as SVG that takes the colours of the page."""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

# Stand-ins. Not black: the writer leaves black out, and what it leaves out cannot be replaced.
INK, MUTED, RULE, PAPER = "#010203", "#010204", "#010205", "#010206"
ACCENT, CANCER, HEALTHY, SECOND = "#010207", "#010208", "#010209", "#01020a"
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper",
    ACCENT: "--accent", CANCER: "--cancer", HEALTHY: "--healthy", SECOND: "--second",
}  # fmt: skip

_POINTS = 72  # an inch; a point of the drawing is a pixel of the page at its natural size
_FONT = 11.0
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be found and copied
    "font.family": "DejaVu Sans",  # comes with matplotlib; wider than what the page will use
    "font.size": _FONT,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 1.0,
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
    "legend.fontsize": _FONT - 0.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "hatch.color": MUTED,
}
_NAMESPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_KEPT = re.compile(r"url\(#([^)]+)\)")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")  # the page has its own
_FONT_STYLE = re.compile(r"font:\s*(?:(bold|[5-9]00)\s+)?(\d+(?:\.\d+)?)px[^;]*")


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure to draw on, in the style of the page.

    Args:
        width: in pixels of the page.
        height: likewise.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(width / _POINTS, height / _POINTS), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def axes_of(figure: Figure, xlabel: str = "", ylabel: str = "") -> Axes:
    """Axes that fill a figure."""
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return axes


def to_svg(figure: Figure, key: str, label: str) -> str:
    """Write a figure as an element of a page; the same figure gives the same text.

    Args:
        figure: drawn within `drawing`, and written within it.
        key: its name on the page: letters, digits and hyphens. Identifiers begin with it, so that
            figures on one page do not take each other's.
        label: what it shows, for those who do not see it: the words within are not read out, so
            that the page must say beside it what they say.

    Returns:
        `<svg ...>...</svg>`, without a size of its own.
    """
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": key}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(content.getvalue())
    for child in list(root):
        if child.tag == f"{_NAMESPACE}metadata":
            root.remove(child)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{_NAMESPACE}style":  # a rule for `*`, which is the whole page
                parent.remove(child)
    wanted = _referenced(root)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_NAMESPACE)
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            if name != "id" or value in wanted:
                element.attrib[name.replace(_LINK, "href")] = _value(name, value, key)
        element.text = element.text if (element.text or "").strip() else None
        element.tail = None
    _prune(root)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _prune(element: ElementTree.Element) -> None:
    """Drop groups and definitions that hold nothing."""
    for child in list(element):
        _prune(child)
        if child.tag in ("g", "defs") and len(child) == 0:
            element.remove(child)


def _referenced(root: ElementTree.Element) -> set[str]:
    """Identifiers that something in the drawing points to."""
    found: set[str] = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            found |= {value.removeprefix("#")} if name == _LINK else set(_KEPT.findall(value))
    return found


def _value(name: str, value: str, key: str) -> str:
    """An attribute as the page needs it."""
    if name == "id":
        return f"{key}-{value}"
    if name == _LINK:
        return f"#{key}-{value.removeprefix('#')}"
    value = _KEPT.sub(lambda match: f"url(#{key}-{match[1]})", value)
    for colour, variable in _VARIABLES.items():
        value = value.replace(colour, f"var({variable})")
    value = _FAMILY.sub("", value)
    value = _FONT_STYLE.sub(
        lambda match: f"font-size: {match[2]}px" + ("; font-weight: 600" if match[1] else ""), value
    )
    if name in ("d", "x", "y", "transform", "points"):
        value = _NUMBER.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)
    return " ".join(value.split())


def thinned(x: ArrayLike, *ys: ArrayLike, step: float = 1 / 400) -> tuple[NDArray[np.float64], ...]:
    """Leave out points of curves that would fall on their predecessors.

    Args:
        x: (N,).
        *ys: (N,) each, drawn over `x`.
        step: what cannot be seen, as a part of the range of x and of all y together.

    Returns:
        `x` and `ys`, the first and the last point and those in between that move by a step.
    """
    columns = np.stack([np.asarray(column, dtype=np.float64) for column in (x, *ys)])
    if columns.shape[1] < 3:
        return tuple(columns)
    spans = np.array([np.ptp(columns[0]), *[np.ptp(columns[1:])] * len(ys)])
    scaled = columns / np.where(spans > 0, spans, 1)[:, None]
    kept, last = [0], scaled[:, 0]
    for i in range(1, columns.shape[1] - 1):
        if np.abs(scaled[:, i] - last).max() >= step:
            kept.append(i)
            last = scaled[:, i]
    return tuple(columns[:, [*kept, columns.shape[1] - 1]])


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
