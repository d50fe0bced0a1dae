"""Pipelines from DICOM files to probabilities, and their parts: one measurement in this process.

python benchmarks/inference_pipelines.py --measure SETTING      # JSON, see `Setting`
"""

import contextlib
import itertools
import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from timing import Clock

Engine = Literal["torch", "onnx", "auto"]
Pipeline = Callable[[int], list[float]]  # number of images -> predicted probability of each

DECODE, NETWORK, OURS, LOOP = "decode and crop", "network", "ours", "plain loop"


@dataclass(frozen=True)
class Setting:
    """Settings of a pipeline.

    Attributes:
        pipeline: `DECODE`, `NETWORK`, `OURS` or `LOOP`.
        cores: that it may use, with as many threads and processes.
        files: DICOM files; a pass is once through all of them.
        passes: of a measurement, 2 at least.
        runs: folders of the networks, in `<models>/runs/`.
        engine: of the networks, as `submit` has it; that of the plain loop is torch.
        batch_size: images at a time through a network; of the plain loop it is one.
        device: of the networks, `cpu` or `cuda`.
    """

    pipeline: str
    cores: int
    files: list[str]
    passes: int
    runs: list[str]
    engine: Engine
    batch_size: int
    device: str


def measure(setting: Setting) -> dict[str, float]:
    """Measure a pipeline after one pass to warm up.

    Returns:
        `images`, the wall's `seconds` and the `cpu` seconds of all passes; where processes are
        started, the same of one pass before (`first_`), else 0; `others`, the share of the machine
        that other work took; `probability`, the mean over the files (NaN without networks).
    """
    pipelines = {DECODE: _decode, NETWORK: _network, OURS: _ours, LOOP: _loop}
    images, once = pipelines[setting.pipeline](setting), len(setting.files)
    predicted = images(once)  # imports, caches, code that is compiled on first use
    starts_processes = setting.pipeline in (DECODE, OURS)
    clock = Clock()
    if starts_processes:
        images(once)
    first, first_cpu = clock.read()
    images(setting.passes * once)
    seconds, cpu = clock.read()
    return {
        "images": setting.passes * once,
        "seconds": seconds - first,
        "cpu": cpu - first_cpu,
        "first_images": once if starts_processes else 0,
        "first_seconds": first if starts_processes else 0.0,
        "first_cpu": first_cpu if starts_processes else 0.0,
        "others": clock.other_load(),
        "probability": statistics.mean(predicted) if predicted else math.nan,
    }


def per_image(rounds: list[dict[str, float]], key: Literal["seconds", "cpu"]) -> list[float]:
    """Seconds per image of each measurement, without the start of processes.

    The start costs the same each time: the median of all is subtracted.
    """
    first = statistics.median(one[f"first_{key}"] for one in rounds)
    return [(one[key] - first) / (one["images"] - one["first_images"]) for one in rounds]


def start_seconds(rounds: list[dict[str, float]]) -> float:
    """Seconds that do not depend on the number of images."""
    first = statistics.median(one["first_seconds"] for one in rounds)
    return first - statistics.median(per_image(rounds, "seconds")) * rounds[0]["first_images"]


def _some(setting: Setting, number: int) -> list[Path]:
    """So many files, from the first again after the last."""
    return list(itertools.islice(itertools.cycle(map(Path, setting.files)), number))


def _load(setting: Setting) -> list[Any]:
    """The runs as `submit` has them."""
    from rsna_bcd.inference.export import choose_engines
    from rsna_bcd.inference.run import load_run

    folders = list(map(Path, setting.runs))
    exports = folders[0].parents[2] / "exports"
    return choose_engines(
        [load_run(folder, setting.device) for folder in folders],
        setting.engine,
        exports=exports,
        own_exports=exports,
        images=0,  # no file is worth making for so few: it is there, if it can be
        before=[],
        log=print,
    )


def _forwards(runs: list[Any]) -> list[Callable[[Any], Any]]:
    """From crops (B, H, W) to probabilities (B,), in the precision that `submit` has."""
    import torch

    from rsna_bcd.imaging.crops import as_training_input
    from rsna_bcd.inference.predictor import Predictor

    def calling(forward: Predictor) -> Callable[[Any], Any]:
        return lambda crops: forward.predict(
            {"image": torch.from_numpy(as_training_input(crops))[:, None]}
        )[0]

    return [calling(Predictor(run, "auto")) for run in runs]


