"""What became of a submission, on one screen and for machines."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

_SHOWN = 5  # failures named; the table has all
_FACTOR, _ERRORS = 2.0, 4.0  # a share further from that out of fold, and by so many standard errors
_NOT_NETWORKS = ("predicting", "decoding", "waiting")


@dataclass(frozen=True)
class SubmissionSummary:
    """What became of a submission.

    Attributes:
        breasts: that were answered.
        images: in the table.
        predicted: images that were read or found unreadable.
        resumed: of them, those that an earlier process did.
        positive: breasts called positive.
        unread: breasts of which nothing could be read, which have the prior.
        failures: rows of `failures.csv` by kind.
        shed: what was given up for the budget, in words; none if it was enough.
        silent: networks that gave not one finite value.
        threshold: that decided.
        recall_rate: that the threshold keeps; None where it is the fitted one.
        why_fitted: why it is the fitted one, where a recall rate was wanted.
        sites: thresholds of sites that have one of their own.
        how: device, precision and engine of the networks.
        out_of_fold: share that the fitted threshold calls positive out of fold; None if unknown.
        seconds: of this process: `predicting` by the clock, `decoding` of all processes together,
            `waiting` of the networks for images, and of each network.
    """

    breasts: int
    images: int
    predicted: int
    resumed: int
    positive: int
    unread: int
    failures: Mapping[str, int]
    shed: str
    silent: str
    threshold: float
    recall_rate: float | None
    why_fitted: str
    sites: Mapping[str, float]
    how: str
    seconds: Mapping[str, float]
    out_of_fold: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self, failures: pd.DataFrame) -> list[str]:
        """A screen of text.

        Args:
            failures: the table of failures (`tables.failures`).
        """
        return [
            f"{self.breasts:,} breasts, {self.images:,} images: {self.positive:,} called positive "
            f"({self.positive / max(1, self.breasts):.1%}).",
            *self._doubtful_share(),
            *self._failed(failures),
            *([f"Given up for the budget: {self.shed}."] if self.shed else []),
            *([f"Gave no finite value, and has no say: {self.silent}."] if self.silent else []),
            self._threshold(),
            self._time(),
        ]

    def _doubtful_share(self) -> list[str]:
        """A warning where none, all, or an improbable share of the breasts is called positive."""
        read = self.breasts - self.unread
        expected = self.out_of_fold
        if self.positive in (0, self.breasts):
            found = "no breast is called positive" if not self.positive else "every breast is"
        elif expected is None or not read:
            return []
        else:
            share = self.positive / read
            chance = _ERRORS * math.sqrt(expected * (1 - expected) / read)
            is_far = not expected / _FACTOR <= share <= expected * _FACTOR
            if not is_far or abs(share - expected) <= chance:
                return []
            found = f"{share:.1%} of the breasts are called positive"
        usual = "" if expected is None else f", {expected:.1%} were out of fold"
        return [
            f"WARNING: {found}{usual}. Check that the images are like those of the training "
            "(source=, views and machines in failures.csv), or let the share decide: fit the "
            "ensemble with threshold=recall_rate."
        ]

    def _failed(self, failures: pd.DataFrame) -> list[str]:
        if not self.failures:
            return ["No failures."]
        counts = ", ".join(f"{number:,} {kind}" for kind, number in self.failures.items())
        unread = (
            f"; {self.unread:,} breast(s) of which nothing could be read" if self.unread else ""
        )
        rows: Any = failures.head(_SHOWN).itertuples()
        return [
            f"Failures: {counts}{unread}.",
            *(
                f"  {' '.join(filter(None, (row.kind, row.prediction_id, row.image_id)))}: "
                f"{row.reason}"
                for row in rows
            ),
            *([f"  ... ({len(failures):,} in all)"] if len(failures) > _SHOWN else []),
        ]

    def _threshold(self) -> str:
        how = "".join(f", site {site} {value:.4f}" for site, value in self.sites.items())
        if self.recall_rate is not None:
            how = f", which keeps a recall rate of {self.recall_rate:.1%}"
        elif self.why_fitted:
            how += f", as fitted: {self.why_fitted}"
        return f"Threshold {self.threshold:.4f}{how}."

    def _time(self) -> str:
        before = f" ({self.resumed:,} images were done before)" if self.resumed else ""
        seconds, now = self.seconds["predicting"], self.predicted - self.resumed
        if now <= 0:
            return f"Nothing was left to predict{before}."
        networks = sum(s for name, s in self.seconds.items() if name not in _NOT_NETWORKS)
        waiting, decoding = self.seconds["waiting"], self.seconds["decoding"]
        return (
            f"{seconds:.0f} s for {now:,} images{before}: {seconds / now:.3g} s an image, of "
            f"which the networks took {networks / now:.3g} s and waited for images "
            f"{waiting / now:.3g} s; decoding took {decoding / now:.3g} s of a process. {self.how}."
        )
