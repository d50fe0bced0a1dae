"""Time budget: drop TTA and folds so that every image is predicted."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class StageTimer:
    """Seconds by stage, noted while files are predicted.

    Attributes:
        images: that were decoded or failed.
        decoding: seconds of all processes together.
        waiting: seconds in which the networks waited for the next image.
        longest: seconds of the longest batch, through all networks.
    """

    images: int = 0
    decoding: float = 0.0
    waiting: float = 0.0
    longest: float = 0.0
    _network: dict[int, list[tuple[int, float]]] = field(default_factory=dict)

    def note_image(self, decoding: float, waiting: float) -> None:
        """Note an image: the seconds of its process, and those that were waited for it."""
        self.images += 1
        self.decoding += decoding
        self.waiting += waiting

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Note a batch through all networks."""
        begun = time.monotonic()
        yield
        self.longest = max(self.longest, time.monotonic() - begun)

    @contextmanager
    def of_network(self, run: int, images: int) -> Iterator[None]:
        """Note a batch of so many images through the network of a run, by its position."""
        begun = time.monotonic()
        yield
        self._network.setdefault(run, []).append((images, time.monotonic() - begun))

    def network(self, run: int) -> float:
        """Seconds that the network of a run took."""
        return sum(seconds for _, seconds in self._network.get(run, []))

    def an_image(self, run: int) -> float:
        """Seconds an image that the network of a run takes; 0 if it was not asked.

        The first batch, in which much is done once and for all, counts only where it is alone.
        """
        batches = self._network.get(run, [])
        batches = batches[1:] or batches
        return sum(s for _, s in batches) / max(1, sum(n for n, _ in batches))


# Fewer than this part of all images out of time are no reason to give up a fold, nor is less than
# this part of the time.
_WORTH = 0.01
_LEAST = 0.02  # of the time there is: the shortest part of it by which the rest is judged
_RESERVE = 0.05  # of the budget, to end processes and to write and check tables; and
_LEAST_RESERVED, _MOST_RESERVED = 1.0, 120.0  # seconds


@dataclass(frozen=True)
class Costs:
    """Seconds an image, measured.

    Attributes:
        decoding: of one process.
        network: of each run.
        passes: of each run, how often its network sees an image: 2 with its mirror image.
        workers: processes that decode.
        shared: whether networks and processes work on the same cores.
    """

    decoding: float
    network: Sequence[float]
    passes: Sequence[int]
    workers: int
    shared: bool

    def an_image(self, plan: "Shed") -> float:
        """Seconds of the clock an image."""
        decoding = self.decoding / max(1, self.workers)
        networks = sum(
            seconds / (1 if plan.tta else passes)
            for run, (seconds, passes) in enumerate(zip(self.network, self.passes, strict=True))
            if run not in plan.dropped
        )
        together = self.shared or self.workers == 0
        return decoding + networks if together else max(decoding, networks)


@dataclass(frozen=True)
class Shed:
    """What takes part.

    Attributes:
        tta: whether runs have the test-time augmentation that is theirs.
        dropped: positions of the runs that have no say, in the order in which they went.
    """

    tta: bool = True
    dropped: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything was given up."""
        return not self.tta or bool(self.dropped)


def end_of(started: float, hours: float) -> float:
    """When the last prediction must have come: a reserve is kept for writing."""
    seconds = hours * 3600
    return started + seconds - min(max(_RESERVE * seconds, _LEAST_RESERVED), _MOST_RESERVED)


def next_to_drop(folds: Sequence[int], dropped: Sequence[int]) -> int | None:
    """The run that goes next.

    Args:
        folds: of each member, how many runs it has; runs are counted through all members.
        dropped: runs that went before.

    Returns:
        Its position; None if each member has but one left.
    """
    left: list[list[int]] = []
    first = 0
    for number in folds:
        left.append([run for run in range(first, first + number) if run not in dropped])
        first += number
    most = max(len(runs) for runs in left)
    return None if most < 2 else [runs for runs in left if len(runs) == most][-1][-1]


def plan(costs: Costs, folds: Sequence[int], images: int, seconds: float) -> Shed:
    """Give up what must be, so that so many images are done in so many seconds, if they can be."""
    shed = Shed()
    if costs.an_image(shed) * images > seconds:
        without = Shed(tta=False)
        shed = without if _saves(costs.an_image(shed), costs.an_image(without)) else shed
    while costs.an_image(shed) * images > seconds:
        run = next_to_drop(folds, shed.dropped)
        if run is None:
            break
        without = Shed(shed.tta, (*shed.dropped, run))
        if not _saves(costs.an_image(shed), costs.an_image(without)):
            break
        shed = without
    return shed


def _saves(before: float, after: float) -> bool:
    """Whether it is worth anything."""
    return after < (1 - _WORTH) * before


class Pace:
    """Watches whether the end will come in time, and says which runs go if it will not.

    Args:
        folds: of each member, how many runs it has.
        images: that are to be predicted.
        until: when the last prediction must have come (`time.monotonic`).
        spent: what the stream notes.
        workers: processes that decode.
        clock: for tests.
    """

    def __init__(
        self,
        folds: Sequence[int],
        images: int,
        until: float,
        spent: StageTimer,
        workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folds, self._images, self._until, self._spent = folds, images, until, spent
        self._workers, self._clock = workers, clock
        self._since, self._done_before = clock(), 0
        self._least = _LEAST * (until - self._since)

    def drops(self, done: int, dropped: Sequence[int]) -> list[int]:
        """The runs that go now, in their order; mostly none.

        Args:
            done: images predicted by now.
            dropped: runs that went before.
        """
        now = self._clock()
        if now - self._since < self._least or done <= self._done_before:
            return []
        an_image = (now - self._since) / (done - self._done_before)
        decoding = self._spent.decoding / max(1, self._spent.images * self._workers)
        going: list[int] = []
        while self._lost(now, an_image, done) > _WORTH * self._images:
            run = next_to_drop(self._folds, [*dropped, *going])
            if run is None:
                break
            faster = max(decoding, an_image - self._spent.an_image(run))
            if not _saves(an_image, faster):
                break
            going.append(run)
            an_image = faster
        if going:
            self._since, self._done_before = now, done
        return going

    def _lost(self, now: float, an_image: float, done: int) -> float:
        """Images that would be out of time."""
        left = self._images - done
        return left - max(0.0, self._until - now) / max(an_image, 1e-9)
