"""`python -m rsna_bcd.rehearse`: run a bundle's notebook as Kaggle would, without a network."""

import json
import shutil
import tempfile
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from rsna_bcd.bundling.image import IMAGE, lay_out, make_image, run_offline
from rsna_bcd.bundling.notebook import KERNEL, NOTEBOOK
from rsna_bcd.errors import InputError
from rsna_bcd.inference.export import TOLERANCE
from rsna_bcd.reporting.console import make_console
from rsna_bcd.tables.predictions import SUBMISSION_COLUMNS


def rehearse(cfg: DictConfig) -> float:
    """Execute the notebook in a clean Python, offline, and compare with the direct submission.

    Returns:
        The largest difference of a breast's probability.

    Raises:
        InputError: no bundle or submission, another Python, no network namespace, a failed cell, or
            another submission than the direct one.
    """
    bundle, direct = Path(cfg.bundle_dir), Path(cfg.submission_dir)
    arguments = f"name={cfg.name} paths.output={cfg.paths.output} paths.data={cfg.paths.data}"
    for file, made_by in (
        (bundle / "kernel" / NOTEBOOK, "bundle"),
        (direct / "submission.csv", "submit"),
    ):
        if not file.is_file():
            raise InputError(
                f"There is no {file}. Make it:\n  python -m rsna_bcd.{made_by} {arguments}"
            )
    data = Path(cfg.paths.data)
    if not (data / "test.csv").is_file():
        raise InputError(
            f"There is no {data / 'test.csv'}: paths.data= is the competition's folder."
        )
    console, root = make_console(), bundle / "rehearsal"
    shutil.rmtree(root, ignore_errors=True)
    kernel = json.loads((bundle / "kernel" / KERNEL).read_text(encoding="utf-8"))
    slug, competition = kernel["dataset_sources"][0].split("/")[1], kernel["competition_sources"][0]
    lay_out(root, bundle / "dataset", slug, data, competition)
    packages = bundle / IMAGE if cfg.packages is None else Path(cfg.packages)
    with tempfile.TemporaryDirectory(prefix="image_", dir=root) as image:
        console.print("A clean Python with the packages of Kaggle's image ...")
        python = make_image(cfg.interpreter, packages, Path(image))
        console.print("The notebook, without a network ...")
        run_offline(python, bundle / "kernel" / NOTEBOOK, root)
    rehearsed = root / "working" / "output" / "submissions" / cfg.name
    difference = compare(root / "working" / "submission.csv", rehearsed, direct)
    console.print(
        f"The same submission as {direct / 'submission.csv'}; probabilities differ by at most "
        f"{difference:.2g}."
    )
    return difference


def compare(submission: Path, rehearsed: Path, direct: Path) -> float:
    """Check that the notebook's submission makes the same decisions as the direct one.

    Args:
        submission: the file that the notebook wrote.
        rehearsed: the folder in which the notebook worked.
        direct: the folder of the direct submission.

    Returns:
        The largest difference of two probabilities, at most 1e-4.

    Raises:
        InputError: they differ, or probabilities do by more.
    """
    ours, theirs = (
        pd.read_csv(f)[list(SUBMISSION_COLUMNS)] for f in (submission, direct / "submission.csv")
    )
    if not ours.equals(theirs):
        raise InputError(
            f"{submission} differs from {direct / 'submission.csv'}. If the latter is older "
            "or of other data, make it again."
        )
    first, second = (
        pd.read_csv(folder / "predictions.csv").set_index("prediction_id")["probability"]
        for folder in (rehearsed, direct)
    )
    difference = float((first - second).abs().max(skipna=False))
    if not difference <= TOLERANCE:
        raise InputError(f"Probabilities differ by {difference:.2g}, more than {TOLERANCE:g}.")
    return difference
