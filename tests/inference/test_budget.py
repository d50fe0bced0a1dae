"""What is given up for time, in the order that is promised."""

import math

import pytest

from rsna_bcd.inference.deadline import Costs, Pace, Shed, StageTimer, end_of, next_to_drop, plan

FOLDS = (2, 4, 3)  # runs 0 1, 2 3 4 5, 6 7 8


def costs(*, shared: bool, workers: int = 2) -> Costs:
    return Costs(decoding=0.2, network=(0.1,) * 9, passes=(2,) * 9, workers=workers, shared=shared)


def test_folds_go_from_the_member_with_most_of_them_and_each_keeps_one() -> None:
    gone: list[int] = []
    while (run := next_to_drop(FOLDS, gone)) is not None:
        gone.append(run)
    assert gone == [5, 8, 4, 7, 3, 1]
    assert next_to_drop((1, 1), ()) is None


def test_an_image_costs_the_sum_on_one_kind_of_core_and_the_slower_on_two() -> None:
    assert costs(shared=True).an_image(Shed()) == pytest.approx(0.2 / 2 + 0.9)
    assert costs(shared=False).an_image(Shed()) == pytest.approx(0.9)
    assert costs(shared=False, workers=0).an_image(Shed()) == pytest.approx(1.1)
    assert costs(shared=True).an_image(Shed(tta=False)) == pytest.approx(0.1 + 0.45)
    assert costs(shared=True).an_image(Shed(dropped=(1, 8))) == pytest.approx(0.1 + 0.7)
    few = Shed(tta=False, dropped=tuple(range(8)))
    assert costs(shared=False).an_image(few) == pytest.approx(0.1)  # decoding now


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (101, Shed()),
        (99, Shed(tta=False)),
        (55, Shed(tta=False)),
        (54, Shed(tta=False, dropped=(5,))),
        (46, Shed(tta=False, dropped=(5, 8))),
        (1, Shed(tta=False, dropped=(5, 8, 4, 7, 3, 1))),
    ],
)
def test_augmentation_goes_first_and_no_more_than_must(seconds: float, expected: Shed) -> None:
    found = plan(costs(shared=True), FOLDS, 100, seconds)
    assert found == expected
    assert bool(found) == (seconds < 101)


def test_without_augmentation_there_is_none_to_give_up() -> None:
    plain = Costs(decoding=0.1, network=(1.0, 1.0), passes=(1, 1), workers=1, shared=False)
    assert plan(plain, (2,), 10, 15) == Shed(tta=True, dropped=(1,))


def test_a_reserve_is_kept_for_writing() -> None:
    assert end_of(5, hours=9) == 5 + 9 * 3600 - 120
    assert end_of(5, hours=0.01) == pytest.approx(5 + 36 * 0.95)
    assert end_of(5, hours=5 / 3600) == pytest.approx(5 + 5 - 1)


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        """Tell it."""
        return self.now


def paced(images: int, seconds: float) -> tuple[Pace, StageTimer, Clock]:
    clock, spent = Clock(), StageTimer()
    return Pace((2, 2), images, clock.now + seconds, spent, workers=2, clock=clock), spent, clock


def work(spent: StageTimer, images: int, decoding: float, network: float) -> None:
    """Note images as the stream does; each of four networks takes as long as the others."""
    for _ in range(images):
        spent.note_image(decoding, 0.0)
    for run in range(4):
        spent._network.setdefault(run, []).extend([(images // 2, network * images / 2)] * 2)


def test_whoever_is_in_time_keeps_everything() -> None:
    pace, spent, clock = paced(images=1000, seconds=1000)
    for done in range(10, 1001, 10):
        clock.now += 9.9
        work(spent, 10, decoding=0.2, network=0.2)
        assert pace.drops(done, []) == []


def test_whoever_is_late_drops_no_more_than_it_takes() -> None:
    pace, spent, clock = paced(images=1000, seconds=1000)
    clock.now += 5
    work(spent, 4, decoding=0.2, network=0.25)
    assert pace.drops(4, []) == []  # too early to say
    clock.now += 115
    work(spent, 96, decoding=0.2, network=0.25)  # 1.2 s an image
    assert pace.drops(100, []) == [3]  # .95 s an image; 900 of them in 880 s
    for done in range(110, 1001, 10):
        clock.now += 9.5
        work(spent, 10, decoding=0.2, network=0.25)
        assert pace.drops(done, [3]) == []


def test_networks_that_wait_for_decoders_are_not_dropped_in_vain() -> None:
    pace, spent, clock = paced(images=1000, seconds=500)
    clock.now += 100
    work(spent, 100, decoding=2.0, network=0.01)
    assert pace.drops(100, []) == []  # decoding takes 1 s, whatever goes
    bound = Costs(decoding=2.0, network=(0.1,) * 4, passes=(2,) * 4, workers=2, shared=False)
    assert plan(bound, (2, 2), 1000, 500) == Shed()


def test_a_few_images_out_of_time_are_no_reason_to_drop_a_fold() -> None:
    pace, spent, clock = paced(images=1000, seconds=1000)
    clock.now += 995
    work(spent, 990, decoding=0.2, network=0.25)
    assert pace.drops(990, []) == []
    assert math.isclose(spent.an_image(0), 0.25)
