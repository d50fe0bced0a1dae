"""Figures as parts of a page."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from rsna_bcd.reporting.figures import ACCENT, INK, axes_of, drawing, thinned, to_svg


def figure(key: str) -> str:
    with drawing(300, 200) as drawn:
        axes = axes_of(drawn, "x < y & more", "sensitivity")
        axes.plot([0, 1], [0.123456789, 1], "o-", color=ACCENT)
        axes.set_xlim(0.2, 1)  # clips
        axes.annotate("$5 & <b>", (0.5, 0.5), color=INK, parse_math=False)
        return to_svg(drawn, key, "a line <rising>")


def test_the_page_gives_colours_and_fonts() -> None:
    svg = figure("one")
    assert "var(--accent)" in svg
    assert "var(--ink)" in svg
    # What is left of matplotlib's own: no colour, no font, no style for the whole page, no link.
    assert not re.findall(r"#[0-9a-f]{6}", svg)
    for foreign in ("DejaVu", "<style", "<metadata", "http", "xmlns", "xlink"):
        assert foreign not in svg


def test_it_is_one_element_with_text_that_can_be_read() -> None:
    root = ElementTree.fromstring(figure("one"))
    assert root.tag == "svg"
    assert root.attrib["viewBox"] == "0 0 300 200"
    assert root.attrib["aria-label"] == "a line <rising>"
    assert "width" not in root.attrib
    texts = ["".join(text.itertext()) for text in root.iter("text")]
    assert {"x < y & more", "sensitivity", "$5 & <b>"} <= set(texts)


def test_identifiers_are_those_that_are_used_and_differ_between_figures() -> None:
    ids = []
    for key in ("one", "two"):
        svg = figure(key)
        own = re.findall(r' id="([^"]+)"', svg)
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
        assert set(own) == {first or second for first, second in used}
        assert len(own) == len(set(own)) > 0
        ids.append(set(own))
    assert not ids[0] & ids[1]


def test_the_same_figure_is_the_same_text() -> None:
    assert figure("one") == figure("one")


def test_thinning_keeps_ends_and_shape() -> None:
    x = np.linspace(0, 1, 20_000)
    y = np.sin(20 * x)
    kept_x, kept_y = thinned(x, y)
    assert len(kept_x) < 3_000
    assert (kept_x[0], kept_x[-1]) == (0, 1)
    np.testing.assert_allclose(np.interp(x, kept_x, kept_y), y, atol=2 * 2 / 400)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_short_curves_stay(n: int) -> None:
    x, y = thinned(np.arange(n), np.arange(n))
    assert len(x) == len(y) == n


def test_a_level_curve_is_two_points() -> None:
    x, _ = thinned(np.zeros(50), np.ones(50))
    assert len(x) == 2
