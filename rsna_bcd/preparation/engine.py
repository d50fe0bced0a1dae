"""Many tasks on many processes: results in completion order, in bounded memory, none lost.

A task may raise; it may kill its process, hang or ask for all memory (decoders written in C do, on
damaged files). Either way the others go on and the result names the reason: `sandbox` sees to that.
A thread waits for each process. The threads are in this program or, given the address of a dask
scheduler, on the machines of a `cluster`; a machine that is lost takes nothing with it.
"""

import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.preparation import sandbox
from rsna_bcd.preparation.sandbox import Job, Outcome, SandboxError

Key = TypeVar("Key", bound=Hashable)
Task = TypeVar("Task")
Value = TypeVar("Value")

_IN_FLIGHT = 3  # tasks a thread: one at work, the others under way
_PATIENCE = 0.5  # seconds to wait for a result before looking at the clock


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
    ahead: int = 0,
    until: float = math.inf,
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
        ahead: tasks that may be under way or done before the caller asks for their results, for one
            who is long about other work meanwhile; never fewer than keep the processes busy. Void
            in this process.
        until: time, as `time.monotonic` gives it, after which nothing more is yielded, whatever is
            still under way. In this process, a task that has begun is awaited.
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
            if time.monotonic() >= until:
                return
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
    threads: _Threads
    if address is None:
        threads = _ThreadsHere(workers)
    else:
        from rsna_bcd.preparation.cluster import Cluster  # here: dask takes a second to import

        threads = Cluster(address)
    try:
        yield from _run(threads, job, iter(tasks), ahead, until)
    finally:
        sandbox.end(job.run)  # on other machines, processes end when nothing comes
        threads.close()


def _result(key: Key, outcome: Outcome) -> Result[Key, Any]:
    """The result of one task."""
    if outcome.fatal:
        raise StorageError(outcome.reason)
    return Result(key, outcome.value, outcome.reason, outcome.seconds)


class _Threads(Protocol):
    """Threads that call `sandbox.work`, wherever they are."""

    def count(self) -> int:
        """How many there are now."""

    def submit(self, job: Job, task: bytes) -> Hashable:
        """Have a task worked on; the name that it has until it is done."""

    def next_done(self, *, wait: bool = True) -> tuple[Hashable, Outcome] | None:
        """A task that is done: its name and what it came to; None if there is none for now."""

    def close(self) -> None:
        """End them, or their work for this run."""


class _ThreadsHere:
    """Threads of this program, as many as it has processes."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._submitted = 0
        self._to_do: SimpleQueue[tuple[int, Job, bytes] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, Outcome] | Exception] = SimpleQueue()
        for _ in range(count):
            threading.Thread(target=self._work, daemon=True).start()  # none is waited for at exit

    def count(self) -> int:
        return self._count

    def submit(self, job: Job, task: bytes) -> int:
        self._submitted += 1
        self._to_do.put((self._submitted, job, task))
        return self._submitted

    def next_done(self, *, wait: bool = True) -> tuple[int, Outcome] | None:
        try:
            done = self._done.get(block=wait, timeout=_PATIENCE)
        except Empty:
            return None
        if isinstance(done, SandboxError):
            raise InputError(str(done)) from done
        if isinstance(done, Exception):
            raise done
        return done

    def close(self) -> None:
        for _ in range(self._count):
            self._to_do.put(None)

    def _work(self) -> None:
        while (item := self._to_do.get()) is not None:
            name, job, task = item
            try:
                self._done.put((name, sandbox.work(job, task)))
            except Exception as error:  # noqa: BLE001 - raised where the results are awaited
                self._done.put(error)


def _run(
    threads: _Threads, job: Job, tasks: Iterator[tuple[Key, Any]], ahead: int, until: float
) -> Iterator[Result[Key, Any]]:
    """Keep a bounded number of tasks in flight, and yield the result of each as it is done."""
    keys: dict[Hashable, Key] = {}  # of the tasks in flight, by the names that they have there

    def refill() -> None:
        room = max(_IN_FLIGHT * threads.count(), ahead) - len(keys)
        for key, task in islice(tasks, max(0, room)):
            keys[threads.submit(job, sandbox.pack(task))] = key

    refill()
    while keys and time.monotonic() < until:
        done = threads.next_done()
        if done is None:
            refill()  # there may be more workers now
            continue
        name, outcome = done
        key = keys.pop(name)
        if outcome.fatal:
            while (other := threads.next_done(wait=False)) is not None:
                if not other[1].fatal:
                    yield _result(keys.pop(other[0]), other[1])
        result = _result(key, outcome)
        refill()  # first, so that no process idles while the caller works
        yield result
