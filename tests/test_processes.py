"""Cores in containers and freed memory; children's end is tested where there are children."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsna_bcd import processes
from rsna_bcd.processes import usable_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "3200000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_usable_cores_are_those_of_the_container(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(processes, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert usable_cores() == cores


PAGE_FAULTS = """
import ctypes, resource
from rsna_bcd.processes import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def use():
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(2**26)))
    libc.memset(block, 1, ctypes.c_size_t(2**26))
    libc.free(block)
keep_freed_memory()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize(
    ("environment", "is_kept"),
    [
        ({}, True),
        ({"MALLOC_MMAP_THRESHOLD_": "33554432"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432"}, False),
    ],
)
def test_large_blocks_are_kept_unless_the_user_has_set_up_malloc(
    environment: dict[str, str], is_kept: bool
) -> None:
    usual = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    faults = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS],
        env={**usual, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # 5 x 64 MiB are 80,000 pages of 4 KiB, or 160 of 2 MiB.
    assert int(faults) < 50 if is_kept else int(faults) > 150
