"""Where the files of a table are."""

from pathlib import Path

import pandas as pd

from rsna_bcd.imaging.picture import SUFFIXES
from rsna_bcd.preparation.crop import Source


def find_files(root: Path, images: pd.DataFrame, source: Source) -> dict[str, Path]:
    """The file of each image that is on disk: `<root>/<patient_id>/<image_id>.<suffix>`.

    Args:
        root: `train_images` or `test_images`.
        images: table from `read_images`.
        source: `dicom` looks for `.dcm`, `image` for pictures.

    Returns:
        Paths by `image_id`; images without a file are absent.
    """
    suffixes = (".dcm",) if source == "dicom" else SUFFIXES
    found = {}
    for patient_id, rows in images.groupby("patient_id", sort=False):
        folder = root / str(patient_id)
        names = {file.name: file for file in folder.iterdir()} if folder.is_dir() else {}
        for image_id in rows["image_id"]:
            present = [names[image_id + s] for s in suffixes if image_id + s in names]
            if present:
                found[image_id] = present[0]
    return found
