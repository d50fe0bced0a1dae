"""Packed files are unpacked unchanged, and archives keep their limits."""

import subprocess
from pathlib import Path

import albumentations
import cv2
import gpu_pack
import numpy as np
import pytest
from fabricated_crops import save_crops
from omegaconf import OmegaConf

from rsna_bcd.data.augment import Augmentation
from rsna_bcd.data.datamodule import CropDataModule
from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import read_crop

LOCK = gpu_pack.ROOT / "requirements.lock"


@pytest.mark.parametrize(("quality", "most"), [(101, 0.0), (90, 12.0)])
def test_a_folder_of_webp_trains_like_one_of_png(tmp_path: Path, quality: int, most: float) -> None:
    source = save_crops(tmp_path)
    target = tmp_path / "webp"
    difference = gpu_pack.compress(source, target, quality)
    files = sorted((source / "train").rglob("*.png"))
    assert len(difference) == len(files)
    again = []
    for file in files:
        copy = target / file.relative_to(source).with_suffix(".webp")
        pixels = read_crop(copy)
        assert pixels.shape == read_crop(file).shape
        again.append(np.abs(pixels.astype(int) - read_crop(file)).mean())
    assert sorted(again) == pytest.approx(sorted(difference))
    assert difference.max() <= most
    record = OmegaConf.load(target / "config.yaml")
    assert record.webp.mean_absolute_difference == pytest.approx(difference.mean(), abs=1e-4)
    data = CropDataModule(
        target,
        tmp_path / "folds" / "rsna-stratified.csv",
        0,
        Augmentation([albumentations.HorizontalFlip(p=0)]),
        batch_size=4,
        negatives_per_positive=None,
        workers=0,
        seed=0,
        crops_in_memory=True,
    )
    data.setup()
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    batch = next(iter(loader))
    first = source / data.held_out["path"][0].replace(".webp", ".png")
    assert np.abs(batch["image"][0, 0].numpy().astype(int) - read_crop(first)).mean() <= most


def test_crops_of_16_bits_are_refused(tmp_path: Path) -> None:
    source = save_crops(tmp_path)
    file = next((source / "train").rglob("*.png"))
    cv2.imwrite(str(file), np.zeros((64, 32), np.uint16))
    with pytest.raises(InputError, match="16 bits"):
        gpu_pack.compress(source, tmp_path / "webp", 95)


def test_archives_keep_to_the_limit_and_unpack_by_tar_alone(tmp_path: Path) -> None:
    tree, random = tmp_path / "tree", np.random.default_rng(0)
    files = []
    for i, size in enumerate([0, 1, 511, 512, 513, 30_000, 40_000, 40_000]):
        file = tree / f"folder{i % 2}" / f"{i}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(random.bytes(size))
        files.append(file)
    limit = 60_000
    archives = gpu_pack.archive(tree, files, tmp_path / "part", limit)
    assert [file.name for file in archives] == ["part-1.tar", "part-2.tar", "part-3.tar"]
    (tmp_path / "out").mkdir()
    for file in archives:
        assert file.stat().st_size <= limit
        subprocess.run(["tar", "xf", file], cwd=tmp_path / "out", check=True)
    for file in files:
        copy = tmp_path / "out" / file.relative_to(tree)
        assert copy.read_bytes() == file.read_bytes()
    before = [file.read_bytes() for file in archives]
    again = gpu_pack.archive(tree, files, tmp_path / "part", limit)
    assert [file.read_bytes() for file in again] == before
    with pytest.raises(InputError, match="larger than an archive"):
        gpu_pack.archive(tree, files, tmp_path / "part", 20_000)


def test_missing_packages_are_those_that_the_benchmarks_import_and_the_machine_lacks() -> None:
    defaults = OmegaConf.create(gpu_pack._DEFAULTS)

    def missing(*present: str) -> set[str]:
        python, unused = str(defaults.python), defaults.unused
        return set(gpu_pack.missing_packages(LOCK, python, unused, [*defaults.present, *present]))

    assert {"hydra-core", "omegaconf", "antlr4-python3-runtime", "albumentations"} <= missing()
    assert not missing() & {"torch", "numpy", "timm", "wandb", "pydicom", "dicomsdl", "python-gdcm"}
    fewer = missing("Pydantic_core", "none")
    assert missing() - fewer >= {"pydantic-core"}
    assert fewer >= missing() - {"pydantic-core", "typing-extensions"}
