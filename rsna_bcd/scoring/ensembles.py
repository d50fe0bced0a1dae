"""`ensemble.json`: everything that inference needs to turn members' probabilities into decisions.

It is written once it is fitted, whole; so what was not fitted cannot be read.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_file
from rsna_bcd.scoring.arrays import Floats
from rsna_bcd.scoring.blend import Blend, Ranks, blend
from rsna_bcd.scoring.bootstrap import Interval
from rsna_bcd.scoring.calibration import Calibration, calibration_from_json, calibration_to_json
from rsna_bcd.scoring.calibration_intervals import CalibrationError
from rsna_bcd.scoring.plateau import Plateau
from rsna_bcd.scoring.recipe import Rule
from rsna_bcd.scoring.threshold import Threshold

FILE_NAME = "ensemble.json"
PolicyName = Literal["pf1", "recall_rate"]
Select = Literal["last", "best"]

_FEWEST_CALLS = 20  # a share of fewer rows than give this many calls is left to chance


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
        ranks: Where a probability stands among the member's out-of-fold ones; None but under
            `rank_mean`.
        hashes: By fold, SHA-256 of the predictions and of the weights that it was fitted to
            (`inference.run`); empty in ensembles of before they were kept.
    """

    name: str
    folds: tuple[int, ...]
    dataset: str
    crop: str
    rule: Rule
    select: Select
    weight: float
    ranks: Ranks | None = None
    hashes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ensemble:
    """A fitted ensemble.

    Attributes:
        name: Of the ensemble.
        blend: How members' probabilities of a breast become one.
        members: In the order in which `combine` wants them.
        policy: What the threshold was chosen by: `pf1`, or `recall_rate`, which is kept on new rows
            (`threshold_for`).
        threshold: A breast at or above it is called positive; fitted on all out-of-fold rows.
        thresholds: The same, with those of sites that have one of their own.
        plateau: The thresholds whose pF1 is as good as the best, on all out-of-fold rows.
        cross_fitted_thresholds: Those that decided each group of patients, fitted on the others.
        calibration: From the blend to probabilities that mean what they say; None leaves it. It
            never changes a decision: thresholds apply to the blend.
        prior: Prevalence of the out-of-fold rows: the probability of a breast that cannot be read,
            which is called negative.
        breasts: Number of out-of-fold rows.
        positives: Number of those with cancer.
        score: Intervals, but for `optimism` and `ece`. `auroc`, `average_precision`,
            `auroc_delong` of the blend, whatever was chosen for it chosen on other patients. Of
            decisions `pf1`, `sensitivity`, ...: under `cross_fitted` (all was fitted on other
            patients: honest) and under `in_sample` (on these same rows: optimistic, there with
            `auroc` and `average_precision` too); `optimism` is the difference of their pF1. Both
            decide by the fitted value, also under `recall_rate`, where `threshold_for` keeps the
            share on new rows. Under `calibration` `brier` and `ece` (a `CalibrationError`), each of
            what was `blended` (but for ranks, which are no probabilities) and, cross-fitted,
            `calibrated`.
        command: That fits it again; without `paths.output`.
    """

    name: str
    blend: Blend
    members: tuple[Member, ...]
    policy: PolicyName
    threshold: float
    thresholds: Threshold
    plateau: Plateau
    cross_fitted_thresholds: tuple[float, ...]
    calibration: Calibration | None
    prior: float
    breasts: int
    positives: int
    score: Mapping[str, Any]
    command: str = ""

    def combine(self, probabilities: ArrayLike, taking_part: ArrayLike | None = None) -> Floats:
        """Blend breast-level probabilities.

        Args:
            probabilities: (members, N), in the order of `members`.
            taking_part: Of each member, whether it is among those of `probabilities`; None if all
                are. The others' weight goes to these, in proportion; in equal parts, if they have
                none themselves.

        Returns:
            (N,).
        """
        part = np.ones(len(self.members)) if taking_part is None else np.asarray(taking_part)
        members = [member for member, is_there in zip(self.members, part, strict=True) if is_there]
        weights = [member.weight for member in members]
        if taking_part is not None and not any(weights):
            weights = [1.0] * len(members)
        ranks = [member.ranks for member in members if member.ranks is not None]
        return blend(probabilities, self.blend, weights, ranks)

    @property
    def unread(self) -> float:
        """The blend of a breast of which nothing could be read: every member gives it the prior."""
        return float(self.combine([[self.prior]] * len(self.members))[0])

    def keeps_rate(self, n_rows: int) -> bool:
        """Whether a recall rate is kept on so many new rows, rather than the fitted threshold."""
        calls = self.thresholds.recall_rate * n_rows
        return self.policy == "recall_rate" and calls >= _FEWEST_CALLS

    def threshold_for(self, probabilities: ArrayLike) -> Threshold:
        """The threshold for new rows.

        Under `recall_rate` it calls the share of them that was called out of fold, which holds
        where a mean over folds is distributed otherwise than one fold's predictions; so long as the
        rows are enough to take a share of (`keeps_rate`). Else, and under `pf1`, it is the fitted
        one.

        Args:
            probabilities: (N,) of the blend, of all new rows of which something was read.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        return self.thresholds.at_rate(p) if self.keeps_rate(len(p)) else self.thresholds

    def decide(
        self,
        probabilities: ArrayLike,
        sites: ArrayLike | None = None,
        unread: ArrayLike | None = None,
    ) -> NDArray[np.int64]:
        """Decide new rows.

        Args:
            probabilities: (N,) of the blend, of all rows that are to be decided.
            sites: (N,), an id per row, missing or never seen where the global threshold applies.
            unread: (N,), true of a breast of which nothing could be read. It is called negative,
                whatever the threshold: the blend of nothing but priors says nothing, and no scale
                of a blend promises that it is below. None where all were read.

        Returns:
            (N,), 0 or 1.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        read = _read(len(p), unread)
        own = None if sites is None else np.asarray(sites)[read]
        decisions = np.zeros(len(p), dtype=np.int64)
        decisions[read] = self.threshold_for(p[read]).decide(p[read], own)
        return decisions

    def calibrate(self, probabilities: ArrayLike, unread: ArrayLike | None = None) -> Floats | None:
        """Blend to calibrated probability: (N,) to (N,); None where nothing was calibrated.

        Args:
            probabilities: (N,) of the blend.
            unread: (N,), as of `decide`: a breast that could not be read has the prior.
        """
        if self.calibration is None:
            return None
        calibrated = self.calibration.apply(probabilities)
        return np.where(_read(len(calibrated), unread), calibrated, self.prior)


