"""Output on the terminal: progress with the time left, and summaries of predict and submit."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from rsna_bcd.reporting.study_picture import NO_DEVICE
from rsna_bcd.tables.study_results import QUALITY_FLAGS, BreastResult, views_text

_LINES = 10  # that stand for the bar where there is no terminal


class ProgressBar:
    """Shows how much is done and when the rest will be, by how fast it went so far.

    Args:
        console: to draw on, or to write lines to where it is no terminal.
        name: of the work.
        total: units of work.
    """

    def __init__(self, console: Console, name: str, total: int) -> None:
        self._console, self._name, self._total = console, name, total
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        end = TextColumn("{task.fields[end]}")
        self._progress = Progress(*columns, end, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(name, total=total, end="")
        self._started, self._lines = time.monotonic(), 0

    def __enter__(self) -> Self:
        """Draw it."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave it as it is."""
        self._progress.stop()

    def log(self, text: str) -> None:
        """Write a line above the bar."""
        self._progress.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def update(self, done: int, before: int) -> None:
        """Show how much is done.

        Args:
            done: units of work, those of `before` included.
            before: of them, those that were done when this work began; the first call begins it.
        """
        if done == before:
            self._started = time.monotonic()
        end = projected(time.monotonic() - self._started, done, before, self._total)
        self._progress.update(self._task, completed=done, end=end)
        line = done * _LINES // max(1, self._total)
        if not self._console.is_terminal and line > self._lines and done > before:
            self.log(f"{self._name}: {done:,} of {self._total:,}{end and ', '}{end}")
        self._lines = max(line, self._lines)


def projected(seconds: float, done: int, before: int, total: int) -> str:
    """When the end will be: `84 s left`, `35 min left, ends at 14:32`; empty while unknown.

    Args:
        seconds: since the work began.
        done: units of work, those of `before` included.
        before: of them, those that were done when it began.
        total: units of work.
    """
    if done <= before or done >= total:
        return ""
    left = seconds / (done - before) * (total - done)
    if left < 120:
        return f"{left:.0f} s left"
    end = time.strftime("%H:%M", time.localtime(time.time() + left))
    return (
        f"{f'{left / 60:.0f} min' if left < 7200 else f'{left / 3600:.1f} h'} left, ends at {end}"
    )


_SHOWN = 40  # breasts; breasts.csv has all
_KINDS_SHOWN = 6  # of files that are no mammogram, and images that are left out
_NO_DICOM = "not a DICOM file"


def count_reasons(reasons: Mapping[str, str]) -> list[str]:
    """Count the reasons, the most frequent first.

    Args:
        reasons: by file, why it took no part.

    Returns:
        Lines such as `12 x CT image, no mammogram`.
    """
    suffixes = Counter(Path(n).suffix.lower() for n, why in reasons.items() if why == _NO_DICOM)
    named = ", ".join(f"{suffix or 'no suffix'}: {n}" for suffix, n in suffixes.most_common(4))
    more = ", ..." if len(suffixes) > 4 else ""
    counts = Counter(
        f"{why} ({named}{more})" if why == _NO_DICOM
        else "a copy of another file" if why.startswith("a copy of ")
        else why
        for why in reasons.values()
    )  # fmt: skip
    lines = [f"{n} x {why}" for why, n in counts.most_common(_KINDS_SHOWN)]
    left = sum(counts.values()) - sum(n for _, n in counts.most_common(_KINDS_SHOWN))
    return [*lines, f"{left} of other kinds"] if left else lines


