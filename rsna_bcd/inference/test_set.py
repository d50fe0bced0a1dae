"""Predict a test set: resumable and within a time budget."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.mammogram import EMPTY, FLAT
from rsna_bcd.inference.deadline import Costs, Pace, Shed, StageTimer, end_of, plan
from rsna_bcd.inference.export import Engine, choose_engines, engines_of
from rsna_bcd.inference.pilot import measure_costs
from rsna_bcd.inference.predictor import Precision
from rsna_bcd.inference.progress import Progress
from rsna_bcd.inference.run import Run
from rsna_bcd.inference.stream import BreastPrediction, Prediction, predict_files
from rsna_bcd.preparation.crop import Source
from rsna_bcd.scoring.ensemble import Ensemble
from rsna_bcd.tables.failures import Failure, Kind
from rsna_bcd.tables.hidden import HiddenTest
from rsna_bcd.tables.metadata import as_text

_PILOT = 0.05  # of the budget, at most


@dataclass(frozen=True)
class Means:
    """With what, and in what time, predictions are made.

    Attributes:
        source: how to read the files.
        batch_size: images at a time through a network.
        workers: processes that decode.
        ahead: images that may be decoded or under way meanwhile.
        precision: of the networks.
        engine: that executes them; see `choose_engines`, also for `exports` and `made`.
        exports: folder of exported networks.
        made: folder for those that are exported here.
        hours: of the budget; None for as long as it takes.
        started: when the budget began to run (`time.monotonic`).
    """

    source: Source
    batch_size: int
    workers: int
    ahead: int
    precision: Precision
    engine: Engine
    exports: Path
    made: Path
    hours: float | None
    started: float

    @property
    def until(self) -> float:
        """When the last prediction must have come."""
        return float("inf") if self.hours is None else end_of(self.started, self.hours)


@dataclass(frozen=True)
class Outcome:
    """How the predictions of a journal came about.

    Attributes:
        shed: what was given up.
        silent: positions of runs that took part and gave not one finite value.
        spent: seconds by stage, of this process.
        resumed: images that an earlier process had predicted.
        seconds: of the clock for the others, in this process, its pilot included.
        engines: that executed each run.
    """

    shed: Shed
    silent: tuple[int, ...]
    spent: StageTimer
    resumed: int
    seconds: float
    engines: Sequence[Engine]

    @property
    def without(self) -> tuple[int, ...]:
        """Positions of the runs that have no say."""
        return (*self.shed.dropped, *self.silent)

    def fitted(self, ensemble: Ensemble) -> Ensemble:
        """The ensemble, deciding by its recall rate where it lacks a part of what it was fitted to.

        A threshold is a value on the scale of all networks; what is left has another scale, but
        much the same order.
        """
        lacks = self.shed or self.silent
        return replace(ensemble, policy="recall_rate") if lacks else ensemble

    def seconds_by_stage(self, members: Sequence[Sequence[Run]]) -> dict[str, float]:
        """Seconds of the clock (`predicting`), of all processes (`decoding`), of each network."""
        runs = [f"{run.folder.parent.name} {run.folder.name}" for of in members for run in of]
        return {
            "predicting": self.seconds,
            "decoding": self.spent.decoding,
            "waiting": self.spent.waiting,
            **{name: self.spent.network(position) for position, name in enumerate(runs)},
        }


def predict_test_set(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    members: Sequence[Sequence[Run]],
    journal: Progress,
    means: Means,
    *,
    tell: Callable[[str], None],
    show: Callable[[int, int], None],
) -> Outcome:
    """Predict what the journal does not know yet, and note it there.

    Args:
        images: as for `predict_files`.
        files: as for `predict_files`.
        members: of each, the runs of its folds.
        journal: what was predicted before, and what will have been.
        means: with what, and in what time.
        tell: called with what the user should know.
        show: called with the number of images that are done, those of before included, and the
            number of those that an earlier process did.
    """
    begun = time.monotonic()
    runs = [run for member in members for run in member]
    shed = _shed_before(journal, means, tell)
    left = journal.left(images, files, by_patient=any(run.unit == "breast" for run in runs))
    resumed = len(files) - len(left)
    if resumed and left:
        tell(f"Goes on: {resumed:,} of {len(files):,} images are done.")
    engines: list[Engine] = journal.plan.get("engines", [])
    if left:
        runs = choose_engines(
            runs, means.engine, exports=means.exports, made=means.made, images=len(left),
            before=engines, tell=tell,
        )  # fmt: skip
        engines = engines_of(runs)
    if not journal.plan and means.hours is not None:
        shed = _plan(images, left, members, runs, means, tell)

    def note(shed: Shed) -> None:
        journal.note_plan({**asdict(shed), "engines": engines})

    if not journal.plan:
        note(shed)
    if not shed.tta:
        runs = [replace(run, tta="none") for run in runs]
    dropped, spent = list(shed.dropped), StageTimer()
    pace = None
    if means.hours is not None:
        pace = Pace(list(map(len, members)), len(left), means.until, spent, means.workers)
    done = 0
    show(resumed, resumed)
    for prediction in predict_files(
        images, left, runs,
        source=means.source, batch_size=means.batch_size, workers=means.workers, ahead=means.ahead,
        precision=means.precision, dropped=dropped, until=means.until, spent=spent,
    ):  # fmt: skip
        journal.note(prediction)
        if not isinstance(prediction, Prediction):
            continue
        done += 1
        show(resumed + done, resumed)
        going = pace.drops(done, dropped) if pace is not None else []
        if going:
            dropped.extend(going)
            shed = Shed(shed.tta, tuple(dropped))
            note(shed)
            tell(
                f"Slower than the budget of {means.hours:g} h allows, {done:,} of {len(left):,} "
                f"images being done: {names_of(going, members)} will have no say."
            )
    if done < len(left):
        tell(f"Out of time: {len(left) - done:,} of {len(files):,} images are not predicted.")
    silent = _silent(journal, len(runs), dropped)
    return Outcome(shed, silent, spent, resumed, time.monotonic() - begun, engines)


def names_of(positions: Sequence[int], members: Sequence[Sequence[Run]]) -> str:
    """Runs by name and fold: `b5 fold3, b5 fold2`."""
    folders = [run.folder for member in members for run in member]
    return ", ".join(f"{folders[i].parent.name} {folders[i].name}" for i in positions)


def _shed_before(journal: Progress, means: Means, tell: Callable[[str], None]) -> Shed:
    """What earlier processes gave up stays so: all breasts must be on one scale."""
    if not journal.plan:
        return Shed()
    shed = Shed(bool(journal.plan["tta"]), tuple(journal.plan["dropped"]))
    if shed and means.hours is None:
        tell("Begins anew: what an earlier budget gave up has its turn, as there is none now.")
        journal.clear()
        return Shed()
    return shed


def _plan(
    images: pd.DataFrame,
    left: Mapping[str, Path],
    members: Sequence[Sequence[Run]],
    runs: Sequence[Run],
    means: Means,
    tell: Callable[[str], None],
) -> Shed:
    """Measure, estimate, and give up what must be."""
    assert means.hours is not None
    costs = measure_costs(
        images, left, runs,
        source=means.source, batch_size=means.batch_size, workers=means.workers,
        precision=means.precision, most_seconds=_PILOT * 3600 * means.hours,
    ) if left else None  # fmt: skip
    if costs is None:
        return Shed()
    seconds = max(0.0, means.until - time.monotonic())
    shed = plan(costs, [len(member) for member in members], len(left), seconds)
    tell(_estimate(costs, len(left), seconds))
    if shed:
        tell(f"That is too long. Given up: {words_of(shed, members)}.")
        wanted = costs.an_image(shed) * len(left)
        then = f"Then it will take about {in_words(wanted)}"
        late = 1 - seconds / wanted
        tell(
            f"{then}; about {late:.0%} of the images will be out of time."
            if late > 0
            else f"{then}."
        )
    return shed


def words_of(shed: Shed, members: Sequence[Sequence[Run]]) -> str:
    """What was given up."""
    tta = [] if shed.tta else ["test-time augmentation"]
    return ", ".join([*tta, *([names_of(shed.dropped, members)] if shed.dropped else [])])


def _estimate(costs: Costs, images: int, seconds: float) -> str:
    networks = sum(costs.network)
    return (
        f"Estimate for {images:,} images: {in_words(costs.an_image(Shed()) * images)}; there are "
        f"{in_words(seconds)}. An image takes {costs.decoding:.2g} s of a process to decode "
        f"({costs.workers} at work) and {networks:.2g} s of {len(costs.network)} network(s), "
        f"{'on the same cores' if costs.shared else 'at the same time'}."
    )


def in_words(seconds: float) -> str:
    """A duration, in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _silent(journal: Progress, n_runs: int, dropped: Sequence[int]) -> tuple[int, ...]:
    """Runs without one finite value, if there are predictions at all."""
    said = np.zeros(n_runs, dtype=np.bool_)
    of_images = [p.probabilities for p in journal.by_image.values()]
    of_breasts = [p.probabilities for p in journal.by_breast.values()]
    for values in (*of_images, *of_breasts):
        if values is not None:
            said |= np.isfinite(values)
    return tuple(i for i in range(n_runs) if said.any() and not said[i] and i not in dropped)


