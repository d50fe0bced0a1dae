"""The time left of the whole run, in the line of an epoch and in the bar."""

import io
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from rsna_bcd.models.callbacks import RunProgress, format_time_left


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize(
    ("begun", "first", "done", "left"),
    [
        (900, 0, 1, "0:15:00"),  # 100 s an epoch, 9 to come
        (900, 4, 5, "0:08:20"),  # resumed: epochs of before cost this process nothing
        (900, 0, 0.5, "0:31:40"),
        (900, 0, 10, ""),
        (900, 3, 3, ""),
    ],
)
def test_the_rest_takes_as_long_as_what_was_done(
    begun: float, first: float, done: float, left: str
) -> None:
    assert format_time_left(begun, first, done, 10) == left


def trainer(epoch: int, batch: int, **changes: Any) -> Any:
    return SimpleNamespace(
        training=True, validating=False, max_epochs=10, num_training_batches=4,
        current_epoch=epoch, fit_loop=SimpleNamespace(batch_idx=batch - 1), **changes,
    )  # fmt: skip


@pytest.mark.usefixtures("now")
def test_the_bar_shows_the_time_left_of_the_run() -> None:
    bar = RunProgress()
    bar._start = (900.0, 2)
    assert bar.time_left(trainer(2, 2)) == "0:25:00"  # 100 s half an epoch, 7.5 to come
    assert bar.time_left(trainer(9, 4)) == ""
    predicting: Any = trainer(2, 2)
    predicting.training = False
    assert bar.time_left(predicting) == ""
    screen = io.StringIO()
    console = Console(file=screen, width=120, force_terminal=True)
    with Progress(*bar.configure_columns(trainer(2, 2)), console=console) as progress:
        progress.add_task("epoch", total=4, completed=2)
        progress.refresh()
    assert "0:25:00 left of the run" in screen.getvalue()
