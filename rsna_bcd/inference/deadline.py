"""Time budget: drop TTA and folds so that every image is predicted.

First goes test-time augmentation, before any prediction is kept: one transform after the other, the
last of the longest lists of all runs first. Then folds, one at a time, the last one of the member
with most folds left (of several, the last member); each member keeps one fold. Nothing is dropped
that saves no time because decoding limits the rate.
Images that are out of time even then are not predicted.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate

from rsna_bcd.durations import format_duration
from rsna_bcd.inference.run import Run

_WORTH = 0.01  # neither a smaller part of the images nor a smaller gain in time is worth a fold
_FIRST_BATCHES = 3  # before the first estimate, or fewer:
_FIRST_PART = 0.05  # of the budget, at most, for the first estimate; at least one batch
_INTERVAL = 0.02  # of the time there is: the shortest interval that a rate is measured over
_RESERVE = 0.05  # of the budget, to end processes and to write and check tables; and
_LEAST_RESERVED, _MOST_RESERVED = 1.0, 120.0  # seconds


@dataclass
class StageTimer:
    """Seconds by stage, added up while files are predicted.

    Attributes:
        images: that were decoded or failed.
        decoding: seconds of all processes together.
        waiting: seconds in which the networks waited for the next image.
        longest: seconds of the longest batch, through all networks.
        batches: number of batches.
    """

    images: int = 0
    decoding: float = 0.0
    waiting: float = 0.0
    longest: float = 0.0
    batches: int = 0
    _network: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    _skipped: dict[int, int] = field(default_factory=dict)

    def add_image(self, decoding: float, waiting: float) -> None:
        """Add an image: the seconds of its process, and those that the networks waited for it."""
        self.images += 1
        self.decoding += decoding
        self.waiting += waiting

    @contextmanager
    def time_batch(self) -> Iterator[None]:
        """Time a batch through all networks."""
        started = time.monotonic()
        yield
        self.batches += 1
        self.longest = max(self.longest, time.monotonic() - started)

    @contextmanager
    def time_network(self, run: int, images: int) -> Iterator[None]:
        """Time a number of images through the network of a run, by its position."""
        started = time.monotonic()
        yield
        self._network.setdefault(run, []).append((images, time.monotonic() - started))

    def network_seconds(self, run: int) -> float:
        """Seconds that the network of a run took in total."""
        return sum(seconds for _, seconds in self._network.get(run, []))

    def seconds_per_image(self, run: int) -> float:
        """Seconds of a run's network per image; 0 before its first batch.

        The first batch, which includes one-off work, counts only where it is the only one.
        """
        batches = self._network.get(run, [])
        batches = batches[self._skipped.get(run, 1) :] or batches
        return sum(s for _, s in batches) / max(1, sum(n for n, _ in batches))

    def restart(self) -> None:
        """Estimate from later batches alone: networks became faster."""
        self._skipped = {run: len(batches) for run, batches in self._network.items()}
        self.longest = 0.0


@dataclass(frozen=True)
class Degradation:
    """Networks and transforms that were dropped for the budget.

    Attributes:
        tta: at most so many transforms of test-time augmentation are kept of each run, the first of
            its list; None keeps all.
        dropped: positions of dropped runs, in the order in which they were dropped.
    """

    tta: int | None = None
    dropped: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything was dropped."""
        return self.tta is not None or bool(self.dropped)

    def describe(self, names: Sequence[str]) -> str:
        """Dropped parts, by the names of the runs: `test-time augmentation, b5 fold3`."""
        dropped = [] if self.tta is None else ["test-time augmentation"]
        if self.tta:
            dropped[0] += (
                f" after the first {'transform' if self.tta == 1 else f'{self.tta} transforms'}"
            )
        return ", ".join([*dropped, *(names[run] for run in self.dropped)])


def deadline(started: float, hours: float | None) -> float:
    """When the last prediction is due: a reserve is kept for writing."""
    if hours is None:
        return math.inf
    seconds = hours * 3600
    return started + seconds - min(max(_RESERVE * seconds, _LEAST_RESERVED), _MOST_RESERVED)


def next_to_drop(folds: Sequence[int], dropped: Sequence[int]) -> int | None:
    """The position of the run to drop next, by the number of each member's folds.

    Returns:
        None if each member has one run left.
    """
    ends = list(accumulate(folds))
    left = [
        [run for run in range(end - number, end) if run not in dropped]
        for number, end in zip(folds, ends, strict=True)
    ]
    most = max(len(runs) for runs in left)
    return None if most < 2 else [runs for runs in left if len(runs) == most][-1][-1]


