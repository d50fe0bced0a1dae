"""`ensemble.json`: everything that inference needs to turn members' probabilities into decisions.

It is written once it is fitted, whole; so what was not fitted cannot be read.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import ArrayLike

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.arrays import Floats
from rsna_bcd.scoring.blend import Blend, blend
from rsna_bcd.scoring.bootstrap import Interval

FILE_NAME = "ensemble.json"


@dataclass(frozen=True)
class Member:
    """One run of the ensemble.

    Attributes:
        name: Of the run, `<output>/runs/<name>`.
        folds: Whose checkpoints take part, ascending; their probabilities are averaged.
        dataset: That the run was trained on.
        crop: Whose prepared images the networks want.
        rule: From the probabilities of a breast's images to the breast's: `mean` or `max`.
        select: Which weights of a run: `last`; or `best`, whose out-of-fold scores are optimistic,
            because the epoch was chosen by them.
        weight: In the blend.
    """

    name: str
    folds: tuple[int, ...]
    dataset: str
    crop: str
    rule: Literal["mean", "max"]
    select: Literal["last", "best"]
    weight: float


@dataclass(frozen=True)
class Ensemble:
    """A fitted ensemble.

    Attributes:
        name: Of the ensemble.
        blend: How members' probabilities of a breast become one.
        members: In the order in which `combine` wants them.
        threshold: A breast at or above it is called positive; fitted on all out-of-fold rows.
        prior: Prevalence of the out-of-fold rows: the probability of a breast that cannot be read.
        breasts: Number of out-of-fold rows.
        positives: Number of those with cancer.
        score: `auroc`, `average_precision`; and `pf1`, `sensitivity`, `specificity`, `accuracy` of
            the decisions, under `cross_fitted` (the threshold was fitted on other patients: honest)
            and under `in_sample` (it was fitted on these: optimistic).
    """

    name: str
    blend: Blend
    members: tuple[Member, ...]
    threshold: float
    prior: float
    breasts: int
    positives: int
    score: Mapping[str, Any]

    def combine(self, probabilities: ArrayLike) -> Floats:
        """Blend breast-level probabilities: (members, N), in the order of `members`, to (N,)."""
        return blend(probabilities, self.blend, [member.weight for member in self.members])


def write_ensemble(ensemble: Ensemble, file: Path) -> None:
    """Write `ensemble.json`; the file is either whole or absent."""
    text = json.dumps(asdict(ensemble), indent=2, allow_nan=False) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=file.parent, prefix=".", suffix=".json", delete=False, encoding="utf-8"
    ) as part:
        part.write(text)
    Path(part.name).chmod(0o644)  # temporary files are private by default, results are not
    Path(part.name).replace(file)


def read_ensemble(file: Path) -> Ensemble:
    """Read and check an `ensemble.json`.

    Raises:
        InputError: the file is absent, not JSON, lacks a key, or holds values that no fit gives.
    """
    if not file.is_file():
        raise InputError(
            f"{file} does not exist: no ensemble of this name is fitted. "
            f"Run `python -m rsna_bcd.ensemble name={file.parent.name} members=[...]`."
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        members = tuple(
            Member(**{**member, "folds": tuple(member["folds"])}) for member in record["members"]
        )
        ensemble = Ensemble(**{**record, "members": members, "score": _scores(record["score"])})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged or of another version ({error}). {_REFIT}") from error
    _check(ensemble, file)
    return ensemble


_REFIT = "Fit it again: `python -m rsna_bcd.ensemble` with overwrite=true."


def _scores(record: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts with an `Interval` wherever value, low and high stand together."""
    return {
        key: Interval(**inner) if "value" in inner else _scores(inner)
        for key, inner in record.items()
    }


def _check(ensemble: Ensemble, file: Path) -> None:
    for key, value in (("threshold", ensemble.threshold), ("prior", ensemble.prior)):
        if not isinstance(value, float) or not 0 <= value <= 1:
            raise InputError(f"{file}: {key} is {value}, not a number in [0, 1]. {_REFIT}")
    if not ensemble.members or not all(member.folds for member in ensemble.members):
        raise InputError(f"{file} names no members, or a member without folds. {_REFIT}")
    for kind in ("cross_fitted", "in_sample"):
        pf1 = ensemble.score.get(kind, {}).get("pf1")
        if not isinstance(pf1, Interval) or not math.isfinite(pf1.value):
            raise InputError(f"{file} has no score.{kind}.pf1. {_REFIT}")
    ensemble.combine([[ensemble.prior]] * len(ensemble.members))  # refuses unfit weights and rules
