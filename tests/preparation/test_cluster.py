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
from cluster_tasks import square
from distributed import Client
from file_trees import tree
from stage_settings import composed

import rsna_bcd
from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.preparation import cluster as module
from rsna_bcd.preparation.engine import Result, run
from rsna_bcd.stages.prepare import prepare

START_SECONDS = 60  # a machine that is busy with other things
# The scheduler blames the tasks of a worker that died at once.
ALLOWED_FAILURES = "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"


class Cluster:
    """A scheduler and workers, each a program of its own; `path` comes first on theirs."""

    def __init__(self, folder: Path, *path: Path) -> None:
        self._folder = folder
        self._programs: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        options = ("--host=127.0.0.1", "--port=0", f"--scheduler-file={file}")
        self.scheduler = self._start("scheduler", *options, path=path)
        wait_until(lambda: file.exists() and file.read_text().endswith("}"))
        with Client(scheduler_file=str(file)) as client:
            self.address: str = client.scheduler.address

    def add_worker(self, *path: Path, threads: int = 1) -> subprocess.Popen[bytes]:
        """Start a worker and the nanny that starts it again."""
        name = f"worker-{len(self._programs)}"
        options = (f"--nthreads={threads}", f"--name={name}")
        with Client(self.address) as client:
            nanny = self._start("worker", self.address, *options, path=path)
            wait_until(lambda: name in names_of_workers(client))
        return nanny

    def _start(self, *command: str, path: tuple[Path, ...]) -> subprocess.Popen[bytes]:
        ours = Path(__file__).parent, Path(rsna_bcd.__file__).parents[1]
        where = os.pathsep.join(map(str, (*path, *ours)))
        program = subprocess.Popen(
            [sys.executable, "-m", "dask", *command, "--no-dashboard"],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": where, ALLOWED_FAILURES: "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._programs.append(program)
        return program

    def run(self, tasks: Any) -> Iterator[Result[int, tuple[int, int]]]:
        """Square the tasks here."""
        return run(square, tasks, workers=0, address=self.address)

    def stop(self) -> None:
        """End everything."""
        for program in reversed(self._programs):
            stop(program)  # workers end with their nannies


def stop(program: subprocess.Popen[bytes]) -> None:
    program.kill()
    program.wait()


def names_of_workers(client: Client) -> set[str]:
    return {w["name"] for w in client.scheduler_info(n_workers=-1)["workers"].values()}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def started(folder: Path, *path: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder, *path)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler with one worker, which stays."""
    with started(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.add_worker()
        yield cluster


def tasks(count: int) -> list[tuple[int, int]]:
    return [(n, n) for n in range(count)]


def test_run_survives_workers_that_die_and_join(cluster: Cluster) -> None:
    nannies = [cluster.add_worker()]
    results: list[Result[int, tuple[int, int]]] = []
    workers: set[int] = set()

    def enough() -> Iterator[tuple[int, int]]:
        for n in count():
            if n >= 40 and len(workers) > 2:  # one that was started again, or that joined
                return
            yield n, n

    for result in cluster.run(enough()):
        results.append(result)
        workers |= {result.value[1]} if result.value else set()
        if len(workers) == 2 and len(nannies) == 1:
            os.kill(min(workers), signal.SIGKILL)
            nannies.append(cluster.add_worker(threads=2))
    # Every task once, and only those failed that fail.
    assert sorted(r.key for r in results) == list(range(len(results)))
    assert {r.key: r.reason for r in results if r.value is None} == {
        3: "three is unreadable",
        4: "the process that worked on it died (SIGSEGV)",
    }
    assert all(r.value[0] == r.key**2 for r in results if r.value is not None)
    for nanny in nannies:
        stop(nanny)
    with Client(cluster.address) as client:  # nothing is shut down, nothing is left behind
        wait_until(lambda: len(client.nthreads()) == 1)
        assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0


def test_prepare_on_a_cluster_that_loses_a_worker_leaves_the_same_files(
    cluster: Cluster, competition: Path, tmp_path: Path
) -> None:
    overrides = ["crop=demo", "splits=[test]", f"paths.data={competition}"]
    here, there = tmp_path / "here", tmp_path / "there"
    prepare(composed("prepare", *overrides, f"paths.output={here}", "workers=0"))
    leaves = cluster.add_worker()
    journal = there / "prepared/rsna/demo/journal.jsonl"
    command = [sys.executable, "-m", "rsna_bcd.prepare", *overrides, f"paths.output={there}"]
    with subprocess.Popen(
        [*command, f"cluster.address={cluster.address}"], stderr=subprocess.PIPE, text=True
    ) as program:
        wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 3)
        leaves.kill()
        assert program.poll() is None  # in the middle of it
        _, printed = program.communicate(timeout=START_SECONDS)
    assert program.returncode == 0, printed
    assert "unreadable" not in printed
    assert tree(there) == tree(here)


def test_run_ends_at_a_full_disk_of_a_cluster(cluster: Cluster) -> None:
    with pytest.raises(StorageError, match="disk full"):
        list(cluster.run([(-1, -1), *tasks(1000)]))


def test_run_refuses_a_folder_that_workers_do_not_have(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: str(tmp_path / "gone"))
    with pytest.raises(InputError, match="cannot enter the folder .*gone: No such file"):
        list(cluster.run(tasks(9)))


@contextmanager
def one_answer(answer: bytes) -> Iterator[socket.socket]:
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


def test_run_refuses_an_address_without_a_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 1)
    threads = {thread.name for thread in threading.enumerate()}
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent, one_answer(b"HTTP/1.1 400 Bad") as web:
        others = [f"tcp://127.0.0.1:{server.getsockname()[1]}" for server in (silent, web)]
        for address in ("tcp://127.0.0.1:9", "127.0.0.1", "http://127.0.0.1:9", *others):
            with pytest.raises(InputError, match=rf"cluster\.address={address} .*`dask scheduler`"):
                list(run(square, tasks(1), workers=0, address=address))
    assert time.monotonic() - start < 20
    gc.collect()  # no thread is left that blocks or runs
    left = {thread.name for thread in threading.enumerate()} - threads
    assert not [name for name in left if "loop" in name.lower()], left


def test_run_says_that_there_is_no_worker_or_no_more_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with started(tmp_path) as cluster:
        monkeypatch.setattr(module, "_NO_WORKER_SECONDS", 2)
        with pytest.raises(InputError, match=f"no worker for 2 s.*`dask worker {cluster.address}`"):
            list(cluster.run(tasks(1)))
        assert f"No worker at {cluster.address} yet: waiting 2 s." in caplog.text
        monkeypatch.undo()
        cluster.add_worker()
        results = cluster.run(tasks(1000))
        next(results)
        cluster.scheduler.kill()
        start = time.monotonic()
        with pytest.raises(InputError, match=r"cluster\.address=tcp://.* was lost.*is kept"):
            list(results)
        assert time.monotonic() - start < 20


@pytest.fixture
def without(tmp_path: Path) -> Path:
    """A folder with an empty package in the place of this one."""
    (tmp_path / "without" / "rsna_bcd").mkdir(parents=True)
    (tmp_path / "without" / "rsna_bcd" / "__init__.py").touch()
    return tmp_path / "without"


def test_run_refuses_workers_with_other_sources(
    cluster: Cluster, without: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "other" / "rsna_bcd"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(rsna_bcd.__file__).parent, copy, ignore=ignore)
    with (copy / "imaging" / "voi.py").open("a", encoding="utf-8") as changed:
        changed.write("# changed\n")
    missing = r"The worker.*No module named \S+rsna_bcd\.preparation.*Install this"
    for folder, message in (
        (copy.parent, rf"other sources of rsna_bcd \({copy}\).*Install the"),
        (without, missing),
    ):
        other = cluster.add_worker(folder)
        with pytest.raises(InputError, match=message):
            list(cluster.run(tasks(30)))
        stop(other)


def test_run_refuses_a_scheduler_that_lacks_the_package(without: Path, tmp_path: Path) -> None:
    with started(tmp_path, without) as cluster:
        cluster.add_worker()
        failed = "The scheduler.*deserialization of the task graph.*Install this"
        with pytest.raises(InputError, match=failed):
            list(cluster.run(tasks(9)))
