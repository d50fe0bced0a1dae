"""Folders of two runs, compared."""

from pathlib import Path


def tree(folder: Path) -> dict[str, bytes]:
    """The contents of all files but the timings, by relative path."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "timings.csv"
    }
