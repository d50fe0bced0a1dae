"""Does an exported file say what the network says?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import as_training_input, read_crop
from rsna_bcd.inference.exported import Forward
from rsna_bcd.models.exporting import Input, random_batch
from rsna_bcd.models.prediction import predict_logits, to_input

TOLERANCE = 1e-4  # of probabilities
# Batches of one, a few and more samples; by breast, of one, two and three images.
SIZES = ((1, 3), (2, 1), (5, 2))

Images = Literal["crops", "random"]


@dataclass(frozen=True)
class Parity:
    """How far an exported file was from its network.

    Attributes:
        images: what both were shown: prepared crops, or blots and noise.
        batches: samples of each batch.
        probability: the largest difference of two probabilities.
        logit: the largest difference of two logits.
        lowest: probability that the network gave.
        highest: probability that the network gave; close to the lowest, agreement says little.
    """

    images: Images
    batches: tuple[int, ...]
    probability: float
    logit: float
    lowest: float
    highest: float

    @property
    def holds(self) -> bool:
        """Whether all probabilities agree; not if one is no number."""
        return self.probability <= TOLERANCE


def measure_parity(
    network: Any,
    exported: Forward,
    inputs: Sequence[Input],
    crops: Tensor | None = None,
    seed: int = 0,
) -> Parity:
    """Show the same batches of several sizes to a network and to what was made of it.

    Args:
        network: in eval mode, on the processor.
        exported: takes the entries of a batch by name.
        inputs: of both.
        crops: (N, H, W) float32 in [0, 1], to draw from; None for blots and noise.
        seed: of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    expected, logits, probabilities = [], [], []
    for batch, views in SIZES:
        shown = random_batch(inputs, batch, views, generator, crops)
        with torch.inference_mode():
            expected.append(predict_logits(network, shown, "none").double())
            outputs = exported(**{entry.name: shown[entry.name] for entry in inputs})
        logits.append(outputs["logit"].double())
        probabilities.append(outputs["probability"].double())
    wanted = torch.cat(expected)
    return Parity(
        images="random" if crops is None else "crops",
        batches=tuple(batch for batch, _ in SIZES),
        probability=_largest(torch.cat(probabilities) - wanted.sigmoid()),
        logit=_largest(torch.cat(logits) - wanted),
        lowest=float(wanted.sigmoid().min()),
        highest=float(wanted.sigmoid().max()),
    )


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())  # NaN if there is one


def prepared_crops(folder: Path, height: int, width: int, most: int = 16) -> Tensor | None:
    """Read a few of the crops that a run was trained with.

    Args:
        folder: prepared, or absent.
        height: that they have.
        width: that they have.
        most: how many.

    Returns:
        (N, height, width) float32 in [0, 1]; None where there are none of this size.
    """
    table = folder / "train.csv"
    if not table.is_file():
        return None
    paths = pd.read_csv(table, dtype=str)["path"].dropna()
    spread = paths.iloc[np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)]
    crops: list[NDArray[Any]] = []
    for path in spread:
        try:
            crops.append(as_training_input(read_crop(folder / path)))
        except InputError:
            continue  # deleted since
    fitting = [crop for crop in crops if crop.shape == (height, width)]
    if not fitting:
        return None
    return torch.stack([to_input(torch.from_numpy(crop)) for crop in fitting])
