"""Many tasks on many processes: results in completion order, in bounded memory, none lost.

A task may raise; it may kill its process, hang or ask for all memory (decoders written in C do, on
damaged files). Either way the others go on and the result names the reason: `sandbox` sees to that.
Which thread works on which task is up to dask, whose threads are in this process or, given the
address of a scheduler, on the machines of a cluster. A machine that is lost takes nothing with it.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Set
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import dask
from distributed import Client, Future, LocalCluster
from distributed.scheduler import KilledWorker

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.preparation import sandbox
from rsna_bcd.preparation.sandbox import Job, Outcome, SandboxError

Key = TypeVar("Key", bound=Hashable)
Task = TypeVar("Task")
Value = TypeVar("Value")

_IN_FLIGHT = 3  # tasks a thread: one at work, the others under way
_LOOK_SECONDS = 2  # between looks at which workers there are
_ANSWER_SECONDS = 10  # for a scheduler to answer
_NO_WORKER_SECONDS = 60  # to be without any worker
_KEPT = "What is done is kept: run the same command to go on."

_log = logging.getLogger(__name__)


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
    function: Callable[[Task], Value],
    tasks: Iterable[tuple[Key, Task]],
    *,
    workers: int,
    address: str | None = None,
    limit_seconds: float = 300,
    limit_gigabytes: float = 3,
) -> Generator[Result[Key, Value], None, None]:
    """Call `function` on each task and yield results as they complete.

    Closing the generator ends the processes.

    Args:
        function: importable, as processes of their own call it.
        tasks: pairs of a unique key and the argument; drawn only as results are consumed, so the
            sequence may be endless and the memory in use stays bounded.
        workers: number of processes; 0 works in this one, which then shares their fate.
        address: of a dask scheduler, `tcp://host:8786`, whose workers then do the work, as many as
            there are at any time; they see the same files under the same paths. `workers` is void.
        limit_seconds: for one task; one that takes longer is given up. Void in this process.
        limit_gigabytes: memory of a process; a task that needs more fails. Void in this process.

    Yields:
        One result a task. Exceptions of the function become reasons: the text of an `InputError`,
        type and text of any other.

    Raises:
        StorageError: the function raised it, so that going on would be in vain. What others had
            completed by then was yielded.
        InputError: a setting is out of range, or the cluster cannot be worked with: no scheduler,
            no worker, another version of this package, no more answer.
    """
    if workers < 0:
        raise InputError(f"workers={workers} must be 0 (work in this process) or more.")
    if min(limit_seconds, limit_gigabytes) <= 0:
        raise InputError(f"{limit_seconds=} and {limit_gigabytes=} must be greater than 0.")
    if workers == 0 and address is None:
        for key, task in tasks:
            yield _result(key, sandbox.attempt(function, task))
        return
    job = Job(
        run=uuid.uuid4().hex,
        function=sandbox.pack(function),
        folder=os.getcwd(),  # noqa: PTH109 - text, as it goes to other machines
        sources=sandbox.source_hash() if address else None,
        limit_seconds=limit_seconds,
        limit_gigabytes=limit_gigabytes,
    )
    with _client(address, workers) as client:
        cluster = _Cluster(client, address)
        try:
            yield from _run(cluster, job, iter(tasks))
        finally:
            cluster.close()
            sandbox.end(job.run)  # on other machines, processes end when nothing comes


def usable_cores() -> int:
    """Number of CPU cores that this process may use (containers often allow fewer than exist)."""
    return len(os.sched_getaffinity(0))


@contextmanager
def _client(address: str | None, threads: int) -> Iterator[Client]:
    """Dask, in this process or where it is running already; that is not shut down."""
    settings = {
        "distributed.worker.profile.enabled": False,  # it looks at each thread 100 times a second
        "distributed.admin.low-level-log-length": 1000,  # of 100,000: nobody reads it
        "distributed.comm.timeouts.connect": f"{_ANSWER_SECONDS}s",
    }
    for logger in ("distributed", "distributed.client"):
        # For good: some speak up after the end. What matters comes as a result or an error.
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    with dask.config.set(settings):
        if address is not None:
            try:
                client = Client(address, timeout=_ANSWER_SECONDS)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"No dask scheduler answers at cluster.address={address} ({error}). Start one "
                    "with `dask scheduler`, or work on this machine with cluster.address=null."
                ) from error
            with client:
                yield client
            return
        with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=threads,
                processes=False,
                memory_limit=0,  # the processes have limits of their own
                dashboard_address=None,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client


def _result(key: Key, outcome: Outcome) -> Result[Key, Any]:
    """The result of one task."""
    if outcome.fatal:
        raise StorageError(outcome.reason)
    return Result(key, outcome.value, outcome.reason, outcome.seconds)


def _run(
    cluster: "_Cluster", job: Job, tasks: Iterator[tuple[Key, Any]]
) -> Iterator[Result[Key, Any]]:
    """Keep a bounded number of tasks in flight, and yield the result of each as it is done."""
    keys: dict[str, Key] = {}  # of the tasks in flight, by their names at dask

    def refill() -> None:
        for key, task in islice(tasks, max(0, cluster.room() - len(keys))):
            keys[cluster.submit(job, sandbox.pack(task))] = key

    refill()
    while keys:
        done = cluster.next_done()
        if done is None:
            refill()  # there may be more workers now
            continue
        name, outcome = done
        key = keys.pop(name)
        if outcome.fatal:
            while (other := cluster.next_done(wait=False)) is not None:
                if not other[1].fatal:
                    yield _result(keys.pop(other[0]), other[1])
        result = _result(key, outcome)
        refill()  # first, so that no process idles while the caller works
        yield result


class _Cluster:
    """Submits tasks, hands back what they came to, and keeps an eye on the workers."""

    def __init__(self, client: Client, address: str | None) -> None:
        self._client = client
        self._address = address
        self._done: SimpleQueue[tuple[str, Outcome] | Exception] = SimpleQueue()
        self._collecting = threading.Lock()
        self._closed = False
        self._looked_at = self._worked_at = time.monotonic()
        self._workers: Set[str] = frozenset()
        self._threads = 0
        self._look()
        if not self._threads:
            _log.warning("No worker at %s yet: waiting %d s.", address, _NO_WORKER_SECONDS)

    def room(self) -> int:
        """How many tasks may be in flight now."""
        return _IN_FLIGHT * max(self._threads, 1)

    def submit(self, job: Job, task: bytes) -> str:
        """Have a task worked on; the name that it has until it is done."""
        future = self._client.submit(sandbox.work, job, task, pure=False)
        future.add_done_callback(self._collect)  # which also keeps it: dask drops what nobody has
        name: str = future.key
        return name

    def next_done(self, *, wait: bool = True) -> tuple[str, Outcome] | None:
        """A task that is done: its name and what it came to; None if there is none by now."""
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self._look()
        try:
            done = self._done.get(timeout=_LOOK_SECONDS) if wait else self._done.get_nowait()
        except Empty:
            return None
        if isinstance(done, Exception):
            raise self._explained(done) from done
        return done

    def close(self) -> None:
        """Collect no more. Once the client is closed, dask would wait and protest."""
        self._closed = True
        if self._collecting.acquire(timeout=1):
            self._collecting.release()

    def _collect(self, future: Future) -> None:
        """Fetch what a task came to; in a thread of dask, so that no interrupt gets between."""
        with self._collecting:
            if self._closed or future.cancelled():
                self._done.put(CancelledError())
                return
            try:
                self._done.put((future.key, future.result(timeout=_ANSWER_SECONDS)))
            except TimeoutError:  # its worker was lost, the result with it: another one works on it
                future.add_done_callback(self._collect)
            except KilledWorker as error:
                reason = f"{error.allowed_failures + 1} workers died while they had it"
                self._done.put((future.key, Outcome(None, reason, 0.0)))
            except Exception as error:  # noqa: BLE001 - raised where the results are awaited
                self._done.put(error)

    def _explained(self, error: Exception) -> Exception:
        """What the user needs to know of an error that is not the tasks'."""
        if isinstance(error, SandboxError):
            return InputError(f"{error} {_KEPT}")
        if self._address is None:
            return error
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
        if self._address is None or not workers:
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
