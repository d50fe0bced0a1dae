"""The picture: what is on it, that it can be read, and that it is the same on every day."""

import itertools
import struct
import subprocess
import sys
from collections import Counter
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray

from rsna_bcd.reporting.contact_sheet import (
    CropSample,
    SampledImage,
    as_png,
    contact_sheet,
    sample_crops,
)

RED, ORANGE = (255, 92, 92), (255, 166, 43)
REASON = "damaged header: With tag (0028,0010) got exception: unpack requires a buffer of 2 bytes"


def crop_of(image: SampledImage, shape: tuple[int, int] = (384, 192)) -> NDArray[np.uint8]:
    """Noise that is of this image alone."""
    generator = np.random.default_rng(int(image.image_id))
    return generator.integers(0, 256, shape, np.uint8)


def sample(
    n: int = 12,
    failures: dict[str, str] | None = None,
    whole: tuple[str, ...] = (),
    missing: tuple[str, ...] = (),
    **columns: Any,
) -> CropSample:
    """Images 0 to n - 1 of three machines, and what became of them."""
    failures = failures or {}
    ids = [str(row) for row in range(n)]
    images = pd.DataFrame({"patient_id": "1", "image_id": ids, "laterality": "L", "view": "MLO"})
    images["machine_id"] = [row % 3 for row in range(n)]
    finished = {i: i not in whole for i in ids if i not in failures and i not in missing}
    return sample_crops(images.assign(**columns), finished, failures)


def decoded(png: bytes) -> NDArray[np.uint8]:
    """(H, W, 3), red first."""
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    return pixels.astype(np.uint8)


def place_of(small: NDArray[np.uint8], sheet: NDArray[np.uint8]) -> tuple[int, int]:
    """Top and left of a picture on the sheet, on which it must be exactly once."""
    distance = cv2.matchTemplate(sheet[..., 0], small, cv2.TM_SQDIFF)
    top, left = np.unravel_index(distance.argmin(), distance.shape)
    window = sheet[top : top + small.shape[0], left : left + small.shape[1]]
    assert (window == small[..., None]).all()
    return int(top), int(left)


def halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of each 2 x 2 pixels, rounded as OpenCV does: halves upwards."""
    height, width = pixels.shape
    sums = pixels.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3), dtype=np.int32)
    return ((sums + 2) // 4).astype(np.uint8)


def words(chosen: CropSample, title: str = "title") -> list[str]:
    figure = contact_sheet(chosen, crop_of, title)
    return [text.get_text() for text in figure.axes[0].texts]


def test_every_crop_is_on_the_sheet_pixel_by_pixel() -> None:
    chosen = sample()
    sheet = decoded(as_png(contact_sheet(chosen, crop_of, "title")))
    images = [image for machine in chosen.machines for image in machine.images]
    places = {place_of(halved(crop_of(image)), sheet) for image in images}
    assert len(places) == len(images) == 12
    # Lines are machines: three distances from the top, in the machines' order.
    tops = [
        {place_of(halved(crop_of(image)), sheet)[0] for image in machine.images}
        for machine in chosen.machines
    ]
    assert [len(top) for top in tops] == [1, 1, 1]
    assert tops == sorted(tops, key=min)


def test_crops_of_16_bits_look_like_those_of_8() -> None:
    def read(image: SampledImage) -> NDArray[np.uint16]:
        return np.full((384, 192), int(image.image_id) * 256 + 255, np.uint16)

    def read_8(image: SampledImage) -> NDArray[np.uint8]:
        return np.full((384, 192), int(image.image_id), np.uint8)

    chosen = sample()
    assert as_png(contact_sheet(chosen, read, "")) == as_png(contact_sheet(chosen, read_8, ""))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64, 32), (192, 96)), ((500, 1000), (144, 288)), ((768, 768), (192, 192))],
)
def test_crops_of_any_size_keep_their_aspect(
    shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    sheet = decoded(
        as_png(contact_sheet(sample(3), lambda _: np.full(shape, 201, np.uint8), "title"))
    )
    area = (sheet == 201).all(axis=2)
    assert area.sum(axis=1).max() == expected[1]
    assert area.sum(axis=0).max() == 3 * expected[0]  # three machines below each other


def test_the_same_sample_gives_the_same_bytes_without_a_date_or_a_version() -> None:
    chosen = sample(failures={"4": REASON}, whole=("5",))
    png = as_png(contact_sheet(chosen, crop_of, "title"))
    assert png == as_png(contact_sheet(chosen, crop_of, "title"))
    assert png != as_png(contact_sheet(chosen, crop_of, "another"))
    chunks, position = [], 8
    while position < len(png):
        length, name = struct.unpack(">I4s", png[position : position + 8])
        chunks.append(name)
        position += 12 + length
    assert set(chunks) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def test_the_settings_of_a_user_change_nothing() -> None:
    chosen = sample(failures={"4": REASON})
    png = as_png(contact_sheet(chosen, crop_of, "title"))
    theirs = {
        "font.family": "serif", "font.size": 30.0, "figure.dpi": 50, "savefig.bbox": "tight",
        "savefig.dpi": 300, "image.origin": "lower", "image.cmap": "jet", "text.color": "blue",
        "figure.constrained_layout.use": True, "axes.facecolor": "white", "axes.grid": True,
    }  # fmt: skip
    with mpl.rc_context(theirs):  # type: ignore[arg-type]
        assert as_png(contact_sheet(chosen, crop_of, "title")) == png


def test_failures_have_a_red_frame_and_whole_frames_an_orange_one() -> None:
    def longest(sheet: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
        return int((sheet == colour).all(axis=2).sum(axis=0).max())

    plain = decoded(as_png(contact_sheet(sample(), crop_of, "title")))
    assert longest(plain, RED) < 20  # the legend
    assert longest(plain, ORANGE) < 20
    chosen = sample(failures={"4": "cut short"}, whole=("5",))
    sheet = decoded(as_png(contact_sheet(chosen, crop_of, "title")))
    assert longest(sheet, RED) >= 192
    top, left = place_of(halved(crop_of(SampledImage("1", "5", "whole frame", "", ""))), sheet)
    around = np.ones((194, 98), bool)
    around[1:-1, 1:-1] = False
    frame = sheet[top - 1 : top + 193, left - 1 : left + 97][around]
    assert (frame == ORANGE).all()
    assert Counter(words(chosen))["whole frame"] == 1
    assert Counter(words(chosen))["failed"] == 1


def test_header_and_labels_count_all_images() -> None:
    chosen = sample(1200, failures={"4": "cut short", "7": "?"}, whole=("5",), missing=("6",))
    texts = words(chosen, "rsna, h1024, train")
    assert texts[0] == "rsna, h1024, train"
    assert texts[1:5] == ["1,197 crops", "2 failed", "1 whole frame", "1 missing"]
    first = texts.index("machine 0")
    assert texts[first : first + 3] == ["machine 0", "400 images", "1 missing"]


def test_machines_left_out_are_counted() -> None:
    assert not any("Not shown" in text for text in words(sample()))
    texts = words(sample(26, machine_id=[n // 2 for n in range(26)]))
    assert texts[-1].endswith("Not shown: 1 machine with 2 images.")


def test_reasons_are_there_word_by_word_and_dollars_are_no_formula() -> None:
    texts = words(sample(failures={"4": REASON, "5": r"cost $\nosuch$ and $x^2$"}))
    assert REASON in " ".join(texts)
    assert r"cost $\nosuch$ and $x^2$" in " ".join(texts)
    png = as_png(contact_sheet(sample(failures={"5": r"$\nosuch$"}), crop_of, r"$\nosuch$"))
    assert png.startswith(b"\x89PNG")


def test_no_text_covers_another_or_leaves_the_sheet() -> None:
    long = "1.2.840.113681.2750824172.981.3361214417.4210.1"
    n = 24
    chosen = sample(
        n,
        failures={"4": REASON * 5, "5": "W" * 300, "7": "$ä_g$", "8": "\n".join("abc" * 30)},
        whole=("9", "10"),
        missing=("11",),
        view=long,
        cancer=1,
        site_id=long,
        machine_id=["GE Senographe Essential ADS_54.20 " * 4, "Wwwwwwwwwwwwwwwwwwwwwwww", 3] * 8,
    )
    figure = contact_sheet(chosen, crop_of, "A title that goes on " * 20)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    width, height = canvas.get_width_height()
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
    for one, other in itertools.combinations(boxes, 2):
        apart_x = one.x1 <= other.x0 + 1 or other.x1 <= one.x0 + 1
        # Extents have room for letters with descenders; lines may share two pixels of it.
        apart_y = one.y1 <= other.y0 + 2 or other.y1 <= one.y0 + 2
        assert apart_x or apart_y


def test_only_crops_are_read_and_each_once() -> None:
    seen: list[str] = []

    def read(image: SampledImage) -> NDArray[np.uint8]:
        seen.append(image.image_id)
        return crop_of(image)

    contact_sheet(sample(failures={"4": "?"}, whole=("5",), missing=("6",)), read, "title")
    assert sorted(seen, key=int) == [str(i) for i in range(12) if i not in (4, 6)]


def test_a_sheet_without_any_crop_is_drawn() -> None:
    chosen = sample(3, failures={str(i): f"reason {i}" for i in range(3)})
    assert {"0 crops", "3 failed", "reason 0", "reason 1", "reason 2"} <= set(words(chosen))


def test_neither_pyplot_nor_torch_is_loaded() -> None:
    """The preparation draws sheets; it must not wait for torch, nor set a backend for others."""
    code = (
        "import sys, rsna_bcd.reporting.contact_sheet\n"
        "print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
