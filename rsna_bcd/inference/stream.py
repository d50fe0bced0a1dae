"""Files to probabilities in one pass: processes decode and crop ahead of the networks.

No crop is written. What a network sees is made by the code, and with the settings, that made its
training crops.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsna_bcd.imaging.crops import Crop
from rsna_bcd.inference.runs import Run
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.crop import CropSettings, CropsTask, Source, prepare_crops

Crops = list[Crop]


@dataclass(frozen=True)
class Prediction:
    """What the runs say of one image: exactly one of `probabilities` and `reason` is set.

    Attributes:
        image_id: the image.
        probabilities: (runs,), in the order of the runs; each the mean over its TTA.
        reason: why the file could not be read.
    """

    image_id: str
    probabilities: NDArray[np.float64] | None
    reason: str | None


def predict_files(
    files: dict[str, Path], runs: Sequence[Run], *, source: Source, batch_size: int, workers: int
) -> Iterator[Prediction]:
    """Predict each file with each run.

    Args:
        files: paths by `image_id`.
        runs: trained networks; those with equal crop settings share their crops.
        source: how to read the files.
        batch_size: images at a time through a network.
        workers: processes that decode; 0 decodes in this one.

    Yields:
        One prediction a file, in the order in which they are ready. A file that cannot be read is
        one with a reason.
    """
    settings = tuple(dict.fromkeys(run.crop for run in runs))
    tasks = ((image_id, CropsTask(path, settings, source)) for image_id, path in files.items())
    ready: list[tuple[str, Crops]] = []
    for result in engine.run(prepare_crops, tasks, workers=min(workers, len(files))):
        if result.value is None:
            yield Prediction(result.key, None, result.reason)
            continue
        ready.append((result.key, result.value))
        if len(ready) == batch_size:
            yield from _predict_batch(ready, runs, settings.index)
            ready.clear()
    if ready:
        yield from _predict_batch(ready, runs, settings.index)


def _predict_batch(
    ready: list[tuple[str, Crops]], runs: Sequence[Run], which: Callable[[CropSettings], int]
) -> Iterator[Prediction]:
    """Run every network on a batch of crops."""
    probabilities = np.stack(
        [run.predict(np.stack([crops[which(run.crop)] for _, crops in ready])) for run in runs],
        axis=1,
    )  # (B, runs)
    for (image_id, _), row in zip(ready, probabilities, strict=True):
        yield Prediction(image_id, row.astype(np.float64), None)
