"""A dask cluster: a scheduler that runs already, and workers that join, leave and die.

    dask scheduler                       # prints its address, tcp://host:8786
    dask worker tcp://host:8786          # on each machine: one program, one thread per core

Tasks run in processes of their own (`WorkerPool`), so they do not kill the worker. A worker that is
lost therefore says nothing about its tasks. The scheduler gives up a task that lost a few workers
(its allowed-failures): it is submitted again.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Set
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

import dask
from distributed import Client, Future, Security, get_worker
from distributed.core import rpc
from distributed.scheduler import KilledWorker

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.preparation.engine import Job, Outcome, WorkerPool, pack, source_hash

_LOOK_SECONDS = 2  # between looks at which workers there are
_ANSWER_SECONDS = 10  # for a scheduler to answer
_NO_WORKER_SECONDS = 60  # to be without any worker
_IDLE_SECONDS = 60  # after which a worker ends the processes of a run
_SUBMISSIONS = 4  # of a task, each of which the scheduler gave up
_RESUME = "Finished work is kept: run the same command to resume."

_log = logging.getLogger(__name__)


class Cluster:
    """Submits tasks, returns their outcomes, and watches the workers.

    Raises:
        InputError: no scheduler answers, no worker comes, they have another version of this
            package, or the scheduler was lost.
    """

    def __init__(self, address: str, job: Job) -> None:
        for logger in ("distributed", "distributed.client"):
            # Never reset: some log after the end. Problems come as results or errors.
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self._address, self._job = address, job
        self._client = _connect(address)
        self._in_flight: dict[str, tuple[bytes, int]] = {}  # with the number of submissions
        self._submitted = 0
        self._done: SimpleQueue[tuple[str, Outcome | None] | Exception] = SimpleQueue()
        self._collecting = threading.Lock()
        self._closed = False
        self._looked_at = self._worked_at = time.monotonic()
        self._workers: Set[str] = frozenset()
        self._threads = 0
        try:
            self._look()
        except InputError:
            self.close()
            raise
        if not self._threads:
            _log.warning("No worker at %s yet: waiting %d s.", address, _NO_WORKER_SECONDS)

    def count(self) -> int:
        """Threads of all workers; one if there is none yet, for tasks to wait at the scheduler."""
        return max(self._threads, 1)

    def submit(self, task: bytes) -> str:
        """Queue a task; the name that it has until it is done."""
        self._submitted += 1
        name = str(self._submitted)
        self._send(name, task, 1)
        return name

    def next_done(self, *, wait: bool = True) -> tuple[str, Outcome] | None:
        """A task that is done, by name; None if there is none for now."""
        while True:
            if time.monotonic() - self._looked_at > _LOOK_SECONDS:
                self._look()
            try:
                done = self._done.get(timeout=_LOOK_SECONDS) if wait else self._done.get_nowait()
            except Empty:
                return None
            if isinstance(done, CancelledError | OSError):
                raise self._lost() from done
            if isinstance(done, Exception):
                raise self._incompatible("The scheduler, or a worker,", done) from done
            name, outcome = done
            task, submissions = self._in_flight.pop(name)
            if outcome is None and submissions < _SUBMISSIONS:
                self._send(name, task, submissions + 1)
                continue
            if outcome is None:
                outcome = Outcome(reason=f"{_SUBMISSIONS} times the workers died that had it")
            if outcome.error is not None and not isinstance(outcome.error, StorageError):
                raise InputError(f"{outcome.error} {_RESUME}")
            return name, outcome

    def close(self) -> None:
        """Drop the tasks; scheduler and workers stay, and end the processes once they are idle."""
        self._closed = True
        if self._collecting.acquire(timeout=1):  # in the middle of it, dask would wait and protest
            self._collecting.release()
        self._client.close()

    def _send(self, name: str, task: bytes, submissions: int) -> None:
        self._in_flight[name] = task, submissions
        future = self._client.submit(work, self._job, task, pure=False)
        # The callback also holds a reference: dask drops futures without one.
        future.add_done_callback(partial(self._collect, name))

    def _collect(self, name: str, future: Future) -> None:
        """Fetch an outcome; in a thread of dask, where no interrupt can cut it short."""
        with self._collecting:
            if self._closed or future.cancelled():
                self._done.put(CancelledError())
                return
            try:
                self._done.put((name, future.result(timeout=_ANSWER_SECONDS)))
            except TimeoutError:  # its worker was lost, the result with it: another one works on it
                future.add_done_callback(partial(self._collect, name))
            except KilledWorker:
                self._done.put((name, None))
            except Exception as error:  # noqa: BLE001 - raised where the results are awaited
                self._done.put(error)

    def _look(self) -> None:
        """Count the threads of the workers, which come and go."""
        self._looked_at = time.monotonic()
        try:
            threads: dict[str, int] = self._client.nthreads()
            self._check(threads.keys() - self._workers)
        except (OSError, RuntimeError) as error:
            raise self._lost() from error
        self._workers, self._threads = threads.keys(), sum(threads.values())
        if self._threads:
            self._worked_at = self._looked_at
        elif self._looked_at - self._worked_at > _NO_WORKER_SECONDS:
            raise InputError(
                f"The scheduler at cluster.address={self._address} has had no worker for "
                f"{_NO_WORKER_SECONDS} s. Start some with `dask worker {self._address}`. {_RESUME}"
            )

    def _check(self, workers: Set[str]) -> None:
        """Refuse workers that cannot import this package: a task would end their connection."""
        if not workers:
            return
        answers = self._client.run(pack, None, workers=list(workers), on_error="return")
        for worker, answer in answers.items():
            if isinstance(answer, Exception) and not isinstance(answer, OSError):  # that one left
                raise self._incompatible(f"The worker at {worker}", answer)

    def _incompatible(self, program: str, error: Exception) -> InputError:
        reason = str(error).partition("\n")[0]
        return InputError(
            f"{program} of cluster.address={self._address} cannot work for this run ({reason}). "
            "Install this version of rsna_bcd, and of dask, on all machines of the cluster and "
            "start scheduler and workers again."
        )

    def _lost(self) -> InputError:
        return InputError(
            f"The scheduler at cluster.address={self._address} was lost. Start it again, and its "
            f"workers. {_RESUME}"
        )


def _connect(address: str) -> Client:
    """Connect to the scheduler at an address."""
    settings = {"distributed.comm.timeouts.connect": f"{_ANSWER_SECONDS}s"}
    client = None
    try:
        with dask.config.set(settings):
            # First: a client waits without end for one that never answers; and one that failed
            # leaves a thread, and a destructor that may block the collection of garbage.
            asyncio.run(asyncio.wait_for(_identity(address), _ANSWER_SECONDS + 1))
            client = Client.__new__(Client)  # at hand, to be closed should it fail
            client.__init__(address, timeout=_ANSWER_SECONDS, set_as_default=False)
            return client
    except Exception as error:
        if client is not None:
            with suppress(Exception):
                client.close()
        raise InputError(
            f"No dask scheduler answers at cluster.address={address} ({str(error) or 'no answer'})."
            " Start one with `dask scheduler`, or work on this machine with cluster.address=null."
        ) from error


async def _identity(address: str) -> None:
    """Ask the scheduler at an address who it is."""
    security = Security().get_connection_args("client")
    async with rpc(address, timeout=_ANSWER_SECONDS, connection_args=security) as scheduler:
        await scheduler.identity(n_workers=0)


# In a worker.

_lock = threading.Lock()
_pools: dict[str, WorkerPool] = {}  # by run
_calls: dict[str, int] = {}  # at work now
_last_call: dict[str, float] = {}


def work(job: Job, task: bytes) -> Outcome:
    """Run a task in the processes that this worker has for its job, one per thread."""
    with _lock:
        if job.run not in _pools:
            if (problem := _problem(job)) is not None:
                return Outcome(error=InputError(f"The worker on {os.uname().nodename} {problem}"))
            _pools[job.run] = WorkerPool(job, get_worker().state.nthreads)
            _calls[job.run] = 0
            threading.Thread(target=_close_when_idle, args=(job.run,), daemon=True).start()
        _calls[job.run] += 1
    try:
        return _pools[job.run].call(task)
    except InputError as error:
        return Outcome(error=error)
    finally:
        with _lock:
            _calls[job.run] -= 1
            _last_call[job.run] = time.monotonic()


def _problem(job: Job) -> str | None:
    """The reason why this worker cannot work for a job."""
    if job.sources != source_hash():
        package = Path(__file__).parents[1]
        return (
            f"has other sources of rsna_bcd ({package}) than this process. Install the same "
            "version there."
        )
    try:
        os.listdir(job.folder)  # noqa: PTH208 - raises the error of `os.chdir`
    except OSError as error:
        return (
            f"cannot enter the folder {job.folder}: {error.strerror}. Start from a folder that all "
            "machines share."
        )
    return None


def _close_when_idle(run: str) -> None:
    """End the processes of a run that sends no more tasks: its main process may be gone."""
    while True:
        time.sleep(1)
        with _lock:
            if not _calls[run] and time.monotonic() - _last_call[run] > _IDLE_SECONDS:
                pool = _pools.pop(run)
                break
    pool.close()
