"""A process that works on one task at a time, and may die of it, hang or ask for all memory.

Decoders written in C do all three on damaged files, and no exception comes of it. So tasks run in a
process of their own, and a thread waits for its answer: it sees the process die, ends it when it
takes too long, and starts another one. Both sides are here: `work` is the thread's, `serve` the
process's.

Only the process imports what the function needs; to the thread, function and tasks are bytes. This
keeps schedulers and workers of a cluster small, and every run has the code as it is on disk.
"""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.files import tree_sha256
from rsna_bcd.processes import die_with_parent

_DEATHS = 3  # of processes that worked on a task, before it is given up; others kill as well
_START_SECONDS = 300  # a machine that is busy with other things may take a minute to start one
_IDLE_SECONDS = 60  # after which a process ends that got no task: whoever sent them may be gone

_ENVIRONMENT = {
    # Keep freed memory, up to the largest that glibc takes for a mapping of its own: arrays of some
    # MB come and go with every image, and clearing fresh pages took a third of the time.
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    # The processes share the cores already; and OpenBLAS takes memory for each of its threads.
    "OMP_NUM_THREADS": "1",
}


class SandboxError(Exception):
    """The process cannot work at all; the message says why and ends with the remedy."""


@dataclass(frozen=True)
class Job:
    """What the tasks of a run share.

    Attributes:
        run: unique name of the run; no process works for two of them.
        function: packed.
        folder: in which relative paths start.
        sources: hash that the sources of this package must have; None for whatever they are.
        limit_seconds: time for one task.
        limit_gigabytes: memory for one process.
    """

    run: str
    function: bytes
    folder: str
    sources: str | None
    limit_seconds: float
    limit_gigabytes: float


@dataclass(frozen=True)
class Outcome:
    """What a task came to.

    Attributes:
        value: what the function returned; None if it failed.
        reason: why it failed; None if it did not.
        seconds: spent in the function; 0 if it killed its process.
        fatal: results cannot be stored, so that there is no point in going on.
    """

    value: Any
    reason: str | None
    seconds: float
    fatal: bool = False


def pack(thing: Any) -> bytes:
    """Bytes that a process can unpack; functions and classes go by their names."""
    return bytes(ForkingPickler.dumps(thing))


def attempt(function: Callable[[Any], Any], task: Any) -> Outcome:
    """Call `function`, and make what it raises a reason."""
    start = time.perf_counter()
    try:
        value, reason, fatal = function(task), None, False
    except InputError as error:
        value, reason, fatal = None, str(error), isinstance(error, StorageError)
    except Exception as error:  # noqa: BLE001 - whatever happens to one task is its result
        value, reason, fatal = None, f"{type(error).__name__}: {error}", False
    return Outcome(value, reason, time.perf_counter() - start, fatal)


def source_hash() -> str:
    """Hash of the sources of this package, as they are on disk now."""
    return tree_sha256(Path(__file__).parents[1], "*.py")


# The thread's side.

_lock = threading.Lock()
_running: dict[str, set["_Process"]] = {}  # by run
_ended: set[str] = set()  # runs whose tasks must start no more processes
_of_thread = threading.local()


def work(job: Job, task: bytes) -> Outcome:
    """Work on a task in the process that belongs to this thread.

    Raises:
        SandboxError: the process cannot work on any task.
    """
    for _ in range(_DEATHS):
        process = _process_for(job)
        try:
            return process.work(task)
        except (EOFError, OSError):
            death = process.end()
    return Outcome(None, f"the process that worked on it died ({death})", 0.0)


def end(run: str) -> None:
    """End the processes of a run, whatever they are doing."""
    with _lock:
        _ended.add(run)
        processes = _running.pop(run, set())
    for process in processes:
        process.end()


def _process_for(job: Job) -> "_Process":
    """This thread's process: the one it has, or a new one if that worked for another run."""
    process: _Process | None = getattr(_of_thread, "process", None)
    if process is not None and process.job.run == job.run and process.is_alive():
        return process
    if process is not None:
        process.end()
    with _lock:
        if job.run in _ended:
            raise SandboxError("The run has ended.")
        process = _of_thread.process = _Process(job)
        _running.setdefault(job.run, set()).add(process)
    process.await_start()
    return process


