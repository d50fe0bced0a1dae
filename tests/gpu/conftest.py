"""Where the checks of a GPU run: on it or, small and if asked for, on the processor."""

import os

import pytest
import torch

# Before CUDA is used: without it, cuBLAS refuses to be deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

DEVICE = "RSNA_BCD_GPU_CHECKS"  # set by `benchmarks/gpu.py`: cuda or cpu


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; the processor where the variable says so; else the test is skipped."""
    wanted = os.environ.get(DEVICE, "cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(wanted)


@pytest.fixture(scope="session")
def small(device: torch.device) -> bool:
    """Whether networks and crops must be tiny."""
    return device.type == "cpu"


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The GPU, for what a processor has not: an account of its memory."""
    if device.type != "cuda":
        pytest.skip("the memory of a processor cannot be limited")
    return device
