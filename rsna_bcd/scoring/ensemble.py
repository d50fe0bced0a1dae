"""A fitted ensemble and its file, `ensemble.json`: from members' probabilities to decisions."""

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
from rsna_bcd.scoring.blend import BlendMethod, RankTransform, blend
from rsna_bcd.scoring.calibration import (
    Calibration,
    CalibrationError,
    calibration_from_json,
    calibration_to_json,
)
from rsna_bcd.scoring.intervals import Interval
from rsna_bcd.scoring.metrics import Aggregation, Floats
from rsna_bcd.scoring.thresholds import Plateau, Threshold

FILE_NAME = "ensemble.json"
PolicyName = Literal["pf1", "recall_rate"]
Select = Literal["last", "best"]
Networks = Literal["folds", "all"]

_MIN_POSITIVE_DECISIONS = 20  # a recall rate of fewer rows than give this many is left to chance
_REFIT = (
    "Fit it again, which takes seconds: `python -m rsna_bcd.ensemble` with its name and members, "
    "and overwrite=true."
)


@dataclass(frozen=True)
class Member:
    """One run of the ensemble; attributes are keys of `ensemble.json`.

    Attributes:
        name: Of the run, `<output>/runs/<name>`.
        folds: Whose checkpoints take part, ascending; their probabilities are averaged.
        dataset: That the run was trained on.
        crop: Of the prepared images that the networks take.
        rule: Aggregation of the probabilities of a breast's images: `mean` or `max`.
        select: Which weights of a run: `last`; or `best`, whose out-of-fold scores are optimistic,
            because the epoch was chosen by them.
        weight: In the blend.
        ranks: The member's out-of-fold distribution; None but under `rank_mean`.
        hashes: By fold, SHA-256 of the predictions and of the weights that it was fitted to
            (`inference.run`), and under "all" of the network trained on all patients; empty in
            ensembles that were fitted before they were kept.
    """

    name: str
    folds: tuple[int, ...]
    dataset: str
    crop: str
    rule: Aggregation
    select: Select
    weight: float
    ranks: RankTransform | None = None
    hashes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ensemble:
    """A fitted ensemble; attributes are keys of `ensemble.json`.

    Attributes:
        name: Of the ensemble.
        blend: How members' probabilities of a breast become one.
        members: In the order in which `combine` takes them.
        policy: By which the threshold was chosen: `pf1`, or `recall_rate`, which is kept on new
            rows (`threshold_for`).
        threshold: A breast at or above it is predicted positive; fitted on all out-of-fold rows.
        thresholds: The same, with those of sites that have one of their own.
        plateau: The thresholds whose pF1 is as good as the best, on all out-of-fold rows.
        cross_fitted_thresholds: Those that decided each group of patients, fitted on the others.
        calibration: From the blend to calibrated probabilities; None leaves it. It never changes a
            decision: thresholds apply to the blend.
        prior: Prevalence of the out-of-fold rows: the probability of an unreadable breast, which
            is decided negative.
        breasts: Number of out-of-fold rows.
        positives: Number of those with cancer.
        score: Intervals, but for `optimism` and `ece`. `auroc`, `average_precision`,
            `auroc_delong` of the cross-fitted blend. Of decisions `pf1`, `sensitivity`, ...: under
            `cross_fitted` and under `in_sample` (fitted on these same rows: optimistic, there with
            `auroc` and `average_precision` too); `optimism` is the difference of their pF1. Both
            decide by the fitted value, also under `recall_rate`, where `threshold_for` keeps the
            share on new rows. Under `calibration` `brier` and `ece` (a `CalibrationError`), of
            the `blended` probabilities (not of ranks) and, cross-fitted, of the `calibrated` ones.
        command: That fits it again; without `paths.output`.
        networks: Which predict new images: those of the members' `folds`, or of each member the one
            that was trained on `all` patients. Of the latter nothing is out of fold: on new rows
            they keep the share of positive decisions, whatever the policy.
    """

    name: str
    blend: BlendMethod
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
    networks: Networks = "folds"

    def predicting_folds(self, member: Member) -> tuple[int | str, ...]:
        """The folds of a member whose networks predict new images; `all` holds out nothing."""
        return ("all",) if self.networks == "all" else member.folds

    def combine(self, probabilities: ArrayLike, available: ArrayLike | None = None) -> Floats:
        """Blend breast-level probabilities: (members, N) to (N,).

        `available` says of each member whether it is among those of `probabilities`; None if all
        are. The others' weight goes to these, in proportion; in equal parts, if they have none
        themselves.
        """
        part = np.ones(len(self.members)) if available is None else np.asarray(available)
        members = [member for member, is_there in zip(self.members, part, strict=True) if is_there]
        weights = [member.weight for member in members]
        if available is not None and not any(weights):
            weights = [1.0] * len(members)
        ranks = [member.ranks for member in members if member.ranks is not None]
        return blend(probabilities, self.blend, weights, ranks)

    @property
    def unreadable_probability(self) -> float:
        """The blend of an unreadable breast, for which every member gives the prior."""
        return float(self.combine([[self.prior]] * len(self.members))[0])

    def keeps_recall_rate(self, n_rows: int) -> bool:
        """Whether a recall rate is kept on so many new rows, rather than the fitted threshold."""
        if self.networks == "all":
            return n_rows > 0
        expected = self.thresholds.recall_rate * n_rows
        return self.policy == "recall_rate" and expected >= _MIN_POSITIVE_DECISIONS

    def threshold_for(self, probabilities: ArrayLike) -> Threshold:
        """The threshold for new rows.

        Under `recall_rate`, with enough rows (`keeps_recall_rate`), the one that predicts the same
        share of them positive as of the out-of-fold rows, because a mean over folds is distributed
        differently from one fold's predictions; so are those of other `networks`. Else, and under
        `pf1`, the fitted one. The probabilities are of the blend, of all readable new rows.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        if self.keeps_recall_rate(len(p)):
            return self.thresholds.at_same_recall_rate(p)
        return self.thresholds

    def decide(
        self,
        probabilities: ArrayLike,
        sites: ArrayLike | None = None,
        unreadable: ArrayLike | None = None,
    ) -> NDArray[np.int64]:
        """Decide all new rows of the blend together: (N,), 0 or 1.

        The global threshold applies to missing and unknown sites. A breast without a readable image
        is decided negative, whatever the threshold: on the scale of a blend the prior may lie above
        it.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        rows = np.ones(len(p), bool) if unreadable is None else ~np.asarray(unreadable, dtype=bool)
        own = None if sites is None else np.asarray(sites)[rows]
        decisions = np.zeros(len(p), dtype=np.int64)
        decisions[rows] = self.threshold_for(p[rows]).decide(p[rows], own)
        return decisions

    def calibrate(
        self, probabilities: ArrayLike, unreadable: ArrayLike | None = None
    ) -> Floats | None:
        """Blend to calibrated probability, that of an unreadable breast to the prior: (N,).

        None without a calibration.
        """
        if self.calibration is None:
            return None
        calibrated = self.calibration.apply(probabilities)
        if unreadable is None:
            return calibrated
        return np.where(np.asarray(unreadable, dtype=bool), self.prior, calibrated)