def _decode(setting: Setting) -> Pipeline:
    """Our preparation alone, on as many processes as there are cores."""
    from rsna_bcd.preparation import engine
    from rsna_bcd.preparation.crop import CropsTask, prepare_images

    settings = _crops(setting)

    def images(number: int) -> list[float]:
        files = _some(setting, number)
        tasks = ((n, CropsTask(file, settings, "dicom")) for n, file in enumerate(files))
        results = engine.run(prepare_images, tasks, workers=setting.cores)
        with contextlib.closing(results):
            for result in results:
                if result.value is None:
                    raise RuntimeError(result.reason)
        return []

    return images


def _crops(setting: Setting) -> tuple[Any, ...]:
    """The different crops of the runs, without torch's settings."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    records = [OmegaConf.load(Path(run) / "config.yaml") for run in setting.runs]
    return tuple(dict.fromkeys(instantiate(record.crop) for record in records))


def _network(setting: Setting) -> Pipeline:
    """The networks alone, on crops that are in memory."""
    import numpy as np

    from rsna_bcd.preparation.crop import CropsTask, prepare_images

    runs, settings = _load(setting), _crops(setting)
    crops = [prepare_images(CropsTask(Path(file), settings, "dicom")) for file in setting.files]
    stacks = [
        np.stack([prepared[which].pixels for prepared in crops]) for which in range(len(settings))
    ]
    pipelines = list(zip(_forwards(runs), [settings.index(run.crop) for run in runs], strict=True))

    def images(number: int) -> list[float]:
        probabilities: list[float] = []
        for first in range(0, number, setting.batch_size):
            last = min(first + setting.batch_size, number)
            of_batch = np.arange(first, last) % len(crops)
            by_run = [forward(stacks[which][of_batch]) for forward, which in pipelines]
            probabilities += np.mean(by_run, axis=0).tolist()
        return probabilities

    return images


def _ours(setting: Setting) -> Pipeline:
    """The prediction stream of `submit`."""
    import pandas as pd

    from rsna_bcd.inference.stream import InferenceSettings, Prediction, predict

    runs = _load(setting)

    def images(number: int) -> list[float]:
        ids = pd.Series(range(number)).astype(str)
        patient = (pd.Series(range(number)) // 4).astype(str)
        table = pd.DataFrame(
            {"image_id": ids, "patient_id": patient, "prediction_id": patient + "_L", "view": "CC"}
        )
        files = dict(zip(ids, _some(setting, number), strict=True))
        settings = InferenceSettings("dicom", setting.batch_size, setting.cores)
        predictions = predict(table, files, runs, settings)
        probabilities: list[float] = []
        for prediction in predictions:
            if isinstance(prediction, Prediction):
                if prediction.probabilities is None:
                    raise RuntimeError(prediction.reason)
                probabilities.append(float(prediction.probabilities.mean()))
        return probabilities

    return images


def _loop(setting: Setting) -> Pipeline:
    """One file after the other: decoded, prepared, put through each network."""
    import cv2
    import numpy as np
    import pipelines
    import torch

    from rsna_bcd.inference.run import load_run

    torch.set_num_threads(setting.cores)
    cv2.setNumThreads(setting.cores)
    runs = [load_run(Path(run), setting.device) for run in setting.runs]
    forwards = list(zip(_forwards(runs), [run.crop for run in runs], strict=True))

    def images(number: int) -> list[float]:
        probabilities: list[float] = []
        for file in _some(setting, number):
            crops = {crop: pipelines.first_place_crop(file, crop) for _, crop in forwards}
            by_run = [forward(crops[crop][None]) for forward, crop in forwards]
            probabilities.append(float(np.mean(by_run)))
        return probabilities

    return images


if __name__ == "__main__":
    result_output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to stderr
    print(json.dumps(measure(Setting(**json.loads(sys.argv[2])))), file=result_output)