# What is answered for a breast of which nothing could be read.
Unread = Literal["negative", "positive", "prior"]
_NO_TIME = "the budget was spent before its turn"


def with_needed_columns(test: HiddenTest, ensemble: Ensemble, runs: Sequence[Run]) -> HiddenTest:
    """Add the columns that the ensemble goes by and the table lacks: nothing in them is known."""
    needed = {
        c: "networks are given it" for run in runs if run.metadata for c in run.metadata.columns
    }
    if ensemble.thresholds.sites:
        needed.setdefault("site_id", "sites have thresholds of their own")
    absent = {c: why for c, why in needed.items() if c not in test.images}
    failures = (
        Failure(None, None, None, "missing column", f"no {c}, though {why}: unknown everywhere")
        for c, why in absent.items()
    )
    unknown = {c: pd.Series([None] * len(test.images), dtype="object") for c in absent}
    return HiddenTest(test.images.assign(**unknown), test.breasts, (*test.failures, *failures))


def new_to(runs: Sequence[Run], images: pd.DataFrame) -> Iterator[Failure]:
    """Images of machines that training had none of, and breasts of more images than are looked at.

    Args:
        runs: All networks. Those of which nobody noted what they saw say nothing.
        images: The table of images.
    """
    seen = [run.seen["machine_id"] for run in runs if "machine_id" in run.seen]
    if seen and "machine_id" in images:
        machine = as_text(images["machine_id"])
        new = machine.notna() & ~machine.isin({value for own in seen for value in own})
        for row, name in zip(_rows(images[new]), machine[new], strict=True):
            yield _of(row, "new machine", f"no network has seen machine {name} in training")
    most = [run.views.most for run in runs if run.unit == "breast" and run.views.policy == "all"]
    if most:
        counts = images.groupby("prediction_id", sort=False)["image_id"].size()
        many = counts[counts > min(most)]
        for row in _rows(images.drop_duplicates("prediction_id")):
            if row.prediction_id in many:
                reason = (
                    f"{many[row.prediction_id]} images, of which a network looks at {min(most)}"
                )
                yield Failure(row.prediction_id, row.patient_id, None, "many images", reason)


