"""How many worker processes the shared memory of this machine has room for."""

import logging
import re
import shutil
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

_SHARED_MEMORY = Path("/dev/shm")  # where workers leave their batches
_LOADERS, _PREFETCHED = 2, 2  # training and validation; batches ahead of each worker
_SPARE = 0.9  # of what is free
_FAILURE = re.compile(r"shared memory|Bus error|/torch_\d+_|shm", re.IGNORECASE)
_REMEDY = (
    "Give it more (docker run --shm-size=8g, or --ipc=host), or set workers= and batch_size= "
    "smaller."
)

_log = logging.getLogger(__name__)


def workers_that_fit(wanted: int, batch_bytes: int, folder: Path = _SHARED_MEMORY) -> int:
    """Limit the number of workers to those whose batches fit into shared memory.

    The result of training does not depend on the number of workers. In a container /dev/shm often
    has 64 MB; a worker that fills it dies of a bus error.

    Args:
        wanted: workers of each loader.
        batch_bytes: of a batch, over all ranks of this machine.
        folder: the file system in memory.

    Returns:
        `wanted`, or fewer; 0 reads in the training process.
    """
    if not wanted or not folder.is_dir():
        return wanted
    free = shutil.disk_usage(folder).free
    each = batch_bytes * _PREFETCHED * _LOADERS
    fitting = min(wanted, int(free * _SPARE) // each)
    if fitting < wanted:
        rank_zero_only(_log.warning)(
            "%s has %.0f MB free, and %d workers need %.0f MB: training continues with workers=%d, "
            "slower and with the same result. %s",
            folder, free / 1e6, wanted, wanted * each / 1e6, fitting, _REMEDY,
        )  # fmt: skip
    return fitting


def shared_memory_failure(error: RuntimeError) -> str | None:
    """The remedy, if a data loader failed for want of shared memory; None for another error."""
    if "worker" not in str(error).lower() or not _FAILURE.search(str(error)):
        return None
    return f"A worker ran out of shared memory ({_SHARED_MEMORY}). {_REMEDY}"
