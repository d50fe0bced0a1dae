"""Where the time of a stream of files goes: to decoding, to each network, to waiting."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Spent:
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
