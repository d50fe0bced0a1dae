"""Quality flags: reasons for caution with the score of an image."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

_SEPARATOR = "; "


class QualityFlag(StrEnum):
    """A flag of one image; the value is the text in CSV and JSON files.

    The order is the order of display; `tables.study_results.QUALITY_FLAGS` explains each.
    """

    # From the pixels and the display transform
    NO_WINDOW = "no window"
    WINDOW_DISCARDED = "window discarded"
    LUT_DISCARDED = "lookup table discarded"
    INVERSION_CONTRADICTORY = "inversion contradictory"
    ORIENTATION_CONTRADICTORY = "orientation contradictory"
    # From the header: the kind of image
    SPOT_COMPRESSION = "spot compression"
    MAGNIFICATION = "magnification"
    NEEDLE_LOCALIZATION = "needle localization"
    SPECIMEN = "specimen"
    BIOPSY = "stereotactic or biopsy"
    FOR_PROCESSING = "for processing"
    SYNTHETIC_2D = "synthetic 2D"
    DIGITIZED_FILM = "digitized film"
    NOT_MAMMOGRAM = "not said to be a mammogram"
    LATERALITY_CONTRADICTORY = "laterality contradictory"
    VIEW_CONTRADICTORY = "view contradictory"


def join_flags(flags: Iterable[QualityFlag]) -> str:
    """Write flags as one cell of a table: each once, in the order of `QualityFlag`."""
    present = set(flags)
    return _SEPARATOR.join(flag for flag in QualityFlag if flag in present)


def split_flags(cell: str) -> list[QualityFlag]:
    """Read a cell that `join_flags` wrote.

    Raises:
        ValueError: the cell holds text that is no flag.
    """
    return [QualityFlag(text) for text in cell.split(_SEPARATOR) if text]


def count_flags(cells: Iterable[str]) -> dict[QualityFlag, int]:
    """Count the images with each flag that occurs, in the order of `QualityFlag`.

    Args:
        cells: one per image, from `join_flags`.
    """
    counts = Counter(flag for cell in cells for flag in split_flags(cell))
    return {flag: counts[flag] for flag in QualityFlag if counts[flag]}
