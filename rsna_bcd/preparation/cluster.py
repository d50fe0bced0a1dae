"""Threads of a dask cluster: a scheduler that runs already, and workers that come, go and die.

    dask scheduler                       # prints its address, tcp://host:8786
    dask worker tcp://host:8786          # on each machine: one program, a thread a core

Tasks die in processes of their own (`sandbox`), not with the worker. So a worker that is lost says
nothing about the tasks that it had, though the scheduler gives them up for it when that happens to
them a few times (its allowed-failures): they are submitted again.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Set
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

import dask
from distributed import Client, Future, Security
from distributed.core import rpc
from distributed.scheduler import KilledWorker

from rsna_bcd.errors import InputError
from rsna_bcd.preparation import sandbox
from rsna_bcd.preparation.sandbox import Job, Outcome, SandboxError

_LOOK_SECONDS = 2  # between looks at which workers there are
_ANSWER_SECONDS = 10  # for a scheduler to answer
_NO_WORKER_SECONDS = 60  # to be without any worker
_SUBMISSIONS = 4  # of a task, each of which the scheduler gave up
_KEPT = "What is done is kept: run the same command to go on."

_log = logging.getLogger(__name__)


class Cluster:
    """Submits tasks, hands back what they came to, and keeps an eye on the workers.

    Raises:
        InputError: no scheduler answers, no worker comes, they have another version of this
            package, or the scheduler was lost.
    """

    def __init__(self, address: str) -> None:
        for logger in ("distributed", "distributed.client"):
            # For good: some speak up after the end. What matters comes as a result or an error.
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self._address = address
        self._client = _connected(address)
        self._in_flight: dict[str, tuple[Job, bytes, int]] = {}  # with the number of submissions
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

    def submit(self, job: Job, task: bytes) -> str:
        """Have a task worked on; the name that it has until it is done."""
        self._submitted += 1
        name = str(self._submitted)
        self._send(name, job, task, 1)
        return name

    def next_done(self, *, wait: bool = True) -> tuple[str, Outcome] | None:
        """A task that is done: its name and what it came to; None if there is none by now."""
        while True:
            if time.monotonic() - self._looked_at > _LOOK_SECONDS:
                self._look()
            try:
                done = self._done.get(timeout=_LOOK_SECONDS) if wait else self._done.get_nowait()
            except Empty:
                return None
            if isinstance(done, Exception):
                raise self._explained(done) from done
            name, outcome = done
            job, task, submissions = self._in_flight.pop(name)
            if outcome is not None:
                return name, outcome
            if submissions == _SUBMISSIONS:
                return name, Outcome(None, "again and again the workers died that had it", 0.0)
            self._send(name, job, task, submissions + 1)

    def close(self) -> None:
        """Let go of the tasks; scheduler and workers stay."""
        self._closed = True
        if self._collecting.acquire(timeout=1):  # in the middle of it, dask would wait and protest
            self._collecting.release()
        self._client.close()

    def _send(self, name: str, job: Job, task: bytes, submissions: int) -> None:
        self._in_flight[name] = job, task, submissions
        future = self._client.submit(sandbox.work, job, task, pure=False)
        # Which also keeps it: dask drops what nobody has.
        future.add_done_callback(partial(self._collect, name))

    def _collect(self, name: str, future: Future) -> None:
        """Fetch what a task came to; in a thread of dask, so that no interrupt gets between."""
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

    def _explained(self, error: Exception) -> Exception:
        """What the user needs to know of an error that is not the tasks'."""
        if isinstance(error, SandboxError):
            return InputError(f"{error} {_KEPT}")
        if isinstance(error, (CancelledError, OSError)):
            return self._lost()
        return self._unfit("The scheduler, or a worker,", error)

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
                f"{_NO_WORKER_SECONDS} s. Start some with `dask worker {self._address}`. {_KEPT}"
            )

    def _check(self, workers: Set[str]) -> None:
        """Refuse workers that cannot import the sandbox: a task would end their connection."""
        if not workers:
            return
        answers = self._client.run(sandbox.pack, None, workers=list(workers), on_error="return")
        for worker, answer in answers.items():
            if isinstance(answer, Exception) and not isinstance(answer, OSError):  # that one left
                raise self._unfit(f"The worker at {worker}", answer)

    def _unfit(self, what: str, error: Exception) -> InputError:
        why = str(error).partition("\n")[0]
        return InputError(
            f"{what} of cluster.address={self._address} cannot work for this run ({why}). Install "
            "this version of rsna_bcd, and of dask, on all machines of the cluster and start "
            "scheduler and workers anew."
        )

    def _lost(self) -> InputError:
        return InputError(
            f"The scheduler at cluster.address={self._address} was lost. Start it again, and its "
            f"workers. {_KEPT}"
        )


def _connected(address: str) -> Client:
    """A client of the scheduler at an address."""
    settings = {"distributed.comm.timeouts.connect": f"{_ANSWER_SECONDS}s"}
    client = None
    try:
        with dask.config.set(settings):
            # First: a client waits without end for one that never answers; and one that came to
            # nothing leaves a thread, and a destructor that may block whoever collects garbage.
            asyncio.run(asyncio.wait_for(_identity(address), _ANSWER_SECONDS + 1))
            client = Client.__new__(Client)  # at hand, to be closed should it come to nothing
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
