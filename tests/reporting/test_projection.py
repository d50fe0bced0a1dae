"""When work will end, on a terminal and in a log."""

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from rsna_bcd.reporting.console import ProgressBar, projected


@pytest.mark.parametrize(
    ("seconds", "done", "before", "expected"),
    [
        (10, 0, 0, ""),
        (10, 20, 20, ""),  # nothing in this process
        (10, 100, 0, ""),
        (10, 50, 0, "10 s left"),
        (10, 60, 50, "40 s left"),  # what was done before tells nothing about speed
        (600, 25, 0, r"30 min left, ends at \d\d:\d\d"),
        (3600, 20, 0, r"4\.0 h left, ends at \d\d:\d\d"),
    ],
)
def test_the_end_follows_from_the_speed_so_far(
    seconds: float, done: int, before: int, expected: str
) -> None:
    assert re.fullmatch(expected, projected(seconds, done, before, 100))


def drawn(terminal: bool, work: Callable[[ProgressBar], None]) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with ProgressBar(console, "Predicting", 40) as bar:
        work(bar)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def work(bar: ProgressBar) -> None:
    bar.update(10, 10)
    for done in range(11, 41):
        bar.update(done, 10)
    bar.log("[a note]")


def test_where_there_is_no_terminal_a_few_lines_say_it() -> None:
    lines = drawn(False, work).splitlines()
    assert [line.split(",")[0] for line in lines] == [
        *(f"Predicting: {done} of 40" for done in (12, 16, 20, 24, 28, 32, 36, 40)), "[a note]",
    ]  # fmt: skip
    assert all("left" in line for line in lines[:7])


def test_on_a_terminal_there_is_a_bar() -> None:
    shown = drawn(True, work)
    assert "40/40" in shown
    assert "[a note]" in shown
    assert "Predicting: " not in shown
