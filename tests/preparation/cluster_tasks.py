"""Work for a cluster; apart from the tests, as every process of its workers imports it."""

import os
import signal
import time

from rsna_bcd.errors import InputError, StorageError


def square(task: int) -> tuple[int, int]:
    """The square, and which worker it is from."""
    time.sleep(0.05)
    if task == 3:
        raise InputError("three is unreadable")
    if task == 4:
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == -1:
        raise StorageError("disk full")
    return task**2, os.getppid()
