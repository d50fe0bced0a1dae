"""The engine: every task has a result, whatever becomes of the processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.preparation.engine import run


def work(task: int) -> int:
    """Squares, except for tasks that fail in one way or another."""
    if task == 3:
        raise InputError("three is unreadable")
    if task == 4:
        raise ValueError("four is odd")
    if task == 5:
        os._exit(1)  # as a decoder does that touches memory not its own
    return task**2


def tasks(*numbers: int) -> list[tuple[str, int]]:
    return [(str(n), n) for n in numbers]


def test_results_and_reasons_in_this_process() -> None:
    results = list(run(work, tasks(0, 3, 4, 2), workers=0))
    assert [r.key for r in results] == ["0", "3", "4", "2"]
    assert [r.value for r in results] == [0, None, None, 4]
    assert [r.reason for r in results] == [
        None, "three is unreadable", "ValueError: four is odd", None,
    ]  # fmt: skip
    assert results[0].seconds > 0


def test_a_task_that_kills_its_process_is_named_and_takes_nothing_with_it() -> None:
    results = list(run(work, tasks(*range(30)), workers=2))
    assert sorted(int(r.key) for r in results) == list(range(30))
    assert {r.key: r.reason for r in results if r.reason} == {
        "3": "three is unreadable",
        "4": "ValueError: four is odd",
        "5": "the process that worked on it died (exit code 1)",
    }
    assert {int(r.key): r.value for r in results if not r.reason} == {
        n: n**2 for n in range(30) if n not in (3, 4, 5)
    }


def wait_long(task: int) -> int:
    time.sleep(60 if task == 0 else 0)
    return task


def test_results_come_when_ready_and_tasks_are_drawn_when_there_is_room() -> None:
    drawn = 0

    def endless() -> Iterator[tuple[str, int]]:
        nonlocal drawn
        while True:
            yield str(drawn), drawn
            drawn += 1

    results = run(wait_long, endless(), workers=2)
    first = [next(results).key for _ in range(4)]
    assert "0" not in first  # the slow one comes when it is done
    assert drawn < 20
    results.close()


def fill_disk(task: int) -> int:
    if task == 7:
        raise StorageError("crops cannot be written: No space left on device")
    return task


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_ends_the_run_and_what_was_done_before_is_kept(workers: int) -> None:
    done: list[str] = []
    with pytest.raises(StorageError, match="No space left on device"):
        done.extend(r.key for r in run(fill_disk, tasks(*range(100)), workers=workers))
    assert done[:7] == [str(n) for n in range(7)]
    assert len(done) < 15  # not after all others
    assert "7" not in done


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"workers": -1}, "workers=-1"),
        ({"workers": 1, "limit_seconds": 0}, "limit_seconds=0"),
        ({"workers": 1, "limit_gigabytes": -2}, "limit_gigabytes=-2"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, int], named: str) -> None:
    with pytest.raises(InputError, match=named):
        list(run(work, tasks(0), **settings))  # type: ignore[arg-type]


def test_a_function_that_processes_cannot_import_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "work_here", work, raising=False)
    monkeypatch.setattr(work, "__module__", "__main__")
    monkeypatch.setattr(work, "__qualname__", "work_here")
    with pytest.raises(InputError, match="cannot be imported: AttributeError.*work_here"):
        list(run(work, tasks(0), workers=1))


# Tasks sleep for a minute: whatever ends sooner did not wait for them.
_SCRIPT = """
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
        [sys.executable, "-c", _SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        cwd=tmp_path,
    ) as main:
        assert main.stdout is not None
        assert main.stderr is not None
        assert main.stdout.readline() == "started\n"
        processes = _processes_in(tmp_path) - {main.pid}
        assert len(processes) == 3  # two workers, and the tracker of Python's semaphores
        os.killpg(main.pid, number)  # as a terminal does on Ctrl-C: to all that would listen
        assert main.wait(timeout=10) == code
        assert main.stderr.read() == said
    deadline = time.monotonic() + 5
    while _processes_in(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _processes_in(folder: Path) -> set[int]:
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


def wait(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.mark.parametrize(("ahead", "drawn"), [(0, 6), (4, 6), (25, 25)])
def test_as_many_tasks_are_ahead_of_the_caller_as_it_asks_for(ahead: int, drawn: int) -> None:
    seen = []

    def endless() -> Iterator[tuple[str, int]]:
        for number in range(1000):
            seen.append(number)
            yield str(number), 0

    results = run(work, endless(), workers=2, ahead=ahead)
    next(results)
    time.sleep(0.3)
    assert len(seen) == drawn + 1  # one was done, and another took its place
    results.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_comes_when_its_time_is_over(workers: int) -> None:
    begun = time.monotonic()
    results = list(
        run(wait, [("a", 0.0), ("b", 3.0), ("c", 3.0)], workers=workers, until=begun + 2.5)
    )
    keys = [r.key for r in results]
    assert keys == ["a", "b"] if workers == 0 else not set(keys) & {"b", "c"}
    assert time.monotonic() - begun < 4
