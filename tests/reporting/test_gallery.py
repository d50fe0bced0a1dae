"""Which breasts are shown, and their pictures."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.reporting.gallery import choose_cases, gallery, make_views, overlaid


@dataclass(frozen=True)
class Image:
    """An image that was looked at."""

    view: str | None
    crop: NDArray[np.unsignedinteger[Any]]
    saliency: NDArray[np.float32] | None


def table(n: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "prediction_id": [f"{i}_L" for i in rng.permutation(n)],
            "label": rng.integers(0, 2, n),
            "probability": rng.choice(np.linspace(0, 1, 12), n),  # with ties
            "unread": (rng.random(n) < 0.1).astype(int),
        }
    )


def decoded(picture: bytes) -> NDArray[Any]:
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return pixels.astype(np.int64)


def grey(height: int = 100, width: int = 50) -> NDArray[np.uint8]:
    return np.full((height, width), 90, np.uint8)


def spot(row: int, column: int, strength: float = 1.0) -> NDArray[np.float32]:
    one = np.zeros((10, 5), np.float32)
    one[row, column] = strength
    return one


@pytest.mark.parametrize("seed", range(5))
def test_the_worst_and_the_best_are_chosen(seed: int) -> None:
    oof = table(seed=seed)
    decisions = (oof["probability"] >= 0.5).astype(int)
    chosen = choose_cases(oof, decisions, 4)
    rows = [r for r in oof.assign(decision=decisions).to_dict("records") if not r["unread"]]
    wanted = (("miss", 1, 0, 1), ("false alarm", 0, 1, -1), ("find", 1, 1, -1))
    expected = []
    for kind, label, decision, sign in wanted:
        of_kind = [r for r in rows if (r["label"], r["decision"]) == (label, decision)]
        of_kind.sort(key=lambda r: (sign * r["probability"], r["prediction_id"]))
        expected += [(kind, r["prediction_id"]) for r in of_kind[:4]]
    assert list(zip(chosen["kind"], chosen["prediction_id"], strict=True)) == expected
    shuffled = oof.sample(frac=1, random_state=seed)
    again = choose_cases(shuffled, decisions[shuffled.index], 4)
    pd.testing.assert_frame_equal(again, chosen)


def test_a_kind_that_does_not_occur_is_left_out() -> None:
    oof = table().assign(unread=0)
    chosen = choose_cases(oof, oof["label"], 3)  # all decisions are right
    assert chosen["kind"].tolist() == ["find"] * 3


@pytest.mark.parametrize(("decisions", "n"), [(np.zeros(3), 1), (np.zeros(60), 0)])
def test_a_gallery_of_nothing_is_refused(decisions: NDArray[np.float64], n: int) -> None:
    with pytest.raises(InputError, match="needs a decision for each of 60 breasts"):
        choose_cases(table(), decisions, n)


def test_a_case_says_what_is_known() -> None:
    images = pd.DataFrame(
        {
            "prediction_id": ["1_L", "1_L", "2_R"],
            "site_id": [2, 2, 1],
            "age": [None, 63.0, 50.5],
            "implant": [1, 1, 0],
            "invasive": [1, 1, 0],
            "density": [None, None, "B"],
            "difficult_negative_case": [False, False, True],
        }
    )
    oof = pd.DataFrame(
        {"prediction_id": ["1_L", "2_R"], "label": [1, 0], "probability": [0.1, 0.9], "unread": 0}
    )
    chosen = choose_cases(oof, [0, 1], 2)
    miss, alarm = gallery(chosen, images, lambda breast: [Image("CC", grey(), spot(1, 1))])
    assert (miss.kind, miss.prediction_id, miss.label, miss.decision) == ("miss", "1_L", 1, 0)
    assert (alarm.kind, alarm.prediction_id, alarm.probability) == ("false alarm", "2_R", 0.9)
    assert miss.facts == {
        "site": "2", "age": "63", "implant": "yes", "invasive": "yes",
    }  # fmt: skip
    assert alarm.facts == {
        "site": "1", "age": "50.5", "density": "B", "implant": "no", "difficult negative": "yes",
    }  # fmt: skip
    assert [view.name for view in miss.views] == ["CC"]


def test_pictures_are_small_and_keep_their_aspect() -> None:
    crop = np.full((2048, 1024), 90 << 8, np.uint16)
    (view,) = make_views([Image(None, crop, spot(2, 2))])
    assert (view.name, view.width, view.height) == ("", 320, 640)
    for picture in (view.picture, view.overlay):
        assert picture[:4] == b"RIFF"
        assert picture[8:12] == b"WEBP"
        assert decoded(picture).shape == (640, 320, 3)
    assert np.abs(decoded(view.picture) - 90).max() <= 3


def test_the_overlay_colours_where_the_map_is_strong() -> None:
    (view,) = make_views([Image("CC", grey(), spot(7, 3))])
    difference = np.abs(decoded(view.overlay) - decoded(view.picture)).sum(axis=-1)
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    assert abs(row - 75) <= 6
    assert abs(column - 35) <= 6
    assert difference[75, 35] > 100
    assert difference[:50].max() < 12
    blue, green, red = decoded(view.overlay)[75, 35]
    assert min(red, green) > blue + 40


def test_images_of_a_breast_share_a_scale() -> None:
    strong, faint, nothing, unseen = make_views(
        [
            Image("CC", grey(), spot(5, 2, strength=8.0)),
            Image("MLO", grey(), spot(5, 2, strength=0.8)),
            Image("MLO", grey(), spot(5, 2, strength=0.0)),
            Image("LM", grey(), None),
        ]
    )
    change = [
        np.abs(decoded(v.overlay) - decoded(v.picture)).sum() for v in (strong, faint, nothing)
    ]
    assert change[0] > 10 * change[1] > 0
    assert change[2] <= change[1] / 2
    assert [v.used_by_network for v in (strong, faint, nothing, unseen)] == [
        True,
        True,
        True,
        False,
    ]
    assert unseen.overlay == unseen.picture


def test_a_breast_without_any_evidence_is_grey() -> None:
    (view,) = make_views([Image("CC", grey(), spot(0, 0, strength=0.0))])
    assert view.used_by_network
    assert view.overlay == view.picture


def test_no_opacity_hides_the_tissue() -> None:
    dark, bright = (np.full((10, 5), level, np.uint8) for level in (20, 220))
    everywhere = np.ones((2, 1), np.float32)
    difference = overlaid(bright, everywhere).astype(int) - overlaid(dark, everywhere)
    assert (difference >= 0.3 * 200).all()
    assert np.array_equal(overlaid(dark, 0 * everywhere), np.repeat(dark[..., None], 3, axis=-1))