def write_ensemble(ensemble: Ensemble, file: Path) -> None:
    """Write `ensemble.json`; the file is either whole or absent.

    Raises:
        InputError: a number is infinite, or NaN where there must be one.
    """
    record = asdict(ensemble) | {"calibration": calibration_to_json(ensemble.calibration)}
    record["score"] = _nan_to_none(record["score"])
    if ensemble.networks == "folds":
        del record["networks"]  # earlier versions read the file as well
    try:
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise InputError(
            f"{file} is not written: a number of the ensemble is not finite ({error}). Look for it "
            "in the members' oof.csv."
        ) from error
    # Lists of numbers on one line each: a thousand knots are not worth a thousand lines.
    text = re.sub(r"\[[-+.\deE,\s]+\]", lambda match: " ".join(match[0].split()), text)
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
        record = json.loads(file.read_text(encoding="utf-8"))
        ensemble = Ensemble(
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
        _check(ensemble)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged or of another version ({error}). {_REFIT}") from error
    except InputError as error:
        raise InputError(f"{file}: {error} {_REFIT}") from error
    return ensemble


def _member(record: dict[str, Any]) -> Member:
    ranks = record["ranks"]
    if ranks is not None:
        ranks = RankTransform(**{name: tuple(numbers) for name, numbers in ranks.items()})
    return Member(**{**record, "folds": tuple(record["folds"]), "ranks": ranks})


def _scores(record: Any) -> Any:
    """Nested dicts with an `Interval` or a `CalibrationError` where its numbers are."""
    if not isinstance(record, Mapping):
        return record
    if "low" in record:
        return Interval(**{end: math.nan if x is None else x for end, x in record.items()})
    if "chance" in record:
        return CalibrationError(**record)
    return {key: _scores(inner) for key, inner in record.items()}


def _nan_to_none(score: Any) -> Any:
    """JSON has no NaN: the PPV without positive decisions becomes null."""
    if isinstance(score, Mapping):
        return {key: _nan_to_none(inner) for key, inner in score.items()}
    return None if isinstance(score, float) and math.isnan(score) else score


def _check(ensemble: Ensemble) -> None:
    """Refuse values that no fit gives, and ranks where they are not needed."""
    thresholds = ensemble.thresholds
    above_one = math.nextafter(1, 2)  # a threshold that predicts no row positive
    numbers = [
        ("threshold", ensemble.threshold, above_one),
        ("prior", ensemble.prior, 1),
        ("thresholds.recall_rate", thresholds.recall_rate, 1),
        *((f"threshold of site {k}", v, above_one) for k, v in thresholds.sites.items()),
    ]
    for key, value, most in numbers:
        if not isinstance(value, float) or not 0 <= value <= most:
            raise InputError(f"{key} is {value}, not a number in [0, 1].")
    if thresholds.value != ensemble.threshold:
        raise InputError(f"threshold and thresholds.value differ, {ensemble.threshold} is one.")
    if not ensemble.members or not all(member.folds for member in ensemble.members):
        raise InputError("It names no members, or a member without folds.")
    choices: list[tuple[str, Any, Any]] = [
        ("policy", ensemble.policy, PolicyName),
        ("blend", ensemble.blend, BlendMethod),
        ("networks", ensemble.networks, Networks),
        *((f"rule of {m.name}", m.rule, Aggregation) for m in ensemble.members),
        *((f"select of {m.name}", m.select, Select) for m in ensemble.members),
    ]
    for key, value, known in choices:
        if value not in get_args(known):
            raise InputError(f"{key} is {' or '.join(get_args(known))}, not {value!r}.")
    for member in ensemble.members:
        if (member.ranks is not None) != (ensemble.blend == "rank_mean"):
            needs = "needs no" if member.ranks else "needs the"
            raise InputError(f"blend={ensemble.blend} {needs} ranks of {member.name}.")
    for kind in ("cross_fitted", "in_sample"):
        scores = ensemble.score.get(kind)
        pf1 = scores.get("pf1") if isinstance(scores, dict) else None
        if not isinstance(pf1, Interval) or not math.isfinite(pf1.value):
            raise InputError(f"There is no score.{kind}.pf1.")
    _ = ensemble.unreadable_probability  # refuses invalid weights
