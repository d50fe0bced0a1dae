"""Tasks on several processes that import heavy packages once, until all are done or time is up."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from rsna_bcd.errors import InputError


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
        log_folder: gets the output of each process (`worker<n>.log`).
        threads: of OpenMP in each process, where OMP_NUM_THREADS is not set; for packages that the
            tasks import.
    """
    ahead = list(tasks)[::-1]
    if jobs == 0:
        while ahead and not _is_over(deadline):
            task = ahead.pop()
            yield _outcome(function, task)
        return
    log_folder.mkdir(parents=True, exist_ok=True)
    workers: list[_Worker] = []
    try:
        while True:
            while ahead and len(workers) < jobs and not _is_over(deadline):
                log = log_folder / f"worker{_first_free(workers)}.log"
                workers.append(_Worker(function, log, ahead.pop(), threads))
            if not workers or _is_over(deadline):
                return
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = wait([worker.connection for worker in workers], left)
            for worker in [worker for worker in workers if worker.connection in ready]:
                task, outcome = worker.task, worker.receive()
                if outcome is None:
                    workers.remove(worker)
                    outcome = Outcome(task, error=f"its process died; see {worker.log}")
                elif ahead and not _is_over(deadline):
                    worker.send(ahead.pop())
                else:
                    worker.end()
                    workers.remove(worker)
                yield outcome
    finally:
        for worker in workers:
            worker.end(at_once=True)


class _Worker:
    """A process, and the task that it works on."""

    def __init__(
        self, function: Callable[[Any], Any], log: Path, task: Any, threads: int | None
    ) -> None:
        # Not forked: CUDA and threads do not survive that.
        context = multiprocessing.get_context("spawn")
        self.log = log
        self.connection, other = context.Pipe()
        # Not a daemon: those may not have children, which loaders start.
        self._process = context.Process(target=_serve, args=(function, other, log, threads))
        self._process.start()
        other.close()  # so that the end of the process ends the connection
        self.send(task)

    def send(self, task: Any) -> None:
        self.task = task
        self.connection.send(task)

    def receive(self) -> Outcome | None:
        """The outcome of its task; None if the process died."""
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.end()
            return None
        return outcome

    def end(self, *, at_once: bool = False) -> None:
        """End the process: when its task is done, or at once."""
        self.connection.close()
        if at_once:
            self._process.kill()
        self._process.join()


def _serve(
    function: Callable[[Any], Any], connection: Connection, log: Path, threads: int | None
) -> None:
    """Work on tasks until the connection closes."""
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with log.open("a", encoding="utf-8") as text:
        os.dup2(text.fileno(), 1)
        os.dup2(text.fileno(), 2)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(_outcome(function, task))


def _outcome(function: Callable[[Any], Any], task: Any) -> Outcome:
    try:
        return Outcome(task, function(task))
    except InputError as error:
        return Outcome(task, error=str(error))
    except Exception as error:  # noqa: BLE001  (one task of many; its traceback is in the log)
        traceback.print_exc()
        return Outcome(task, error=f"{type(error).__name__}: {error}")


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _first_free(workers: Sequence[_Worker]) -> int:
    taken = {worker.log.stem for worker in workers}
    return next(n for n in range(len(workers) + 1) if f"worker{n}" not in taken)
