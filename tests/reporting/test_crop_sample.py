"""Which crops a contact sheet shows."""

import hashlib
from collections import Counter

import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.reporting.contact_sheet import CropSample, sample_crops


def table(*machines: object) -> pd.DataFrame:
    """One image a machine named, `image_id` counting from 100."""
    n = len(machines)
    return pd.DataFrame(
        {
            "patient_id": [str(row // 4) for row in range(n)],
            "image_id": [str(100 + row) for row in range(n)],
            "laterality": ["L", "R"] * (n // 2) + ["L"] * (n % 2),
            "view": "CC",
            "machine_id": list(machines),
        }
    )


def all_found(images: pd.DataFrame) -> dict[str, bool]:
    return dict.fromkeys(images["image_id"], True)


def kinds(sample: CropSample, machine: int = 0) -> list[str]:
    return [image.kind for image in sample.machines[machine].images]


def test_neither_the_order_of_rows_nor_of_completion_matters() -> None:
    images = table(*[1, 2, 3] * 20)
    finished = {i: n % 7 != 0 for n, i in enumerate(images["image_id"][:50])}
    failures = {i: f"reason {i}" for i in images["image_id"][50:57]}
    sample = sample_crops(images, finished, failures, columns=4, lines=3)
    again = sample_crops(
        images.sample(frac=1, random_state=1),
        dict(reversed(finished.items())),
        dict(reversed(failures.items())),
        columns=4,
        lines=3,
    )
    assert sample == again


def test_crops_come_in_the_order_of_the_sha256_of_their_image_id() -> None:
    images = table(*[1] * 30)
    expected = sorted(images["image_id"], key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    sample = sample_crops(images, all_found(images), {}, columns=5, lines=1)
    assert [image.image_id for image in sample.machines[0].images] == expected[:5]


def test_every_machine_is_there_in_the_order_of_its_number() -> None:
    images = table(10, 9, 170, *[49] * 100)
    sample = sample_crops(images, all_found(images), {}, columns=6, lines=4)
    assert [machine.name for machine in sample.machines] == [
        f"machine {number}" for number in (9, 10, 49, 170)
    ]
    assert [len(machine.images) for machine in sample.machines] == [1, 1, 6, 1]


def test_numbers_stay_whole_beside_a_machine_that_is_not_known() -> None:
    images = table(49, None, 1234567)  # pandas makes floats of them
    assert images["machine_id"].dtype == float
    names = [machine.name for machine in sample_crops(images, all_found(images), {}).machines]
    assert names == ["machine 49", "machine 1234567", "machine unknown"]


def test_failed_and_whole_images_come_first_and_take_turns_with_crops() -> None:
    images = table(*[1] * 90)
    failures = dict.fromkeys(images["image_id"][:30], "cut short")
    finished = {i: n % 2 == 0 for n, i in enumerate(images["image_id"][30:])}
    sample = sample_crops(images, finished, failures, columns=6, lines=1)
    assert kinds(sample) == ["failed"] * 2 + ["whole frame"] * 2 + ["crop"] * 2
    assert {image.reason for image in sample.machines[0].images} == {"cut short", ""}


def test_one_failure_leaves_the_other_places_to_crops() -> None:
    images = table(*[1] * 20)
    finished = all_found(images)
    del finished["107"]
    sample = sample_crops(images, finished, {"107": ""}, columns=6, lines=1)
    assert kinds(sample) == ["failed"] + ["crop"] * 5
    assert sample.machines[0].images[0].reason == "no reason given"


def test_missing_images_only_fill_what_is_left() -> None:
    images = table(*[1] * 20, *[2] * 3)
    finished = dict.fromkeys(["100", "101", "102", "103", "104"], True)
    assert kinds(sample_crops(images, finished, {}, columns=4, lines=2)) == ["crop"] * 4
    sample = sample_crops(images, finished, {}, columns=8, lines=2)
    assert kinds(sample) == ["crop"] * 5 + ["missing"] * 3
    assert kinds(sample, 1) == ["missing"] * 3


def test_counts_are_of_all_images() -> None:
    images = table(*[1, 2] * 20, 3)
    failures = dict.fromkeys(images["image_id"][:3], "damaged")
    finished = {i: n > 4 for n, i in enumerate(images["image_id"][3:35])}
    sample = sample_crops(images, finished, failures, columns=2, lines=1)
    assert sample.counts == {"failed": 3, "whole frame": 5, "crop": 27, "missing": 6}
    shown = Counter(sample.machines[0].counts)
    assert shown.total() + sample.images_left_out == 41
    assert sample.machines_left_out == 2


def test_of_too_many_machines_those_with_failures_stay_then_the_largest() -> None:
    images = table(*[1] * 50, *[2] * 40, *[3] * 30, 4)
    finished = all_found(images)
    del finished[images["image_id"].iloc[-1]]
    failures = {images["image_id"].iloc[-1]: "damaged"}
    sample = sample_crops(images, finished, failures, lines=2)
    assert [machine.name for machine in sample.machines] == ["machine 1", "machine 4"]
    assert (sample.machines_left_out, sample.images_left_out) == (2, 70)


def test_a_table_without_machines_is_one_group_that_fills_the_sheet() -> None:
    images = table(*[1] * 100).drop(columns="machine_id")
    sample = sample_crops(images, all_found(images), {}, columns=5, lines=6)
    assert [machine.name for machine in sample.machines] == ["all images"]
    assert len(sample.machines[0].images) == 30


def test_captions_and_sites_say_what_the_table_knows() -> None:
    images = table(7, 7, 8).assign(
        view=["MLO", float("nan"), "CC"], cancer=[1, 0, 0], site_id=[2, 10, float("nan")]
    )
    first, second = sample_crops(images, all_found(images), {}).machines
    captions = {image.image_id: image.caption for image in first.images}
    assert captions == {"100": "L MLO cancer", "101": "R"}
    assert first.site == "site 2, 10"
    assert second.site == ""
    bare = images[["patient_id", "image_id", "laterality"]]
    assert sample_crops(bare, all_found(bare), {}).machines[0].images[0].caption in ("L", "R")


@pytest.mark.parametrize(("rows", "columns", "lines"), [(0, 8, 12), (4, 0, 12), (4, 8, 0)])
def test_an_empty_sheet_is_refused(rows: int, columns: int, lines: int) -> None:
    with pytest.raises(InputError, match="at least one"):
        sample_crops(table(*[1] * 4)[:rows], {}, {}, columns, lines)
