"""Processes that are started as ranks: their environment, and that none outlives a failure."""

import os
import sys
import time
from pathlib import Path

import pytest
from tiny_training import fork

from rsna_bcd.errors import InputError
from rsna_bcd.models import launch
from rsna_bcd.models.launch import run_ranks, started_outside


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(*files: Path) -> list[int]:
    """The process ids in files, once they are there."""
    until = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < until
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


def test_each_rank_knows_itself_and_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    names = "RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT SLURM_NTASKS"
    code = (
        "import os, pathlib;"
        f"text = ' '.join(os.environ.get(name, '-') for name in '{names}'.split());"
        f"pathlib.Path('{tmp_path}', os.environ['RANK']).write_text(text)"
    )
    run_ranks(python(code), 3)
    known = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [k[:4] for k in known] == [[str(r), str(r), "3", "127.0.0.1"] for r in range(3)]
    assert len({k[4] for k in known}) == 1
    assert {k[5] for k in known} == {"-"}
    assert "RANK" not in os.environ


def test_a_rank_that_fails_ends_the_others_and_is_heard(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys, time;"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL);"
        f"pathlib.Path('{tmp_path}/0').write_text(str(os.getpid())) if os.environ['RANK'] == '0'"
        " else sys.exit('the reason');"
        "time.sleep(100)"
    )
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"(?s)Rank 1 of 2 ended with exit code 1:.*the reason"):
        run_ranks(python(code), 2)
    assert time.monotonic() - begun < 10
    file = tmp_path / "0"
    assert not file.exists() or not file.read_text() or not alive(int(file.read_text()))


def test_a_rank_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_GRACE", 0.3)
    code = (
        "import os, pathlib, signal, sys, time;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"pathlib.Path('{tmp_path}', os.environ['RANK']).write_text(str(os.getpid()));"
        f"[time.sleep(.01) for _ in iter(pathlib.Path('{tmp_path}/1').exists, True)];"
        "sys.exit(7) if os.environ['RANK'] == '0' else time.sleep(100)"
    )
    with pytest.raises(InputError, match="Rank 0 of 2 ended with exit code 7; its own message"):
        run_ranks(python(code), 2)
    assert not alive(int((tmp_path / "1").read_text()))


def test_ranks_end_with_the_process_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, time;"
        f"pathlib.Path('{tmp_path}', os.environ['RANK']).write_text(str(os.getpid()));"
        "time.sleep(100)"
    )
    parent = fork(run_ranks, python(code), 2)
    pids = wait_for(tmp_path / "0", tmp_path / "1")
    parent.kill()
    parent.join()
    until = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, pids))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "4"}, 4),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train"}, 8),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}, None),  # one task: we start the ranks
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"}, None),  # an interactive allocation
    ],
)
def test_started_outside_is_the_number_of_ranks(
    environment: dict[str, str], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert started_outside() == expected
