"""A progress bar that says when the work will end, also where there is no terminal."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_LINES = 10  # that stand for the bar where there is no terminal


class ProjectedBar:
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

    def tell(self, text: str) -> None:
        """Write a line above the bar."""
        self._progress.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def show(self, done: int, before: int) -> None:
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
            self.tell(f"{self._name}: {done:,} of {self._total:,}{end and ', '}{end}")
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