class DeadlineMonitor:
    """Watches whether all images will be predicted in time, and degrades if not.

    Args:
        members: of each, the runs of its folds.
        images: number of images to predict.
        until: deadline, on the clock of `time.monotonic`; infinite without a budget.
        workers: processes that decode; 0 decodes in this one.
        degradation: of an earlier process, whose TTA stays; None if there is none: it may be
            dropped.
        log: called with messages for the user.
        clock: for tests.

    Attributes:
        degradation: until now.
        needs_estimate: whether the first estimate is still to be made.
        timer: seconds by stage, which the stream adds to.
        until: as given.
    """

    def __init__(
        self,
        members: Sequence[Sequence[Run]],
        images: int,
        until: float = math.inf,
        workers: int = 0,
        degradation: Degradation | None = None,
        log: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        runs = [run for member in members for run in member]
        self.timer, self.until = StageTimer(), until
        self.degradation = Degradation() if degradation is None else degradation
        self.needs_estimate = degradation is None and math.isfinite(until)
        self._folds = [len(member) for member in members]
        self._names = [run.name for run in runs]
        self._transforms = [len(run.tta) for run in runs]
        self._shares_cores = workers == 0 or any(run.device.type == "cpu" for run in runs)
        self._images, self._workers, self._log, self._clock = images, max(1, workers), log, clock
        self._started = self._since = clock()
        self._done_before = 0

    def in_time(self) -> bool:
        """Whether another batch would end before the deadline."""
        return self._clock() + self.timer.longest < self.until

    def has_sample(self) -> bool:
        """Whether enough was measured for the first estimate."""
        is_late = self._clock() - self._started > _FIRST_PART * (self.until - self._started)
        return self.timer.batches >= (1 if is_late else _FIRST_BATCHES)

    def estimate(self, done: int = 0) -> None:
        """Make the first estimate, after `done` images; drop TTA and folds if it is too long.

        It adds the stages up: the clock includes the start of processes and networks. Where TTA is
        dropped, these images are predicted again.
        """
        self.needs_estimate = False
        networks = sum(self._network_seconds())
        if not networks:
            return
        decoding = self._decoding()
        rate = decoding + networks if self._shares_cores else max(decoding, networks)
        now = self._clock()
        left = max(0.0, self.until - now)
        cores = "on the same cores" if self._shares_cores else "at the same time"
        self._log(
            f"Estimate for {self._images:,} images: {format_duration(rate * self._images)}; there "
            f"are {format_duration(left)}. Decoding takes {decoding * self._workers:.2g} s/image "
            f"in each of {self._workers} process(es), {len(self._names)} network(s) "
            f"{networks:.2g} s/image, {cores}."
        )
        rate = self._degrade(rate, self._images, left, may_drop_tta=True)
        if self.degradation:
            names = self.degradation.describe(self._names)
            seconds = rate * self._images
            share = 1 - left / seconds
            late = f"; about {share:.0%} of the images will be out of time"
            self._log(
                f"That is too long. Dropped: {names}. Then it takes about "
                f"{format_duration(seconds)}{late if share >= 0.005 else ''}."
            )
            self.timer.restart()
        self._since, self._done_before = now, done if self.degradation.tta is None else 0

    def update(self, done: int) -> None:
        """Drop folds if the rate is too slow, with so many images done."""
        now = self._clock()
        if (
            math.isinf(self.until)
            or now - self._since < _INTERVAL * (self.until - self._started)
            or done <= self._done_before
        ):
            return
        rate = (now - self._since) / (done - self._done_before)
        before = self.degradation
        self._degrade(rate, self._images - done, self.until - now, may_drop_tta=False)
        if self.degradation != before:
            dropped = self.degradation.dropped[len(before.dropped) :]
            names = ", ".join(self._names[run] for run in dropped)
            self._log(
                f"Slower than the budget allows, {done:,} of {self._images:,} images being done: "
                f"dropped {names}."
            )
            self._since, self._done_before = now, done

    def _decoding(self) -> float:
        """Seconds per image that decoding takes on the clock."""
        return self.timer.decoding / max(1, self.timer.images * self._workers)

    def _network_seconds(self) -> list[float]:
        """Seconds per image of each run's network."""
        return [self.timer.seconds_per_image(run) for run in range(len(self._names))]

    def _degrade(self, rate: float, left: int, seconds: float, *, may_drop_tta: bool) -> float:
        """Drop no more than necessary to predict so many images in so many seconds.

        Returns:
            The new rate in seconds per image.
        """
        network = measured = self._network_seconds()
        decoding = self._decoding()
        tta, dropped = self.degradation.tta, list(self.degradation.dropped)

        def is_late() -> bool:
            return left - max(0.0, seconds) / max(rate, 1e-9) > _WORTH * self._images

        def rate_without(saved: float) -> float | None:
            """The rate, where so many seconds per image make a difference."""
            faster = max(decoding, rate - saved)
            return faster if faster < (1 - _WORTH) * rate else None

        for kept in reversed(range(max(self._transforms) if may_drop_tta else 0)):
            if not is_late():
                break
            fewer = [
                seconds * (1 + min(kept, transforms)) / (1 + transforms)
                for seconds, transforms in zip(measured, self._transforms, strict=True)
            ]
            faster = rate_without(sum(network) - sum(fewer))
            if faster is not None:
                tta, network, rate = kept, fewer, faster
        while is_late() and (run := next_to_drop(self._folds, dropped)) is not None:
            faster = rate_without(network[run])
            if faster is None:
                break
            dropped.append(run)
            rate = faster
        self.degradation = Degradation(tta, tuple(dropped))
        return rate
