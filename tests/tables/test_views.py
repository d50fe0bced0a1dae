"""The images of a breast that a network is given, under each policy."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.tables.views import Place, Views, excluded_images


def positions(settings: Views, *views: str | None, seed: int | None = None) -> list[int | None]:
    generator = None if seed is None else np.random.default_rng(seed)
    return [place.position for place in settings.places(views, (), generator)]


def test_views_all_takes_standard_views_first_and_one_of_each_before_repeats() -> None:
    views = ("AT", "MLO", "MLO", "CC", "CC", "MLO", None)
    assert positions(Views(), *views) == [3, 1, 4, 2, 5, 0, 6]
    assert positions(Views(most=2), *views) == [3, 1]
    assert positions(Views(order=("MLO",), most=3), *views) == [1, 2, 5]


def test_views_one_per_view_keeps_places_and_takes_the_first() -> None:
    settings = Views("one_per_view")
    assert positions(settings, "MLO", "CC", "CC") == [1, 0]
    assert positions(settings, "MLO", "AT") == [None, 0]
    assert positions(settings, "CC", seed=0) == [0, None]
    assert positions(settings) == [None, None]


def test_views_of_a_breast_without_standard_ones() -> None:
    for settings in (Views("one_per_view"), Views("random_per_epoch")):
        assert positions(settings, "AT") == [0, None]
        assert positions(settings, None, "LM", "ML") == [0, 1]


def test_views_random_per_epoch_draws_in_training_only() -> None:
    settings = Views("random_per_epoch")
    views = ("CC", "MLO", "CC", "MLO", "AT")
    drawn = {tuple(positions(settings, *views, seed=seed)) for seed in range(50)}
    assert drawn == {(cc, mlo) for cc in (0, 2) for mlo in (1, 3)}
    assert positions(settings, *views) == positions(Views("one_per_view"), *views) == [0, 1]
    rare = {tuple(positions(settings, "AT", "LM", "ML", seed=seed)) for seed in range(80)}
    assert len(rare) == 6


@pytest.mark.parametrize("policy", ["all", "one_per_view", "random_per_epoch"])
def test_views_other_breast_follows_by_the_same_policy(policy: Any) -> None:
    settings = Views(policy, other_breast=True)
    own, other = ("MLO", "CC"), ("CC", "MLO", "CC")
    places = settings.places(own, other)
    assert places[:2] == Views(policy).places(own) == [Place(1, False), Place(0, False)]
    expected = [place.position for place in Views(policy).places(other)]
    assert places[2:] == [Place(position, True) for position in expected]
    assert Views(policy).places(own, other) == places[:2]
    alone = settings.places(own, ())
    assert alone[2:] == ([] if policy == "all" else [Place(None, True)] * 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": []}, "views.order"),
        ({"order": ["CC", "CC"]}, "views.order"),
        ({"order": ["cc"]}, r"views.order=\['cc'\]: name some of CC, MLO"),
    ],
)
def test_views_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Views(**settings)
    assert Views(order=["MLO", "CC"]) == Views(order=("MLO", "CC"))  # YAML has lists


def test_excluded_images() -> None:
    images = pd.DataFrame(
        [
            ("a", "1_L", "CC", False), ("b", "1_L", "CC", True), ("c", "1_L", None, True),
            ("d", "1_R", "CC", True), ("e", "1_R", "MLO", True),  # nothing else
            ("f", "2_L", None, False), ("g", "2_L", "CC", True),  # it may be one as well
        ],
        columns=["image_id", "prediction_id", "view", "supplemental"],
    )  # fmt: skip
    assert excluded_images(images) == {"b", "c"}
    assert excluded_images(images[images["image_id"] != "a"]) == set()
    assert excluded_images(images.drop(columns="supplemental")) == set()
