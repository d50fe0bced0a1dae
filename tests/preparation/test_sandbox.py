"""Processes that tasks run in: what they survive, and what they may take."""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.preparation.engine import Job, Result, WorkerPool, pack, run


def outcomes(
    function: Callable[[int], Any], *numbers: int, **limits: float
) -> dict[int, Result[int, Any]]:
    """Results by task, of one process."""
    results = run(function, ((n, n) for n in numbers), workers=1, **limits)  # type: ignore[arg-type]
    return {result.key: result for result in results}


def hang(task: int) -> int:
    """Sleep in C, the interpreter locked, until a signal ends the process."""
    if task == 1:
        ctypes.PyDLL(None).pause()
    return task


def test_a_task_that_hangs_costs_the_limit_once_and_nothing_else() -> None:
    start = time.monotonic()
    results = outcomes(hang, 0, 1, 2, limit_seconds=3)
    assert time.monotonic() - start < 8  # not three times: it did not kill its process
    assert results[1].reason == "took longer than 3 s (limit_seconds)"
    assert results[1].seconds == 3
    assert [results[n].value for n in (0, 2)] == [0, 2]


def take_memory(task: int) -> int:
    if task == 1:
        np.ones(2**31, np.uint8)
    if task == 2:
        cv2.resize(np.zeros((2, 2), np.uint8), (2**15, 2**16))
    if task == 3:
        cv2.resize(np.zeros((2, 2), np.uint8), (0, 0))
    return int(np.ones(2**29, np.uint8).sum(dtype=np.int64))


def test_a_task_that_needs_too_much_memory_fails_and_says_what_the_limit_was() -> None:
    results = outcomes(take_memory, 0, 1, 2, 3, limit_gigabytes=1)
    limit = "needs more than 1 GB of memory (limit_gigabytes): "
    assert (results[1].reason or "").startswith(f"{limit}Unable to allocate 2.00 GiB")
    assert (results[2].reason or "").startswith(limit)
    assert "(limit_gigabytes)" not in (results[3].reason or "(limit_gigabytes)")  # another failure
    assert results[0].value == 2**29  # less is at hand
    assert outcomes(take_memory, 1, limit_gigabytes=3)[1].value == 2**29


def die_by(task: tuple[Path, int]) -> int:
    """Note that it was called, and kill the process as often as asked for."""
    file, deaths = task
    with file.open("a") as notes:
        notes.write("called\n")
    if len(file.read_text().splitlines()) <= deaths:
        os.kill(os.getpid(), signal.SIGSEGV)
    return deaths


def test_a_task_may_lose_its_process_twice_but_not_three_times(tmp_path: Path) -> None:
    tasks = [(n, (tmp_path / str(n), n)) for n in range(5)]
    results = {r.key: r for r in run(die_by, tasks, workers=2)}
    assert [results[n].value for n in range(5)] == [0, 1, 2, None, None]
    assert results[3].reason == "the process that worked on it died (SIGSEGV)"
    assert (tmp_path / "4").read_text() == "called\n" * 3


def show_surroundings(task: int) -> tuple[int, str | None, str]:
    return cv2.getNumThreads(), os.environ.get("OMP_NUM_THREADS"), os.getcwd()  # noqa: PTH109


def test_processes_share_the_cores_and_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert outcomes(show_surroundings, 0)[0].value == (1, "1", str(Path.cwd()))


@pytest.mark.parametrize("executable", ["/bin/false", "/nowhere"])
@pytest.mark.parametrize("sources", [None, "hash"])
def test_run_explains_that_processes_cannot_start(executable: str, sources: str | None) -> None:
    job = Job("run", pack(hang), str(Path.cwd()), sources, 1, 1)
    node = "" if sources is None else f"The worker on {os.uname().nodename}: "
    before = spawn.get_executable()
    spawn.set_executable(executable)
    pool = WorkerPool(job, 1)
    try:
        with pytest.raises(InputError, match=f"^{node}Processes cannot be started"):
            raise pool.call(pack(0)).error or AssertionError
    finally:
        spawn.set_executable(before)
        pool.close()


def test_run_goes_on_when_an_idle_process_is_killed() -> None:
    """As the kernel does that is short of memory; pebble gives such a pool up."""
    results = run(process_id, ((n, n) for n in range(60)), workers=1)
    done = [next(results)]
    while len(done) < 60:
        if len(done) == 3:
            time.sleep(0.3)  # all in flight are done
            os.kill(done[0].value or 0, signal.SIGKILL)
            time.sleep(0.3)
        done.append(next(results))
    assert sorted(result.key for result in done) == list(range(60))
    assert not [result.reason for result in done if result.reason]
    assert len({result.value for result in done}) == 2
    results.close()


def process_id(task: int) -> int:
    return os.getpid()


class Unpackable:
    """A result that cannot leave its process."""

    def __reduce__(self) -> str:
        raise InputError("stays here")


def return_unpackable(task: int) -> object:
    return Unpackable() if task else None


def test_a_result_that_cannot_be_handed_over_is_a_failure() -> None:
    reason = outcomes(return_unpackable, 1)[1].reason
    assert reason == "The result cannot be handed over: InputError: stays here"
