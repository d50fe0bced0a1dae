"""Errors that the user can correct, and differences of records."""

from collections.abc import Iterator
from typing import Any


class InputError(Exception):
    """Bad input that the user can correct.

    The message names the thing (file, row, column or configuration key) and the remedy. Stages
    print it without a traceback and exit with 1.
    """


class StorageError(InputError):
    """Results cannot be written (disk full, no permission): more work would be lost as well."""


def difference(existing: Any, wanted: Any, key: str = "") -> Iterator[str]:
    """Yield `key: existing -> wanted` for every leaf in which two records differ."""
    if isinstance(existing, dict) and isinstance(wanted, dict):
        for name in sorted(existing.keys() | wanted.keys(), key=str):
            missing = "(absent)"
            yield from difference(
                existing.get(name, missing), wanted.get(name, missing), f"{key}.{name}".lstrip(".")
            )
    elif existing != wanted:
        yield f"{key}: {existing} -> {wanted}"
