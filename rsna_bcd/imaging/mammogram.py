"""What every reader returns: stored values, how to show them, and the facts worth a record."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.window import Presentation

StoredPixels = NDArray[np.integer[Any]]  # uint8, uint16 or int16


class ImageError(InputError):
    """An image file that cannot be used; the message is the reason, without the path."""


@dataclass(frozen=True)
class Mammogram:
    """One image as it is stored.

    Attributes:
        pixels: stored values, (H, W), not yet windowed or inverted.
        presentation: maps stored values to [0, 1] with tissue bright and background dark.
        facts: what was found in the file, for the manifest: `decoder`, `transfer_syntax`,
            `photometric`, `bits_stored`.
    """

    pixels: StoredPixels
    presentation: Presentation
    facts: dict[str, str | int]

    def overview(self, longest: int) -> NDArray[np.float32]:
        """The whole image, (h, w) in [0, 1], reduced so that its longer side is `longest` at most.

        Stored values are averaged before they are windowed: at this size nobody sees the
        difference (some hundredths of a grey level), and it saves a pass over 26 million pixels.
        """
        height, width = self.pixels.shape
        scale = min(1.0, longest / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return self.presentation.apply(cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA))


def refuse_constant(pixels: StoredPixels) -> None:
    """Raise if all pixels are equal: an image without content, or a decoder's silent failure."""
    low, high = int(pixels.min()), int(pixels.max())
    if low == high:
        raise ImageError(f"all pixels have the value {low}")
