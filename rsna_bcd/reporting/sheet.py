"""Dark pages of pixels and text, for pictures that people look at instead of tables."""

import io
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# All lengths are pixels.
PLAIN = 12  # size of text
ADVANCE = 0.602  # width of a letter of DejaVu Sans Mono, as a part of its size
_DPI = 128  # a power of two: pixels / dpi * dpi are the same pixels

PAPER, RULE = (17, 19, 23), (43, 47, 54)
BRIGHT, MUTED = (232, 234, 237), (150, 156, 165)
RED, AMBER = (255, 92, 92), (255, 166, 43)


def as_png(figure: Figure) -> bytes:
    """Encode a figure; the same figure gives the same bytes, on whatever day."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return content.getvalue()


class Page:
    """A dark page: pixels are painted, so that edges are sharp, and text is set upon them.

    Args:
        width: in pixels.
        height: in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.pixels = np.full((height, width, 3), PAPER, np.uint8)
        self._texts: list[_Text] = []

    def fill(
        self, left: int, top: int, width: int, height: int, colour: tuple[int, int, int]
    ) -> None:
        """Paint a rectangle."""
        self.pixels[top : top + height, left : left + width] = colour

    def write(
        self,
        left: float,
        baseline: int,
        content: str,
        size: int = PLAIN,
        colour: tuple[int, int, int] = BRIGHT,
        weight: str = "normal",
    ) -> float:
        """Set one line in letters of one width; returns where it ends."""
        self._texts.append(_Text(left, baseline, content, size, colour, weight))
        return left + len(content) * size * ADVANCE

    def figure(self) -> Figure:
        """The page, one pixel a pixel."""
        height, width, _ = self.pixels.shape
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        figure.set_layout_engine("none")  # whatever the user prefers
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(
            self.pixels,
            aspect="auto",
            extent=(0, width, height, 0),
            origin="upper",
            interpolation="none",
        )
        for text in self._texts:
            axes.text(
                text.left, text.baseline, text.content,
                fontsize=text.size * 72 / _DPI, color=[c / 255 for c in text.colour],
                # Named, not the user's own; and a dollar in a reason is no formula.
                fontfamily="DejaVu Sans Mono", fontweight=text.weight,
                verticalalignment="baseline", parse_math=False, usetex=False,
            )  # fmt: skip
        return figure


@dataclass(frozen=True)
class _Text:
    """A line of text."""

    left: float
    baseline: int
    content: str
    size: int
    colour: tuple[int, int, int]
    weight: str


def shortened(text: str, letters: int) -> str:
    """At most so many letters: beginnings and ends of identifiers tell most."""
    if len(text) <= letters:
        return text
    end = (letters - 1) // 2
    return f"{text[: letters - 1 - end]}…{text[len(text) - end :]}"
