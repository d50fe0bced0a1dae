"""Prepared crops from disk."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import read_crop


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
