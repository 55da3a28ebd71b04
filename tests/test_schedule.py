import pytest

from utils.schedule import learning_rate


def test_warm_up_rises_to_the_peak_and_cosine_falls_to_zero():
    rates = [learning_rate(step, 1000, 100, 0.5, "cosine") for step in range(0, 1001, 10)]
    assert 0 < rates[0] < rates[5] < rates[9] < rates[10] == 0.5
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))
    assert rates[-1] == pytest.approx(0)


def test_constant_stays():
    assert {learning_rate(step, 100, 0, 0.1, "constant") for step in (0, 50, 99)} == {0.1}
