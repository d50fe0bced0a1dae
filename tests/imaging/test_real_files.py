"""Real mammograms, for those who have them.

RSNA_BCD_REAL_DATA names a folder with `rsna` (the competition's layout, and `breast_boxes.csv`
drawn by hand) and `rsna640` (pictures of 640 x 640).
"""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from rsna_bcd.imaging.breast import Box, find_breast
from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.preparation.crop import CropSettings, crop_mammogram, read_mammogram

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not os.environ.get("RSNA_BCD_REAL_DATA"), reason="no real data"),
]
SETTINGS = CropSettings("real", 512, 256, box="breast", margin=0.01, orient=True, fit="pad")


def real_data() -> Path:
    return Path(os.environ["RSNA_BCD_REAL_DATA"])


def overlap(ours: Box, theirs: tuple[float, float, float, float]) -> tuple[float, float]:
    """Part of their box that ours covers, and intersection over union."""
    left, top, right, bottom = theirs
    across = max(0.0, min(ours.left + ours.width, right) - max(ours.left, left))
    down = max(0.0, min(ours.top + ours.height, bottom) - max(ours.top, top))
    both, area = across * down, (right - left) * (bottom - top)
    return both / area, both / (area + ours.width * ours.height - both)


def test_find_breast_covers_the_boxes_drawn_by_hand() -> None:
    boxes = pd.read_csv(real_data() / "rsna/breast_boxes.csv", dtype={"image_id": str})
    files = {f.stem: f for f in real_data().rglob("*_images/*/*") if f.suffix in (".dcm", ".jpg")}
    drawn = boxes[boxes["image_id"].isin(files.keys())].drop_duplicates("image_id")
    assert len(drawn) == 19
    covered, united = {}, []
    for row in drawn.itertuples():
        file = files[str(row.image_id)]
        mammogram = read_mammogram(file, "dicom" if file.suffix == ".dcm" else "image")
        record = crop_mammogram(mammogram, SETTINGS).record
        ours = Box(*(int(record[f"box_{k}"] or 0) for k in ("left", "top", "width", "height")))
        height, width = mammogram.pixels.shape
        corners = np.array([row.x_center, row.y_center, row.x_center, row.y_center], float)
        corners += np.array([-1, -1, 1, 1]) / 2 * np.tile([row.width, row.height], 2)
        corners = np.clip(corners, 0, 1) * np.tile([width, height], 2)
        covered[row.image_id], iou = overlap(ours, tuple(corners))
        united.append(iou)
    assert min(covered.values()) >= 0.995, covered
    assert np.median(united) >= 0.92, united


def test_find_breast_does_not_run_down_the_abdomen() -> None:
    views = pd.read_csv(real_data() / "rsna640/train.csv", dtype=str).set_index("image_id")["view"]
    strips: dict[str, list[bool]] = {"CC": [], "MLO": []}
    for file in sorted(real_data().glob("rsna640/train_images/*/*.jpg"))[::10]:
        mammogram = read_mammogram(file, "image")
        box = find_breast(mammogram.preview()).box
        # At a level of 20 of 255, how long all rows are narrower than 12 % of the widest one.
        widths = (box.crop(mammogram.preview()) > 20 / 255).sum(axis=1)[::-1]
        narrow = int(np.argmax(widths >= 0.12 * widths.max()))
        strips.setdefault(views[file.stem], []).append(narrow > 0.1 * box.height)
    assert len(strips["MLO"]) > 90
    assert np.mean(strips["MLO"]) <= 0.05
    assert np.mean(strips["CC"]) <= 0.02


# The side of the chest wall; None for a spot view and a specimen, which show none.
ODM_SIDES = {
    "983328874638": "left", "982539173423": "left", "968914551649": "left",
    "089696733213": "right", "703349551744": "right", "386116884710": None,
    "064057885504": None, "022803610056": "left", "078470093323": "right",
    "702631474992": "left", "992963422541": "right", "241107738522": "right",
}  # fmt: skip


def test_find_breast_chest_wall_of_images_without_a_window() -> None:
    files = sorted(real_data().glob("odm/*.DCM"))
    assert {file.stem[-12:] for file in files} == set(ODM_SIDES)
    for file in files:
        breast = find_breast(read_dicom(file).preview())
        assert breast.found
        assert ODM_SIDES[file.stem[-12:]] in (None, breast.chest_wall), file


def test_read_dicom_agrees_with_pydicom_and_reduced_crops_with_full_ones() -> None:
    files = sorted(real_data().glob("rsna/*_images/*/*.dcm"))
    assert len(files) == 11
    for file, height in zip(files, itertools.cycle((1024, 1536, 2048)), strict=False):
        mammogram = read_dicom(file)
        dataset = pydicom.dcmread(file)
        dataset.pixel_array_options(decoding_plugin="gdcm")
        np.testing.assert_array_equal(mammogram.pixels, dataset.pixel_array)
        small = crop_mammogram(mammogram, SETTINGS)
        assert small.record["breast_found"]
        assert small.pixels[:, 0].mean() > 4 * small.pixels[:, -1].mean() + 10
        settings = replace(SETTINGS, height=height, width=height // 2)
        full = crop_mammogram(mammogram, settings).pixels.astype(float)
        reduced = crop_mammogram(mammogram, replace(settings, reduce=5)).pixels
        assert np.abs(full - reduced).mean() <= 1
        assert ((full - reduced) ** 2).mean() <= 255**2 / 10**4.2  # PSNR of at least 42 dB
