"""Output on the terminal: progress with the time left, and summaries of predict and submit."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from rsna_bcd.durations import format_duration, seconds_left
from rsna_bcd.tables.study_results import NO_DEVICE, QUALITY_FLAGS, BreastResult, views_text

_PROGRESS_LINES = 10  # instead of the bar where there is no terminal
_MAX_BREASTS = 40  # printed; breasts.csv has all
_MAX_REASONS = 6  # of excluded files, and excluded images
_NO_DICOM = "not a DICOM file"
_MAX_FAILURES = 5  # printed; failures.csv has all
# A warning: a recall rate that differs by this factor and by so many standard errors.
_FACTOR, _STANDARD_ERRORS = 2.0, 4.0
_NOT_NETWORKS = ("predicting", "decoding", "waiting")  # keys of `SubmissionSummary.seconds`


def make_console(**options: Any) -> Console:
    """Make a console that prints text as it is: without markup, highlights and line breaks.

    Tables, which are to fit into the terminal, are printed with `soft_wrap=False`.

    Args:
        options: others of rich's `Console`.
    """
    return Console(markup=False, highlight=False, soft_wrap=True, **options)


class ProgressBar:
    """Progress with the time left, estimated from the speed so far.

    Args:
        console: from `make_console`, to draw on, or to write lines to if it is no terminal.
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

    def __exit__(self, *_: object) -> None:
        """Leave it as it is."""
        self._progress.stop()

    def log(self, text: str) -> None:
        """Write a line above the bar."""
        self._progress.console.print(text)

    def update(self, done: int, before: int = 0, remark: str = "") -> None:
        """Show how much is done.

        Args:
            done: units of work, those of `before` included.
            before: units done by an earlier process; the clock starts when `done` equals it.
            remark: shown behind the time left.
        """
        if done == before:
            self._started = time.monotonic()
        left = time_left(time.monotonic() - self._started, done, before, self._total)
        end = ", ".join(filter(None, (left, remark)))
        self._progress.update(self._task, completed=done, end=end)
        line = done * _PROGRESS_LINES // max(1, self._total)
        if not self._console.is_terminal and line > self._lines and done > before:
            self.log(f"{self._name}: {done:,} of {self._total:,}{end and ', '}{end}")
        self._lines = max(line, self._lines)


def time_left(seconds: float, done: int, before: int, total: int) -> str:
    """`84 s left`, `35 min left, ends at 14:32`; empty while unknown. Arguments: `durations`."""
    left = seconds_left(seconds, done, before, total)
    if left is None:
        return ""
    end = time.strftime(", ends at %H:%M", time.localtime(time.time() + left))
    return f"{format_duration(left)} left{end if left >= 120 else ''}"


