"""What an image costs, measured on a few before all are begun."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd

from rsna_bcd.inference.deadline import Costs, StageTimer
from rsna_bcd.inference.predictor import Precision, device_of
from rsna_bcd.inference.run import Run
from rsna_bcd.inference.stream import decode_files, predict_decoded
from rsna_bcd.models.prediction import PASSES
from rsna_bcd.preparation.crop import Source

_BATCHES = 3  # of which the first does not count


def measure_costs(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    runs: Sequence[Run],
    *,
    source: Source,
    batch_size: int,
    workers: int,
    precision: Precision,
    most_seconds: float,
) -> Costs | None:
    """Decode the images of some patients, spread over the table, and show them to each network.

    One after the other, so that neither slows the other down; the predictions are not kept.

    Args:
        images: as for `predict_files`, as are those not named here.
        files: as for `predict_files`.
        runs: as for `predict_files`.
        source: as for `predict_files`.
        batch_size: as for `predict_files`.
        workers: as for `predict_files`.
        precision: as for `predict_files`.
        most_seconds: for all of it; half for decoding. One batch is predicted in any case.

    Returns:
        None if no image could be read in this time.
    """
    begun = time.monotonic()
    sample = _sample(images[images["image_id"].isin(list(files))], _BATCHES * batch_size)
    some = {image_id: files[image_id] for image_id in sample["image_id"]}
    decoding = decode_files(
        sample,
        some,
        runs,
        source=source,
        workers=workers,
        ahead=len(some),
        until=begun + most_seconds / 2,
    )
    with closing(decoding):
        decoded = list(decoding)
    spent = StageTimer()
    predicted = predict_decoded(
        decoded, sample, some, runs,
        batch_size=batch_size, precision=precision, dropped=(),
        until=begun + most_seconds, spent=spent,
    )  # fmt: skip
    for _ in predicted:
        pass
    network = [spent.an_image(run) for run in range(len(runs))]
    if not any(network):
        return None
    return Costs(
        decoding=spent.decoding / spent.images,
        network=network,
        passes=[PASSES[run.tta] for run in runs],
        workers=workers,
        shared=any(device_of(run).type == "cpu" for run in runs),
    )


def _sample(images: pd.DataFrame, least: int) -> pd.DataFrame:
    """Images of patients at equal distances, of at least so many images, if there are."""
    patients = images["patient_id"].drop_duplicates()
    number = max(1, round(len(patients) * min(1.0, least / len(images))))
    chosen = patients.iloc[[i * len(patients) // number for i in range(number)]]
    return images[images["patient_id"].isin(chosen)]
