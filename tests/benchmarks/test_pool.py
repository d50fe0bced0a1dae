"""Tasks on processes: outcomes, failures, and the deadline."""

import os
import time
from pathlib import Path
from typing import Any

import pool

from rsna_bcd.errors import InputError


def work(task: str) -> str:
    """Do the task."""
    if task == "die":
        os._exit(3)
    if task == "refuse":
        raise InputError("no such thing")
    if task == "break":
        raise ZeroDivisionError("of what")
    if task == "sleep":
        time.sleep(60)
    return task.upper()


def outcomes(tmp_path: Path, tasks: list[str], jobs: int, **changes: Any) -> dict[str, tuple]:
    settings = {"deadline": None, "log_folder": tmp_path, **changes}
    found = pool.run_tasks(work, tasks, jobs=jobs, **settings)
    return {one.task: (one.value, one.error) for one in found}


def test_each_task_has_its_outcome_whatever_becomes_of_others(tmp_path: Path) -> None:
    tasks = ["a", "die", "refuse", "b", "break", "c"]
    found = outcomes(tmp_path, tasks, jobs=2)
    assert found.keys() == set(tasks)
    for task in "abc":
        assert found[task] == (task.upper(), None)
    assert found["refuse"] == (None, "no such thing")
    assert found["break"] == (None, "ZeroDivisionError: of what")
    assert "died" in found["die"][1]
    assert "of what" in "".join(log.read_text() for log in tmp_path.glob("worker*.log"))


def test_this_process_gives_the_same_outcomes(tmp_path: Path) -> None:
    tasks = ["a", "refuse", "break"]
    assert outcomes(tmp_path, tasks, jobs=0) == outcomes(tmp_path, tasks, jobs=1)


def test_at_the_deadline_what_is_done_counts_and_the_rest_is_stopped(tmp_path: Path) -> None:
    start = time.monotonic()
    found = outcomes(tmp_path, ["a", "sleep", "b"], jobs=1, deadline=start + 6)
    assert found == {"a": ("A", None)}
    assert time.monotonic() - start < 30
    assert outcomes(tmp_path, ["a"], jobs=0, deadline=start) == {}
