"""The engine: every task has a result, whatever becomes of the processes."""

import os
import time
from collections.abc import Iterator

import cv2
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.preparation.engine import run


def work(task: int) -> int:
    """Squares, except for tasks that fail in one way or another."""
    if task == 3:
        raise InputError("three is unreadable")
    if task == 4:
        raise ValueError("four is odd")
    if task == 5:
        os._exit(1)  # as a decoder does that touches memory not its own
    if task == 6:
        return cv2.getNumThreads()
    return task**2


def tasks(*numbers: int) -> list[tuple[str, int]]:
    return [(str(n), n) for n in numbers]


def test_results_and_reasons_in_this_process() -> None:
    results = list(run(work, tasks(0, 3, 4, 2), workers=0))
    assert [r.key for r in results] == ["0", "3", "4", "2"]
    assert [r.value for r in results] == [0, None, None, 4]
    assert [r.reason for r in results] == [
        None, "three is unreadable", "ValueError: four is odd", None,
    ]  # fmt: skip
    assert results[0].seconds > 0


def test_a_task_that_kills_its_process_is_named_and_takes_nothing_with_it() -> None:
    results = {r.key: r for r in run(work, tasks(*range(30)), workers=2)}
    assert results.keys() == set(map(str, range(30)))
    assert {k: r.reason for k, r in results.items() if r.reason} == {
        "3": "three is unreadable",
        "4": "ValueError: four is odd",
        "5": "the process that worked on it died",
    }
    assert results["6"].value == 1  # OpenCV on one thread
    assert all(results[str(n)].value == n**2 for n in range(7, 30))


def wait_briefly(task: int) -> int:
    time.sleep(2 if task == 0 else 0)
    return task


def test_results_come_when_ready_and_tasks_are_drawn_when_there_is_room() -> None:
    drawn = 0

    def endless() -> Iterator[tuple[str, int]]:
        nonlocal drawn
        while True:
            yield str(drawn), drawn
            drawn += 1

    results = run(wait_briefly, endless(), workers=2)
    first = [next(results).key for _ in range(4)]
    assert "0" not in first  # the slow one comes when it is done
    assert drawn < 20
    results.close()


def test_workers_must_not_be_negative() -> None:
    with pytest.raises(InputError, match="workers=-1"):
        list(run(work, tasks(0), workers=-1))