def count_reasons(reasons: Mapping[str, str]) -> list[str]:
    """Count the reasons why files were excluded, the most frequent first.

    Args:
        reasons: by file.

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
    ).most_common()  # fmt: skip
    rest = sum(n for _, n in counts[_MAX_REASONS:])
    lines = [f"{n} x {why}" for why, n in counts[:_MAX_REASONS]]
    return [*lines, f"{rest} for other reasons"] if rest else lines


def print_results(
    console: Console,
    folder: Path,
    name: str,
    results: Sequence[BreastResult],
    failures: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    """Print the results as a table, then quality flags, notes and failures.

    Args:
        console: from `make_console`.
        folder: of the files that were written.
        name: of the ensemble.
        results: one per breast.
        failures: by file, why it was excluded.
        notes: sentences about the model.
    """
    by_score = sorted(results, key=lambda result: -(result.probability or 0))
    ids = {result.prediction_id for result in by_score[:_MAX_BREASTS]}
    shown = [result for result in results if result.prediction_id in ids]
    flags = {flag for result in shown for flag in result.flags}
    console.print(_results_table(shown, name, len(results)), soft_wrap=False)
    lines = [f"  {flag}: {text}." for flag, text in QUALITY_FLAGS.items() if flag in flags]
    lines += [f"  {line}" for line in _excluded_images(shown)]
    lines += [f"Note: {note}" for note in notes]
    if failures:
        lines.append(f"{len(failures)} file(s) were excluded ({folder / 'failures.csv'}):")
        lines += [f"  {line}" for line in count_reasons(failures)]
    for line in (*lines, f"Tables, and pictures with saliency maps: {folder}"):
        console.print(line)
    console.print(NO_DEVICE, style="bold")


def _excluded_images(results: Sequence[BreastResult]) -> list[str]:
    """Readable images that do not contribute to their breast, with their quality flags."""
    lines = []
    for result in results:
        for image in result.images:
            if not image.decides and image.reason is None:
                flags = ", ".join(flag for flag in image.flags if flag != "view left out")
                lines.append(f"left out of {result.prediction_id}: {image.file} ({flags})")
    rest = len(lines) - _MAX_REASONS
    return [*lines[:_MAX_REASONS], *([f"{rest} more are left out"] if rest > 0 else [])]


def _results_table(results: Sequence[BreastResult], name: str, n_all: int) -> Table:
    """One row per breast; with the calibrated probability where there is one."""
    part = f", the {len(results)} breasts with the highest scores of {n_all}"
    table = Table(
        title=f"Predictions of {name}{part if len(results) < n_all else ''}",
        caption=f"positive from {results[0].threshold:.3f}",
    )
    calibrates = any(result.calibrated is not None for result in results)
    numbers = ["probability", *(["calibrated"] if calibrates else [])]
    for column in ("breast", "views", *numbers, "decision", "quality flags"):
        table.add_column(column, justify="right" if column in numbers else "left")
    for result in results:
        probabilities = (result.probability, result.calibrated)[: len(numbers)]
        table.add_row(
            result.prediction_id,
            views_text(result),
            *("–" if p is None else f"{p:.3f}" for p in probabilities),
            result.decision or "not read",
            ", ".join(result.flags),
            style="bold red" if result.decision == "positive" else "",
        )
    return table


@dataclass(frozen=True)
class SubmissionSummary:
    """The outcome of a submission, for the terminal and `summary.json`.

    Attributes:
        breasts: number of predictions.
        images: in the table.
        predicted: images that were read or found unreadable.
        resumed: of them, those done by an earlier process.
        positive: breasts predicted positive.
        unread: breasts without a readable image, which have the prevalence as probability.
        failures: rows of `failures.csv` by kind.
        dropped: folds and augmentation that were dropped for the time budget; empty if none.
        silent: networks without a finite value.
        threshold: of the decisions.
        recall_rate: that the threshold keeps; None for the fitted threshold.
        why_fitted: why it is the fitted one, although a recall rate was requested.
        sites: thresholds by site.
        how: device, precision and engine of the networks.
        seconds: of this process: `predicting` by the clock, `decoding` of all processes together,
            `waiting` of the networks for images, and of each network.
        out_of_fold: recall rate of the fitted threshold out of fold; None if unknown.
    """

    breasts: int
    images: int
    predicted: int
    resumed: int
    positive: int
    unread: int
    failures: Mapping[str, int]
    dropped: str
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
        return {"shed" if key == "dropped" else key: v for key, v in asdict(self).items()}

    def lines(self, failures: pd.DataFrame) -> list[str]:
        """A screen of text; `failures` is the table of `failures.csv`."""
        return [
            f"{self.breasts:,} breasts, {self.images:,} images: {self.positive:,} predicted "
            f"positive ({self.positive / max(1, self.breasts):.1%}).",
            *self._recall_rate_warning(),
            *self._failure_lines(failures),
            *([f"Dropped for the time budget: {self.dropped}."] if self.dropped else []),
            *([f"Excluded, without a finite value: {self.silent}."] if self.silent else []),
            self._threshold_line(),
            self._time_line(),
        ]

    def _recall_rate_warning(self) -> list[str]:
        """A warning where no, every, or an improbable share of the breasts is positive."""
        read, expected = self.breasts - self.unread, self.out_of_fold
        if self.positive in (0, self.breasts):
            share = "no breast is" if not self.positive else "every breast is"
        elif expected is None or not read:
            return []
        else:
            rate = self.positive / read
            error = math.sqrt(expected * (1 - expected) / read)
            if (
                expected / _FACTOR <= rate <= expected * _FACTOR
                or abs(rate - expected) <= _STANDARD_ERRORS * error
            ):
                return []
            share = f"{rate:.1%} of the breasts are"
        usual = "" if expected is None else f", {expected:.1%} were out of fold"
        remedy = ", or fix the recall rate: fit the ensemble with threshold=recall_rate"
        return [
            f"WARNING: {share} predicted positive{usual}. Check that the images are like those of "
            "the training (source=, views and machines in failures.csv)"
            f"{remedy if self.recall_rate is None else ''}."
        ]

    def _failure_lines(self, failures: pd.DataFrame) -> list[str]:
        if not self.failures:
            return ["No failures."]
        counts = ", ".join(f"{number:,} {kind}" for kind, number in self.failures.items())
        unread = f"; {self.unread:,} breast(s) without a readable image" if self.unread else ""
        rows: Any = failures.head(_MAX_FAILURES).itertuples()
        lines = [
            f"  {' '.join(filter(None, (row.kind, row.prediction_id, row.image_id)))}: {row.reason}"
            for row in rows
        ]
        if len(failures) > _MAX_FAILURES:
            lines.append(f"  ... ({len(failures):,} in all)")
        return [f"Failures: {counts}{unread}.", *lines]

    def _threshold_line(self) -> str:
        text = "".join(f", site {site} {value:.4f}" for site, value in self.sites.items())
        if self.recall_rate is not None:
            text = f", which keeps a recall rate of {self.recall_rate:.1%}"
        elif self.why_fitted:
            text += f", as fitted: {self.why_fitted}"
        return f"Threshold {self.threshold:.4f}{text}."

    def _time_line(self) -> str:
        before = f" ({self.resumed:,} images were predicted before)" if self.resumed else ""
        n = self.predicted - self.resumed
        if n <= 0:
            return f"No image was left to predict{before}."
        seconds = self.seconds["predicting"]
        networks = sum(s for name, s in self.seconds.items() if name not in _NOT_NETWORKS)
        return (
            f"{seconds:.0f} s for {n:,} images{before}: {seconds / n:.3g} s/image; the networks "
            f"took {networks / n:.3g} s/image and waited for images for "
            f"{self.seconds['waiting'] / n:.3g} s/image; decoding took "
            f"{self.seconds['decoding'] / n:.3g} s/image of one process. {self.how}."
        )
