from itertools import pairwise

import pytest

from training.schedule import SCALINGS, learning_rate


def test_warm_up_rises_to_the_peak_and_cosine_falls_to_zero():
    rates = [learning_rate(step, 1000, 100, 0.5, "cosine") for step in range(0, 1001, 10)]
    assert 0 < rates[0] < rates[5] < rates[9] < rates[10] == 0.5
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0)


def test_warm_up_comes_again_at_the_restart_below_the_same_schedule():
    plain, again = (
        [learning_rate(step, 1000, 100, 0.5, "cosine", restart) for step in range(1000)]
        for restart in (1000, 500)
    )
    assert again[:500] == plain[:500]
    assert again[500] == pytest.approx(plain[500] / 101)
    assert again[549] == pytest.approx(plain[549] * 50 / 101)
    assert again[600:] == plain[600:]
    # A restart within the first warm-up is the only one.
    assert learning_rate(60, 1000, 100, 0.5, "cosine", 50) == pytest.approx(0.5 * 11 / 101)


def test_constant_stays():
    assert {learning_rate(step, 100, 0, 0.1, "constant") for step in (0, 50, 99)} == {0.1}


def test_polynomial_falls_as_deeplabs():
    assert learning_rate(500, 1000, 0, 1.0, "polynomial") == pytest.approx(0.5**0.9)
    assert learning_rate(1000, 1000, 0, 1.0, "polynomial") == 0


def test_cyclic_has_four_peaks_of_half_the_height():
    rates = [learning_rate(step, 1000, 0, 1.0, "cyclic") for step in range(1001)]
    peaks = [step for step in range(1, 1000) if rates[step - 1] < rates[step] > rates[step + 1]]
    assert peaks == [125, 375, 625, 875]
    assert [rates[step] - 0.1 for step in peaks] == pytest.approx([0.9, 0.45, 0.225, 0.1125])
    assert min(rates) == pytest.approx(0.1)


def test_scaling_by_ranks():
    assert [SCALINGS[name](16) for name in ("linear", "sqrt", "none")] == [16, 4, 1]
