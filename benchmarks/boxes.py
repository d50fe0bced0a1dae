"""Boxes of breasts on real images: strips of abdomen, boxes drawn by hand, the chest wall's side.

    python benchmarks/boxes.py DATA

DATA has `rsna` (`breast_boxes.csv`, DICOM files), `rsna640` (pictures) and, if need be, `odm`
(DICOM files without a window). A strip is an end of the box of more than 10 % of its height in
which every row is narrower than 12 % of the widest row, at a level of 20 of 255. Coverage is the
part of the hand-drawn box that ours covers, IoU intersection over union.
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pipelines import crop_settings_named
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rsna_bcd.imaging.breast import Box
from rsna_bcd.imaging.mammogram import Mammogram
from rsna_bcd.preparation.crop import CropSettings, crop_mammogram, read_mammogram

_LEVEL, _NARROW, _LONG = 20, 0.12, 0.1


class Located(NamedTuple):
    """An image, the box in source pixels, the crop and its record."""

    mammogram: Mammogram
    box: Box
    crop: np.ndarray
    record: dict[str, Any]


def locate(file: Path, settings: CropSettings) -> Located:
    """Find the breast in a file as `prepare` does."""
    mammogram = read_mammogram(file, "image" if file.suffix == ".jpg" else "dicom")
    prepared = crop_mammogram(mammogram, settings)
    record: dict[str, Any] = prepared.record
    sides = (record[f"box_{side}"] for side in ("left", "top", "width", "height"))
    return Located(mammogram, Box(*sides), prepared.pixels, record)


def strip_below(located: Located) -> float:
    """The part of the box's height, from its lower end, in which all rows are narrow."""
    shown = located.mammogram.display.apply(located.box.crop(located.mammogram.pixels))
    widths = (shown > _LEVEL / 255).sum(axis=1)[::-1]
    wide = np.flatnonzero(widths >= _NARROW * widths.max())
    return float(wide[0]) / len(widths)


def agreement(located: Located, drawn: Any) -> tuple[float, float]:
    """Coverage and IoU, given relative centre and size of the hand-drawn box."""
    height, width = located.mammogram.height, located.mammogram.width
    ours = located.box
    left, right = (drawn.x_center + sign * drawn.width / 2 for sign in (-1, 1))
    top, bottom = (drawn.y_center + sign * drawn.height / 2 for sign in (-1, 1))
    left, right = (min(max(x, 0), 1) * width for x in (left, right))
    top, bottom = (min(max(y, 0), 1) * height for y in (top, bottom))
    across = max(0, min(ours.left + ours.width, right) - max(ours.left, left))
    down = max(0, min(ours.top + ours.height, bottom) - max(ours.top, top))
    both, area = across * down, (right - left) * (bottom - top)
    return both / area, both / (area + ours.width * ours.height - both)


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    console, settings = Console(width=110), crop_settings_named("h512")
    views = pd.read_csv(data / "rsna640/train.csv", dtype=str).set_index("image_id")["view"]
    drawn = pd.read_csv(data / "rsna/breast_boxes.csv", dtype={"image_id": str})
    drawn = drawn.drop_duplicates("image_id").set_index("image_id")
    pictures = sorted(data.glob("rsna640/train_images/*/*.jpg"))
    dicoms = [f for f in sorted(data.glob("rsna/*_images/*/*.dcm")) if f.stem in drawn.index]
    strips: dict[str, list[float]] = {}
    by_hand = Table("image", "coverage", "IoU", title="boxes drawn by hand")
    covered, united = [], []
    for file in track(pictures + dicoms, "Locating", console=Console(stderr=True)):
        located = locate(file, settings)
        if file.suffix == ".jpg":
            strips.setdefault(str(views[file.stem]), []).append(strip_below(located))
        if file.stem in drawn.index:
            coverage, iou = agreement(located, drawn.loc[file.stem])
            by_hand.add_row(file.stem, f"{coverage:.3f}", f"{iou:.3f}")
            covered.append(coverage)
            united.append(iou)
    table = Table("view", "images", "strips", "part", title="strips at the lower end")
    for view, parts in strips.items():
        count = sum(part > _LONG for part in parts)
        table.add_row(view, str(len(parts)), str(count), f"{count / len(parts):.1%}")
    console.print(table)
    console.print(by_hand)
    console.print(f"lowest coverage {min(covered):.3f}, median IoU {median(united):.3f}")
    sides = Table("file", "found", "flipped", "rotated", "box", "tissue at the left, right edge")
    for file in sorted(data.glob("odm/*.DCM")):
        *_, box, crop, record = locate(file, settings)
        rows = crop[crop.any(axis=1)][:, crop.any(axis=0)] > _LEVEL
        edges = f"{rows[:, :3].mean():.2f}, {rows[:, -3:].mean():.2f}"
        flags = (str(record[key]) for key in ("breast_found", "flipped", "rotated"))
        where = f"{box.width} x {box.height} at {box.left}, {box.top}"
        sides.add_row(file.stem[-12:], *flags, where, edges)
    console.print(sides)


if __name__ == "__main__":
    main()
