"""Format numbers for a report: shares in percent, scores as decimals, intervals in brackets."""

import math

from rsna_bcd.scoring.intervals import Difference, Interval

UNKNOWN = "–"
THIN = "\u202f"  # a narrow space that does not break


def percent(share: float, digits: int = 1) -> str:
    """A share: `77.8 %`; a dash where it is undefined."""
    return f"{100 * share:.{digits}f}{THIN}%" if math.isfinite(share) else UNKNOWN


def decimal(value: float | None, digits: int = 3) -> str:
    """A score: `0.966`; a dash where it is undefined."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def shares(interval: Interval | None, digits: int = 1) -> str:
    """A share and its interval: `77.8 % (68.7 to 87.2)`."""
    if interval is None or not math.isfinite(interval.value):
        return UNKNOWN
    return f"{percent(interval.value, digits)} ({share_range(interval, digits)})"


def share_range(interval: Interval, digits: int = 1) -> str:
    """The interval of a share, in percent: `68.7 to 87.2`."""
    if not math.isfinite(interval.low):
        return "no interval"
    return f"{100 * interval.low:.{digits}f} to {100 * interval.high:.{digits}f}"


def decimals(interval: Interval | None, digits: int = 3) -> str:
    """A score and its interval: `0.966 (0.946 to 0.982)`."""
    if interval is None or not math.isfinite(interval.value):
        return UNKNOWN
    return f"{decimal(interval.value, digits)} ({decimal_range(interval, digits)})"


def decimal_range(interval: Interval, digits: int = 3) -> str:
    """The interval of a score: `0.946 to 0.982`."""
    if not math.isfinite(interval.low):
        return "no interval"
    return f"{with_minus(interval.low, digits)} to {with_minus(interval.high, digits)}"


def with_minus(value: float, digits: int = 3) -> str:
    """A decimal with a true minus sign, and none before a zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return text.replace("-", "\u2212")


def signed(difference: Interval | None, digits: int = 3, unit: str = "") -> str:
    """A difference and its interval: `+0.021 (−0.004 to 0.046)`."""
    if difference is None or not math.isfinite(difference.value):
        return UNKNOWN
    value = with_minus(difference.value, digits)
    plus = "+" if float(f"{difference.value:.{digits}f}") > 0 else ""
    return f"{plus}{value}{unit} ({decimal_range(difference, digits)})"


def p_value(difference: Difference | None) -> str:
    """`0.012`, `< 0.001`."""
    if difference is None or not math.isfinite(difference.p_value):
        return UNKNOWN
    return "< 0.001" if difference.p_value < 0.001 else f"{difference.p_value:.3f}"


def count(n: float, noun: str) -> str:
    """`1 breast`, `1,389 images`."""
    return f"{n:,.0f} {noun}" if n == 1 else f"{n:,.0f} {_plural(noun)}"


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _plural(noun: str) -> str:
    first, *rest = noun.split(" ", 1)
    return " ".join([f"{first}es" if first.endswith("s") else f"{first}s", *rest])
