"""Processes: their CPU cores and freed memory, and children that never outlive their parent."""

import ctypes
import math
import os
import signal
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")  # of the container, if this is one
_QUOTAS = (  # files, of version 2 and 1, with CPU time (or `max`, or -1) and the period it is for
    ("cpu.max",),
    ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec is no time for it


def usable_cores() -> int:
    """Number of CPU cores that this process may use (containers often allow fewer than exist)."""
    cores = len(os.sched_getaffinity(0))
    for files in _QUOTAS:
        try:
            quota, period = " ".join((_CGROUP / file).read_text() for file in files).split()
        except OSError:
            continue
        if quota not in ("max", "-1"):
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def keep_freed_memory() -> None:
    """Stop glibc from handing every large block that is freed back to the kernel.

    A step on the processor frees and allocates the same tensors again and again; faulting their
    pages in again takes a third of its time (docs/benchmarks.md, Freed memory).
    Nothing changes on other C libraries, or where the user has set up glibc's malloc.
    """
    is_set_up = any(name.startswith("MALLOC_") for name in os.environ)
    is_set_up |= "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and not is_set_up:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def die_with_parent() -> None:
    """Have the kernel kill this process, even one that hangs in C, when its parent thread ends.

    Call it in the child; also a `preexec_fn`. A parent that has ended before this call is
    not noticed.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
