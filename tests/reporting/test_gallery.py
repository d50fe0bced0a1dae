"""Gallery: the breasts that are chosen, and their pictures."""

from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.inference.saliency import ExplainedImage
from rsna_bcd.reporting.gallery import choose_cases, gallery, make_views, overlay_saliency

GREY = np.full((100, 50), 90, np.uint8)


def make_oof(n: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "prediction_id": [f"{i}_L" for i in rng.permutation(n)],
            "label": rng.integers(0, 2, n),
            "probability": rng.choice(np.linspace(0, 1, 12), n),  # with ties
            "unread": (rng.random(n) < 0.1).astype(int),
        }
    )


def decode(picture: bytes | None) -> NDArray[Any]:
    assert picture is not None
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return pixels.astype(np.int64)


def explained(view: str | None, saliency: NDArray[np.float32] | None) -> ExplainedImage:
    return ExplainedImage("1", view, GREY, saliency)


def make_map(row: int, column: int, strength: float = 1.0) -> NDArray[np.float32]:
    one = np.zeros((10, 5), np.float32)
    one[row, column] = strength
    return one


@pytest.mark.parametrize("seed", range(3))
def test_choose_cases_takes_the_worst_errors_and_the_best_finds(seed: int) -> None:
    oof = make_oof(seed=seed)
    decisions = (oof["probability"] >= 0.5).astype(int)
    chosen = choose_cases(oof, decisions, 4)
    rows = [r for r in oof.assign(decision=decisions).to_dict("records") if not r["unread"]]
    expected = []
    for kind, label, decision, sign in (
        ("false negative", 1, 0, 1), ("false positive", 0, 1, -1), ("true positive", 1, 1, -1),
    ):  # fmt: skip
        own = [r for r in rows if (r["label"], r["decision"]) == (label, decision)]
        own.sort(key=lambda r: (sign * r["probability"], r["prediction_id"]))
        expected += [(kind, r["prediction_id"]) for r in own[:4]]
    assert list(zip(chosen["kind"], chosen["prediction_id"], strict=True)) == expected
    shuffled = oof.sample(frac=1, random_state=seed)
    pd.testing.assert_frame_equal(choose_cases(shuffled, decisions[shuffled.index], 4), chosen)
    all_right = choose_cases(oof.assign(unread=0), oof["label"], 3)
    assert all_right["kind"].tolist() == ["true positive"] * 3


@pytest.mark.parametrize(("decisions", "n"), [(np.zeros(3), 1), (np.zeros(60), 0)])
def test_choose_cases_refuses_an_empty_gallery(decisions: NDArray[np.float64], n: int) -> None:
    with pytest.raises(InputError, match="a decision for each of 60 breasts"):
        choose_cases(make_oof(), decisions, n)


def test_gallery_shows_recorded_properties() -> None:
    columns = ["prediction_id", "site_id", "age", "implant", "invasive", "density"]
    rows = ("1_L", 2, None, 1, 1, None), ("1_L", 2, 63.0, 1, 1, None), ("2_R", 1, 50.5, 0, 0, "B")
    images = pd.DataFrame(rows, columns=columns).assign(
        difficult_negative_case=[False, False, True]
    )
    oof = pd.DataFrame(
        {"prediction_id": ["1_L", "2_R"], "label": [1, 0], "probability": [0.1, 0.9], "unread": 0}
    )
    chosen = choose_cases(oof, [0, 1], 2)
    miss, alarm = gallery(chosen, images, lambda _: [explained("CC", make_map(1, 1))])
    assert (miss.kind, miss.prediction_id) == ("false negative", "1_L")
    assert (miss.label, miss.decision) == (1, 0)
    assert (alarm.kind, alarm.prediction_id, alarm.probability) == ("false positive", "2_R", 0.9)
    assert miss.facts == {"site": "2", "age": "63", "implant": "yes", "invasive": "yes"}
    expected = {"site": "1", "age": "50.5", "density": "B", "implant": "no"}
    assert alarm.facts == expected | {"difficult negative": "yes"}
    assert [view.name for view in miss.views] == ["CC"]


def test_make_views_pictures_are_small_and_keep_their_aspect() -> None:
    crop = np.full((2048, 1024), 90 << 8, np.uint16)
    (view,) = make_views([ExplainedImage("1", None, crop, make_map(2, 2))])
    assert (view.name, view.picture.width, view.picture.height) == ("", 320, 640)
    for picture in (view.picture.content, view.overlay):
        assert decode(picture).shape == (640, 320, 3)
    assert np.abs(decode(view.picture.content) - 90).max() <= 3


def test_make_views_maps_of_a_breast_share_a_scale() -> None:
    maps = make_map(7, 3, strength=8.0), make_map(7, 3, strength=0.8), None
    views = make_views([explained("CC", one) for one in maps])
    assert [view.overlay is not None for view in views] == [True, True, False]
    strong, faint = (
        np.abs(decode(v.overlay) - decode(v.picture.content)).sum(axis=-1) for v in views[:2]
    )
    assert strong.sum() > 10 * faint.sum() > 0
    row, column = np.unravel_index(strong.argmax(), strong.shape)
    assert abs(row - 75) <= 6
    assert abs(column - 35) <= 6
    assert strong[75, 35] > 100
    assert strong[:50].max() < 12
    (nothing,) = make_views([explained("CC", make_map(0, 0, strength=0.0))])
    assert np.abs(decode(nothing.overlay) - decode(nothing.picture.content)).max() <= 3


def test_overlay_saliency_keeps_the_contrast_of_the_tissue() -> None:
    dark, bright = (np.full((10, 5), level, np.uint8) for level in (20, 220))
    full = np.ones((2, 1), np.float32)
    difference = overlay_saliency(bright, full).astype(int) - overlay_saliency(dark, full)
    assert (difference >= 0.3 * 200).all()
    assert (overlay_saliency(dark, 0 * full) == 20).all()
