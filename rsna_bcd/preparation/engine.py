"""Many tasks on many processes: results in completion order, in bounded memory, none lost.

A task may raise, and it may kill its process (decoders written in C do, on damaged files). Either
way the others go on and the result names the reason. That is why this builds on dask.distributed:
pools of the standard library hang or lose the whole run when a process dies.
"""

import logging
import os
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import cv2
import dask
from distributed import Client, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from rsna_bcd.errors import InputError

Key = TypeVar("Key", bound=Hashable)
Task = TypeVar("Task")
Value = TypeVar("Value")

_DEATHS = 3  # a task is given up when it was there at the death of more processes than this
_IN_FLIGHT = 3  # tasks a process: one at work, the others under way


@dataclass(frozen=True)
class Result(Generic[Key, Value]):
    """What became of one task.

    Attributes:
        key: the task's.
        value: what the function returned; None if it failed.
        reason: why it failed; None if it did not.
        seconds: spent in the function; 0 if it failed.
    """

    key: Key
    value: Value | None
    reason: str | None
    seconds: float


def run(
    function: Callable[[Task], Value], tasks: Iterable[tuple[Key, Task]], *, workers: int
) -> Generator[Result[Key, Value], None, None]:
    """Call `function` on each task and yield results as they complete.

    Closing the generator ends the processes.

    Args:
        function: importable, as processes of their own call it.
        tasks: pairs of a unique key and the argument; drawn only as results are consumed, so the
            sequence may be endless and the memory in use stays bounded.
        workers: number of processes; 0 works in this one, which then shares their fate.

    Yields:
        One result a task. Exceptions of the function become reasons: the text of an `InputError`,
        type and text of any other.
    """
    if workers < 0:
        raise InputError(f"workers={workers} must be 0 (work in this process) or more.")
    if workers == 0:
        for key, task in tasks:
            yield _run_here(function, key, task)
    else:
        yield from _run_on_processes(function, iter(tasks), workers)


def usable_cores() -> int:
    """Number of CPU cores that this process may use (containers often allow fewer than exist)."""
    return len(os.sched_getaffinity(0))


def _run_here(function: Callable[[Task], Value], key: Key, task: Task) -> Result[Key, Value]:
    try:
        value, seconds = _timed(function, task)
    except Exception as error:  # noqa: BLE001 - any failure of one task is that task's result
        return Result(key, None, _reason(error), 0.0)
    return Result(key, value, None, seconds)


def _run_on_processes(
    function: Callable[[Task], Value], tasks: Iterator[tuple[Key, Task]], workers: int
) -> Iterator[Result[Key, Value]]:
    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS,
        # No task waits at a busy process, so a process that dies takes one task with it, not two.
        "distributed.scheduler.worker-saturation": 1.0,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        keys: dict[str, Key] = {}

        def submit(count: int) -> list:
            futures = []
            for key, task in islice(tasks, count):
                future = client.submit(_timed, function, task, pure=False)
                keys[future.key] = key
                futures.append(future)
            return futures

        pending = as_completed(submit(_IN_FLIGHT * workers))
        for future in pending:
            key = keys.pop(future.key)
            error = future.exception()
            if error is None:
                value, seconds = future.result()
                result = Result(key, value, None, seconds)
            else:
                result = Result(key, None, _reason(error), 0.0)
            future.release()
            for successor in submit(1):
                pending.add(successor)
            yield result


def _timed(function: Callable[[Task], Value], task: Task) -> tuple[Value, float]:
    """Call `function` with OpenCV on one thread: the processes share the cores already."""
    cv2.setNumThreads(1)
    start = time.perf_counter()
    value = function(task)
    return value, time.perf_counter() - start


def _reason(error: BaseException) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, KilledWorker):
        return "the process that worked on it died"
    return f"{type(error).__name__}: {error}"
