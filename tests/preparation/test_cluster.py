"""The engine with a dask scheduler that runs already, whose workers come, go and die."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
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
# The scheduler blames the tasks of a worker that died at once.
_ALLOWED_FAILURES = "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"


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
            name = f"worker-{len(self._programs)}"
            nanny = self._start(
                "worker",
                self.address,
                f"--nthreads={threads}",
                f"--name={name}",
                path=first_on_path,
            )
            wait_until(lambda: name in names_of_workers(client))
        return nanny

    def _start(self, *command: str, path: tuple[Path, ...] = ()) -> subprocess.Popen[bytes]:
        ours = Path(__file__).parent, Path(rsna_bcd.__file__).parents[1]
        where = os.pathsep.join(map(str, (*path, *ours)))
        program = subprocess.Popen(
            [*_DASK, *command, "--no-dashboard"],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": where, _ALLOWED_FAILURES: "0"},
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


def names_of_workers(client: Client) -> set[str]:
    return {w["name"] for w in client.scheduler_info(n_workers=-1)["workers"].values()}


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
    if task == -1:
        raise StorageError("disk full")
    return task**2, os.getppid()


def tasks(count: int) -> list[tuple[int, int]]:
    return [(n, n) for n in range(count)]


def count_tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def check(results: list[Result[int, tuple[int, int]]], number: int) -> None:
    """Every task once, and only those failed that fail."""
    assert sorted(r.key for r in results) == list(range(number))
    assert {r.key: r.reason for r in results if r.value is None} == {
        3: "three is unreadable",
        4: "the process that worked on it died (SIGSEGV)",
    }
    assert all(r.value[0] == r.key**2 for r in results if r.value is not None)


def test_workers_that_die_join_and_leave_take_nothing_with_them(cluster: Cluster) -> None:
    nannies = [cluster.add_worker(), cluster.add_worker()]
    results: list[Result[int, tuple[int, int]]] = []
    seen: set[int] = set()

    def enough() -> Iterator[tuple[int, int]]:
        for n in count():
            if n >= 100 and len(nannies) == 3 and nannies[0].poll() is not None:
                return
            yield n, n

    for result in run(square, enough(), workers=0, address=cluster.address):
        results.append(result)
        before = len(seen)
        seen |= {result.value[1]} if result.value else set()
        if before < len(seen) == 2:  # both work: one is killed, and started again
            os.kill(min(seen), signal.SIGKILL)
            nannies.append(cluster.add_worker(threads=2))
        if before < len(seen) == 4:  # it works again, and so does the one that joined
            nannies[0].kill()
            nannies[0].wait()
    check(results, len(results))
    assert len(results) >= 100
    with Client(cluster.address) as client:  # nothing is shut down, nothing is left behind
        wait_until(lambda: len(client.nthreads()) == 2)
        assert client.run_on_scheduler(count_tasks) == 0
    check(list(run(square, tasks(30), workers=0, address=cluster.address)), 30)


def tree(folder: Path) -> dict[str, bytes]:
    """What is in every file but the timings."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "timings.csv"
    }


def test_prepare_on_a_cluster_leaves_what_it_leaves_here(
    cluster: Cluster, competition: Path, tmp_path: Path
) -> None:
    nannies = [cluster.add_worker(), cluster.add_worker()]
    command = [
        *(sys.executable, "-m", "rsna_bcd.prepare", "crop=demo", "splits=[test]"),
        f"paths.data={competition}",
    ]
    here, there = tmp_path / "here", tmp_path / "there"
    subprocess.run([*command, f"paths.output={here}", "workers=0"], check=True, capture_output=True)
    journal = there / "prepared/rsna/demo/journal.jsonl"
    with subprocess.Popen(
        [*command, f"paths.output={there}", f"cluster.address={cluster.address}"],
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 5)
        nannies[0].kill()
        assert run.poll() is None  # in the middle of it
        _, printed = run.communicate(timeout=_START_SECONDS)
    assert run.returncode == 0, printed
    assert "unreadable" not in printed
    assert tree(there) == tree(here)


def test_a_full_disk_ends_the_run_of_a_cluster(cluster: Cluster) -> None:
    cluster.add_worker()
    with pytest.raises(StorageError, match="disk full"):
        list(run(square, [(-1, -1), *tasks(1000)], workers=0, address=cluster.address))


def test_a_scheduler_that_is_lost_is_said(cluster: Cluster) -> None:
    cluster.add_worker()
    results = run(square, tasks(1000), workers=0, address=cluster.address)
    next(results)
    cluster.scheduler.kill()
    start = time.monotonic()
    with pytest.raises(InputError, match=r"cluster\.address=tcp://.* was lost.*is kept"):
        list(results)
    assert time.monotonic() - start < 20


@contextmanager
def answering(answer: bytes) -> Iterator[socket.socket]:
    """A server that has one answer to everything."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                with server.accept()[0] as connection:
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield server
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 2)
    threads = {thread.name for thread in threading.enumerate()}
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent, answering(b"HTTP/1.1 400 Bad") as web:
        others = [f"tcp://127.0.0.1:{server.getsockname()[1]}" for server in (silent, web)]
        for address in ("tcp://127.0.0.1:9", "127.0.0.1", "http://127.0.0.1:9", *others):
            with pytest.raises(InputError, match=rf"cluster\.address={address} .*`dask scheduler`"):
                list(run(square, tasks(1), workers=0, address=address))
    assert time.monotonic() - start < 20
    gc.collect()  # nothing is left that blocks, or runs on
    left = {thread.name for thread in threading.enumerate()} - threads
    assert not [name for name in left if "loop" in name.lower()], left


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
    changed = copy / "imaging" / "voi.py"
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
