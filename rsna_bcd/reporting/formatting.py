"""Format numbers of a report: proportions in percent, scores as decimals, intervals in brackets."""

import math

from rsna_bcd.scoring.intervals import Difference, Interval

UNKNOWN = "–"
THIN = "\u202f"  # a narrow space that does not break


def percent(proportion: float, digits: int = 1) -> str:
    """`77.8 %`; a dash where it is undefined."""
    return f"{100 * proportion:.{digits}f}{THIN}%" if math.isfinite(proportion) else UNKNOWN


def decimal(value: float | None, digits: int = 3) -> str:
    """`0.966`, with a true minus sign and none before a zero; a dash where it is undefined."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\u2212")


def interval_ends(interval: Interval, digits: int = 3, scale: float = 1) -> str:
    """`0.946 to 0.982`; a scale of 100 is for percent."""
    if not math.isfinite(interval.low):
        return "no interval"
    return f"{decimal(scale * interval.low, digits)} to {decimal(scale * interval.high, digits)}"


def decimal_estimate(interval: Interval | None, digits: int = 3) -> str:
    """A score and its interval: `0.966 (0.946 to 0.982)`."""
    if interval is None or not math.isfinite(interval.value):
        return UNKNOWN
    return f"{decimal(interval.value, digits)} ({interval_ends(interval, digits)})"


def percent_estimate(interval: Interval | None, digits: int = 1) -> str:
    """A proportion and its interval: `77.8 % (68.7 to 87.2)`."""
    if interval is None or not math.isfinite(interval.value):
        return UNKNOWN
    return f"{percent(interval.value, digits)} ({interval_ends(interval, digits, 100)})"


def signed(difference: Interval | None, digits: int = 3, unit: str = "", scale: float = 1) -> str:
    """A difference and its interval: `+0.021 (−0.004 to 0.046)`."""
    if difference is None or not math.isfinite(difference.value):
        return UNKNOWN
    value = decimal(scale * difference.value, digits)
    plus = "" if value.startswith("\u2212") or float(value) == 0 else "+"
    return f"{plus}{value}{unit} ({interval_ends(difference, digits, scale)})"


def p_value(difference: Difference | None) -> str:
    """`0.012`, `< 0.001`."""
    if difference is None or not math.isfinite(difference.p_value):
        return UNKNOWN
    return "< 0.001" if difference.p_value < 0.001 else f"{difference.p_value:.3f}"


def count(n: float, noun: str) -> str:
    """`1 breast`, `1,389 images`."""
    return f"{n:,.0f} {noun}{'' if n == 1 else 's'}"


def enumeration(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
