"""The answers of a model on the console."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rsna_bcd.reporting.answer import NO_DEVICE
from rsna_bcd.tables.answers import DOUBTS, BreastAnswer, views_in_words

_SHOWN = 40  # breasts; breasts.csv has all
_KINDS_SHOWN = 6  # of files that are no mammogram, and images that are left out
_NO_DICOM = "not a DICOM file"


def counted(reasons: Mapping[str, str]) -> list[str]:
    """Say what files are, the most frequent first.

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


def show_answers(
    console: Console,
    folder: Path,
    name: str,
    answers: Sequence[BreastAnswer],
    failures: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    """Print the answers as a table, what is doubtful in words, and what was left out.

    Args:
        console: to print on.
        folder: with the files that were written.
        name: of the ensemble.
        answers: one a breast.
        failures: by file, why it took no part.
        notes: what one should know of all answers.
    """

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    likely = sorted(answers, key=lambda answer: -(answer.probability or 0))[:_SHOWN]
    shown = [answer for answer in answers if answer in likely]
    console.print(_table(shown, name, len(answers)))
    for kind, text in DOUBTS.items():
        if any(kind in answer.doubts for answer in shown):
            say(f"  {kind}: {text}.")
    for line in _left_out(shown):
        say(f"  {line}")
    for note in notes:
        say(f"Note: {note}")
    if failures:
        say(f"{len(failures)} file(s) took no part ({folder / 'failures.csv'}):")
        for line in counted(failures):
            say(f"  {line}")
    say(f"Tables, and what raised each score: {folder}")
    say(NO_DEVICE, "bold")


def _left_out(answers: Sequence[BreastAnswer]) -> list[str]:
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


def _table(answers: Sequence[BreastAnswer], name: str, n_all: int) -> Table:
    """One row a breast."""
    left_out = f", the {len(answers)} most suspicious of {n_all} breasts"
    table = Table(
        title=f"What the model {name} says{left_out if len(answers) < n_all else ''}",
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
            views_in_words(answer),
            "–" if answer.probability is None else f"{answer.probability:.3f}",
            *(["–" if answer.calibrated is None else f"{answer.calibrated:.3f}"] * calibrates),
            answer.decision or "no answer",
            ", ".join(answer.doubts),
        ]
        table.add_row(*cells, style="bold red" if answer.decision == "positive" else "")
    return table
