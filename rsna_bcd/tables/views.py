"""The images of a breast that a network is given, and their places: in training and in test.

23 % of the competition's breasts have more than two images; other data has breasts that lack a
standard view or have rare ones only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from rsna_bcd.errors import InputError
from rsna_bcd.tables.images import VIEWS

Level = Literal["image", "breast"]  # of a sample; each network says which
Policy = Literal["all", "one_per_view", "random_per_epoch"]

# The view embedding of a network: one index for each of these, one for every other view.
EMBEDDED_VIEWS = ("CC", "MLO")
OTHER_VIEW = len(EMBEDDED_VIEWS)


@dataclass(frozen=True)
class Place:
    """One place in a sample.

    Attributes:
        position: of its image among those of the breast, None where it is empty.
        other: whether it belongs to the other breast.
    """

    position: int | None
    other: bool


@dataclass(frozen=True)
class Views:
    """The images of a breast that a network is given.

    Under `one_per_view` place v is for `order[v]` and holds the first image of that view, or none;
    a breast without an image of these views shows its other ones instead. `random_per_epoch` is the
    same, but in training draws one of the repeats. Under `all` there are as many places as images,
    at most `most`: the views of `order` first, one of each before the repeats.

    Attributes:
        policy: one of these.
        order: views, for the places.
        most: images of one breast under `all`.
        other_breast: add the images of the patient's other breast, by the same policy.
    """

    policy: Policy = "all"
    order: Sequence[str] = EMBEDDED_VIEWS
    most: Annotated[int, Field(ge=1)] = 8
    other_breast: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "order", tuple(self.order))  # lists come from configurations
        known = set(self.order) <= set(VIEWS) and len(set(self.order)) == len(self.order) > 0
        if not known:
            raise InputError(
                f"views.order={list(self.order)}: name some of {', '.join(VIEWS)}, each once."
            )

    def places(
        self,
        own: Sequence[str | None],
        other: Sequence[str | None] = (),
        generator: np.random.Generator | None = None,
    ) -> list[Place]:
        """Fill the places of one breast.

        Args:
            own: the view of each of its readable images, in the order of the table.
            other: those of the patient's other breast.
            generator: draws among repeats under `random_per_epoch`; None takes the first.

        Returns:
            Those of the breast, then those of the other one if `other_breast`: except under `all`,
            equally many for every breast.
        """
        places = [Place(position, False) for position in self._chosen(own, generator)]
        if self.other_breast:
            places += [Place(position, True) for position in self._chosen(other, generator)]
        return places

    def _chosen(
        self, views: Sequence[str | None], generator: np.random.Generator | None
    ) -> list[int | None]:
        """Positions for the places of one breast."""
        if self.policy == "all":
            return [*sorted(range(len(views)), key=lambda i: self._rank(views, i))[: self.most]]
        drawn = [*range(len(views))]
        if self.policy == "random_per_epoch" and generator is not None:
            drawn = [int(i) for i in generator.permutation(len(views))]
        first = [next((i for i in drawn if views[i] == view), None) for view in self.order]
        if any(position is not None for position in first):
            return [*first]
        return [*drawn, *[None] * len(self.order)][: len(self.order)]

    def _rank(self, views: Sequence[str | None], position: int) -> tuple[int, int]:
        """Sort key under `all`; ties go by position."""
        view = views[position]
        if view not in self.order:
            return len(views), 0
        return list(views[:position]).count(view), self.order.index(view)


def view_number(view: str | None) -> int:
    """The index of a view for the embedding: 0 CC, 1 MLO, 2 any other or unknown."""
    return EMBEDDED_VIEWS.index(view) if view in EMBEDDED_VIEWS else OTHER_VIEW


def excluded_images(images: pd.DataFrame) -> set[str]:
    """Supplemental images that do not decide about their breast, because it has standard views.

    Args:
        images: the readable ones: `image_id`, `prediction_id`, `view` and `supplemental`, true of
            spot and magnification views, specimens, and views with a needle. Without that column
            none is excluded.

    Returns:
        The `image_id` of supplemental images of breasts that have another one whose view is known.
    """
    if "supplemental" not in images:
        return set()
    supplemental = images["supplemental"].astype(bool)
    standard = ~supplemental & images["view"].notna()
    breasts = set(images.loc[standard, "prediction_id"])
    return set(images.loc[supplemental & images["prediction_id"].isin(breasts), "image_id"])
