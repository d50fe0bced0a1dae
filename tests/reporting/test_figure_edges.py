"""Where the axes of figures begin, and what lies beyond."""

import numpy as np

from rsna_bcd.reporting.figures_groups import axis_start
from rsna_bcd.reporting.figures_scores import beyond_edge
from rsna_bcd.scoring.intervals import ConfidenceBand, Interval


def test_an_axis_holds_every_interval() -> None:
    wide, narrow = Interval(0.8, 0.42, 0.95), Interval(0.97, 0.96, 0.98)
    assert axis_start([narrow, None, wide]) == 0.4
    assert axis_start([narrow]) == 0.8
    assert axis_start([Interval(0.31, float("nan"), float("nan"))]) == 0.3
    assert axis_start([Interval(0.1, 0.0, 0.3)]) == 0.0
    assert axis_start([None]) == 0.8


def test_points_of_a_higher_specificity_than_the_figure_shows_are_named() -> None:
    x = np.geomspace(0.0125, 1, 5)  # of 80 breasts without cancer
    beyond = beyond_edge(ConfidenceBand(x, x, x, x), (0.0, 0.7))
    assert beyond[0] == "the chosen threshold"
    assert "Best single algorithm" in beyond
    assert "Any of the top ten recalls" not in beyond
    x = np.geomspace(0.003, 1, 5)
    assert beyond_edge(ConfidenceBand(x, x, x, x), (0.003, 0.7)) == []