def of_files(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    by_image: Mapping[str, Prediction],
    unlistable: Mapping[str, str],
) -> Iterator[Failure]:
    """Images that took no part, or not in all networks.

    Args:
        images: The table of images.
        files: Of those that are there, by `image_id`.
        by_image: What came of them; of some nothing, where there was no more time.
        unlistable: Reasons by `image_id` of images whose folder cannot be listed.
    """
    for row in _rows(images):
        prediction = by_image.get(row.image_id)
        if row.image_id not in files:
            yield _of(row, "absent", unlistable.get(row.image_id, "there is no such file"))
        elif prediction is None:
            yield _of(row, "out of time", _NO_TIME)
        elif prediction.reason is not None:
            lost = prediction.probabilities is None
            kind = _kind(prediction.reason) if lost else "no value"
            yield _of(row, kind, prediction.reason)


def of_breasts(
    breasts: pd.DataFrame,
    by_breast: Mapping[str, BreastPrediction],
    earlier: Sequence[Failure],
    unread: Unread,
) -> Iterator[Failure]:
    """Breasts of which nothing could be read, or to which a network gave no value.

    Args:
        breasts: From `predict_breasts`.
        by_breast: What the networks that look at breasts said.
        earlier: The other failures: of a breast without a row, or whose images had no more time,
            all is said there.
        unread: What is answered where nothing could be read.
    """
    said = {f.prediction_id for f in earlier if f.kind in ("unlisted", "out of time")}
    reasons = {breast: p.reason for breast, p in by_breast.items() if p.reason is not None}
    for row in _rows(breasts):
        ids = row.prediction_id, row.patient_id, None
        if row.unread and row.prediction_id not in said:
            reason = f"no image of it could be read; the answer is {unread}"
            yield Failure(*ids, "nothing readable", reason)
        elif row.prediction_id in reasons:
            yield Failure(*ids, "no value", str(reasons[row.prediction_id]))


def answers(breasts: pd.DataFrame, unread: Unread, prior: float) -> pd.Series:
    """The `cancer` of `submission.csv`: decisions, and what is said where nothing could be read.

    Args:
        breasts: From `predict_breasts`: `cancer` is 0 or 1, `unread` too.
        unread: `negative` says 0, `positive` 1, `prior` the prior as it is.
        prior: The prevalence that the ensemble was fitted at.
    """
    said = {"negative": 0, "positive": 1, "prior": prior}[unread]
    return breasts["cancer"].where(breasts["unread"] == 0, said)


def check_unread(unread: str) -> Unread:
    """Check a setting.

    Raises:
        InputError: there is no such policy.
    """
    if unread not in get_args(Unread):
        raise InputError(f"unread={unread}: choose {' or '.join(get_args(Unread))}.")
    return unread  # type: ignore[return-value]


def _rows(frame: pd.DataFrame) -> Iterator[Any]:
    return iter(frame.itertuples())


def _of(row: Any, kind: Kind, reason: str) -> Failure:
    return Failure(row.prediction_id, row.patient_id, row.image_id, kind, reason)


def _kind(reason: str) -> Kind:
    """What sort of file it is that could not be read for this reason."""
    if reason.startswith(EMPTY):
        return "empty"
    return "flat" if reason.startswith(FLAT) else "unreadable"