def print_results(
    console: Console,
    folder: Path,
    name: str,
    answers: Sequence[BreastResult],
    failures: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    """Print the results as a table, then quality flags, notes and failures.

    Args:
        console: to print on.
        folder: with the files that were written.
        name: of the ensemble.
        answers: one per breast.
        failures: by file, why it took no part.
        notes: sentences about the model.
    """

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    likely = sorted(answers, key=lambda answer: -(answer.probability or 0))[:_SHOWN]
    shown = [answer for answer in answers if answer in likely]
    console.print(_table(shown, name, len(answers)))
    for kind, text in QUALITY_FLAGS.items():
        if any(kind in answer.doubts for answer in shown):
            say(f"  {kind}: {text}.")
    for line in _left_out(shown):
        say(f"  {line}")
    for note in notes:
        say(f"Note: {note}")
    if failures:
        say(f"{len(failures)} file(s) took no part ({folder / 'failures.csv'}):")
        for line in count_reasons(failures):
            say(f"  {line}")
    say(f"Tables, and what raised each score: {folder}")
    say(NO_DEVICE, "bold")


def _left_out(answers: Sequence[BreastResult]) -> list[str]:
    """The images that do not decide, and what they are."""
    lines = []
    for answer in answers:
        for image in answer.images:
            if not image.decides and image.reason is None:
                kinds = [kind for kind in image.doubts if kind != "view left out"]
                lines.append(
                    f"left out of {answer.prediction_id}: {image.file} ({', '.join(kinds)})"
                )
    more = [f"{len(lines) - _KINDS_SHOWN} more are left out"] if len(lines) > _KINDS_SHOWN else []
    return [*lines[:_KINDS_SHOWN], *more]


def _table(answers: Sequence[BreastResult], name: str, n_all: int) -> Table:
    """One row per breast."""
    left_out = f", the {len(answers)} most suspicious of {n_all} breasts"
    table = Table(
        title=f"Predictions of {name}{left_out if len(answers) < n_all else ''}",
        caption=f"positive from {answers[0].threshold:.3f}",
    )
    for column in ("breast", "views", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left")
    calibrates = any(answer.calibrated is not None for answer in answers)
    for column in (*(["calibrated"] if calibrates else []), "decision", "in doubt"):
        table.add_column(column, justify="right" if column == "calibrated" else "left")
    for answer in answers:
        cells = [
            answer.prediction_id,
            views_text(answer),
            "–" if answer.probability is None else f"{answer.probability:.3f}",
            *(["–" if answer.calibrated is None else f"{answer.calibrated:.3f}"] * calibrates),
            answer.decision or "no answer",
            ", ".join(answer.doubts),
        ]
        table.add_row(*cells, style="bold red" if answer.decision == "positive" else "")
    return table


_SHOWN = 5  # failures named; the table has all
_FACTOR, _ERRORS = 2.0, 4.0  # a share further from that out of fold, and by so many standard errors
_NOT_NETWORKS = ("predicting", "decoding", "waiting")


@dataclass(frozen=True)
class SubmissionSummary:
    """What became of a submission.

    Attributes:
        breasts: that were answered.
        images: in the table.
        predicted: images that were read or found unreadable.
        resumed: of them, those that an earlier process did.
        positive: breasts called positive.
        unread: breasts of which nothing could be read, which have the prior.
        failures: rows of `failures.csv` by kind.
        shed: what was given up for the budget, in words; none if it was enough.
        silent: networks that gave not one finite value.
        threshold: that decided.
        recall_rate: that the threshold keeps; None where it is the fitted one.
        why_fitted: why it is the fitted one, where a recall rate was wanted.
        sites: thresholds of sites that have one of their own.
        how: device, precision and engine of the networks.
        out_of_fold: share that the fitted threshold calls positive out of fold; None if unknown.
        seconds: of this process: `predicting` by the clock, `decoding` of all processes together,
            `waiting` of the networks for images, and of each network.
    """

    breasts: int
    images: int
    predicted: int
    resumed: int
    positive: int
    unread: int
    failures: Mapping[str, int]
    shed: str
    silent: str
    threshold: float
    recall_rate: float | None
    why_fitted: str
    sites: Mapping[str, float]
    how: str
    seconds: Mapping[str, float]
    out_of_fold: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self, failures: pd.DataFrame) -> list[str]:
        """A screen of text.

        Args:
            failures: the table of failures (`tables.test_set`).
        """
        return [
            f"{self.breasts:,} breasts, {self.images:,} images: {self.positive:,} called positive "
            f"({self.positive / max(1, self.breasts):.1%}).",
            *self._doubtful_share(),
            *self._failed(failures),
            *([f"Dropped for the time budget: {self.shed}."] if self.shed else []),
            *([f"Excluded, without a finite value: {self.silent}."] if self.silent else []),
            self._threshold(),
            self._time(),
        ]

    def _doubtful_share(self) -> list[str]:
        """A warning where none, all, or an improbable share of the breasts is called positive."""
        read = self.breasts - self.unread
        expected = self.out_of_fold
        if self.positive in (0, self.breasts):
            found = "no breast is called positive" if not self.positive else "every breast is"
        elif expected is None or not read:
            return []
        else:
            share = self.positive / read
            chance = _ERRORS * math.sqrt(expected * (1 - expected) / read)
            is_far = not expected / _FACTOR <= share <= expected * _FACTOR
            if not is_far or abs(share - expected) <= chance:
                return []
            found = f"{share:.1%} of the breasts are called positive"
        usual = "" if expected is None else f", {expected:.1%} were out of fold"
        return [
            f"WARNING: {found}{usual}. Check that the images are like those of the training "
            "(source=, views and machines in failures.csv), or let the share decide: fit the "
            "ensemble with threshold=recall_rate."
        ]

    def _failed(self, failures: pd.DataFrame) -> list[str]:
        if not self.failures:
            return ["No failures."]
        counts = ", ".join(f"{number:,} {kind}" for kind, number in self.failures.items())
        unread = (
            f"; {self.unread:,} breast(s) of which nothing could be read" if self.unread else ""
        )
        rows: Any = failures.head(_SHOWN).itertuples()
        return [
            f"Failures: {counts}{unread}.",
            *(
                f"  {' '.join(filter(None, (row.kind, row.prediction_id, row.image_id)))}: "
                f"{row.reason}"
                for row in rows
            ),
            *([f"  ... ({len(failures):,} in all)"] if len(failures) > _SHOWN else []),
        ]

    def _threshold(self) -> str:
        how = "".join(f", site {site} {value:.4f}" for site, value in self.sites.items())
        if self.recall_rate is not None:
            how = f", which keeps a recall rate of {self.recall_rate:.1%}"
        elif self.why_fitted:
            how += f", as fitted: {self.why_fitted}"
        return f"Threshold {self.threshold:.4f}{how}."

    def _time(self) -> str:
        before = f" ({self.resumed:,} images were done before)" if self.resumed else ""
        seconds, now = self.seconds["predicting"], self.predicted - self.resumed
        if now <= 0:
            return f"Nothing was left to predict{before}."
        networks = sum(s for name, s in self.seconds.items() if name not in _NOT_NETWORKS)
        waiting, decoding = self.seconds["waiting"], self.seconds["decoding"]
        return (
            f"{seconds:.0f} s for {now:,} images{before}: {seconds / now:.3g} s an image, of "
            f"which the networks took {networks / now:.3g} s and waited for images "
            f"{waiting / now:.3g} s; decoding took {decoding / now:.3g} s of a process. {self.how}."
        )
