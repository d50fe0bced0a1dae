"""Projections of breasts: geometry, density, repeated views, texture."""

import numpy as np
import pytest

from rsna_bcd.phantom import anatomy
from rsna_bcd.phantom.anatomy import FIELD_SIZE, Breast, Projection

SHAPE, PIXEL_MM = (320, 260), 0.83


def breast(density: str = "B", implant: bool = False, seed: int = 0) -> Breast:
    return anatomy.sample_breast(0.0, density, implant, np.random.default_rng(seed))


def projected(view: str, positioning: int = 0, given: Breast | None = None) -> Projection:
    rng = np.random.default_rng(positioning)
    return anatomy.project(given or breast(), view, SHAPE, PIXEL_MM, rng)


@pytest.mark.parametrize("view", ["CC", "MLO", "AT", "LM", "ML", "LMO"])
def test_project_places_the_breast_between_chest_wall_and_nipple(view: str) -> None:
    projection = projected(view)
    inside = projection.depth > 0
    x, y = projection.nipple
    assert inside[round(y), 0], "the chest wall is at the left"
    assert inside[round(y), round(x) - 1]
    assert not inside[:, -1].any(), "beyond the nipple there is air"
    assert np.flatnonzero(inside.any(axis=0)).max() == pytest.approx(x, abs=10 / PIXEL_MM)
    assert 0.1 < inside.sum() / (SHAPE[0] * SHAPE[1]) < 0.7


def test_project_shows_muscle_and_axilla_in_oblique_views_only() -> None:
    above, side = projected("CC"), projected("MLO")
    assert not above.depth[0].any()
    assert side.depth[0].any()
    corner = side.tissue[:10, :10].mean()
    assert corner > side.tissue[-10:, :10].mean() + 0.15
    assert not above.from_side
    assert side.from_side


def test_project_brightness_increases_with_density() -> None:
    def brightness(density: str) -> float:
        views = [projected("CC", given=breast(density, seed=seed)) for seed in range(6)]
        return float(np.mean([view.tissue[view.depth > 0].mean() for view in views]))

    means = [brightness(density) for density in "ABCD"]
    assert means == sorted(means)
    assert means[3] > 2 * means[0]


def test_project_repeats_the_tissue_in_another_position() -> None:
    first, repeat = projected("CC", 1), projected("CC", 2)
    other = projected("CC", 1, breast(seed=9))
    shift = round(repeat.nipple[1]) - round(first.nipple[1])
    assert shift != 0

    def patch(projection: Projection, shift: int) -> np.ndarray:
        y, x = round(projection.nipple[1]), round(projection.nipple[0])
        return projection.tissue[y - 30 : y + 30, x - 70 : x - 10].ravel()

    assert np.corrcoef(patch(first, 0), patch(repeat, shift))[0, 1] > 0.8
    assert np.corrcoef(patch(first, 0), patch(other, 0))[0, 1] < 0.6


def test_project_implant_is_bright_and_smooth() -> None:
    projection = projected("CC", given=breast("A", implant=True))
    y = round(projection.nipple[1])
    core = projection.tissue[y - 20 : y + 20, :20]
    assert core.mean() > 0.5
    assert core.std() < 0.05


@pytest.mark.parametrize("beta", [2.0, 3.0])
def test_power_law_field_has_its_spectrum(beta: float) -> None:
    field = anatomy.power_law_field(beta, 2, np.random.default_rng(0))
    power = np.abs(np.fft.fft2(field)) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(FIELD_SIZE, 1 / FIELD_SIZE)] * 2))
    used = (frequency >= 4) & (frequency < FIELD_SIZE / 2)
    slope, _ = np.polyfit(np.log(frequency[used]), np.log(power[used]), 1)
    assert slope == pytest.approx(-beta, abs=0.05)
    assert power[(frequency > 0) & (frequency < 2)].max() < 1e-6 * power.max()
    assert (field.mean(), field.std()) == pytest.approx((0, 1), abs=1e-4)
