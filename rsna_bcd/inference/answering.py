"""All predictions of a test set: kept as they come, within a budget, each done once."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_bcd.inference.budget import Costs, Pace, Shed, end_of, plan
from rsna_bcd.inference.engines import choose_engines, engines_of
from rsna_bcd.inference.exported import Engine
from rsna_bcd.inference.journal import Journal
from rsna_bcd.inference.pilot import measure_costs
from rsna_bcd.inference.precision import Precision
from rsna_bcd.inference.runs import Run
from rsna_bcd.inference.spent import Spent
from rsna_bcd.inference.stream import Prediction, predict_files
from rsna_bcd.preparation.crop import Source
from rsna_bcd.scoring.ensembles import Ensemble

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
    spent: Spent
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


def predict_all(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    members: Sequence[Sequence[Run]],
    journal: Journal,
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
    dropped, spent = list(shed.dropped), Spent()
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


def _shed_before(journal: Journal, means: Means, tell: Callable[[str], None]) -> Shed:
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


def _silent(journal: Journal, n_runs: int, dropped: Sequence[int]) -> tuple[int, ...]:
    """Runs without one finite value, if there are predictions at all."""
    said = np.zeros(n_runs, dtype=np.bool_)
    of_images = [p.probabilities for p in journal.by_image.values()]
    of_breasts = [p.probabilities for p in journal.by_breast.values()]
    for values in (*of_images, *of_breasts):
        if values is not None:
            said |= np.isfinite(values)
    return tuple(i for i in range(n_runs) if said.any() and not said[i] and i not in dropped)
