"""Wilson's interval by its own equation."""

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.bootstrap import Interval
from rsna_bcd.scoring.proportion import unless_certain, wilson, with_width

Z = 1.959963984540054


@pytest.mark.parametrize(("found", "n"), [(1, 12), (7, 10), (300, 1000), (999, 1000)])
def test_both_ends_lie_as_far_from_the_share_as_chance_reaches(found: int, n: int) -> None:
    interval = wilson(found, n)
    assert interval.value == found / n
    for end in (interval.low, interval.high):
        assert abs(interval.value - end) == pytest.approx(Z * np.sqrt(end * (1 - end) / n))


def test_none_and_all_have_a_width_that_shrinks_with_the_rows() -> None:
    # By hand: the other end is z^2 / (n + z^2).
    for n in (12, 1200):
        beyond = Z**2 / (n + Z**2)
        none, all_ = wilson(0, n), wilson(n, n)
        assert [none.value, none.low, none.high] == pytest.approx([0, 0, beyond])
        assert [all_.value, all_.low, all_.high] == pytest.approx([1, 1 - beyond, 1])


def test_a_resampled_interval_stays_where_it_has_a_width() -> None:
    resampled = Interval(0.5, 0.3, 0.7)
    assert with_width(resampled, 10) is resampled
    refitted = Interval(1.0, 0.9, 1.0)  # thresholds moved
    assert with_width(refitted, 10) is refitted
    assert with_width(Interval(1.0, 1.0, 1.0), 10) == wilson(10, 10)
    none_called = Interval(1.0, 1.0, 1.0)
    assert with_width(none_called, 0) is none_called


@pytest.mark.parametrize(("found", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_what_is_no_share(found: int, n: int) -> None:
    with pytest.raises(InputError, match="is no share"):
        wilson(found, n)


def test_an_interval_without_a_width_is_none() -> None:
    assert unless_certain(Interval(0.9, 0.8, 0.95)) == Interval(0.9, 0.8, 0.95)
    perfect = unless_certain(Interval(1.0, 1.0, 1.0))
    assert perfect.value == 1
    assert np.isnan([perfect.low, perfect.high]).all()
