"""Prepared crops to measure with: a folder that is there, else synthetic ones."""

import subprocess
import sys
from pathlib import Path


def prepared(folder: Path, crop: str, patients: int) -> Path:
    """Make crops of a synthetic competition below `folder`, which may hold other crops of it.

    Args:
        folder: where to.
        crop: of `conf/crop/`.
        patients: of four images and more each, of about 1,300 x 1,000 pixels.

    Returns:
        What to give as `paths.output`.
    """
    data, output = folder / "data", folder / "output"
    if not data.exists():
        sizes = [f"size.train_patients={patients}", "size.test_patients=1", "size.prevalence=0.5"]
        _run("synthesize", f"paths.data={data}", *sizes, "appearance.pixel_mm=0.2")
    _run(
        "prepare", f"paths.data={data}", f"paths.output={output}", f"crop={crop}", "splits=[train]"
    )
    return output


def _run(stage: str, *overrides: str) -> None:
    command = [sys.executable, "-m", f"rsna_bcd.{stage}", *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
