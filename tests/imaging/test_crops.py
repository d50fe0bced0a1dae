"""Prepared crops from disk."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import read_crop, read_crops


def test_pixels_come_back(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    cv2.imwrite(str(tmp_path / "crop.png"), pixels)
    np.testing.assert_array_equal(read_crop(tmp_path / "crop.png"), pixels)
    deep = pixels.astype(np.uint16) * 1000
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    np.testing.assert_array_equal(read_crop(tmp_path / "deep.png"), deep)


def test_absent_cut_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent or damaged"):
        read_crop(tmp_path / "absent.png")
    whole = cv2.imencode(".png", np.zeros((6, 8), np.uint8))[1].tobytes()
    (tmp_path / "cut.png").write_bytes(whole[:20])
    with pytest.raises(InputError, match="absent or damaged"):
        read_crop(tmp_path / "cut.png")
    cv2.imwrite(str(tmp_path / "colour.png"), np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"shape \(6, 8, 3\)"):
        read_crop(tmp_path / "colour.png")


def test_webp_is_read_as_grey(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    file = tmp_path / "crop.webp"
    cv2.imwrite(str(file), pixels, [cv2.IMWRITE_WEBP_QUALITY, 101])  # lossless
    np.testing.assert_array_equal(read_crop(file), pixels)


def test_crops_in_memory_are_read_once_until_a_file_changes(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        cv2.imwrite(str(file), np.full((6, 8), i, np.uint8))
    first = read_crops(files)
    for file in files:
        np.testing.assert_array_equal(first[file], read_crop(file))
    assert read_crops(reversed(files)) is first
    with pytest.raises(ValueError, match="read-only"):
        first[files[0]][0, 0] = 1
    cv2.imwrite(str(files[1]), np.full((7, 8), 9, np.uint8))
    assert read_crops(files)[files[1]].max() == 9
