"""Gallery of a report: pictures of false negatives, false positives and true positives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import pandas as pd
from matplotlib import colormaps
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.inference.saliency import ExplainedImage
from rsna_bcd.reporting.contact_sheet import to_uint8

CaseKind = Literal["false negative", "false positive", "true positive"]

_LONGEST = 640  # pixels of a picture
_QUALITY = 80  # of WebP: keeps the noise of the tissue, not its grain
# Perceptually uniform, and ordered for colour-blind readers. Its dark end is left out: that is
# where the tissue is.
_COLOURS = "plasma"
_MAX_OPACITY = 0.6  # the tissue below stays visible
# Column of the table of images: its name on the page.
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
_FLAGS = ("implant", "invasive", "difficult_negative_case")
_LABEL = {"invasive": 1, "difficult_negative_case": 0}  # recorded of breasts with this label only


class Picture(NamedTuple):
    """A WebP file with its size in pixels."""

    content: bytes
    width: int
    height: int


@dataclass(frozen=True)
class View:
    """One image of a breast."""

    name: str  # CC, MLO or another; empty where it is unknown
    picture: Picture  # the crop
    overlay: bytes | None  # WebP of the crop with its saliency map; None without one


@dataclass(frozen=True)
class Case:
    """One breast of the gallery.

    Attributes:
        kind: of result.
        prediction_id: of the breast.
        label: 1 for cancer.
        probability: out of fold; for an ensemble, of the blend.
        decision: 1 for positive.
        facts: name and value as text, such as `age` and `63`.
        views: its images. The strongest colour is the largest value of the breast's maps, so that
            views compare within a breast, but not between breasts.
        member: run that the maps are from, where it is one of several; else empty.
        own_probability: of that run; None where `member` is empty.
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
    """Choose the most extreme false negatives, false positives and true positives.

    False negatives with the lowest probabilities, false and true positives with the highest ones.
    Without unreadable breasts. Ties are ordered by `prediction_id`.

    Args:
        oof: one row per breast, `OOF_COLUMNS`.
        decisions: (N,) 0 or 1, for the rows of `oof`; better the cross-fitted ones.
        n: of each kind, at most.

    Returns:
        Rows of `oof` with `kind` and `decision`: false negatives, false positives, true positives,
        the most extreme first.

    Raises:
        InputError: not one decision per row, or `n` below 1.
    """
    decided = np.asarray(decisions)
    if decided.shape != (len(oof),) or n < 1:
        raise InputError(
            f"A gallery of {n} cases of a kind needs a decision for each of {len(oof)} breasts, "
            f"not an array of shape {decided.shape}, and 1 case or more."
        )
    rows = oof.assign(decision=decided.astype(np.int64))
    rows = rows[rows["unread"] == 0].sort_values("prediction_id")
    chosen = []
    kinds = (("false negative", 1, 0), ("false positive", 0, 1), ("true positive", 1, 1))
    for kind, label, decision in kinds:
        own = rows[(rows["label"] == label) & (rows["decision"] == decision)]
        own = own.sort_values("probability", ascending=kind == "false negative", kind="stable")
        chosen.append(own.head(n).assign(kind=kind))
    return pd.concat(chosen, ignore_index=True)


def gallery(
    chosen: pd.DataFrame,
    images: pd.DataFrame,
    explain: Callable[[str], Sequence[ExplainedImage]],
    member: str = "",
    own: Mapping[str, float] | None = None,
) -> list[Case]:
    """Draw chosen breasts.

    Args:
        chosen: from `choose_cases`.
        images: table of images, for the facts.
        explain: from a `prediction_id` to the breast's images, and saliency maps if wanted.
        member: run that explains, where it is one of several.
        own: that run's probability, by `prediction_id`.
    """
    by_breast = {str(name): rows for name, rows in images.groupby("prediction_id", sort=False)}
    cases = []
    for row in chosen.to_dict("records"):
        breast, label = str(row["prediction_id"]), int(row["label"])
        cases.append(
            Case(
                row["kind"],
                breast,
                label,
                float(row["probability"]),
                int(row["decision"]),
                facts=_facts(by_breast[breast], label),
                views=make_views(explain(breast)),
                member=member,
                own_probability=None if own is None else own[breast],
            )
        )
    return cases


def make_picture(crop: NDArray[np.unsignedinteger[Any]]) -> Picture:
    """Encode a crop, (H, W) uint8 or uint16, its longest side at most 640 pixels."""
    grey = to_uint8(crop, _LONGEST, _LONGEST)
    return Picture(_webp(grey), grey.shape[1], grey.shape[0])


def make_views(images: Sequence[ExplainedImage]) -> tuple[View, ...]:
    """Draw the images of one breast, their saliency maps on one scale."""
    maps = [image.saliency for image in images if image.saliency is not None]
    strongest = max((float(saliency.max()) for saliency in maps), default=0.0)
    views = []
    for image in images:
        grey = to_uint8(image.crop, _LONGEST, _LONGEST)
        picture, overlay = make_picture(grey), None
        if image.saliency is not None:
            relative = image.saliency / strongest if strongest > 0 else image.saliency
            overlay = _webp(overlay_saliency(grey, relative))
        views.append(View(image.view or "", picture, overlay))
    return tuple(views)


def overlay_saliency(
    grey: NDArray[np.uint8], saliency: NDArray[np.floating[Any]]
) -> NDArray[np.uint8]:
    """Draw a saliency map over an image, the more opaque the stronger it is.

    Args:
        grey: (H, W).
        saliency: (h, w) in [0, 1], over the whole image.

    Returns:
        (H, W, 3) RGB.
    """
    size = grey.shape[1], grey.shape[0]
    fine = cv2.resize(saliency.astype(np.float32), size, interpolation=cv2.INTER_CUBIC).clip(0, 1)
    colours = colormaps[_COLOURS](0.3 + 0.7 * fine)[..., :3] * 255
    opacity = (_MAX_OPACITY * fine)[..., None]
    return np.rint(opacity * colours + (1 - opacity) * grey[..., None]).astype(np.uint8)


def _webp(picture: NDArray[np.uint8]) -> bytes:
    """Encode grey (H, W) or RGB (H, W, 3)."""
    ordered = picture if picture.ndim == 2 else picture[..., ::-1]  # OpenCV's order is BGR
    _, content = cv2.imencode(".webp", ordered, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
    return content.tobytes()


def _facts(images: pd.DataFrame, label: int) -> dict[str, str]:
    """Recorded properties of a breast, each from the first image that has it."""
    facts = {}
    for column, name in _FACTS.items():
        if column in images and _LABEL.get(column, label) == label:
            for value in images[column].dropna().astype(str).tolist()[:1]:
                if column in _FLAGS:
                    facts[name] = "yes" if value.lower() in ("1", "1.0", "true") else "no"
                else:  # pandas makes floats of integers beside missing values
                    facts[name] = value.removesuffix(".0")
    return facts
