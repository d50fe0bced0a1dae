"""Augmentation depends on its key alone; each option keeps shape, dtype and range."""

from pathlib import Path
from typing import Any

import albumentations
import cv2
import numpy as np
import pytest
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf

from rsna_bcd._stage import CONF
from rsna_bcd.data.augment import Augmentation, turns_upside_down
from rsna_bcd.errors import InputError

OPTIONS = sorted(path.stem for path in (Path(CONF) / "augment").glob("*.yaml"))


def load(option: str) -> Augmentation:
    augment: Augmentation = instantiate(OmegaConf.load(Path(CONF) / "augment" / f"{option}.yaml"))
    return augment


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (64, 32), dtype=np.uint8)


@pytest.mark.parametrize("option", OPTIONS)
def test_augmentation_keeps_shape_dtype_and_range(option: str, pixels: NDArray[np.uint8]) -> None:
    augment = load(option)
    for image in (pixels, pixels.astype(np.float32) / 255):
        for index in range(50):  # often enough that every transform is applied
            result = augment(image, (0, 0, index))
            assert result.shape == image.shape
            assert result.dtype == image.dtype
            assert result.flags.c_contiguous
            assert result.min() >= 0
            assert result.max() <= (255 if image is pixels else 1)
    assert option != "none" or np.array_equal(result, image)


@pytest.mark.parametrize("option", OPTIONS)
def test_augmentation_of_8_and_16_bits_agrees(option: str) -> None:
    augment = load(option)
    noise = np.random.default_rng(0).integers(0, 256, (128, 64), dtype=np.uint8)
    pixels = cv2.GaussianBlur(noise, (0, 0), 5)
    for index in range(100):
        shallow = augment(pixels, (0, 0, index)).astype(np.float32) / 255
        deep = augment(pixels.astype(np.float32) / 255, (0, 0, index))
        assert np.abs(shallow - deep).mean() < 2 / 255  # rounded after each transform


def test_heavy_cuts_out_at_least_half_of_each_side() -> None:
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


def test_flips_gives_the_four_orientations(pixels: NDArray[np.uint8]) -> None:
    augment = load("flips")
    wanted = {a.tobytes() for b in (pixels, pixels[::-1]) for a in (b.copy(), b[:, ::-1].copy())}
    assert {augment(pixels, (0, 0, index)).tobytes() for index in range(40)} == wanted


def test_augmentation_depends_on_its_key_alone(pixels: NDArray[np.uint8]) -> None:
    augment = load("heavy")

    def images(seed: int, epoch: int) -> list[bytes]:
        return [augment(pixels, (seed, epoch, index)).tobytes() for index in range(20)]

    first = images(7, 1)
    assert len(set(first)) > 10
    for key in ((8, 1), (7, 2)):
        assert sum(a != b for a, b in zip(first, images(*key), strict=True)) > 10
    assert first == [augment(pixels, (7, 1, i)).tobytes() for i in reversed(range(20))][::-1]


def test_augmentation_refuses_a_transform_that_changes_the_type(pixels: NDArray[np.uint8]) -> None:
    import albumentations

    augment = Augmentation([albumentations.ToFloat(max_value=255)])
    with pytest.raises(InputError, match=r"ToFloat.* float32 .* uint8"):
        augment(pixels, (0, 0, 0))


def test_augmentation_names_a_transform_that_does_not_take_one_channel(
    pixels: NDArray[np.uint8],
) -> None:
    augment = Augmentation([albumentations.OneOf([albumentations.RandomFog(p=1)], p=1)])
    with pytest.raises(InputError, match=r"RandomFog.* cannot take .*augment\.transforms"):
        augment(pixels, (0, 0, 0))


class Upended(albumentations.ImageOnlyTransform):
    """A transform of a user's own, rarely applied, that turns images upside down."""

    def apply(self, img: NDArray[np.uint8], **_: Any) -> NDArray[np.uint8]:
        """Turn an image."""
        return img[::-1].copy()


MOVED: list[Any] = [
    {"translate_percent": {"y": (-0.4, 0.4)}},
    {"scale": (0.3, 0.5), "translate_percent": (-0.3, 0.3)},
]


@pytest.mark.parametrize(
    ("augmentation", "turns"),
    [
        *((load(option), option in ("flips", "light", "heavy")) for option in OPTIONS),
        (Augmentation([albumentations.D4()]), True),
        (Augmentation([albumentations.Rotate((170, 190), p=0.1)]), True),
        (
            Augmentation([albumentations.OneOf([Upended(p=0.5), albumentations.NoOp()], p=0.01)]),
            True,
        ),
        (Augmentation([Upended(p=0.0)]), False),
        (Augmentation([albumentations.InvertImg(), albumentations.GaussNoise()]), False),
        (Augmentation([albumentations.HorizontalFlip(), albumentations.Rotate((-45, 45))]), False),
        (Augmentation([albumentations.Rotate((-100, 100))]), True),
        *((Augmentation([albumentations.Affine(**moved)]), False) for moved in MOVED),
        (lambda pixels, key: pixels[::-1], True),  # no chain of transforms
        (lambda pixels, key: pixels[:, ::-1], False),
    ],
)
def test_transforms_that_turn_images_upside_down_are_found(augmentation: Any, turns: bool) -> None:
    assert turns_upside_down(augmentation, (256, 128)) == turns
