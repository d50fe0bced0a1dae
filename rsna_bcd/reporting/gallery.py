"""The breasts that teach most, as pictures for a page: what was missed, what was a false alarm.

Where a network looked comes from whoever has the networks (`inference.saliency`), as arrays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np
import pandas as pd
from matplotlib import colormaps
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError

CaseKind = Literal["miss", "false alarm", "find"]
CASE_KINDS: tuple[CaseKind, ...] = ("miss", "false alarm", "find")  # in the order of showing

_LONGEST = 640  # pixels of a picture
_QUALITY = 80  # of WebP: noise of the tissue is kept, its grain is not
# Perceptually uniform, and in the same order to colour-blind eyes. No grey is in it, and its dark
# end is left out: tissue is that.
_COLOURS = "plasma"
_MOST_OPAQUE = 0.6  # what is beneath stays visible
# Column of the table of images: what the page calls it. Unknown ones are left out.
_FACTS = {
    "site_id": "site",
    "machine_id": "machine",
    "age": "age",
    "density": "density",
    "implant": "implant",
    "BIRADS": "BI-RADS",
    "invasive": "invasive",
    "difficult_negative_case": "difficult negative",
}
_YES_OR_NO = ("implant", "invasive", "difficult_negative_case")
_OF_CLASS = {"invasive": 1, "difficult_negative_case": 0}  # of the others it says nothing


class Seen(Protocol):
    """An image that a network looked at."""

    @property
    def view(self) -> str | None:
        """`CC`, `MLO` or another; None where it is unknown."""

    @property
    def crop(self) -> NDArray[np.unsignedinteger[Any]]:
        """What it was shown: (H, W) uint8 or uint16, tissue bright."""

    @property
    def saliency(self) -> NDArray[np.float32] | None:
        """(h, w) over the whole crop, not negative; None of an image that it was not shown."""


@dataclass(frozen=True)
class View:
    """One image of a breast.

    Attributes:
        name: `CC`, `MLO` or another; empty where it is unknown.
        picture: the crop as a grey WebP, longest side at most 640 pixels.
        overlay: the same with the saliency map over it, coloured.
        width: of both, in pixels.
        height: of both, in pixels.
        used_by_network: if not, the overlay is the picture.
    """

    name: str
    picture: bytes
    overlay: bytes
    width: int
    height: int
    used_by_network: bool = True


@dataclass(frozen=True)
class Case:
    """One breast.

    Attributes:
        kind: `miss`, `false alarm` or `find`.
        prediction_id: which breast.
        label: 1 for cancer.
        probability: out of fold; of an ensemble, the blend's.
        decision: 1 where it was called positive.
        facts: what is known of it, name to value, both for reading: `site` `1`, `age` `63`.
        views: its images, in the order of the table. The strongest colour is the largest value of
            the breast's maps: views compare within a breast, breasts do not.
        member: run whose maps these are, where that is one of several; else empty.
        own_probability: that run's own; None where `member` is empty.
    """

    kind: CaseKind
    prediction_id: str
    label: int
    probability: float
    decision: int
    facts: Mapping[str, str]
    views: tuple[View, ...]
    member: str = ""
    own_probability: float | None = None


def choose_cases(oof: pd.DataFrame, decisions: ArrayLike, n: int) -> pd.DataFrame:
    """Choose the worst misses, the worst false alarms and the best finds.

    Misses are the cancers called negative with the lowest probabilities, false alarms the healthy
    breasts called positive with the highest, finds the cancers called positive with the highest.
    Breasts of which nothing could be read are none of these. Ties go by `prediction_id`.

    Args:
        oof: one row a breast, `OOF_COLUMNS`.
        decisions: (N,) 0 or 1, for the rows of `oof`; better the cross-fitted ones.
        n: of each kind, at most.

    Returns:
        Rows of `oof` with `kind` and `decision`, misses first, the worst first within a kind.

    Raises:
        InputError: as many decisions as rows are needed, and `n` of 1 or more.
    """
    called = np.asarray(decisions)
    if called.shape != (len(oof),) or n < 1:
        raise InputError(
            f"A gallery of {n} cases of a kind needs a decision for each of {len(oof)} breasts, "
            f"not an array of shape {called.shape}, and 1 case or more."
        )
    rows = oof.assign(decision=called.astype(np.int64))
    rows = rows[rows["unread"] == 0].sort_values("prediction_id")
    chosen = []
    for kind, label, decision, lowest_first in (
        ("miss", 1, 0, True),
        ("false alarm", 0, 1, False),
        ("find", 1, 1, False),
    ):
        of_kind = rows[(rows["label"] == label) & (rows["decision"] == decision)]
        of_kind = of_kind.sort_values("probability", ascending=lowest_first, kind="stable")
        chosen.append(of_kind.head(n).assign(kind=kind))
    return pd.concat(chosen, ignore_index=True)


def gallery(
    chosen: pd.DataFrame,
    images: pd.DataFrame,
    look: Callable[[str], Sequence[Seen]],
    member: str = "",
    own: Mapping[str, float] | None = None,
) -> list[Case]:
    """Make the pictures of chosen breasts.

    Args:
        chosen: from `choose_cases`.
        images: the table of images; what it knows of a breast becomes its facts.
        look: from a `prediction_id` to the images of that breast, with where the network looked.
        member: name of the run that looks, where it is one of several.
        own: that run's probability, by `prediction_id`.

    Returns:
        The cases, in the order of `chosen`.
    """
    of_breast = {str(name): rows for name, rows in images.groupby("prediction_id", sort=False)}
    cases = []
    for row in chosen.to_dict("records"):
        breast, kind = str(row["prediction_id"]), row["kind"]
        cases.append(
            Case(
                kind=kind,
                prediction_id=breast,
                label=int(row["label"]),
                probability=float(row["probability"]),
                decision=int(row["decision"]),
                facts=_facts(of_breast[breast], int(row["label"])),
                views=make_views(look(breast)),
                member=member,
                own_probability=None if own is None else own[breast],
            )
        )
    return cases


class Picture(NamedTuple):
    """An image as a page shows it.

    Attributes:
        content: WebP.
        width: in pixels.
        height: in pixels.
    """

    content: bytes
    width: int
    height: int


def make_picture(crop: NDArray[np.unsignedinteger[Any]]) -> Picture:
    """Make the picture of a crop, (H, W) uint8 or uint16: longest side at most 640 pixels."""
    grey = _shrunk(crop)
    return Picture(_webp(grey), grey.shape[1], grey.shape[0])


def make_views(seen: Sequence[Seen]) -> tuple[View, ...]:
    """Make the pictures of one breast, its maps on one scale."""
    strongest = max((float(s.saliency.max()) for s in seen if s.saliency is not None), default=0.0)
    views = []
    for one in seen:
        grey = _shrunk(one.crop)
        picture = overlay = _webp(grey)
        if one.saliency is not None and strongest > 0:
            overlay = _webp(overlaid(grey, one.saliency / strongest))
        height, width = grey.shape
        used_by_network = one.saliency is not None
        views.append(View(one.view or "", picture, overlay, width, height, used_by_network))
    return tuple(views)


def overlaid(grey: NDArray[np.uint8], strength: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Lay a map over a picture, the more opaque the stronger it is.

    Args:
        grey: (H, W).
        strength: (h, w) in [0, 1], over the whole picture.

    Returns:
        (H, W, 3) RGB.
    """
    height, width = grey.shape
    fine = cv2.resize(
        strength.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    ).clip(0, 1)
    colours = colormaps[_COLOURS](0.3 + 0.7 * fine)[..., :3] * 255
    opacity = (_MOST_OPAQUE * fine)[..., None]
    mixed = opacity * colours + (1 - opacity) * grey[..., None]
    return np.rint(mixed).astype(np.uint8)


