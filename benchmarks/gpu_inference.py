"""From files to probabilities on one GPU, and training from crops on disk.

Steps `inference` and `loader` of `gpu.py`. Without DICOM decoders, the files are pictures (PNG).
"""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from commands import composed
from crops import smooth_noise, synthetic_crops
from gpu import EXPERIMENTS, MEMBERS, Context, Row
from gpu_throughput import overrides
from large_test_set import NAME, make_ensemble, make_table
from omegaconf import OmegaConf

from rsna_bcd._stage import CONF

HIDDEN = 32_000  # images of the competition's hidden test set, about
_DECODERS = ("pydicom", "gdcm", "dicomsdl")


def inference(context: Context) -> Iterator[Row]:
    """Per network: decoding on all cores, the network alone, and `submit`, in seconds per image."""
    folder = Path(tempfile.mkdtemp(prefix="inference_"))
    try:
        files, source = _files(folder, context.small)
        yield {"name": "files", "kind": source[1], "number": len(files), "cores": context.cores}
        for name in (name for name in MEMBERS if not context.has(name)):
            yield {"name": name, **_member(name, folder / name, files, source[0], context)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path, small: bool) -> tuple[list[Path], tuple[str, str]]:
    """Files of real size: DICOM where it can be decoded, else pictures; their source, in words."""
    absent = [name for name in _DECODERS if importlib.util.find_spec(name) is None]
    if not absent and not small:
        from inference import both_syntaxes
        from mammograms import mammograms

        files, origin = mammograms(folder)
        return both_syntaxes(files, folder), ("dicom", f"{origin} as .90 and .70")
    height, width = (320, 256) if small else (2776, 2082)
    generator, files = np.random.default_rng(0), []
    (folder / "pictures").mkdir()
    for number in range(8):
        file = folder / "pictures" / f"{number}.png"
        cv2.imwrite(str(file), smooth_noise(generator, height, width))
        files.append(file)
    why = "the small size" if small else f"DICOM is not decoded: {', '.join(absent)} absent"
    return files, ("image", f"PNG of {height} x {width}, {why}")


def _member(name: str, folder: Path, files: list[Path], source: str, context: Context) -> Row:
    """Figures of a network, the only one of an ensemble."""
    from rsna_bcd.inference.run import load_run

    experiment = [*overrides(name, context.small), f"name={name}"]
    (run_folder,) = make_ensemble(folder / "models", [experiment], 1, onnx=False)
    run = load_run(run_folder, context.device)
    batch_size = int(OmegaConf.load(Path(CONF, "submit.yaml")).batch_size)
    seconds = 1.0 if context.small else 4.0
    network = _network_seconds(run, batch_size, seconds)
    decoding = _decoding_seconds(
        files, run.crop, source, context.cores, 64 if context.small else 400
    )
    slower = max(decoding, network)
    del run
    if context.device == "cuda":
        torch.cuda.empty_cache()
    # For about 8 s at full speed, by which the start of processes counts little.
    images = 96 if context.small else min(2000, max(200, round(8 / slower)))
    start, each, how = _submit(folder, files, images, source, context)
    return {
        "network_s": round(network, 5),
        "decoding_s": round(decoding, 5),
        "submit_s": round(each, 5),
        "submit_over_slower": round(each / slower, 3),
        "submit_start_s": round(start, 1),
        "images": images,
        f"hours_for_{HIDDEN}": round((start + each * HIDDEN) / 3600, 2),
        "how": how,
    }


