"""Shared fixtures: a tiny synthetic competition, and the device of the checks of a GPU."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from stage_settings import composed

if TYPE_CHECKING:
    import torch

# Before torch is imported, also by stages in processes of their own: the threads of OpenMP wait by
# spinning, which makes tiny networks several times slower on a busy machine; and ranks that
# are forked from a process that has several wait for them for ever.
os.environ["OMP_NUM_THREADS"] = "1"
# Before CUDA is used: without it, cuBLAS refuses to be deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Kaggle's: 16 training patients, 8 test patients, images of about 320 x 256.

    Read it, do not write to it. All machines of the phantom occur in the training part.
    """
    from rsna_bcd.stages.synthesize import synthesize  # deferred: it writes DICOM, which needs GDCM

    data = tmp_path_factory.mktemp("competition")
    size = ("size.train_patients=16", "size.test_patients=8", "size.prevalence=0.25")
    settings = (f"paths.data={data}", "workers=0", *size, "appearance.pixel_mm=0.83")
    synthesize(composed("synthesize", *settings))
    return data


@pytest.fixture(scope="session")
def device() -> "torch.device":
    """The GPU; the processor where the variable says so; else the test is skipped."""
    import torch

    wanted = os.environ.get("RSNA_BCD_GPU_CHECKS", "cuda")  # set by `benchmarks/gpu.py`
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(wanted)


@pytest.fixture(scope="session")
def small(device: "torch.device") -> bool:
    """Whether networks and crops must be tiny."""
    return device.type == "cpu"


@pytest.fixture
def cuda(device: "torch.device") -> "torch.device":
    """The GPU, for checks that a processor cannot do: its memory is counted."""
    if device.type != "cuda":
        pytest.skip("the memory of a processor cannot be limited")
    return device


@pytest.fixture(autouse=True)
def _gpu_memory_for_others(request: pytest.FixtureRequest) -> Iterator[None]:
    """Free the allocator's cache after each check of a GPU: several run side by side."""
    yield
    if request.node.get_closest_marker("gpu"):
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
