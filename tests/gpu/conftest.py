"""Files of checks run side by side on one GPU: what a test has used is for the others."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _memory_for_others() -> Iterator[None]:
    """Hand back what the allocator keeps after each test."""
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
