"""The engine: every task has a result, whatever becomes of the processes."""

import ctypes
import importlib.util
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.preparation.engine import Job, Result, WorkerPool, pack, run

Results = dict[str, Result[str, Any]]


class Unpackable:
    """A result that cannot leave its process."""

    def __reduce__(self) -> str:
        raise InputError("stays here")


FAILURES: dict[str, Callable[[], Any]] = {
    "error": lambda: 1 / 0,
    "exit": lambda: os._exit(1),  # as a decoder does that touches memory not its own
    "hang": lambda: ctypes.PyDLL(None).pause(),  # in C, the interpreter locked
    "numpy": lambda: np.empty(2**31, np.uint8),
    "opencv": lambda: cv2.resize(np.zeros((2, 2), np.uint8), (2**15, 2**16)),
    "no size": lambda: cv2.resize(np.zeros((2, 2), np.uint8), (0, 0)),
    "unpackable": Unpackable,
    "half a gigabyte": lambda: np.empty(2**29, np.uint8).size,
    "surroundings": lambda: (cv2.getNumThreads(), os.environ["OMP_NUM_THREADS"], Path.cwd()),
}


def work(task: tuple[str, Path]) -> Any:
    """Note the call in the folder, and fail in the way of that name; else return the name."""
    name, folder = task
    with (folder / name).open("a") as calls:
        calls.write("called\n")
    if name == "unreadable":
        raise InputError("the file is unreadable")
    if name == "dies twice" and calls_in(folder, name) <= 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    return FAILURES.get(name, lambda: name)()


def calls_in(folder: Path, name: str) -> int:
    return len((folder / name).read_text().splitlines())


def results_by_name(folder: Path, names: list[str], workers: int) -> Results:
    tasks = ((name, (name, folder)) for name in names)
    results = list(run(work, tasks, workers=workers, limit_seconds=3, limit_gigabytes=1))
    assert sorted(result.key for result in results) == sorted(names)
    return {result.key: result for result in results}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calls")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    names = [*FAILURES, "unreadable", "dies twice", *map(str, range(9))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "8")
        return results_by_name(folder, names, workers=2)


@pytest.mark.parametrize(
    ("name", "reason", "calls"),
    [
        ("unreadable", "the file is unreadable", 1),
        ("error", "ZeroDivisionError: division by zero", 1),
        ("exit", r"the process that worked on it died \(exit code 1\)", 3),
        ("hang", r"took longer than 3 s \(limit_seconds\)", 1),
        ("numpy", r"needs more than 1 GB of memory \(limit_gigabytes\): .* 2\.00 GiB.*", 1),
        ("opencv", r"(?s)needs more than 1 GB of memory \(limit_gigabytes\): .*", 1),
        ("no size", r"(?s)error: ((?!limit_gigabytes).)*", 1),
        ("unpackable", "The result cannot be handed over: InputError: stays here", 1),
    ],
)
def test_run_names_the_reason(
    name: str, reason: str, calls: int, results: Results, folder: Path
) -> None:
    assert results[name].value is None
    assert re.fullmatch(reason, results[name].reason or ""), results[name]
    assert calls_in(folder, name) == calls


def test_run_gives_all_other_tasks_their_values(results: Results, folder: Path) -> None:
    values = {r.key: r.value for r in results.values() if r.reason is None}
    assert values.pop("surroundings") == (1, "1", Path.cwd())
    assert values.pop("half a gigabyte") == 2**29
    assert values == {name: name for name in ("dies twice", *map(str, range(9)))}
    assert calls_in(folder, "dies twice") == 3


def test_run_in_this_process_has_the_same_reasons(results: Results, tmp_path: Path) -> None:
    here = results_by_name(tmp_path, ["0", "unreadable", "error"], workers=0)
    assert {k: (r.value, r.reason) for k, r in here.items()} == {
        k: (results[k].value, results[k].reason) for k in here
    }
    assert all(r.seconds > 0 for r in here.values())


def heavy_modules(target: str) -> set[str]:
    pkgutil.resolve_name(target)
    return {"hydra", "matplotlib", "pandas", "pydantic", "sklearn", "torch"} & set(sys.modules)


@pytest.mark.parametrize(
    ("command", "target"),
    [
        ("prepare", "rsna_bcd.preparation.crop:make_crop"),
        ("submit", "rsna_bcd.preparation.crop:prepare_images"),
        ("index", "rsna_bcd.imaging.headers:read_header"),
    ],
)
def test_workers_of_a_command_import_only_the_function(
    command: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec(f"rsna_bcd.{command}")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)  # as python -m does
    (result,) = run(heavy_modules, [("", target)], workers=1)
    assert (result.reason, result.value) == (None, set())


def numbered(*numbers: int) -> list[tuple[int, int]]:
    return list(enumerate(numbers))


def endless(drawn: list[int]) -> Iterator[tuple[int, int]]:
    while True:
        drawn.append(len(drawn))
        yield drawn[-1], drawn[-1]


