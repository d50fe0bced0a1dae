"""The process that trains: what its libraries may say, its memory, and its norms."""

import ctypes
import logging
import warnings

from pytorch_lightning.utilities import rank_zero_only
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsna_bcd.models.ranks import started_outside

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def quieten_lightning() -> None:
    """Silence Lightning's remarks on what was decided here on purpose."""
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


def keep_freed_memory() -> None:
    """Stop glibc from handing every large block that is freed back to the kernel.

    A step on the processor frees and allocates the same tensors again and again; faulting their
    pages in anew took 30 to 45 % of its time (tf_efficientnet_lite0, 16 images of 512 x 288).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not on other C libraries
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def synchronise_norms(network: nn.Module, *, on_processor: bool) -> nn.Module:
    """Take the statistics of BatchNorm over all ranks; torch can on GPUs alone.

    By timm's converter: Lightning's own is torch's, which knows nothing of the activations that
    timm's norms contain, and drops them.

    Args:
        network: comes back as it is where it has no BatchNorm, or where several ranks train on
            processors.
        on_processor: where it is trained.
    """
    if not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return network
    if on_processor and (started_outside() or 1) > 1:
        rank_zero_only(print)(
            "Processors have no SyncBatchNorm: each rank has the statistics of its own samples."
        )
        return network
    synchronised: nn.Module = convert_sync_batchnorm(network)
    return synchronised
