"""ε from above: equal to closed forms and finest grids, lawful, never negative, never NaN, never an endless loop."""

import math

import dp_accounting as dp
import pytest

from privguard.accounting.accountant import epsilon, spent
from privguard.records import Relation

# (rate, σ, steps, δ) and the finest-grid or closed-form figure.
CORNERS = [
    ((256 / 60000, 1.1, 14000, 1e-5), 2.3758),
    ((0.01, 0.6, 1000, 1e-6), 8.7114),
    ((0.01, 0.3, 1000, 1e-5), 69.8157),
    ((0.5, 0.5, 2000, 1e-5), 1628.695),
    ((1, 1, 10, 1e-5), 17.856587),
    ((1e-5, 0.5, 100000, 1e-9), 2.1446),
    ((0.001, 10, 100, 1e-6), 0.002770),
    ((0.2, 1, 500, 1e-5), 38.1702),
    ((0.01, 20, 100, 1e-5), 0.012611),
    ((0.001, 1, 1, 1e-5), 0.0091116),
    ((0.1, 0.1, 1, 1e-5), 84.038769),
]


def steps(rate, noise, count):
    return [(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise)), count)]


@pytest.mark.parametrize(("setting", "expected"), CORNERS)
def test_the_odd_corners_agree_with_the_finest_grid(setting, expected):
    *mechanism, delta = setting
    assert epsilon(steps(*mechanism), delta=delta) == pytest.approx(expected, rel=5e-3)


def test_replace_one_stands_beside_the_claim():
    claim = spent(steps(256 / 60000, 1.1, 14000), delta=1e-5)
    assert claim.replace_one == pytest.approx(4.2106, rel=1e-3)
    assert claim.cross_check == pytest.approx(2.5904, rel=1e-3)
    assert claim.epsilon <= claim.cross_check
    assert spent(steps(1, 1, 1), delta=1e-5, relation=Relation.REPLACE_ONE).epsilon == pytest.approx(9.997, rel=1e-3)


def test_no_noise_is_infinite_and_nothing_done_is_free():
    assert spent(steps(0.1, 0.0, 1), delta=1e-5).epsilon == math.inf
    assert spent([], delta=1e-5).epsilon == 0
    assert spent(steps(0.0, 0.0, 1), delta=1e-5).epsilon == 0
