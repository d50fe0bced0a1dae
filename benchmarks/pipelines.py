"""Pipelines from a DICOM file to a PNG of the breast: ours and two reference pipelines."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import dicomsdl
import numpy as np
import pydicom
from commands import composed
from hydra.utils import instantiate
from omegaconf import DictConfig
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from rsna_bcd.imaging.codecs import DECODERS
from rsna_bcd.preparation.crop import CropSettings, CropTask, Png, make_crop

Pipeline = Callable[[Path, Path], None]  # source file, PNG


def prepare_config(crop: str, reduce: int | None = None) -> DictConfig:
    """The configuration of `prepare`."""
    overrides = [f"crop={crop}", *([] if reduce is None else [f"crop.reduce={reduce}"])]
    config: DictConfig = composed(*overrides, command="prepare")
    return config


def crop_settings_named(crop: str) -> CropSettings:
    """The settings of `conf/crop/<crop>.yaml`."""
    settings: CropSettings = instantiate(prepare_config(crop).crop)
    return settings


def ours(crop: str, reduce: int | None = None) -> Pipeline:
    """The preparation of one file by `prepare`."""
    cfg = prepare_config(crop, reduce)
    settings, png = instantiate(cfg.crop), Png(**cfg.png)

    def pipeline(source: Path, target: Path) -> None:
        make_crop(CropTask(source, target, settings, "dicom", tuple(DECODERS), png))

    return pipeline


@dataclass
class _Windowed:
    """Stored values and their window."""

    pixels: np.ndarray
    center: float
    width: float
    function: str
    inverted: bool


def first_place(crop: str) -> Pipeline:
    """The first place's CPU path, to a PNG by imwrite."""
    settings = crop_settings_named(crop)

    def pipeline(source: Path, target: Path) -> None:
        cv2.imwrite(str(target), first_place_crop(source, settings))

    return pipeline


def first_place_crop(source: Path, settings: CropSettings) -> np.ndarray:
    """The first place's CPU path: dicomsdl at full resolution, window, crop, resize.

    After github.com/dangnh0611/kaggle_rsna_breast_cancer (src/submit/export_comp.py), in our words:
    the whole image is scaled from its minimum to its maximum in float32 and resized to 416 pixels,
    where the breast is searched; the window is applied to the crop in float32; interpolation is
    bilinear. Wherever this differs from theirs it costs less: the search is by Otsu's threshold,
    their fallback, without its dilation (their detector network is left out), the header is read
    once, and 8 bits, not float32, are resized.

    Returns:
        uint8, (height, width).
    """
    file = dicomsdl.open(str(source))
    info = file.getPixelDataInfo()
    pixels = np.empty((info["Rows"], info["Cols"]), info["dtype"])
    file.copyFrameData(0, pixels)
    centers, widths = file.WindowCenter, file.WindowWidth
    image = _Windowed(
        pixels,
        float(centers[0] if isinstance(centers, list) else centers),
        float(widths[0] if isinstance(widths, list) else widths),
        str(file.VOILUTFunction or "LINEAR").upper(),
        file.PhotometricInterpretation == "MONOCHROME1",
    )
    low, high = pixels.min(), pixels.max()
    scaled = (pixels.astype(np.float32) - low) / (high - low) * 255
    left, top, right, bottom = _otsu_box(255 - scaled if image.inverted else scaled)
    shown = _window(image, pixels[top:bottom, left:right])
    return _padded(shown, settings, cv2.INTER_LINEAR)


def notebook(crop: str) -> Pipeline:
    """Pydicom's defaults: modality and VOI LUT, then the same box, resize, imwrite."""
    settings = crop_settings_named(crop)

    def pipeline(source: Path, target: Path) -> None:
        dataset = pydicom.dcmread(source)
        pixels = dataset.pixel_array
        values: Any = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset)
        inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
        if inverted:
            values = values.max() - values
        values = values - values.min()
        shown = (values / values.max() * 255).astype(np.uint8)
        left, top, right, bottom = _otsu_box(shown)
        cropped = shown[top:bottom, left:right]
        cv2.imwrite(str(target), _padded(cropped, settings, cv2.INTER_AREA))

    return pipeline


def _otsu_box(shown: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the largest bright piece of a picture in [0, 255]."""
    ratio = 416 / max(shown.shape)
    size = (round(shown.shape[1] * ratio), round(shown.shape[0] * ratio))
    small = cv2.resize(shown, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    blurred = cv2.GaussianBlur(small, (5, 5), 0)
    _, mask = cv2.threshold(blurred, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))
    return int(x / ratio), int(y / ratio), int((x + w) / ratio), int((y + h) / ratio)


def _window(image: _Windowed, region: np.ndarray) -> np.ndarray:
    """8 bits, in float32 on the pipeline."""
    values = region.astype(np.float32)
    if image.function == "SIGMOID":
        shown = 255 / (1 + np.exp((values - image.center) * np.float32(-4 / image.width)))
    else:
        slope = 255 / (image.width - 1)
        offset = (-(image.center - 0.5) / (image.width - 1) + 0.5) * 255
        shown = np.clip(values * np.float32(slope) + np.float32(offset), 0, 255)
    return (255 - shown if image.inverted else shown).astype(np.uint8)


def _padded(shown: np.ndarray, settings: CropSettings, interpolation: int) -> np.ndarray:
    """Resized at its aspect, in the middle of the crop."""
    ratio = min(settings.height / shown.shape[0], settings.width / shown.shape[1])
    size = (round(shown.shape[1] * ratio), round(shown.shape[0] * ratio))
    resized = cv2.resize(shown, size, interpolation=interpolation)
    crop = np.zeros((settings.height, settings.width), np.uint8)
    top, left = (settings.height - size[1]) // 2, (settings.width - size[0]) // 2
    crop[top : top + size[1], left : left + size[0]] = resized
    return crop
