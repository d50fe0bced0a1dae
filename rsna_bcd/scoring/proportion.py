"""Intervals where resamples are all alike: Wilson's for a share of none or all, else none."""

import math

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.bootstrap import Interval

_Z = 1.959963984540054  # half the width of a 95 % interval, in standard errors


def wilson(found: float, n: int) -> Interval:
    """A share with Wilson's 95 % score interval.

    Resamples of rows that are all alike are alike too: their interval has no width, of 12 rows as
    of 1,200. This one has a width at 0 and 1 as well, for independent rows.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).

    Args:
        found: rows that count, between 0 and n.
        n: rows.

    Raises:
        InputError: no rows, or more found than there are.
    """
    if not 0 <= found <= n or n == 0:
        raise InputError(f"{found:g} of {n} is no share. Give 0 <= found <= n, and n of 1 or more.")
    share, spread = found / n, _Z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    return Interval(share, 0.0 if share == 0 else low, 1.0 if share == 1 else high)


def with_width(resampled: Interval, n: int) -> Interval:
    """The interval of a resampled share, Wilson's where resamples could not differ.

    Args:
        resampled: a share of rows.
        n: how many of them are independent: patients.
    """
    if resampled.value not in (0.0, 1.0) or resampled.low < resampled.high or n == 0:
        return resampled
    return wilson(resampled.value * n, n)


def unless_certain(interval: Interval) -> Interval:
    """The interval; NaN ends where it has no width, which says nothing of how sure the value is.

    Resamples of rows that are all in order are in order too, of 12 rows as of 1,200.
    """
    if interval.low < interval.high:
        return interval
    return Interval(interval.value, math.nan, math.nan)
