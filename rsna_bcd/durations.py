"""Durations: as text, and estimated for work that is under way."""


def format_duration(seconds: float) -> str:
    """`8.3 s`, `84 s`, `35 min` or `4.0 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def seconds_left(seconds: float, done: float, before: float, total: float) -> float | None:
    """Estimate the seconds until work ends; None while unknown, and when it has ended.

    Args:
        seconds: since the start of this process's work.
        done: units of work, those of `before` included; fractions are allowed.
        before: units done by an earlier process.
        total: units of work.
    """
    return seconds / (done - before) * (total - done) if before < done < total else None
