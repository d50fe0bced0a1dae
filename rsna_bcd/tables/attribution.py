"""Which breast each row of a hidden test belongs to, where its cells are missing or disagree."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from rsna_bcd.tables.failures import Kind
from rsna_bcd.tables.images import LATERALITIES

NOBODY_KNOWS = ""  # the laterality of a breast of which no row tells it
_FORM = re.compile(r"(.+)_([LR])")  # of the competition's prediction_id

Fault = tuple[Kind, str]


class Breast(NamedTuple):
    """A breast to be answered for."""

    prediction_id: str
    patient_id: str
    laterality: str


class Named(NamedTuple):
    """What a row says of its breast; None where it says nothing."""

    prediction_id: str | None
    patient_id: str | None
    laterality: str | None

    @property
    def side(self) -> str | None:
        """L or R, None where the laterality is neither."""
        upper = (self.laterality or "").upper()
        return upper if upper in LATERALITIES else None


class Attribution:
    """Finds the breast of a row.

    `prediction_id` rules, where it is one that is asked for: the answer is given under it. Patient
    and laterality are those in it if it has the competition's form, `<patient_id>_<laterality>`, as
    most ids of the table have; else those that most of its rows name.

    Args:
        rows: What each row says.
        wanted: The ids that are asked for; None: those that occur.

    Attributes:
        breasts: By `prediction_id`, in the order of `wanted`, else of the rows.
    """

    def __init__(self, rows: Sequence[Named], wanted: Sequence[str] | None) -> None:
        whole = [row for row in rows if None not in row]
        formed = [row for row in whole if row.prediction_id == f"{row.patient_id}_{row.side}"]
        self._formed = 2 * len(formed) >= len(whole)
        self._asked = wanted is not None
        patients: dict[str, Counter[str]] = defaultdict(Counter)
        lateralities: dict[str, Counter[str]] = defaultdict(Counter)
        occurring: dict[str, None] = {}
        for row in rows:
            own = row.prediction_id or self._as_formed(row)
            if own is None:
                continue
            occurring[own] = None
            patients[own].update([row.patient_id] if row.patient_id else [])
            lateralities[own].update([row.side] if row.side else [])
        self.breasts: dict[str, Breast] = {}
        for own in occurring if wanted is None else wanted:
            form = _FORM.fullmatch(own) if self._formed else None
            patient = form[1] if form else _most(patients[own]) or own
            side = form[2] if form else _most(lateralities[own]) or NOBODY_KNOWS
            self.breasts[own] = Breast(own, patient, side)
        self._of_patient: dict[str, list[Breast]] = defaultdict(list)
        for breast in self.breasts.values():
            self._of_patient[breast.patient_id].append(breast)

    def of(self, row: Named) -> tuple[Breast | None, list[Fault]]:
        """Find the breast of a row.

        Returns:
            The breast, None if it is none that is asked for or nobody can tell; and what was amiss.
        """
        named = row.prediction_id
        faults: list[Fault] = []
        breast = None if named is None else self.breasts.get(named)
        if breast is None:
            breast = self._by_cells(row)
            if breast is None:
                return None, [self._lost(row)]
            if named is None:
                faults.append(("missing prediction_id", f"none given; it is {breast[0]}"))
            else:
                reason = f"prediction_id {named} is not in the sample; it is {breast[0]}"
                faults.append(("contradiction", reason))
        if row.patient_id is None:
            faults.append(("missing patient_id", f"none given; it is {breast.patient_id}"))
        elif row.patient_id != breast.patient_id:
            reason = f"patient_id {row.patient_id}, but {breast.patient_id} by its prediction_id"
            faults.append(("contradiction", reason))
        if row.side is None:
            given = f"laterality {row.laterality}" if row.laterality else "none given"
            it_is = f"it is {breast.laterality}" if breast.laterality else "nobody knows it"
            faults.append(("unknown laterality", f"{given}; {it_is}"))
        elif row.side != breast.laterality:
            reason = f"laterality {row.side}, but {breast.laterality} by its prediction_id"
            faults.append(("contradiction", reason))
        return breast, faults

    def _as_formed(self, row: Named) -> str | None:
        """The id that a row without one would have."""
        known = self._formed and row.patient_id and row.side
        return f"{row.patient_id}_{row.side}" if known else None

    def _by_cells(self, row: Named) -> Breast | None:
        """The breast by patient and laterality, or the patient's only one."""
        own = self._of_patient.get(row.patient_id or "", [])
        if row.side is not None:
            own = [breast for breast in own if breast.laterality == row.side]
        return own[0] if len(own) == 1 else None

    def _lost(self, row: Named) -> Fault:
        if row.prediction_id is not None:
            return "not asked for", f"{row.prediction_id} is not in the sample; left out"
        if self._asked and row.patient_id is not None and row.side is not None:
            reason = f"{row.patient_id} {row.side} is not in the sample; left out"
            return "not asked for", reason
        return "unknown breast", "nothing tells whose image it is; left out"


def _most(votes: Counter[str]) -> str | None:
    return votes.most_common(1)[0][0] if votes else None
