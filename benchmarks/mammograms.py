"""Files to measure with: real mammograms where there are any, else synthetic ones of their size."""

import os
from pathlib import Path

import pydicom
from commands import run_command

from rsna_bcd.phantom.scanner import transcode

SYNTAXES = {  # UIDs by short name
    "raw": "1.2.840.10008.1.2.1",
    "rle": "1.2.840.10008.1.2.5",
    ".70": "1.2.840.10008.1.2.4.70",
    ".80": "1.2.840.10008.1.2.4.80",
    ".90": "1.2.840.10008.1.2.4.90",
}


def mammograms(folder: Path) -> tuple[list[Path], str]:
    """DICOM files of real size, and where they are from.

    Real ones are the `*.dcm` below `rsna` in the folder that RSNA_BCD_REAL_DATA names. Synthetic
    ones are made below `folder`: 4 of about 2,900 x 2,300 pixels.
    """
    if "RSNA_BCD_REAL_DATA" in os.environ:
        files = sorted(Path(os.environ["RSNA_BCD_REAL_DATA"]).glob("rsna/*_images/*/*.dcm"))
        return files, f"{len(files)} real files"
    data = folder / "competition"
    sizes = "size.train_patients=1", "size.test_patients=1", "appearance.pixel_mm=0.09"
    run_command("synthesize", f"paths.data={data}", *sizes)
    files = sorted(data.glob("train_images/*/*.dcm"))[:4]
    return files, f"{len(files)} synthetic files"


def transcoded(files: list[Path], folder: Path, syntax: str) -> list[Path]:
    """The files in another syntax, below `folder`; those that have it stay where they are."""
    uid = SYNTAXES[syntax]
    result = []
    for file in files:
        if pydicom.dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID == uid:
            result.append(file)
            continue
        target = folder / syntax.lstrip(".") / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        transcode(file, target, uid)
        # Only the pixel data are GDCM's: it changes elements of the header as well.
        dataset, coded = pydicom.dcmread(file), pydicom.dcmread(target)
        dataset["PixelData"] = coded["PixelData"]
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
        dataset.save_as(target)
        result.append(target)
    return result
