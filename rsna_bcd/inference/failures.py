"""What was amiss in a test set: files, machines, breasts of which nothing could be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.mammogram import EMPTY, FLAT
from rsna_bcd.scoring.ensembles import Ensemble
from rsna_bcd.tables.failures import Failure, Kind
from rsna_bcd.tables.hidden import HiddenTest
from rsna_bcd.tables.metadata import as_text

if TYPE_CHECKING:  # these need torch, which the processes that decode must not import
    from rsna_bcd.inference.runs import Run
    from rsna_bcd.inference.stream import BreastPrediction, Prediction

# What is answered for a breast of which nothing could be read.
Unread = Literal["negative", "positive", "prior"]
_NO_TIME = "the budget was spent before its turn"


def with_needed_columns(test: HiddenTest, ensemble: Ensemble, runs: Sequence[Run]) -> HiddenTest:
    """Add the columns that the ensemble goes by and the table lacks: nothing in them is known."""
    needed = {
        c: "networks are given it" for run in runs if run.metadata for c in run.metadata.columns
    }
    if ensemble.thresholds.sites:
        needed.setdefault("site_id", "sites have thresholds of their own")
    absent = {c: why for c, why in needed.items() if c not in test.images}
    failures = (
        Failure(None, None, None, "missing column", f"no {c}, though {why}: unknown everywhere")
        for c, why in absent.items()
    )
    unknown = {c: pd.Series([None] * len(test.images), dtype="object") for c in absent}
    return HiddenTest(test.images.assign(**unknown), test.breasts, (*test.failures, *failures))


def new_to(runs: Sequence[Run], images: pd.DataFrame) -> Iterator[Failure]:
    """Images of machines that training had none of, and breasts of more images than are looked at.

    Args:
        runs: All networks. Those of which nobody noted what they saw say nothing.
        images: The table of images.
    """
    seen = [run.seen["machine_id"] for run in runs if "machine_id" in run.seen]
    if seen and "machine_id" in images:
        machine = as_text(images["machine_id"])
        new = machine.notna() & ~machine.isin({value for own in seen for value in own})
        for row, name in zip(_rows(images[new]), machine[new], strict=True):
            yield _of(row, "new machine", f"no network has seen machine {name} in training")
    most = [run.views.most for run in runs if run.unit == "breast" and run.views.policy == "all"]
    if most:
        counts = images.groupby("prediction_id", sort=False)["image_id"].size()
        many = counts[counts > min(most)]
        for row in _rows(images.drop_duplicates("prediction_id")):
            if row.prediction_id in many:
                reason = (
                    f"{many[row.prediction_id]} images, of which a network looks at {min(most)}"
                )
                yield Failure(row.prediction_id, row.patient_id, None, "many images", reason)


def of_files(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    by_image: Mapping[str, Prediction],
    unlistable: Mapping[str, str],
) -> Iterator[Failure]:
    """Images that took no part, or not in all networks.

    Args:
        images: The table of images.
        files: Of those that are there, by `image_id`.
        by_image: What came of them; of some nothing, where there was no more time.
        unlistable: Reasons by `image_id` of images whose folder cannot be listed.
    """
    for row in _rows(images):
        prediction = by_image.get(row.image_id)
        if row.image_id not in files:
            yield _of(row, "absent", unlistable.get(row.image_id, "there is no such file"))
        elif prediction is None:
            yield _of(row, "out of time", _NO_TIME)
        elif prediction.reason is not None:
            lost = prediction.probabilities is None
            kind = _kind(prediction.reason) if lost else "no value"
            yield _of(row, kind, prediction.reason)


def of_breasts(
    breasts: pd.DataFrame,
    by_breast: Mapping[str, BreastPrediction],
    earlier: Sequence[Failure],
    unread: Unread,
) -> Iterator[Failure]:
    """Breasts of which nothing could be read, or to which a network gave no value.

    Args:
        breasts: From `predict_breasts`.
        by_breast: What the networks that look at breasts said.
        earlier: The other failures: of a breast without a row, or whose images had no more time,
            all is said there.
        unread: What is answered where nothing could be read.
    """
    said = {f.prediction_id for f in earlier if f.kind in ("unlisted", "out of time")}
    reasons = {breast: p.reason for breast, p in by_breast.items() if p.reason is not None}
    for row in _rows(breasts):
        ids = row.prediction_id, row.patient_id, None
        if row.unread and row.prediction_id not in said:
            reason = f"no image of it could be read; the answer is {unread}"
            yield Failure(*ids, "nothing readable", reason)
        elif row.prediction_id in reasons:
            yield Failure(*ids, "no value", str(reasons[row.prediction_id]))


def answers(breasts: pd.DataFrame, unread: Unread, prior: float) -> pd.Series:
    """The `cancer` of `submission.csv`: decisions, and what is said where nothing could be read.

    Args:
        breasts: From `predict_breasts`: `cancer` is 0 or 1, `unread` too.
        unread: `negative` says 0, `positive` 1, `prior` the prior as it is.
        prior: The prevalence that the ensemble was fitted at.
    """
    said = {"negative": 0, "positive": 1, "prior": prior}[unread]
    return breasts["cancer"].where(breasts["unread"] == 0, said)


def check_unread(unread: str) -> Unread:
    """Check a setting.

    Raises:
        InputError: there is no such policy.
    """
    if unread not in get_args(Unread):
        raise InputError(f"unread={unread}: choose {' or '.join(get_args(Unread))}.")
    return unread  # type: ignore[return-value]


def _rows(frame: pd.DataFrame) -> Iterator[Any]:
    return iter(frame.itertuples())


def _of(row: Any, kind: Kind, reason: str) -> Failure:
    return Failure(row.prediction_id, row.patient_id, row.image_id, kind, reason)


def _kind(reason: str) -> Kind:
    """What sort of file it is that could not be read for this reason."""
    if reason.startswith(EMPTY):
        return "empty"
    return "flat" if reason.startswith(FLAT) else "unreadable"