def wait_long(task: int) -> int:
    time.sleep(60 if task == 0 else 0)
    return task


@pytest.mark.parametrize(("ahead", "in_flight"), [(0, 6), (25, 25)])
def test_run_yields_what_is_ready_and_draws_tasks_as_they_fit(ahead: int, in_flight: int) -> None:
    drawn: list[int] = []
    results = run(wait_long, endless(drawn), workers=2, ahead=ahead)
    for number in range(1, 4):
        assert next(results).key == number  # not 0, which is slow
        assert len(drawn) == in_flight + number
    results.close()


def fill_disk(task: int) -> int:
    if task == 7:
        raise StorageError("crops cannot be written: No space left on device")
    return task


@pytest.mark.parametrize("workers", [0, 1])
def test_run_ends_at_a_full_disk_after_yielding_what_was_done(workers: int) -> None:
    done: list[int] = []
    with pytest.raises(StorageError, match="No space left on device"):
        done.extend(r.key for r in run(fill_disk, numbered(*range(100)), workers=workers))
    assert done[:7] == list(range(7))
    assert len(done) < 15  # not after all others
    assert 7 not in done


@pytest.mark.parametrize(
    "setting", [{"workers": -1}, {"limit_seconds": 0}, {"limit_gigabytes": -2}]
)
def test_run_refuses_settings_out_of_range(setting: dict[str, Any]) -> None:
    ((key, value),) = setting.items()
    with pytest.raises(InputError, match=f"{key}={value}"):
        list(run(wait_long, numbered(1), **{"workers": 1, **setting}))


def test_run_refuses_a_function_that_processes_cannot_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "work_here", wait_long, raising=False)
    monkeypatch.setattr(wait_long, "__module__", "__main__")
    monkeypatch.setattr(wait_long, "__qualname__", "work_here")
    with pytest.raises(InputError, match="cannot be imported: AttributeError.*work_here"):
        list(run(wait_long, numbered(1), workers=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_run_yields_nothing_after_its_time(workers: int) -> None:
    begun = time.monotonic()
    tasks = numbered(0, 1, 30)
    keys = [r.key for r in run(time.sleep, tasks, workers=workers, until=begun + 0.5)]
    # In this process, a task that has begun is completed; others start too late for these.
    assert keys == [0, 1] if workers == 0 else not set(keys) & {1, 2}
    assert time.monotonic() - begun < 15


def process_id(task: int) -> int:
    return os.getpid()


def test_run_replaces_an_idle_process_that_is_killed() -> None:
    """As the kernel does that is short of memory; pebble gives such a pool up."""
    results = run(process_id, numbered(*range(60)), workers=1)
    done = [next(results)]
    while len(done) < 60:
        if len(done) == 3:
            time.sleep(0.3)  # all in flight are done
            os.kill(done[0].value or 0, signal.SIGKILL)
            time.sleep(0.3)
        done.append(next(results))
    assert sorted(result.key for result in done) == list(range(60))
    assert not [result.reason for result in done if result.reason]
    assert len({result.value for result in done}) == 2
    results.close()


@pytest.mark.parametrize(("executable", "sources"), [("/bin/false", None), ("/nowhere", "hash")])
def test_pool_explains_that_processes_cannot_start(executable: str, sources: str | None) -> None:
    job = Job("run", pack(wait_long), str(Path.cwd()), sources, 1, 1)
    node = "" if sources is None else f"The worker on {os.uname().nodename}: "
    before = spawn.get_executable()
    spawn.set_executable(executable)
    pool = WorkerPool(job, 1)
    try:
        with pytest.raises(InputError, match=f"^{node}Processes cannot be started"):
            raise pool.call(pack(0)).error or AssertionError
    finally:
        spawn.set_executable(before)
        pool.close()


# Tasks sleep for a minute: a call that ends sooner did not wait for them.
SCRIPT = """
import sys, time
from rsna_bcd.preparation.engine import run
try:
    for result in run(time.sleep, ((n, 60 if n else 0) for n in range(9)), workers=2):
        print("started", flush=True)
except KeyboardInterrupt:
    sys.exit("Stopped.")
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 1, "Stopped.\n"), (signal.SIGKILL, -signal.SIGKILL, "")],
)
def test_processes_end_with_the_main_process(
    number: signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        cwd=tmp_path,
    ) as main:
        assert main.stdout is not None
        assert main.stderr is not None
        assert main.stdout.readline() == "started\n"
        processes = processes_in(tmp_path) - {main.pid}
        assert len(processes) == 3  # two workers, and the tracker of Python's semaphores
        os.killpg(main.pid, number)  # as a terminal does on Ctrl-C: to all that would listen
        assert main.wait(timeout=10) == code
        assert main.stderr.read() == said
    deadline = time.monotonic() + 5
    while processes_in(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes_in(folder: Path) -> set[int]:
    """Processes that run in a folder; dead ones do not."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink() == folder:
                    found.add(int(entry.name))
            except OSError:
                continue
    return found
