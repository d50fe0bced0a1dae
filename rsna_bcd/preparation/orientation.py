"""How to bring the chest wall to the left: by clear pixels, else by the header."""

from dataclasses import dataclass

import numpy as np

from rsna_bcd.imaging.breast import Breast, Side
from rsna_bcd.imaging.crops import Crop
from rsna_bcd.imaging.quality import QualityFlag


@dataclass(frozen=True)
class Orientation:
    """A flip or a rotation.

    Attributes:
        flipped: columns are mirrored.
        rotated: degrees counterclockwise: 0, 90 or 270. Only one of both is in use.
        flags: quality flags; pixels and header may contradict each other.
    """

    flipped: bool
    rotated: int
    flags: tuple[QualityFlag, ...] = ()

    def apply(self, pixels: Crop) -> Crop:
        """Flip or rotate pixels, (H, W)."""
        if self.rotated:
            return np.rot90(pixels, self.rotated // 90)
        return pixels[:, ::-1] if self.flipped else pixels


UPRIGHT = Orientation(flipped=False, rotated=0)
_ROTATIONS: dict[Side, int] = {"left": 0, "right": 0, "top": 90, "bottom": 270}


def choose_orientation(breast: Breast, patient_orientation: str) -> Orientation:
    """Choose what brings the chest wall to the left.

    Args:
        breast: found in the pixels.
        patient_orientation: of the header, values separated by a backslash; "" where there is none.
    """
    side, in_header = breast.chest_wall, _chest_wall_in_header(patient_orientation)
    contradicts = breast.side_is_clear and in_header not in (None, side)
    if in_header is not None and not breast.side_is_clear:
        side = in_header
    flags = (QualityFlag.ORIENTATION_CONTRADICTORY,) if contradicts else ()
    return Orientation(side == "right", _ROTATIONS[side], flags)


def _chest_wall_in_header(patient_orientation: str) -> Side | None:
    """The side opposite the anterior one.

    Args:
        patient_orientation: directions of rows (to the right) and of columns (downwards). The first
            letter is the main one: A anterior, P posterior (PS3.3 C.7.6.1.1.1).
    """
    sides: tuple[tuple[Side, Side], ...] = (("left", "right"), ("top", "bottom"))
    for direction, walls in zip(patient_orientation.split("\\"), sides, strict=False):
        letter = direction.strip().upper()[:1]
        if letter in ("A", "P"):
            return walls["AP".index(letter)]
    return None
