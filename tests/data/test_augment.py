"""Augmentation depends on its key alone, and every option keeps the image an image."""

from pathlib import Path

import cv2
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


@pytest.mark.parametrize("option", OPTIONS)
def test_8_and_16_bits_are_augmented_alike(option: str) -> None:
    """The same draws, the same operations: what differs is rounding to 8 bits, step by step."""
    augment = load(option)
    noise = np.random.default_rng(0).integers(0, 256, (128, 64), dtype=np.uint8)
    pixels = cv2.GaussianBlur(noise, (0, 0), 5)
    for index in range(100):
        shallow = augment(pixels, (0, 0, index)).astype(np.float32) / 255
        deep = augment(pixels.astype(np.float32) / 255, (0, 0, index))
        assert np.abs(shallow - deep).mean() < 2 / 255


def test_a_part_of_at_least_half_of_each_side_is_cut_out() -> None:
    chain = OmegaConf.load(Path(CONF) / "augment" / "heavy.yaml").transforms
    (cut,) = [t for t in chain if t["_target_"].endswith("CropAndPad")]
    assert cut.p == 0.4
    augment = Augmentation([instantiate(cut, p=1)])
    rows, columns = np.mgrid[:200, :100].astype(np.float32)
    for ramp in (rows / 200, columns / 100):
        parts = [augment(ramp, (0, 0, index)) for index in range(200)]
        shares = [float(part.max() - part.min()) for part in parts]
        assert 0.48 < min(shares) < 0.55
        assert 0.9 < max(shares) <= 1
        assert parts[0].shape == ramp.shape


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
