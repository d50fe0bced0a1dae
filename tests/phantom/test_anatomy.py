"""Projections of breasts: where things are, and what a repeat shares."""

import numpy as np
import pytest

from rsna_bcd.phantom.anatomy import Projection, project
from rsna_bcd.phantom.breast import Breast, sample_breast

SHAPE, PIXEL_MM = (320, 260), 0.83


def breast(density: str = "B", implant: bool = False, seed: int = 0) -> Breast:
    return sample_breast(0.0, density, implant, np.random.default_rng(seed))


def seen(view: str, positioning: int = 0, whose: Breast | None = None) -> Projection:
    rng = np.random.default_rng(positioning)
    return project(whose or breast(), view, SHAPE, PIXEL_MM, rng)


@pytest.mark.parametrize("view", ["CC", "MLO", "AT", "LM", "ML", "LMO"])
def test_the_breast_lies_at_the_chest_wall_and_ends_behind_the_nipple(view: str) -> None:
    projection = seen(view)
    inside = projection.depth > 0
    x, y = projection.nipple
    assert inside[round(y), 0], "the chest wall is at the left"
    assert inside[round(y), round(x) - 1]
    assert not inside[:, -1].any(), "beyond the nipple there is air"
    assert np.flatnonzero(inside.any(axis=0)).max() == pytest.approx(x, abs=10 / PIXEL_MM)
    assert 0.1 < inside.sum() / (SHAPE[0] * SHAPE[1]) < 0.7


def test_only_oblique_views_show_the_muscle_and_the_axilla() -> None:
    above, side = seen("CC"), seen("MLO")
    assert not above.depth[0].any()
    assert side.depth[0].any()
    corner = side.tissue[:10, :10].mean()
    assert corner > side.tissue[-10:, :10].mean() + 0.15
    assert not above.from_side
    assert side.from_side


def test_density_is_brightness() -> None:
    def brightness(density: str) -> float:
        views = [seen("CC", whose=breast(density, seed=seed)) for seed in range(6)]
        return float(np.mean([view.tissue[view.depth > 0].mean() for view in views]))

    means = [brightness(density) for density in "ABCD"]
    assert means == sorted(means)
    assert means[3] > 2 * means[0]


def test_a_repeat_shows_the_same_tissue_elsewhere() -> None:
    first, repeat, other = seen("CC", 1), seen("CC", 2), seen("CC", 1, breast(seed=9))
    shift = round(repeat.nipple[1]) - round(first.nipple[1])
    assert shift != 0

    def patch(projection: Projection, shift: int) -> np.ndarray:
        y, x = round(projection.nipple[1]), round(projection.nipple[0])
        return projection.tissue[y - 30 : y + 30, x - 70 : x - 10].ravel()

    assert np.corrcoef(patch(first, 0), patch(repeat, shift))[0, 1] > 0.8
    assert np.corrcoef(patch(first, 0), patch(other, 0))[0, 1] < 0.6


def test_an_implant_is_bright_and_smooth() -> None:
    projection = seen("CC", whose=breast("A", implant=True))
    y = round(projection.nipple[1])
    core = projection.tissue[y - 20 : y + 20, :20]
    assert core.mean() > 0.5
    assert core.std() < 0.05
