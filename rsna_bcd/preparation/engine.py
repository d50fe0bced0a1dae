"""Many tasks on many processes: results in completion order, in bounded memory, none lost.

A task may raise; it may also kill its process, hang or ask for all memory, as decoders written in C
do on damaged files. Either way the result names the reason and the other tasks are not affected:
tasks run in the worker processes of a `pebble.ProcessPool`. The pool is in this program or, given
the address of a dask scheduler, in each worker of a `cluster`.

Worker processes are spawned, not forked: a fork of a process with threads (torch, OpenMP) may
deadlock, inherits the locks of folders and copies all memory that it touches. To this process,
function and tasks are bytes; only worker processes import the function.
"""

import math
import os
import resource
import signal
import threading
import time
import uuid
from collections.abc import Callable, Generator, Hashable, Iterable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import current_process
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.files import tree_sha256
from rsna_bcd.processes import die_with_parent

if TYPE_CHECKING:
    from rsna_bcd.preparation.cluster import Cluster

Key = TypeVar("Key", bound=Hashable)
Task = TypeVar("Task")
Value = TypeVar("Value")

_IN_FLIGHT = 3  # tasks per worker: one at work, the others queued
_POLL_SECONDS = 0.5  # to wait for a result before looking at the clock
_ATTEMPTS = 3  # at a task whose process died: the kernel, short of memory, kills others as well
_ENVIRONMENT = {
    # Keep freed memory, up to the largest that glibc takes for a mapping of its own: arrays of some
    # MB come and go with every image, and clearing fresh pages took a third of the time.
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    # The processes share the cores already; and OpenBLAS takes memory for each of its threads.
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Result(Generic[Key, Value]):
    """The value of one task, or the reason why it failed; seconds: 0 if it killed its process."""

    key: Key
    value: Value | None
    reason: str | None
    seconds: float


@dataclass(frozen=True)
class Job:
    """A run, as workers of a cluster need to know it.

    Attributes:
        run: unique name.
        function: packed.
        folder: in which relative paths start.
        sources: hash that the sources of this package must have; None on this machine.
        limit_seconds: time for one task.
        limit_gigabytes: memory of one process.
    """

    run: str
    function: bytes
    folder: str
    sources: str | None
    limit_seconds: float
    limit_gigabytes: float


@dataclass(frozen=True)
class Outcome:
    """Value, or reason of the failure, of a task; `error` is one that must end the whole run."""

    value: Any = None
    reason: str | None = None
    seconds: float = 0.0
    error: InputError | None = None


def run(
    function: Callable[[Task], Value],
    tasks: Iterable[tuple[Key, Task]],
    *,
    workers: int,
    ahead: int = 0,
    until: float = math.inf,
    address: str | None = None,
    limit_seconds: float = 300,
    limit_gigabytes: float = 3,
) -> Generator[Result[Key, Value], None, None]:
    """Call `function` on each task and yield results as they complete.

    Closing the generator ends the processes.

    Args:
        function: importable, as other processes call it.
        tasks: pairs of a unique key and the argument; drawn only as results are consumed, so the
            sequence may be endless and the memory in use stays bounded.
        workers: number of processes; 0 works in this one, which a crash then ends, and without
            `ahead` and limits.
        ahead: tasks that may be queued or done before the caller takes their results, if it is
            busy with other work meanwhile; at least as many as keep the processes busy.
        until: time, as `time.monotonic` gives it, after which nothing more is yielded. In this
            process, a task that has begun is completed.
        address: of a dask scheduler, `tcp://host:8786`, whose workers then do the work instead, as
            many as there are at any time; they see the same files under the same paths.
        limit_seconds: for one task; one that takes longer fails.
        limit_gigabytes: memory of a process; a task that needs more fails.

    Yields:
        One result per task. Exceptions of the function become reasons: the text of an `InputError`,
        type and text of any other.

    Raises:
        StorageError: the function raised it: other results could not be stored either. Results
            that were complete by then are yielded first.
        InputError: a setting is out of range, processes cannot start, or the cluster cannot be used
            (no scheduler, no worker, another version of this package, connection lost).
    """
    if workers < 0:
        raise InputError(f"workers={workers} must be 0 (work in this process) or more.")
    if min(limit_seconds, limit_gigabytes) <= 0:
        raise InputError(f"{limit_seconds=} and {limit_gigabytes=} must be greater than 0.")
    if workers == 0 and address is None:
        for key, task in tasks:
            if time.monotonic() >= until:
                return
            yield _result(key, _attempt(function, task))
        return
    job = Job(
        run=uuid.uuid4().hex,
        function=pack(function),
        folder=os.getcwd(),  # noqa: PTH109 - text, as it goes to other machines
        sources=source_hash() if address else None,
        limit_seconds=limit_seconds,
        limit_gigabytes=limit_gigabytes,
    )
    pool: WorkerPool | Cluster
    if address is None:
        pool = WorkerPool(job, workers)
    else:
        from rsna_bcd.preparation import cluster  # here: dask takes a second to import

        pool = cluster.Cluster(address, job)
    pending = iter(tasks)
    keys: dict[Hashable, Key] = {}  # of the tasks in flight, by their names in the pool

    def refill() -> None:
        room = max(_IN_FLIGHT * pool.count(), ahead) - len(keys)
        for key, task in islice(pending, max(0, room)):
            keys[pool.submit(pack(task))] = key

    try:
        refill()
        while keys and time.monotonic() < until:
            done = pool.next_done()
            if done is None:
                refill()  # there may be more workers now
                continue
            name, outcome = done
            key = keys.pop(name)
            if outcome.error is not None:
                while (other := pool.next_done(wait=False)) is not None:
                    if other[1].error is None:
                        yield _result(keys.pop(other[0]), other[1])
            result = _result(key, outcome)
            refill()  # first, so that no process is idle while the caller works
            yield result
    finally:
        pool.close()


def pack(value: Any) -> bytes:
    """Serialise for another process; functions and classes go by their names."""
    return bytes(ForkingPickler.dumps(value))


def _result(key: Key, outcome: Outcome) -> Result[Key, Any]:
    if outcome.error is not None:
        raise outcome.error
    return Result(key, outcome.value, outcome.reason, outcome.seconds)


def source_hash() -> str:
    """Hash of the sources of this package, as they are on disk now."""
    return tree_sha256(Path(__file__).parents[1], "*.py")


class WorkerPool:
    """Worker processes of this program that survive whatever tasks do to them."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job, self._workers = job, workers
        self._done: SimpleQueue[tuple[int, Outcome | bytes]] = SimpleQueue()
        self._submitted = 0
        self._lock = threading.Lock()
        self._pool = self._new_pool()
        self._futures: set[Future[bytes]] = set()
        self._closed = False

    def count(self) -> int:
        """Number of processes."""
        return self._workers

    def submit(self, task: bytes) -> int:
        """Queue a task; the name that it has until it is done."""
        self._submitted += 1
        name = self._submitted
        self._send(lambda outcome: self._done.put((name, outcome)), task, 1)
        return name

    def call(self, task: bytes) -> Outcome:
        """Run a task and wait for it; for threads of a cluster, each with a task of its own."""
        outcome: SimpleQueue[Outcome | bytes] = SimpleQueue()
        self._send(outcome.put, task, 1)
        while True:
            try:
                return _unpack(outcome.get(timeout=_POLL_SECONDS))
            except Empty:
                self._replace_broken()

    def next_done(self, *, wait: bool = True) -> tuple[int, Outcome] | None:
        """A task that is done, by name; None if there is none for now."""
        try:
            name, outcome = self._done.get(block=wait, timeout=_POLL_SECONDS)
        except Empty:
            self._replace_broken()
            return None
        return name, _unpack(outcome)

    def close(self) -> None:
        """Drop the tasks that are left and end the processes."""
        self._closed = True
        _end(self._pool)

    def _new_pool(self) -> ProcessPool:
        limits = self._job.folder, self._job.limit_gigabytes
        return ProcessPool(
            self._workers, initializer=_initialise, initargs=limits, context=_Spawn()
        )

    def _send(self, put: Callable[[Outcome | bytes], None], task: bytes, attempt: int) -> None:
        """Run a task, several times if its process dies, and `put` its outcome."""
        job = self._job
        self._replace_broken()

        def collect(future: Future[bytes]) -> None:  # in a thread of the pool
            self._futures.discard(future)
            error = None if future.cancelled() else future.exception()
            died = isinstance(error, ProcessExpired | BrokenProcessPool)
            if self._closed or future.cancelled():
                return
            if died and attempt < _ATTEMPTS:
                self._send(put, task, attempt + 1)
            elif isinstance(error, ProcessExpired):
                code = error.exitcode
                end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                put(Outcome(reason=f"the process that worked on it died ({end})"))
            elif isinstance(error, TimeoutError):
                limit = float(job.limit_seconds)
                put(Outcome(None, f"took longer than {limit:g} s (limit_seconds)", limit))
            elif error is not None:
                put(Outcome(error=self._broken(error)))
            else:
                put(future.result())

        future: Future[bytes]
        with self._lock:
            try:
                future = self._pool.schedule(
                    _work, (job.function, task, job.limit_gigabytes), timeout=job.limit_seconds
                )
            except (BrokenProcessPool, RuntimeError) as error:
                future = Future()
                future.set_exception(BrokenProcessPool(str(error.__cause__ or error)))
            self._futures.add(future)
        future.add_done_callback(collect)

    def _replace_broken(self) -> None:
        """Replace a pool that pebble gave up: a process died that had no task, or could not start.

        Its tasks, some of which pebble forgets, are sent to the new pool.
        """
        with self._lock:
            try:
                if self._closed or self._pool.active:
                    return
            except BrokenProcessPool:  # processes cannot start: `schedule` says so
                return
            broken, futures = self._pool, self._futures
            self._pool, self._futures = self._new_pool(), set()
        # Not here: this may be a thread of the broken pool.
        threading.Thread(target=_end, args=(broken,), daemon=True).start()
        for future in list(futures):
            with suppress(InvalidStateError):  # pebble was faster
                future.set_exception(BrokenProcessPool("they end before they begin"))

    def _broken(self, error: BaseException) -> InputError:
        where = "" if self._job.sources is None else f"The worker on {os.uname().nodename}: "
        fewer = "workers=" if self._job.sources is None else "threads of `dask worker`"
        cause = error.__cause__ or error
        return InputError(
            f"{where}Processes cannot be started ({cause}). Try fewer {fewer}, or "
            "cluster.address=null and workers=0."
        )


def _end(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _unpack(outcome: Outcome | bytes) -> Outcome:
    unpacked: Outcome = ForkingPickler.loads(outcome) if isinstance(outcome, bytes) else outcome
    return unpacked


class _SpawnedProcess(SpawnProcess):
    """A worker process."""

    def start(self) -> None:
        """Start it."""
        self.daemon = True  # ends with this process, should nothing else end it
        current_process().daemon = False  # dask's workers are daemons, which may start no processes
        before = {name: os.environ.get(name) for name in _ENVIRONMENT}
        os.environ.update(_ENVIRONMENT)
        # Ctrl-C is for the main process alone, also while this one imports.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


class _Spawn(SpawnContext):
    Process = _SpawnedProcess


def _initialise(folder: str, limit_gigabytes: float) -> None:
    """Enter the folder and set the limits of a worker process."""
    die_with_parent()  # pebble's threads cannot end one that hangs in C once they are gone
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once, not when C code returns
    import cv2

    cv2.setNumThreads(1)  # the processes share the cores already
    os.chdir(folder)
    # Allocations fail beyond a limit, so that the task fails and the machine does not.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = round(limit_gigabytes * 2**30)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _work(function: bytes, task: bytes, limit_gigabytes: float) -> bytes:
    """Run a task in a worker process; the packed outcome."""
    import cv2

    try:
        unpacked = ForkingPickler.loads(function)
    except Exception as error:  # noqa: BLE001 - an import may fail in any way
        text = f"The function cannot be imported: {type(error).__name__}: {error}."
        return pack(Outcome(error=InputError(text)))

    def call(task: bytes) -> Any:
        try:
            return unpacked(ForkingPickler.loads(task))
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
                raise
            limit = f"{limit_gigabytes:g} GB of memory (limit_gigabytes)"
            raise InputError(f"needs more than {limit}: {error}") from None

    outcome = _attempt(call, task)
    try:
        return pack(outcome)
    except Exception as error:  # noqa: BLE001 - classes may refuse to be packed in any way
        reason = f"The result cannot be handed over: {type(error).__name__}: {error}"
        return pack(Outcome(None, reason, outcome.seconds))


def _attempt(function: Callable[[Any], Any], task: Any) -> Outcome:
    """Call `function`; an exception becomes a reason, or an error that ends the run."""
    start = time.perf_counter()
    value, reason, fatal = None, None, None
    try:
        value = function(task)
    except InputError as error:
        reason, fatal = str(error), error if isinstance(error, StorageError) else None
    except Exception as error:  # noqa: BLE001 - any exception of a task is its result
        reason = f"{type(error).__name__}: {error}"
    return Outcome(value, reason, time.perf_counter() - start, fatal)
