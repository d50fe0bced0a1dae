"""The engine with a dask scheduler that runs already, whose workers come, go and die."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

import rsna_bcd
from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.preparation import cluster as module
from rsna_bcd.preparation.engine import Result, run

_DASK = [sys.executable, "-m", "dask"]
_START_SECONDS = 60  # a machine that is busy with other things


class Cluster:
    """A scheduler and workers, each a program of its own."""

    def __init__(self, folder: Path, *first_on_path: Path) -> None:
        self._folder = folder
        self._programs: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self.scheduler = self._start(
            "scheduler",
            "--host=127.0.0.1",
            "--port=0",
            f"--scheduler-file={file}",
            path=first_on_path,
        )
        wait_until(lambda: file.exists() and file.read_text().endswith("}"))
        with Client(scheduler_file=str(file)) as client:
            self.address: str = client.scheduler.address

    def add_worker(self, *first_on_path: Path, threads: int = 1) -> subprocess.Popen[bytes]:
        """Start a worker and the nanny that starts it again."""
        with Client(self.address) as client:
            there = len(client.nthreads())
            nanny = self._start("worker", self.address, f"--nthreads={threads}", path=first_on_path)
            wait_until(lambda: len(client.nthreads()) > there)
        return nanny

    def _start(self, *command: str, path: tuple[Path, ...] = ()) -> subprocess.Popen[bytes]:
        where = os.pathsep.join(map(str, (*path, Path(__file__).parent)))
        program = subprocess.Popen(
            [*_DASK, *command, "--no-dashboard"],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": where},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._programs.append(program)
        return program

    def stop(self) -> None:
        """End everything."""
        for program in reversed(self._programs):
            program.kill()  # workers end with their nannies
            program.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.stop()


def square(task: int) -> tuple[int, int]:
    """The square, and which worker it is from."""
    time.sleep(0.1)
    if task == 3:
        raise InputError("three is unreadable")
    if task == 4:
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == 1000:
        raise StorageError("disk full")
    return task**2, os.getppid()


def tasks(count: int) -> list[tuple[int, int]]:
    return [(n, n) for n in range(count)]


def count_tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def check(results: list[Result[int, tuple[int, int]]], count: int) -> None:
    """Every task once, and only those failed that fail."""
    assert sorted(r.key for r in results) == list(range(count))
    assert {r.key: r.reason for r in results if r.value is None} == {
        3: "three is unreadable",
        4: "the process that worked on it died (SIGSEGV)",
    }
    assert all(r.value[0] == r.key**2 for r in results if r.value is not None)


def test_workers_that_die_join_and_leave_take_nothing_with_them(cluster: Cluster) -> None:
    nannies = [cluster.add_worker(), cluster.add_worker()]
    results, seen = [], set()
    for result in run(square, tasks(300), workers=0, address=cluster.address):
        results.append(result)
        seen |= {result.value[1]} if result.value else set()
        if len(results) == 20:
            assert len(seen) == 2  # both work
            os.kill(result.value[1] if result.value else min(seen), signal.SIGKILL)
        if len(results) == 60:
            nannies.append(cluster.add_worker(threads=2))
        if len(results) == 120:
            nannies[0].kill()
    check(results, 300)
    assert len(seen) == 4  # one was started again, one joined
    with Client(cluster.address) as client:  # nothing is shut down, nothing is left behind
        assert len(client.nthreads()) == 2
        assert client.run_on_scheduler(count_tasks) == 0
    check(list(run(square, tasks(30), workers=0, address=cluster.address)), 30)


def test_a_full_disk_ends_the_run_of_a_cluster(cluster: Cluster) -> None:
    cluster.add_worker()
    with pytest.raises(StorageError, match="disk full"):
        list(run(square, [(1000, 1000), *tasks(1000)], workers=0, address=cluster.address))


def test_a_scheduler_that_is_lost_is_said(cluster: Cluster) -> None:
    cluster.add_worker()
    results = run(square, tasks(1000), workers=0, address=cluster.address)
    next(results)
    cluster.scheduler.kill()
    start = time.monotonic()
    with pytest.raises(InputError, match=r"cluster\.address=tcp://.* was lost.*is kept"):
        list(results)
    assert time.monotonic() - start < 20


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 2)
    start = time.monotonic()
    for address in ("tcp://127.0.0.1:9", "127.0.0.1", "http://127.0.0.1:9"):
        with pytest.raises(InputError, match=rf"cluster\.address={address} .*`dask scheduler`"):
            list(run(square, tasks(1), workers=0, address=address))
    assert time.monotonic() - start < 15


def test_no_worker(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_NO_WORKER_SECONDS", 2)
    with pytest.raises(InputError, match=f"no worker for 2 s.*`dask worker {cluster.address}`"):
        list(run(square, tasks(1), workers=0, address=cluster.address))
    assert f"No worker at {cluster.address} yet: waiting 2 s." in caplog.text


def test_workers_with_other_sources(cluster: Cluster, tmp_path: Path) -> None:
    package = Path(rsna_bcd.__file__).parent
    copy = tmp_path / "other" / "rsna_bcd"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    changed = copy / "imaging" / "window.py"
    changed.write_text(changed.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    cluster.add_worker(copy.parent)
    with pytest.raises(InputError, match=rf"other sources of rsna_bcd \({copy}\).*Install the"):
        list(run(square, tasks(9), workers=0, address=cluster.address))


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ("scheduler", "deserialization of the task graph"),
        ("worker", r"No module named \S+rsna_bcd\.preparation"),
    ],
)
def test_machines_that_lack_the_package(who: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "without" / "rsna_bcd").mkdir(parents=True)
    (tmp_path / "without" / "rsna_bcd" / "__init__.py").touch()
    path = {who: (tmp_path / "without",)}
    cluster = Cluster(tmp_path, *path.get("scheduler", ()))
    try:
        cluster.add_worker(*path.get("worker", ()))
        with pytest.raises(InputError, match=rf"The {who}.*{why}.*Install this"):
            list(run(square, tasks(9), workers=0, address=cluster.address))
    finally:
        cluster.stop()


def test_a_folder_that_the_workers_do_not_have(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.add_worker()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(os, "getcwd", lambda: str(tmp_path / "gone"))
    with pytest.raises(InputError, match="cannot enter the folder .*gone: No such file"):
        list(run(square, tasks(9), workers=0, address=cluster.address))
