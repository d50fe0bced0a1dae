"""`failures.csv`: what was amiss in a test set, one row a case, and what came of it."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from typing import Literal

import pandas as pd

Kind = Literal[
    # The table: rows and cells
    "missing column", "damaged row", "unfit name", "repeated row", "two breasts",
    "unknown breast", "not asked for", "missing prediction_id", "missing patient_id",
    "unknown laterality", "contradiction", "unknown view", "missing view", "missing age",
    "missing machine", "unlisted", "unfit sample",
    # What is new to the networks
    "new machine", "many images",
    # The files, and what could be made of them
    "absent", "empty", "flat", "unreadable", "nothing readable",
    # The networks and the time there was
    "no value", "out of time",
]  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """One case.

    Attributes:
        prediction_id: Of the breast; None where the case is of the whole table, or nobody knows.
        patient_id: Likewise.
        image_id: None where the case is of the breast.
        kind: What sort of case it is.
        reason: In words, and what came of it.
    """

    prediction_id: str | None
    patient_id: str | None
    image_id: str | None
    kind: Kind
    reason: str


FAILURE_COLUMNS = tuple(field.name for field in fields(Failure))


def failures_table(failures: Iterable[Failure]) -> pd.DataFrame:
    """Make the table of `failures.csv`.

    Returns:
        `FAILURE_COLUMNS`, strings, `""` for None; no rows where nothing was amiss.
    """
    frame = pd.DataFrame(map(astuple, failures), columns=list(FAILURE_COLUMNS), dtype="string")
    return frame.fillna("")
