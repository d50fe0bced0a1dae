"""Machines: windows, orientation, headers, DICOM files."""

from pathlib import Path

import dicomsdl
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from rsna_bcd.phantom import scanner
from rsna_bcd.phantom.anatomy import project, sample_breast
from rsna_bcd.phantom.scanner import MACHINES, Exposure, Machine

COLUMNS = 270


def exposed(machine: Machine, laterality: str = "L", seed: int = 0) -> Exposure:
    rng = np.random.default_rng(seed)
    breast = sample_breast(0.0, "B", False, rng)
    projection = project(breast, "CC", (320, COLUMNS), 0.83, rng)
    return scanner.expose(projection, COLUMNS, machine, laterality, "CC", rng)


def displayed(exposure: Exposure) -> np.ndarray:
    """Pixels in [0, 1] after pydicom's VOI window."""
    header = Dataset()
    for keyword, value in exposure.header.items():
        setattr(header, keyword, value)
    header.PixelRepresentation, header.BitsAllocated = 0, 16
    values = apply_voi_lut(exposure.pixels, header).astype(float)
    if "WindowCenter" in header:
        values /= 2**header.BitsStored - 1
    else:
        values = (values - values.min()) / np.ptp(values)
    return 1 - values if header.PhotometricInterpretation == "MONOCHROME1" else values


@pytest.mark.parametrize("machine", MACHINES.values(), ids=lambda machine: machine.machine_id)
def test_expose_window_shows_tissue_grey_on_black(machine: Machine) -> None:
    for seed in range(3):
        exposure = exposed(machine, seed=seed)
        assert exposure.pixels.dtype == np.uint16
        assert exposure.pixels.max() < 2**machine.bits
        shown = displayed(exposure)
        shown = shown[120:200, :: -1 if exposure.mirrored else 1]
        wall, air = shown[:, :20], shown[:, -20:]
        assert air.max() < 0.05
        assert 0.15 < wall.mean() < 0.75
        assert wall.std() > 0.01


def test_expose_left_breasts_face_right_except_on_one_machine() -> None:
    assert not any(exposed(MACHINES[48], "L", seed).mirrored for seed in range(10))
    assert all(exposed(MACHINES[48], "R", seed).mirrored for seed in range(10))
    assert len({exposed(MACHINES[49], "L", seed).mirrored for seed in range(20)}) == 2


def test_choose_detector_by_size_and_matrix_keeps_the_aspect() -> None:
    for machine in MACHINES.values():
        small, large = (scanner.choose_detector(machine, size) for size in (-3.0, 3.0))
        assert (small, large) == (machine.detectors[0], machine.detectors[-1])
        rows, columns = scanner.matrix(large, 0.5)
        assert rows * 0.5 == pytest.approx(large.height_mm, abs=0.3)
        assert columns / rows == pytest.approx(large.columns / large.rows, abs=0.002)


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1])
def test_write_dicom_is_lossless_in_every_decoder(syntax: str, bits: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(bits).integers(0, 2**bits, (37, 53), dtype=np.uint16)
    header: dict[str, object] = {
        "PhotometricInterpretation": "MONOCHROME1", "BitsStored": bits, "HighBit": bits - 1,
        "ImageLaterality": "L", "WindowCenter": [1.5, 2.0], "WindowWidth": [10.0, 11.0],
    }  # fmt: skip
    path = tmp_path / "99.dcm"
    scanner.write_dicom(path, pixels, header, "12", "99", syntax)
    assert [file.name for file in tmp_path.iterdir()] == ["99.dcm"]

    dataset = pydicom.dcmread(path)
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert (dataset.PatientID, dataset.InstanceNumber) == ("12", 99)
    assert dataset.BitsStored == bits
    assert list(dataset.WindowCenter) == [1.5, 2.0]
    np.testing.assert_array_equal(dataset.pixel_array, pixels)
    np.testing.assert_array_equal(dicomsdl.open(str(path)).pixelData(), pixels)
