"""Fields of noise: the spectrum, and how they are shared."""

import numpy as np
import pytest

from rsna_bcd.phantom.noise import SIZE, fields, look_up, power_law


@pytest.mark.parametrize("beta", [2.0, 3.0])
def test_the_spectrum_falls_as_a_power_of_the_frequency(beta: float) -> None:
    field = power_law(beta, 2, np.random.default_rng(0))
    power = np.abs(np.fft.fft2(field)) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(SIZE, 1 / SIZE)] * 2))
    used = (frequency >= 4) & (frequency < SIZE / 2)
    slope, _ = np.polyfit(np.log(frequency[used]), np.log(power[used]), 1)
    assert slope == pytest.approx(-beta, abs=0.05)
    assert power[(frequency > 0) & (frequency < 2)].max() < 1e-6 * power.max()


def test_fields_are_standardised_and_safe_to_share() -> None:
    stack = fields("radial")
    assert stack.shape == (SIZE, SIZE, 3)
    np.testing.assert_allclose(stack.mean(axis=(0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(stack.std(axis=(0, 1)), 1, atol=1e-4)
    assert fields("radial") is stack
    assert not stack.flags.writeable


def test_a_field_goes_on_beyond_its_edge() -> None:
    stack = fields("plain")
    x, y = np.array([[3.0, 100.0]], np.float32), np.array([[7.0, 200.0]], np.float32)
    np.testing.assert_allclose(
        look_up(stack, x, y), look_up(stack, x + SIZE, y - 2 * SIZE), atol=1e-5
    )
