"""Processes: the CPU cores that this one may use, and child processes that never outlive it."""

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


def die_with_parent() -> None:
    """Have the kernel kill this process, even one that hangs in C, when its parent thread ends.

    Call it in the child; also a `preexec_fn`. A parent that has ended before this call is
    not noticed.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