def _read(n_rows: int, unread: ArrayLike | None) -> NDArray[np.bool_]:
    if unread is None:
        return np.ones(n_rows, dtype=np.bool_)
    return ~np.asarray(unread, dtype=np.bool_)


def write_ensemble(ensemble: Ensemble, file: Path) -> None:
    """Write `ensemble.json`; the file is either whole or absent.

    Raises:
        InputError: a number is infinite, or is none where there must be one.
    """
    record = asdict(ensemble) | {"calibration": calibration_to_json(ensemble.calibration)}
    record["score"] = _without_nan(record["score"])
    try:
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise InputError(
            f"{file} is not written: a number of the ensemble is infinite or none ({error}). Look "
            "for it in the members' oof.csv."
        ) from error
    # Lists of numbers on one line each: a thousand knots are not worth a thousand lines.
    text = re.sub(r"\[[-+.\deE,\s]+\]", lambda found: " ".join(found[0].split()), text)
    write_file(file, text)


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
        ensemble = _ensemble(json.loads(file.read_text(encoding="utf-8")))
        _check(ensemble)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged or of another version ({error}). {_REFIT}") from error
    except InputError as error:
        raise InputError(f"{file}: {error} {_REFIT}") from error
    return ensemble


_REFIT = (
    "Fit it again, which takes seconds: `python -m rsna_bcd.ensemble` with its name and members, "
    "and overwrite=true."
)


