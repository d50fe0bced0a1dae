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
    folders = {patient_id: root / patient_id for patient_id in images["patient_id"].unique()}
    names = {  # one listing a patient is cheaper than a question for each file and suffix
        patient_id: {file.name for file in folder.iterdir()} if folder.is_dir() else set()
        for patient_id, folder in folders.items()
    }
    found = {}
    for patient_id, image_id in zip(images["patient_id"], images["image_id"], strict=True):
        present = [image_id + s for s in suffixes if image_id + s in names[patient_id]]
        if present:
            found[image_id] = folders[patient_id] / present[0]
    return found