class _Process:
    """The process as its thread sees it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._connection, its_end = Pipe()
        code = f"from {__name__} import serve; serve({its_end.fileno()})"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                pass_fds=[its_end.fileno()],
                process_group=0,  # Ctrl-C is for the main process alone
            )
        except OSError as error:
            fewer = "workers=" if job.sources is None else "threads of `dask worker`"
            raise SandboxError(
                f"{_machine(job)}No process can be started: {error}. Try fewer {fewer}."
            ) from error
        finally:
            its_end.close()

    def await_start(self) -> None:
        """Wait until it is ready for tasks."""
        try:
            self._connection.send(self.job)
            if not self._connection.poll(_START_SECONDS):
                raise SandboxError(
                    f"{_machine(self.job)}A process did not start within {_START_SECONDS} s. "
                    "Try again."
                )
            problem = self._connection.recv()
        except (EOFError, OSError):
            problem = (
                f"{_machine(self.job)}A process ended before it began ({self.end()}). Try it with "
                "cluster.address=null and workers=0."
            )
        if problem is not None:
            self.end()
            raise SandboxError(problem)

    def work(self, task: bytes) -> Outcome:
        """Have it work on a task.

        Raises:
            EOFError, OSError: it died.
        """
        self._connection.send_bytes(task)
        limit = self.job.limit_seconds
        if self._connection.poll(limit):
            outcome: Outcome = self._connection.recv()
            return outcome
        self.end()
        return Outcome(None, f"took longer than {limit:g} s (limit_seconds)", float(limit))

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> str:
        """End it if it has not ended; how it ended."""
        with _lock:
            _running.get(self.job.run, set()).discard(self)
        self._process.kill()
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _machine(job: Job) -> str:
    """Where a message is from, unless everything is on one machine."""
    return "" if job.sources is None else f"The worker on {os.uname().nodename}: "


# The process's side.


def serve(descriptor: int) -> None:
    """Answer each task that comes with its outcome, until no more come.

    Args:
        descriptor: of the connection to the thread.
    """
    die_with_parent()
    with Connection(descriptor) as connection:
        job: Job = connection.recv()
        problem = _problem(job)
        if problem is not None:
            connection.send(problem)
            return
        import cv2  # here, as the thread's side has no use for it

        cv2.setNumThreads(1)  # the processes share the cores already
        try:
            function = ForkingPickler.loads(job.function)
        except Exception as error:  # noqa: BLE001 - importing may fail in any way
            connection.send(f"The function cannot be imported: {type(error).__name__}: {error}.")
            return
        connection.send(None)
        _limit_memory(job.limit_gigabytes)
        while connection.poll(_IDLE_SECONDS):
            try:
                connection.send_bytes(_answer(function, connection.recv_bytes(), job))
            except (EOFError, ConnectionError):
                break
    os._exit(0)  # not through the destructors of C libraries, which may hang as well


def _problem(job: Job) -> str | None:
    """Why this process must not work for a run, or None."""
    here = f"The worker on {os.uname().nodename}"
    if job.sources not in (None, source_hash()):
        return (
            f"{here} has other sources of rsna_bcd ({Path(__file__).parents[1]}) than this "
            "process. Install the same version there."
        )
    try:
        os.chdir(job.folder)
    except OSError as error:
        return (
            f"{here} cannot enter the folder {job.folder}: {error.strerror}. Start from a folder "
            "that all machines share."
        )
    return None


def _limit_memory(gigabytes: float) -> None:
    """Make allocations fail beyond a limit: the task is to know, not the machine to suffer."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = round(gigabytes * 2**30)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _answer(function: Callable[[Any], Any], packed: bytes, job: Job) -> bytes:
    """The packed outcome of a packed task."""
    import cv2

    def call(packed: bytes) -> Any:
        try:
            return function(ForkingPickler.loads(packed))
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
                raise
            limit = f"{job.limit_gigabytes:g} GB of memory (limit_gigabytes)"
            raise InputError(f"needs more than {limit}: {error}") from None

    outcome = attempt(call, packed)
    try:
        return pack(outcome)
    except Exception as error:  # noqa: BLE001 - classes may refuse to be packed in any way
        reason = f"The result cannot be handed over: {type(error).__name__}: {error}"
        return pack(Outcome(None, reason, outcome.seconds))
