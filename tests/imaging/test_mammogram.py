"""The reduced copies of a mammogram, which the breast is found on."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_dicom

from rsna_bcd.imaging.dicom import read_dicom

RNG = np.random.default_rng(0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.dcm"


def test_mammogram_preview_averages_areas(path: Path) -> None:
    pixels = RNG.integers(0, 4096, (2049, 1024)).astype(np.uint16)
    write_dicom(path, pixels, bits=12, WindowCenter=2048, WindowWidth=4096)
    mammogram = read_dicom(path)
    expected = pixels[:2048].reshape(512, 4, 256, 4).mean(axis=(1, 3)) / 4095
    # Each halving rounds to whole values.
    np.testing.assert_allclose(mammogram.preview(), expected, atol=1 / 4095)
    assert mammogram.overview.reduced == 2


@pytest.mark.parametrize(("syntax", "columns"), [("raw", 129), ("jpeg2000", 130)])
def test_mammogram_overview_is_reduced_alike_by_every_codec(
    path: Path, syntax: str, columns: int
) -> None:
    write_dicom(path, RNG.integers(0, 2**12, (1100, 519)).astype(np.uint16), bits=12, syntax=syntax)
    overview = read_dicom(path).overview
    assert overview.pixels.shape == (275, columns)  # the codec rounds up
    assert (overview.reduced, overview.decoder == "openjpeg") == (2, syntax == "jpeg2000")