def _ensemble(record: dict[str, Any]) -> Ensemble:
    return Ensemble(
        **{
            **record,
            "members": tuple(_member(member) for member in record["members"]),
            "thresholds": Threshold(**record["thresholds"]),
            "plateau": Plateau(**record["plateau"]),
            "cross_fitted_thresholds": tuple(record["cross_fitted_thresholds"]),
            "calibration": calibration_from_json(record["calibration"]),
            "score": _scores(record["score"]),
        }
    )


def _member(record: dict[str, Any]) -> Member:
    ranks = record["ranks"]
    if ranks is not None:
        ranks = Ranks(**{name: tuple(numbers) for name, numbers in ranks.items()})
    return Member(**{**record, "folds": tuple(record["folds"]), "ranks": ranks})


def _scores(record: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts with an `Interval` or a `CalibrationError` wherever its numbers are."""
    return {
        key: inner
        if not isinstance(inner, Mapping)
        else _interval(inner)
        if "low" in inner
        else CalibrationError(**inner)
        if "chance" in inner
        else _scores(inner)
        for key, inner in record.items()
    }


def _without_nan(score: Any) -> Any:
    """JSON has no NaN: the PPV where nothing is called becomes null."""
    if isinstance(score, Mapping):
        return {key: _without_nan(inner) for key, inner in score.items()}
    return None if isinstance(score, float) and math.isnan(score) else score


def _interval(record: Mapping[str, float | None]) -> Interval:
    return Interval(**{end: math.nan if x is None else x for end, x in record.items()})


def _check(ensemble: Ensemble) -> None:
    thresholds = ensemble.thresholds
    for key, value, most in (
        ("threshold", ensemble.threshold, math.nextafter(1, 2)),  # above 1 nothing is called
        ("prior", ensemble.prior, 1),
        ("thresholds.recall_rate", thresholds.recall_rate, 1),
        *((f"threshold of site {k}", v, math.nextafter(1, 2)) for k, v in thresholds.sites.items()),
    ):
        if not isinstance(value, float) or not 0 <= value <= most:
            raise InputError(f"{key} is {value}, not a number in [0, 1].")
    if thresholds.value != ensemble.threshold:
        raise InputError(f"threshold and thresholds.value differ, {ensemble.threshold} is one.")
    if not ensemble.members or not all(member.folds for member in ensemble.members):
        raise InputError("It names no members, or a member without folds.")
    _check_choices(ensemble)
    for kind in ("cross_fitted", "in_sample"):
        of_kind = ensemble.score.get(kind)
        pf1 = of_kind.get("pf1") if isinstance(of_kind, dict) else None
        if not isinstance(pf1, Interval) or not math.isfinite(pf1.value):
            raise InputError(f"There is no score.{kind}.pf1.")
    _ = ensemble.unread  # refuses unfit weights


def _check_choices(ensemble: Ensemble) -> None:
    """That every choice is one there is, and ranks are where they are needed and only there."""
    choices: list[tuple[str, str, Any]] = [
        ("policy", ensemble.policy, PolicyName),
        ("blend", ensemble.blend, Blend),
    ]
    for member in ensemble.members:
        choices.append((f"rule of {member.name}", member.rule, Rule))
        choices.append((f"select of {member.name}", member.select, Select))
    for key, found, known in choices:
        if found not in get_args(known):
            raise InputError(f"{key} is {' or '.join(get_args(known))}, not {found!r}.")
    for member in ensemble.members:
        if (member.ranks is not None) != (ensemble.blend == "rank_mean"):
            needs = "needs no" if member.ranks else "needs the"
            raise InputError(f"blend={ensemble.blend} {needs} ranks of {member.name}.")
