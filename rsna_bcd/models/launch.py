"""Several processes (ranks) that train one network, and how they end.

The process that the user starts does not train: it starts one process per rank, and waits. So a
sweep continues after any of its jobs, no rank waits for ever for one that has failed, and the
environment, sockets and GPU memory of a process group end with its processes. torchrun and
srun start the ranks themselves; then each process is one.
"""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsna_bcd.errors import InputError
from rsna_bcd.processes import die_with_parent

_STARTED_BY = "RSNA_BCD_RANKS_OF"  # process id of the starter of this rank
_PAUSE = 0.1  # seconds between checks of the ranks
_MOMENT = 1.0  # seconds in which the failure of one rank makes others fail
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_SHOWN = 30  # last lines of a rank that failed


def started_outside() -> int | None:
    """How many ranks there are, if this process is one of them already; else None."""
    if "LOCAL_RANK" in os.environ:  # torchrun, or `run_ranks` below
        return int(os.environ.get("WORLD_SIZE", "1"))
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    # By the name of the job Lightning tells an interactive allocation, too.
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return tasks if tasks > 1 and not interactive else None


def another_has_lock() -> bool:
    """Whether the starter of this rank, or the first rank, keeps others out of the run's folder."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return _STARTED_BY in os.environ or int(rank) > 0


def n_ranks_to_start(*, strategy: str, devices: int, nodes: int, gpus: int) -> int:
    """How many processes this one has to start, one per rank; 0 where it is to train itself.

    Args:
        strategy: Lightning's, `auto` for a single process.
        devices: of this machine; -1 for every GPU.
        nodes: machines that take part.
        gpus: of this machine, 0 if they are not to be used.

    Raises:
        InputError: ranks started from outside do not match the settings, or no device is available.
    """
    outside = started_outside()
    count = gpus if devices == -1 else devices
    if strategy == "auto":
        if outside is not None and outside > 1:
            raise InputError(
                f"This is one of {outside} processes, each of which would train by itself. "
                "Choose trainer=ddp, or start a single one."
            )
        if count > 1:
            raise InputError(
                f"trainer.devices={devices} needs trainer=ddp: one process trains on one device."
            )
        return 0
    if outside is not None:
        return 0
    if nodes > 1:
        raise InputError(
            f"trainer.num_nodes={nodes}: start it on every node with torchrun or srun."
        )
    if count < 1:
        raise InputError(
            "There is no GPU for trainer=ddp. On processors alone: trainer.accelerator=cpu "
            "trainer.devices=2 trainer.precision=32-true."
        )
    return count


def run_ranks(command: Sequence[str], n_ranks: int) -> None:
    """Run a command once per rank, each knowing its rank and the others, until all have ended.

    The first rank writes to the terminal; the output of the others is shown if they fail.

    Raises:
        InputError: a rank failed. The others have been ended then.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{rank}.log" for rank in range(n_ranks)]
        ranks: list[subprocess.Popen[bytes]] = []
        port = _free_port()
        try:
            for rank in range(n_ranks):
                ranks.append(_start(command, rank, n_ranks, port, logs[rank]))
            failed = _failures(ranks)
        finally:
            _end(ranks)
        if failed:
            raise InputError("\n".join(_account(rank, ranks, logs[rank]) for rank in failed))


def _account(rank: int, ranks: Sequence["subprocess.Popen[bytes]"], log: Path) -> str:
    """The message about a rank that failed."""
    ended = f"Rank {rank} of {len(ranks)} ended with exit code {ranks[rank].returncode}"
    if rank == 0:
        return f"{ended}; its own message is above."
    said = log.read_text(errors="replace").splitlines()[-_SHOWN:]
    return "\n".join([f"{ended}:", *said])


def end_with_parent() -> None:
    """End this rank with its starter: else it would train on beside the resumed run's ranks."""
    parent = os.environ.get(_STARTED_BY)
    if parent is None:
        return
    die_with_parent()
    if os.getppid() != int(parent):  # it has ended before the line above
        sys.exit(1)


def _start(
    command: Sequence[str], rank: int, n_ranks: int, port: int, log: Path
) -> "subprocess.Popen[bytes]":
    # Without SLURM_NTASKS Lightning does not take a job of a single task for its ranks.
    environment = {name: v for name, v in os.environ.items() if name != "SLURM_NTASKS"}
    environment |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(n_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        _STARTED_BY: str(os.getpid()),
    }
    with log.open("wb") as file:
        said = file if rank else None
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the process that waits
            preexec_fn=die_with_parent,  # also while it imports, and where a signal cut this short
            stdout=said,
            stderr=said,
        )


def _failures(ranks: Sequence["subprocess.Popen[bytes]"]) -> list[int]:
    """Wait until a rank has failed, or all have ended well; the ranks that failed.

    Others may fail of it at once, for they miss it: which one was the first cannot be told, so all
    that fail within a moment are named.
    """
    while True:
        codes = [rank.poll() for rank in ranks]
        if any(codes):
            time.sleep(_MOMENT)
            return [number for number, rank in enumerate(ranks) if rank.poll()]
        if None not in codes:
            return []
        time.sleep(_PAUSE)


def _end(ranks: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End running ranks: SIGTERM first, to which a rank that waits for another does not react."""
    for rank in ranks:
        rank.terminate()
    until = time.monotonic() + _GRACE
    for rank in ranks:
        try:
            rank.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def quieten_lightning() -> None:
    """Silence Lightning's warnings about deliberate choices."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for remark in (
        "Checkpoint directory .* exists and is not empty",  # a resumed run
        ".isinstance.treespec, LeafSpec.. is deprecated",  # torch's, about Lightning
        "The number of training batches .* is smaller than the logging interval",
        "You defined a `validation_step` but have no `val_dataloader`",  # fold=all
        "Total length of .* across ranks is zero",
        "The .* does not have many workers",
        "Found .* module.s. in eval mode",
        "It is recommended to use `self.log",  # every rank has gathered the same metrics
    ):
        warnings.filterwarnings("ignore", message=f".*{remark}")


def synchronise_norms(network: nn.Module, *, on_cpu: bool) -> nn.Module:
    """Take the statistics of BatchNorm over all ranks; torch can on GPUs alone.

    By timm's converter: Lightning's own is torch's, which knows nothing of the activations that
    timm's norms contain, and drops them.

    Args:
        network: comes back as it is where it has no BatchNorm, or where several ranks train on
            processors.
        on_cpu: where it is trained.
    """
    if not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return network
    if on_cpu and (started_outside() or 1) > 1:
        rank_zero_only(print)(
            "Processors have no SyncBatchNorm: each rank has the statistics of its own samples."
        )
        return network
    synchronised: nn.Module = convert_sync_batchnorm(network)
    return synchronised
