"""Contact sheet: which images are shown, and how."""

import hashlib
import itertools
import re
import subprocess
import sys
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import ImageDraw

from rsna_bcd.errors import InputError
from rsna_bcd.reporting.contact_sheet import (
    AMBER,
    RED,
    CropSample,
    SampledImage,
    contact_sheet,
    sample_crops,
)

REASON = "damaged header: With tag (0028,0010) got exception: unpack requires a buffer of 2 bytes"


def make_table(*machines: object) -> pd.DataFrame:
    """One image per machine named, `image_id` counting from 100."""
    rows = range(len(machines))
    columns = {
        "patient_id": [str(row // 4) for row in rows],
        "laterality": ["LR"[r % 2] for r in rows],
    }
    ids = [str(100 + row) for row in rows]
    return pd.DataFrame(columns | {"image_id": ids, "view": "CC", "machine_id": list(machines)})


def all_finished(images: pd.DataFrame) -> dict[str, bool]:
    return dict.fromkeys(images["image_id"], True)


def kinds(sample: CropSample, machine: int = 0) -> list[str]:
    return [image.kind for image in sample.machines[machine].images]


def test_sample_crops_is_by_hash_whatever_the_order_of_rows() -> None:
    images = make_table(*[1] * 30)
    expected = sorted(images["image_id"], key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    sample = sample_crops(images, all_finished(images), {}, columns=5, lines=1)
    assert [image.image_id for image in sample.machines[0].images] == expected[:5]
    images = make_table(*[1, 2, 3] * 20)
    finished = {i: n % 7 != 0 for n, i in enumerate(images["image_id"][:50])}
    failures = {i: f"reason {i}" for i in images["image_id"][50:57]}
    sample = sample_crops(images, finished, failures, columns=4, lines=3)
    shuffled = images.sample(frac=1, random_state=1)
    reverse = dict(reversed(finished.items())), dict(reversed(failures.items()))
    assert sample == sample_crops(shuffled, *reverse, columns=4, lines=3)


def test_sample_crops_shows_every_machine_by_number() -> None:
    images = make_table(10, 9, 170, *[49] * 100, None)  # pandas makes floats of them
    sample = sample_crops(images, all_finished(images), {}, columns=6, lines=5)
    assert [machine.name for machine in sample.machines] == [
        *(f"machine {number}" for number in (9, 10, 49, 170)), "machine unknown",
    ]  # fmt: skip
    assert [len(machine.images) for machine in sample.machines] == [1, 1, 6, 1, 1]
    bare = make_table(*[1] * 100).drop(columns="machine_id")
    (machine,) = sample_crops(bare, all_finished(bare), {}, columns=5, lines=6).machines
    assert (machine.name, len(machine.images)) == ("all images", 30)


def test_sample_crops_alternates_kinds_and_missing_images_fill_the_rest() -> None:
    images = make_table(*[1] * 90)
    failures = dict.fromkeys(images["image_id"][:30], "cut short")
    finished = {i: n % 2 == 0 for n, i in enumerate(images["image_id"][30:])}
    sample = sample_crops(images, finished, failures, columns=6, lines=1)
    assert kinds(sample) == ["failed"] * 2 + ["whole frame"] * 2 + ["crop"] * 2
    assert {image.reason for image in sample.machines[0].images} == {"cut short", ""}
    images = make_table(*[1] * 20, *[2] * 3)
    finished = dict.fromkeys(["100", "101", "102", "103"], True)
    sample = sample_crops(images, finished, {"104": ""}, columns=8, lines=2)
    assert kinds(sample) == ["failed"] + ["crop"] * 4 + ["missing"] * 3
    assert sample.machines[0].images[0].reason == "no reason given"
    assert kinds(sample, 1) == ["missing"] * 3


def test_sample_crops_counts_all_and_keeps_machines_with_failures_then_the_largest() -> None:
    images = make_table(*[1] * 50, *[2] * 40, *[3] * 30, 4)
    last = images["image_id"].iloc[-1]
    finished = all_finished(images.iloc[:-1]) | {"100": False}
    del finished["101"]
    sample = sample_crops(images, finished, {last: "damaged"}, lines=2)
    assert [machine.name for machine in sample.machines] == ["machine 1", "machine 4"]
    assert (sample.machines_left_out, sample.images_left_out) == (2, 70)
    assert sample.counts == {"failed": 1, "whole frame": 1, "crop": 118, "missing": 1}
    assert sample.machines[0].counts == {"failed": 0, "whole frame": 1, "crop": 48, "missing": 1}


def test_sample_crops_captions() -> None:
    images = make_table(7, 7, 8).assign(
        view=["MLO", float("nan"), "CC"], cancer=[1, 0, 0], site_id=[2, 10, float("nan")]
    )
    first, second = sample_crops(images, all_finished(images), {}).machines
    captions = {image.image_id: image.caption for image in first.images}
    assert captions == {"100": "L MLO cancer", "101": "R"}
    assert (first.site, second.site) == ("site 2, 10", "")
    bare = images[["patient_id", "image_id", "laterality"]]
    assert sample_crops(bare, all_finished(bare), {}).machines[0].images[0].caption in ("L", "R")


@pytest.mark.parametrize(("rows", "columns", "lines"), [(0, 8, 12), (4, 0, 12), (4, 8, 0)])
def test_sample_crops_refuses_an_empty_sheet(rows: int, columns: int, lines: int) -> None:
    with pytest.raises(InputError, match="at least one"):
        sample_crops(make_table(*[1] * 4)[:rows], {}, {}, columns, lines)


def make_crop(image: SampledImage, shape: tuple[int, int] = (96, 48)) -> NDArray[np.uint8]:
    return np.random.default_rng(int(image.image_id)).integers(0, 256, shape, np.uint8)


def make_sample(
    n: int = 12, failures: Any = None, whole: str = "", missing: str = "", **columns: Any
) -> CropSample:
    """Images 100 to 99 + n of three machines, and their state."""
    images = make_table(*([1, 2, 3] * n)[:n]).assign(**columns)
    failures = failures or {}
    read = [i for i in images["image_id"] if i not in failures and i != missing]
    return sample_crops(images, {i: i not in whole.split() for i in read}, failures)


class Sheet(NamedTuple):
    """A sheet, and where its texts and frames are: `(name, (left, top, right, bottom))`."""

    png: bytes
    grey: NDArray[Any]  # (H, W)
    texts: list[tuple[str, Any]]
    frames: list[tuple[str, Any]]  # colour, and the pixels within the frame


def draw(sample: CropSample, read: Any = make_crop, title: str = "title") -> Sheet:
    texts: list[tuple[str, Any]] = []
    frames: list[tuple[str, Any]] = []
    text, rectangle = ImageDraw.ImageDraw.text, ImageDraw.ImageDraw.rectangle

    def note_text(self: Any, xy: Any, words: str, fill: Any, font: Any) -> None:
        texts.append((words, self.textbbox(xy, words, font)))
        text(self, xy, words, fill, font)

    def note_frame(self: Any, xy: Any, *, outline: str, width: int) -> None:
        if xy[3] - xy[1] > 20:  # not in the legend
            box = xy[0] + width, xy[1] + width, xy[2] + 1 - width, xy[3] + 1 - width
            frames.append((outline, box))
        rectangle(self, xy, outline=outline, width=width)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", note_text)
        patch.setattr(ImageDraw.ImageDraw, "rectangle", note_frame)
        png = contact_sheet(sample, read, title)
    grey = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    return Sheet(png, np.asarray(grey), texts, frames)


@pytest.mark.parametrize("shape", [(243, 122), (64, 32), (500, 1000), (768, 768)])
def test_contact_sheet_shows_each_crop_framed_by_its_kind(shape: tuple[int, int]) -> None:
    sample = make_sample(failures={"104": REASON}, whole="105", missing="106")
    sheet = draw(sample, lambda image: make_crop(image, shape))
    images = [image for machine in sample.machines for image in machine.images]
    for (colour, (left, top, right, bottom)), image in zip(sheet.frames, images, strict=True):
        assert (colour == RED) == (image.kind == "failed")
        assert (colour == AMBER) == (image.kind == "whole frame")
        if image.kind in ("crop", "whole frame"):
            assert abs(right - left - (bottom - top) * shape[1] / shape[0]) <= 1
            shown, crop = sheet.grey[top:bottom, left:right], make_crop(image, shape)
            assert shown.mean() == pytest.approx(crop.mean(), abs=0.5)
            assert shown.shape != shape or np.array_equal(shown, crop)
    assert len({box[1] for _, box in sheet.frames}) == 3  # a line per machine
    assert REASON.replace(" ", "") in "".join(text for text, _ in sheet.texts).replace(" ", "")
    wide = draw(sample, lambda i: make_crop(i, shape) * np.uint16(256) + np.uint16(255))
    assert wide.png == sheet.png


def test_contact_sheet_counts_all_images() -> None:
    sample = make_sample(1200, {"104": "?", "107": "?"}, whole="105", missing="106")
    found = dict(draw(sample, title="rsna, h1024, train").texts)
    assert {"rsna, h1024, train", "machine 1", "400 images", "1 missing"} <= set(found)
    for start in ("1,197 crops", "2 failed", "1 without a visible breast", "1 missing on disk"):
        assert any(text.startswith(start) for text in found), start
    assert not any("Not shown" in text for text in found)
    crowded = make_sample(26, machine_id=[n // 2 for n in range(26)])
    assert any(t.endswith("Not shown: 1 machine with 2 images.") for t in dict(draw(crowded).texts))
    none = make_sample(3, failures={str(100 + i): f"reason {i}" for i in range(3)})
    assert {f"reason {i}" for i in range(3)} <= set(dict(draw(none).texts))


def test_contact_sheet_texts_neither_overlap_nor_leave_the_sheet_which_is_reproducible() -> None:
    long = "1.2.840.113681.2750824172.981.3361214417.4210.1"
    sample = make_sample(
        24,
        failures={"104": REASON * 5, "105": "W" * 300, "107": "$ä_g$", "108": "\n".join("ab" * 30)},
        whole="109 110",
        missing="111",
        view=long,
        cancer=1,
        site_id=long,
        machine_id=["GE Senographe Essential ADS_54.20 " * 4, "W" * 23, 3] * 8,
    )
    sheet = draw(sample, title="A title that is too long " * 20)
    height, width = sheet.grey.shape
    for _, box in (*sheet.texts, *sheet.frames):
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height
    for (_, one), (_, other) in itertools.combinations(sheet.texts, 2):
        apart = max(one[0], other[0]) >= min(one[2], other[2])
        assert apart or max(one[1], other[1]) >= min(one[3], other[3])
    assert draw(sample, title="A title that is too long " * 20).png == sheet.png
    assert not re.search(b"tIME|[it]EXt|zTXt", sheet.png)  # no date, no version


def test_prepare_imports_neither_matplotlib_nor_torch() -> None:
    code = """import sys, rsna_bcd.prepare, rsna_bcd.stages.prepare
print({'torch', 'matplotlib'} & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
