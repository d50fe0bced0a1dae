"""Tasks on several processes that import heavy packages once, until all are done or time is up."""

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

from pebble import ProcessExpired, ProcessPool

from rsna_bcd.errors import InputError
from rsna_bcd.processes import die_with_parent


class Outcome(NamedTuple):
    """The result of a task, or the reason that there is none."""

    task: Any
    value: Any = None
    error: str | None = None


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    jobs: int,
    deadline: float | None,
    log_folder: Path,
    threads: int | None = None,
) -> Iterator[Outcome]:
    """Yield the outcome of each task as it ends.

    A process takes task after task. One that dies is reported with its task, and replaced. At the
    deadline all processes are ended, and the tasks under way have no outcome.

    Args:
        function: from a task to a value, importable by name.
        tasks: in the order in which they are begun.
        jobs: number of processes; 0 runs the tasks in this one, where a task that has begun is
            finished after the deadline.
        deadline: in seconds of `time.monotonic()`; None: no deadline.
        log_folder: gets the output of each process (`worker<pid>.log`).
        threads: of OpenMP in each process, where OMP_NUM_THREADS is not set; for packages that the
            tasks import.
    """

    def seconds_left() -> float | None:
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    if jobs == 0:
        for task in tasks:
            if seconds_left() == 0:
                return
            yield _outcome(function, task)
        return
    log_folder.mkdir(parents=True, exist_ok=True)
    pool = ProcessPool(
        jobs, initializer=_initialise, initargs=(log_folder, threads), context=_Context()
    )
    try:
        futures: dict[Any, Any] = {
            pool.schedule(_outcome, (function, task)): task for task in tasks
        }
        for future in as_completed(futures, seconds_left()):
            try:
                outcome = future.result()
            except ProcessExpired as error:
                log = log_folder / f"worker{error.pid}.log"
                outcome = Outcome(futures[future], error=f"its process died; see {log}")
            yield outcome
    except TimeoutError:  # the deadline
        return
    finally:
        pool.stop()
        pool.join()


class _Process(SpawnProcess):
    def start(self) -> None:
        self.daemon = False  # daemons may not have children, which loaders start
        super().start()


class _Context(SpawnContext):  # not forked: CUDA and threads do not survive that
    Process = _Process


def _initialise(log_folder: Path, threads: int | None) -> None:
    die_with_parent()
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with (log_folder / f"worker{os.getpid()}.log").open("a", encoding="utf-8") as text:
        os.dup2(text.fileno(), 1)
        os.dup2(text.fileno(), 2)


def _outcome(function: Callable[[Any], Any], task: Any) -> Outcome:
    try:
        return Outcome(task, function(task))
    except Exception as error:  # noqa: BLE001  (one task of many; its traceback is in the log)
        if isinstance(error, InputError) or isinstance(error.__cause__, InputError):
            cause = error if isinstance(error, InputError) else error.__cause__
            return Outcome(task, error=str(cause))  # Hydra wraps the errors of constructors
        traceback.print_exc()
        return Outcome(task, error=f"{type(error).__name__}: {error}")
