"""Augmentation depends on its key alone, and every option keeps the image an image."""

from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf

from rsna_bcd._stage import CONF
from rsna_bcd.data.augment import Augmentation

OPTIONS = sorted(path.stem for path in (Path(CONF) / "augment").glob("*.yaml"))


def load(option: str) -> Augmentation:
    augment: Augmentation = instantiate(OmegaConf.load(Path(CONF) / "augment" / f"{option}.yaml"))
    return augment


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (64, 32), dtype=np.uint8)


def test_none_leaves_the_image_alone(pixels: NDArray[np.uint8]) -> None:
    assert np.array_equal(load("none")(pixels, (1, 2, 3)), pixels)


@pytest.mark.parametrize("option", OPTIONS)
def test_shape_and_dtype_stay(option: str, pixels: NDArray[np.uint8]) -> None:
    augment = load(option)
    for index in range(50):  # often enough for every transform to have its turn
        result = augment(pixels, (0, 0, index))
        assert result.shape == pixels.shape
        assert result.dtype == np.uint8
        assert result.flags.c_contiguous


@pytest.mark.parametrize("option", OPTIONS)
def test_floating_point_stays_in_range(option: str, pixels: NDArray[np.uint8]) -> None:
    augment = load(option)
    for index in range(50):
        result = augment(pixels.astype(np.float32) / 255, (0, 0, index))
        assert result.dtype == np.float32
        assert result.min() >= 0
        assert result.max() <= 1


def test_flips_are_the_four_orientations(pixels: NDArray[np.uint8]) -> None:
    augment = load("flips")
    wanted = {a.tobytes() for b in (pixels, pixels[::-1]) for a in (b.copy(), b[:, ::-1].copy())}
    assert {augment(pixels, (0, 0, index)).tobytes() for index in range(40)} == wanted


def test_the_key_decides_and_nothing_else(pixels: NDArray[np.uint8]) -> None:
    augment = load("heavy")
    first = [augment(pixels, (7, 1, index)) for index in range(20)]
    for _ in range(3):
        augment(pixels, (9, 9, 9))
    again = [augment(pixels, (7, 1, index)) for index in reversed(range(20))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("key", [(8, 1, 0), (7, 2, 0), (7, 1, 1)], ids=["seed", "epoch", "index"])
def test_each_part_of_the_key_matters(key: tuple[int, int, int], pixels: NDArray[np.uint8]) -> None:
    augment = load("heavy")
    other = [augment(pixels, (key[0], key[1], key[2] + 10 * i)) for i in range(10)]
    first = [augment(pixels, (7, 1, 10 * i)) for i in range(10)]
    differ = sum(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert differ > 5
