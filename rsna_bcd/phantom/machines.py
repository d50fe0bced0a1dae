"""The machines of the two sites: detector, stored values, window, share of the patients.

Counts and header values were tabulated from the competition's `train.csv` and from the headers of
10,920 of its DICOM files.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Detector:
    """One matrix size of a machine.

    `height_mm` is the rows times the pitch; `share` the part of the machine's images.
    """

    rows: int
    columns: int
    height_mm: float
    share: float


@dataclass(frozen=True)
class Machine:
    """How a machine stores what it sees.

    Attributes:
        machine_id: as in the tables.
        site_id: the only site that uses it.
        patients: patients seen on it in the real training set.
        detectors: from small to large; large breasts get the large one.
        bits: bits stored.
        photometric: MONOCHROME1 stores tissue dark.
        window: how the header tells to display the values; `absent` leaves it out.
        padding: whether the header has PixelPaddingValue.
        spacing: whether the header has PixelSpacing.
        turned: share of images that face the other way than their laterality says.
        periphery_mm: how far from the skin the image is darker because the breast is thinner.
        skin: brightness of the skin line.
        fat: brightness of fat.
        noise: standard deviation of the quantum noise in display units of [0, 1].
        marker: style of the burned-in view marker.
        collimator: whether the edges of the collimator show.
    """

    machine_id: int
    site_id: int
    patients: int
    detectors: tuple[Detector, ...]
    bits: int = 12
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2"
    window: Literal["full", "narrow", "sigmoid", "sigmoid_fixed", "absent"] = "full"
    padding: bool = True
    spacing: bool = False
    turned: float = 0.0
    periphery_mm: float = 25.0
    skin: float = 0.05
    fat: float = 0.3
    noise: float = 0.02
    marker: Literal["boxed", "plain", "none"] = "plain"
    collimator: bool = False


_HOLOGIC = (Detector(3328, 2560, 217.0, 0.38), Detector(4096, 3328, 267.0, 0.62))
_GE = (Detector(2294, 1914, 229.4, 0.33), Detector(3062, 2394, 306.2, 0.67))
_GE_SMALL = (Detector(2294, 1914, 229.4, 1.0),)
_COMPUTED = (Detector(2776, 2082, 277.6, 1.0),)

MACHINES = {
    machine.machine_id: machine
    for machine in (
        Machine(49, 1, 4589, _HOLOGIC, spacing=True, turned=0.41, periphery_mm=12.0, skin=0.22,
                fat=0.22, noise=0.03, marker="boxed"),
        Machine(93, 1, 388, _GE, window="sigmoid", turned=0.02),
        Machine(170, 1, 191, _HOLOGIC, spacing=True, skin=0.1),
        Machine(190, 1, 27, _GE_SMALL, window="sigmoid", padding=False),
        Machine(197, 1, 4, _GE_SMALL, window="absent", padding=False),
        Machine(210, 1, 234, (Detector(4740, 3540, 237.0, 0.74), Detector(5928, 4728, 296.4, 0.26)),
                bits=10, photometric="MONOCHROME1", padding=False, spacing=True, turned=0.02),
        Machine(216, 1, 386, _GE_SMALL, window="sigmoid", padding=False),
        Machine(21, 2, 2000, _COMPUTED, window="narrow", fat=0.36),
        Machine(29, 2, 2021, (Detector(5355, 4915, 267.8, 1.0),), bits=16,
                photometric="MONOCHROME1", window="sigmoid_fixed", periphery_mm=15.0, fat=0.4,
                marker="none", collimator=True),
        Machine(48, 2, 2074, (Detector(4096, 3328, 267.0, 1.0),), spacing=True, periphery_mm=12.0,
                skin=0.22, fat=0.22, noise=0.03, marker="boxed"),
    )
}  # fmt: skip
