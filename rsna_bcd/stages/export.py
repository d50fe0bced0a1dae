"""`python -m rsna_bcd.export`: a trained fold -> ONNX or `torch.export`, for other software."""

import json
import shutil
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from rsna_bcd.errors import InputError, difference
from rsna_bcd.files import file_sha256, write_file
from rsna_bcd.inference.export import (
    ONNX_FILE,
    TOLERANCE,
    TORCH_FILE,
    Forward,
    OnnxNetwork,
    Parity,
    load_program,
    measure_parity,
    prepared_crops,
    run_inputs,
)
from rsna_bcd.inference.run import Run, load_run
from rsna_bcd.models.checkpoint import weights_sha256
from rsna_bcd.models.exporting import (
    OPSET,
    Input,
    capture,
    save_onnx,
    save_torch,
)
from rsna_bcd.reporting.console import make_console

_FILES = {"onnx": ONNX_FILE, "torch": TORCH_FILE}
_PACKAGES = ("rsna_bcd", "torch", "timm", "onnx", "onnxscript", "onnxruntime")

_LOGIT = "log(p / (1 - p)) of the probability p"
_PROBABILITY = (
    "that a pathologist found cancer in this breast, as far as {seen} shows; from 0 to 1, and "
    "higher is more suspicious. It is not calibrated (trained with "
    "negatives_per_positive={ratio}): only a threshold that was fitted to this network's own "
    "probabilities decides. No medical device."
)
_SEEN = {
    "image": "this image (by breast: the {rule} over its images)",
    "breast": "the given images of the breast",
}
_TTA = (
    "not exported: for the run's own probability, take the mean of the logits of the images and of "
    "these transforms of them (rsna_bcd.models.prediction.transform): {transforms}"
)


def export(cfg: DictConfig) -> Path:
    """Write a fold's network as one file, compare it with the network, and describe it in a JSON.

    Returns:
        The file; its JSON has the same name and `.json`.

    Raises:
        InputError: no such run, packages that are not installed, a file of other
            weights in its place without `overwrite`, or a file that disagrees with the network,
            which is deleted.
    """
    console = make_console()
    run = load_run(Path(cfg.run_dir))
    file = Path(cfg.export_dir) / _FILES[cfg.format]
    card_file = file.with_name(f"{file.name}.json")
    settings = _settings(run, cfg.format)
    if _is_done(file, card_file, settings, overwrite=cfg.overwrite):
        console.print(f"{file} exists already.")
        return file
    inputs = run_inputs(run)
    description = _describe(run, inputs, settings)
    # Under its own name, which .pt2 files repeat inside, but out of the way until it is checked.
    unfinished = file.parent / f"unfinished_{cfg.format}" / file.name
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        exported = _write(run, inputs, cfg.format, unfinished, json.dumps(description))
        prepared = Path(cfg.paths.output) / "prepared" / run.record["dataset"]["name"]
        crops = prepared_crops(prepared / run.crop.name, run.crop.height, run.crop.width)
        parity = measure_parity(run.network, exported, inputs, crops, cfg.seed)
        if not parity.holds:
            raise InputError(
                f"The exported file differs from the network by {parity.probability:.2g} in "
                f"probability, more than {TOLERANCE:g}: it was not kept. Try the other format, or "
                "other versions of torch and onnxscript."
            )
        card_file.unlink(missing_ok=True)  # a file without one is not finished
        unfinished.replace(file)
    finally:
        shutil.rmtree(unfinished.parent)
    card = {**description, "sha256": file_sha256(file), "parity": asdict(parity)}
    write_file(card_file, json.dumps(card, indent=1) + "\n")
    _print(console, file, run, parity)
    return file


def _settings(run: Run, file_format: str) -> dict[str, Any]:
    """The settings of a file."""
    return {
        "name": run.record["name"],
        "fold": run.record["fold"],
        "format": file_format,
        "opset": OPSET if file_format == "onnx" else None,
        "crop": _plain(run.record["crop"]),
        "weights_sha256": weights_sha256(run.network.state_dict()),
    }


def _is_done(file: Path, card_file: Path, settings: dict[str, Any], *, overwrite: bool) -> bool:
    """Whether there is a whole file of these settings; an InputError, if it is of others."""
    if overwrite or not file.is_file() or not card_file.is_file():
        return False
    card = json.loads(card_file.read_text(encoding="utf-8"))
    existing = {key: card.get(key) for key in settings}
    differing = "\n".join(f"  {line}" for line in difference(existing, settings))
    if differing:
        raise InputError(
            f"{file} was made with other settings (there -> now):\n{differing}\n"
            "Choose another paths.output, or export again with overwrite=true."
        )
    return bool(card["sha256"] == file_sha256(file))


def _describe(run: Run, inputs: tuple[Input, ...], settings: dict[str, Any]) -> dict[str, Any]:
    """The description beside the file and inside it."""
    record = run.record
    seen = _SEEN[run.level].format(rule=record["breast_rule"])
    ratio = record["negatives_per_positive"]
    probability = _PROBABILITY.format(seen=seen, ratio="null" if ratio is None else ratio)
    return {
        **settings,
        "dataset": record["dataset"]["name"],
        "unit": run.level,
        "inputs": [asdict(entry) for entry in inputs],
        "outputs": [
            {"name": "logit", "shape": ["batch"], "dtype": "float32", "meaning": _LOGIT},
            {
                "name": "probability", "shape": ["batch"], "dtype": "float32", "low": 0, "high": 1,
                "meaning": probability,
            },
        ],
        "source": run.source,
        "views": _plain(record.get("views")) if run.level == "breast" else None,
        "metadata": _plain(record.get("metadata")),
        "tta": _tta(run),
        "versions": {package: _version(package) for package in _PACKAGES},
    }  # fmt: skip


def _tta(run: Run) -> str:
    """How the run's test-time augmentation is done with the file."""
    if not run.tta:
        return "none, in the run either"
    return _TTA.format(transforms=", ".join(run.tta))


def _plain(settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """Settings without the name of our class."""
    return settings and {k: value for k, value in settings.items() if not k.startswith("_")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write(
    run: Run, inputs: tuple[Input, ...], file_format: str, file: Path, description: str
) -> Forward:
    """Write the file and load it again."""
    program = capture(run.network, inputs)
    if file_format == "torch":
        save_torch(program, file, description)
        return load_program(file)
    save_onnx(program, inputs, file, description)
    return OnnxNetwork(file)


def _print(console: Console, file: Path, run: Run, parity: Parity) -> None:
    on = "prepared crops" if parity.images == "crops" else "blots and noise"
    for line in (
        f"{file} ({file.stat().st_size / 1e6:.1f} MB) and {file.name}.json",
        f"differs from the network by at most {parity.probability:.1e} in probability on {on}, "
        f"in batches of {', '.join(map(str, parity.batches))}; the probabilities lay between "
        f"{parity.lowest:.3f} and {parity.highest:.3f}",
        f"inputs of {run.crop.height} x {run.crop.width} pixels; TTA: {_tta(run)}",
    ):
        console.print(line)