def _shrunk(crop: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """8 bits, longest side at most 640 pixels."""
    grey: NDArray[Any] = crop if crop.dtype == np.uint8 else crop >> 8
    factor = _LONGEST / max(grey.shape)
    if factor < 1:
        size = max(1, round(grey.shape[1] * factor)), max(1, round(grey.shape[0] * factor))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return grey.astype(np.uint8)


def _webp(picture: NDArray[np.uint8]) -> bytes:
    """Encode grey (H, W) or RGB (H, W, 3)."""
    ordered = picture if picture.ndim == 2 else picture[..., ::-1]  # OpenCV's order is BGR
    _, content = cv2.imencode(".webp", ordered, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
    return content.tobytes()


def _facts(images: pd.DataFrame, label: int) -> dict[str, str]:
    """What is known of a breast, of its first image that knows it."""
    facts = {}
    for column, name in _FACTS.items():
        if column not in images or _OF_CLASS.get(column, label) != label:
            continue
        for value in images[column].dropna().tolist()[:1]:
            facts[name] = _said(value, yes_or_no=column in _YES_OR_NO)
    return facts


def _said(value: object, *, yes_or_no: bool) -> str:
    """A cell for reading: pandas makes floats of integers where one is missing."""
    text = str(value)
    if yes_or_no:
        return "yes" if text.lower() in ("1", "1.0", "true") else "no"
    return text.removesuffix(".0")