def _network_seconds(run: Any, batch_size: int, seconds: float) -> float:
    """Seconds per image of a network on crops in memory, as `submit` runs it, TTA included."""
    from rsna_bcd.inference.predictor import Predictor

    forward = Predictor(run, "auto")
    shape = (batch_size, 1, run.crop.height, run.crop.width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    for _ in range(2):
        forward.predict({"image": images})
    begin, batches = time.perf_counter(), 0
    while (used := time.perf_counter() - begin) < seconds:
        forward.predict({"image": images})  # returns when the probabilities are on the processor
        batches += 1
    return used / (batches * batch_size)


def _decoding_seconds(files: list[Path], crop: Any, source: Any, cores: int, number: int) -> float:
    """Seconds per image of decoding and cropping on all cores, their start left out."""
    from rsna_bcd.preparation import engine
    from rsna_bcd.preparation.crop import CropsTask, prepare_images

    tasks = ((n, CropsTask(files[n % len(files)], (crop,), source)) for n in range(number))
    moments = []
    with closing(engine.run(prepare_images, tasks, workers=cores, ahead=32)) as results:
        for result in results:
            if result.value is None:
                raise RuntimeError(result.reason)
            moments.append(time.perf_counter())
    return slope(moments)


def slope(moments: list[float]) -> float:
    """Seconds per event, the first quarter of the events left out."""
    first = len(moments) // 4
    return (moments[-1] - moments[first]) / max(1, len(moments) - 1 - first)


def _submit(
    folder: Path, files: list[Path], images: int, source: str, context: Context
) -> tuple[float, float, str]:
    """Run `submit`: seconds until its first prediction, seconds per image then, and its own words.

    Its journal gets a line per prediction as soon as that is made.
    """
    data = make_table(folder / "data", files, images)
    output = folder / "output"
    command = [
        *(sys.executable, "-m", "rsna_bcd.submit", f"name={NAME}", f"paths.data={data}"),
        *(f"paths.output={output}", f"paths.models={folder / 'models'}", f"source={source}"),
        *(f"device={context.device}", f"workers={context.cores}", "engine=torch"),
    ]
    log = context.folder / f"submit_{folder.name}.log"
    journal = output / "submissions" / NAME / "journal.jsonl"
    begin = time.perf_counter()
    moments: list[float] = []
    with log.open("w") as text:
        stage = subprocess.Popen(command, stdout=text, stderr=text)
        while stage.poll() is None:
            time.sleep(0.02)
            lines = journal.read_bytes().count(b"\n") - 1 if journal.is_file() else 0
            moments += [time.perf_counter()] * (lines - len(moments))
    if stage.returncode:
        raise RuntimeError(f"submit ended with exit code {stage.returncode}, see {log}")
    summary = json.loads((journal.parent / "summary.json").read_text())
    return moments[0] - begin, slope(moments), str(summary["how"])


def loader(context: Context) -> Iterator[Row]:
    """Train two epochs from crops on disk; the second epoch's images/s and wait for data."""
    from rsna_bcd.stages.train import train

    batches = 6 if context.small else 50
    names = EXPERIMENTS[:1] if context.small else EXPERIMENTS
    for name in (name for name in names if not context.has(name)):
        with tempfile.TemporaryDirectory(prefix="loader_") as folder:
            cfg = composed(*overrides(name, context.small))
            crop: Any = OmegaConf.to_container(cfg.crop)
            images = batches * int(cfg.batch_size)
            synthetic_crops(Path(folder), "rsna", crop, patients=max(16, math.ceil(images / 4)))
            no_augment = importlib.util.find_spec("albumentations") is None
            more = ["augment=none"] if no_augment else []
            cfg = composed(
                *overrides(name, context.small), *more, f"paths.output={folder}", "name=loader",
                "fold=all", "epochs=2", "negatives_per_positive=null", "~callbacks.progress",
                "+trainer.enable_progress_bar=false", "~callbacks.best",
            )  # fmt: skip
            train(cfg)
            epochs = pd.read_csv(Path(cfg.run_dir) / "timings.csv")
        last = epochs.iloc[-1]
        yield {
            "name": name,
            "images_per_second": float(last["images_per_second"]),
            "data_wait": float(last["data_wait"]),
            "workers": min(8, context.cores),
            "augment": "none, for albumentations is absent" if no_augment else "the experiment's",
        }
