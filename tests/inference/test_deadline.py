"""The order of degradation, the reserve, and the rates that decide."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from rsna_bcd.inference.deadline import DeadlineMonitor, Degradation, deadline, next_to_drop
from rsna_bcd.inference.run import Run
from rsna_bcd.tables.views import Views

FOLDS = (2, 4, 3)  # runs 0 1, 2 3 4 5, 6 7 8


def test_next_to_drop_takes_the_largest_member_and_leaves_each_one_fold() -> None:
    dropped: list[int] = []
    while (run := next_to_drop(FOLDS, dropped)) is not None:
        dropped.append(run)
    assert dropped == [5, 8, 4, 7, 3, 1]
    assert next_to_drop((1, 1), ()) is None


@pytest.mark.parametrize(
    ("hours", "expected"),
    [(9, 9 * 3600 - 120), (0.01, 36 * 0.95), (5 / 3600, 5 - 1), (None, math.inf)],
)
def test_deadline_keeps_a_reserve_for_writing(hours: float | None, expected: float) -> None:
    assert deadline(5, hours) == pytest.approx(5 + expected)


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def make_monitor(
    folds: tuple[int, ...],
    images: int,
    seconds: float,
    *,
    tta: Sequence[Sequence[str]] = (["hflip"],),
    device: str = "cpu",
    degradation: Degradation | None = None,
) -> tuple[DeadlineMonitor, Clock, list[str]]:
    crop: Any = None
    network = nn.Linear(1, 1, device=device)
    own = itertools.cycle(tta)
    members = [
        [Run(Path(f"m{m}/fold{k}"), {}, crop, "dicom", next(own), network, Views(), None)
         for k in range(number)]
        for m, number in enumerate(folds)
    ]  # fmt: skip
    clock = Clock()
    log: list[str] = []
    until = clock.now + seconds
    monitor = DeadlineMonitor(members, images, until, 2, degradation, log.append, clock)
    return monitor, clock, log


def work(monitor: DeadlineMonitor, images: int, decoding: float, network: float) -> None:
    """Add images as the stream does; all networks are equally fast."""
    for _ in range(images):
        monitor.timer.add_image(decoding, 0.0)
    for run in range(len(monitor._names)):
        batches = monitor.timer._network.setdefault(run, [])
        batches.extend([(images // 2, network * images / 2)] * 2)


@pytest.mark.parametrize(
    ("device", "seconds", "expected"),
    [  # 100 images; decoding .1 s/image on the clock, nine networks of .1 s, half of it TTA
        ("cpu", 100, Degradation()),
        ("cpu", 98, Degradation(tta=0)),
        ("cpu", 55, Degradation(tta=0)),
        ("cpu", 53, Degradation(0, (5,))),
        ("cpu", 46, Degradation(0, (5, 8))),
        ("cpu", 1, Degradation(0, (5, 8, 4, 7, 3, 1))),
        ("meta", 90, Degradation()),  # a device of its own: the slower stage counts
        ("meta", 45, Degradation(tta=0)),
        ("meta", 5, Degradation(0, (5, 8, 4, 7, 3, 1))),
    ],
)
def test_estimate_drops_tta_first_and_no_more_than_necessary(
    device: str, seconds: float, expected: Degradation
) -> None:
    monitor, _, log = make_monitor(FOLDS, 100, seconds, device=device)
    assert monitor.needs_estimate
    work(monitor, 10, decoding=0.2, network=0.1)
    monitor.estimate()
    assert monitor.degradation == expected
    assert not monitor.needs_estimate
    assert len(log) == 1 + bool(expected)


@pytest.mark.parametrize(
    ("seconds", "expected", "said"),
    [  # 100 images; decoding .1 s/image, networks of 4, 2 and 1 passes of .1 s: .8 s/image
        (80, Degradation(), ""),
        (75, Degradation(2), "test-time augmentation after the first 2 transforms."),
        (65, Degradation(1), "test-time augmentation after the first transform."),
        (45, Degradation(0), "test-time augmentation."),
        (33, Degradation(0, (1,)), "test-time augmentation, m0 fold1."),
    ],
)
def test_estimate_drops_the_last_transforms_first(
    seconds: float, expected: Degradation, said: str
) -> None:
    monitor, _, log = make_monitor((2, 1), 100, seconds, tta=[("a", "b", "c"), ("a",), ()])
    for _ in range(10):
        monitor.timer.add_image(0.2, 0.0)
    for run, passes in enumerate((4, 2, 1)):
        monitor.timer._network[run] = [(5, 0.1 * passes * 5)] * 2
    monitor.estimate()
    assert monitor.degradation == expected
    assert said in log[-1]


def test_estimate_drops_transforms_that_save_little_one_by_one() -> None:
    """Each saves less than is worth a fold, all of them together more."""
    monitor, _, _ = make_monitor((99, 1), 1000, 1015, tta=[*[()] * 99, ("a", "b", "c")])
    for _ in range(10):
        monitor.timer.add_image(0.0, 0.0)
    for run in range(100):
        monitor.timer._network[run] = [(5, 0.05 * (4 if run == 99 else 1))] * 2  # 1.03 s/image
    monitor.estimate()
    assert monitor.degradation == Degradation(1)


def test_estimate_without_tta_drops_folds() -> None:
    monitor, _, _ = make_monitor((2,), 10, 15, tta=[()])
    work(monitor, 10, decoding=0.1, network=1.0)
    monitor.estimate()
    assert monitor.degradation == Degradation(dropped=(1,))


def test_estimate_comes_after_three_batches_or_5_percent_of_the_time() -> None:
    monitor, clock, _ = make_monitor((1,), 10, 100)
    assert not monitor.has_sample()
    with monitor.timer.time_batch():
        pass
    assert not monitor.has_sample()
    clock.now += 6
    assert monitor.has_sample()


def test_update_in_time_keeps_everything() -> None:
    monitor, clock, log = make_monitor((2, 2), 1000, 1000, degradation=Degradation())
    assert not monitor.needs_estimate
    for done in range(10, 1001, 10):
        clock.now += 9.9
        work(monitor, 10, decoding=0.2, network=0.2)
        monitor.update(done)
    assert not monitor.degradation
    assert log == []


def test_update_that_is_late_drops_no_more_than_necessary() -> None:
    monitor, clock, log = make_monitor((2, 2), 1000, 1000, degradation=Degradation())
    clock.now += 5
    work(monitor, 4, decoding=0.2, network=0.25)
    monitor.update(4)
    assert not monitor.degradation  # too early
    clock.now += 115
    work(monitor, 96, decoding=0.2, network=0.25)  # 1.2 s/image
    monitor.update(100)
    assert monitor.degradation.dropped == (3,)  # .95 s/image; 900 of them in 880 s
    assert "m1 fold1" in log[0]
    for done in range(110, 1001, 10):
        clock.now += 9.5
        work(monitor, 10, decoding=0.2, network=0.25)
        monitor.update(done)
    assert monitor.degradation.dropped == (3,)


def test_update_does_not_count_the_images_of_the_estimate() -> None:
    monitor, clock, _ = make_monitor((2, 2), 1000, 1000)
    clock.now += 40
    work(monitor, 100, decoding=0.2, network=0.15)
    monitor.estimate(100)
    assert not monitor.degradation
    clock.now += 60  # 46 images at 1.3 s/image
    work(monitor, 46, decoding=0.2, network=0.3)
    monitor.update(146)
    assert monitor.degradation.dropped


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_update_keeps_networks_that_wait_for_decoders(device: str) -> None:
    monitor, clock, _ = make_monitor((2, 2), 1000, 500, device=device)
    work(monitor, 100, decoding=2.0, network=0.001)  # decoding takes 1 s on the clock
    monitor.estimate()
    clock.now += 100
    monitor.update(100)
    assert not monitor.degradation


def test_update_keeps_folds_for_a_few_late_images() -> None:
    monitor, clock, _ = make_monitor((2, 2), 1000, 1000, degradation=Degradation())
    clock.now += 995
    work(monitor, 990, decoding=0.2, network=0.25)
    monitor.update(990)
    assert not monitor.degradation
    assert monitor.timer.seconds_per_image(0) == pytest.approx(0.25)


def test_timer_restart_estimates_from_later_batches_and_keeps_the_sum() -> None:
    monitor, _, _ = make_monitor((1,), 10, 10)
    work(monitor, 4, decoding=0.1, network=1.0)
    monitor.timer.restart()
    assert monitor.timer.seconds_per_image(0) == pytest.approx(1.0)  # nothing else is known
    work(monitor, 4, decoding=0.1, network=0.5)
    assert monitor.timer.seconds_per_image(0) == pytest.approx(0.5)
    assert monitor.timer.network_seconds(0) == pytest.approx(6.0)
