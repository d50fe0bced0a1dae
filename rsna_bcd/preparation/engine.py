"""Many tasks on many processes: results in completion order, in bounded memory, none lost.

A task may raise, and it may kill its process (decoders written in C do, on damaged files). Either
way the others go on and the result names the reason. That is why this builds on dask.distributed:
pools of the standard library hang or lose the whole run when a process dies.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import cv2
import dask
from distributed import Client, Future, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from rsna_bcd.errors import InputError

Key = TypeVar("Key", bound=Hashable)
Task = TypeVar("Task")
Value = TypeVar("Value")

_DEATHS = 3  # a task is given up when it was there at the death of more processes than this
_ENVIRONMENT = "distributed.nanny.pre-spawn-environ"  # of the processes
_IN_FLIGHT = 3  # tasks a process: one at work, the others under way
_LOOK_SECONDS = 2  # between looks at the processes
_RESTART_SECONDS = 10  # after which a nanny without a process has given up


@dataclass(frozen=True)
class Result(Generic[Key, Value]):
    """What became of one task.

    Attributes:
        key: the task's.
        value: what the function returned; None if it failed.
        reason: why it failed; None if it did not.
        seconds: spent in the function; 0 if it killed its process.
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
            yield Result(key, *_attempt(function, task))
    else:
        yield from _run_on_processes(function, iter(tasks), workers)


def usable_cores() -> int:
    """Number of CPU cores that this process may use (containers often allow fewer than exist)."""
    return len(os.sched_getaffinity(0))


def _run_on_processes(
    function: Callable[[Task], Value], tasks: Iterator[tuple[Key, Task]], workers: int
) -> Iterator[Result[Key, Value]]:
    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS,
        # No task waits at a busy process, so a process that dies takes one task with it, not two.
        "distributed.scheduler.worker-saturation": 1.0,
        # On a machine that is busy with other things, a process may take a minute to start.
        "distributed.comm.timeouts.connect": "300s",
        "logging.distributed": "critical",  # deaths are reported as results
        # Keep freed memory, up to the largest that glibc takes for a mapping of its own: arrays of
        # some MB come and go with every image, and clearing fresh pages took a third of the time.
        f"{_ENVIRONMENT}.MALLOC_TRIM_THRESHOLD_": 2**28,
        f"{_ENVIRONMENT}.MALLOC_MMAP_THRESHOLD_": 2**25,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # a share of a small machine would kill; the guard caps images
            dashboard_address=":0",  # any free port: nobody needs it, and two runs must not meet
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
        _lost_processes_replaced(cluster, workers),
    ):
        keys: dict[str, Key] = {}

        def submit(count: int) -> list[Future]:
            futures = []
            for key, task in islice(tasks, count):
                futures.append(client.submit(_attempt, function, task, pure=False))
                keys[futures[-1].key] = key
            return futures

        pending = as_completed(submit(_IN_FLIGHT * workers))
        for future in pending:
            result = Result(keys.pop(future.key), *_outcome(future))
            future.release()
            for successor in submit(1):  # first, so that no process idles while the caller works
                pending.add(successor)
            yield result
        # A process that is just starting in place of a dead one would protest when it is stopped.
        with suppress(TimeoutError):
            client.wait_for_workers(workers, timeout=_RESTART_SECONDS)


def _outcome(future: Future) -> tuple[Any, str | None, float]:
    """What a task came to: value, reason and seconds."""
    try:
        outcome: tuple[Any, str | None, float] = future.result()
    except KilledWorker:
        return None, "the process that worked on it died", 0.0
    return outcome


@contextmanager
def _lost_processes_replaced(cluster: LocalCluster, workers: int) -> Iterator[None]:
    """Start processes in place of those that nobody else replaces.

    The nanny of a process starts another one when it dies, unless it dies before the nanny has
    noted that it lives: the first task of a fresh process can be that quick. Then there would be
    one process less for good, and with the last one the run would stand still.
    """
    ended = threading.Event()

    def watch() -> None:
        complete_at = time.monotonic()
        while not ended.wait(_LOOK_SECONDS):
            nannies = list(cluster.workers.values())
            lost = workers - sum(nanny.is_alive() for nanny in nannies)
            if lost <= 0:
                complete_at = time.monotonic()
            elif time.monotonic() - complete_at > _RESTART_SECONDS:
                cluster.scale(len(cluster.worker_spec) + lost)
                complete_at = time.monotonic()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _attempt(
    function: Callable[[Task], Value], task: Task
) -> tuple[Value | None, str | None, float]:
    """Call `function`: its value or the reason of its failure, and the seconds that it took."""
    cv2.setNumThreads(1)  # the processes share the cores already
    start = time.perf_counter()
    try:
        value = function(task)
    except InputError as error:
        return None, str(error), time.perf_counter() - start
    except Exception as error:  # noqa: BLE001 - whatever happens to one task is its result
        return None, f"{type(error).__name__}: {error}", time.perf_counter() - start
    return value, None, time.perf_counter() - start
