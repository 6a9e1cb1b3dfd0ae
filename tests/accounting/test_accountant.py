# SPDX-License-Identifier: Apache-2.0
"""ε from above: equal to closed forms and finest grids, lawful, never negative, never NaN, never an endless loop."""

import math

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.dp_event import MixtureOfGaussiansDpEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from privguard.accounting.accountant import epsilon, epsilon_curve, spent
from privguard.errors import UnknownEventError
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


def largest_epsilon(delta, deltas_at):
    """The ε where a decreasing δ(ε) crosses ``delta``, by bisection: slow and obviously right."""
    low, high = 0.0, 1e6
    if deltas_at(0.0) <= delta:
        return 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if deltas_at(middle) > delta else (low, middle)
    return high


def gaussian_delta(mu):
    """Balle & Wang 2018 (arXiv 1805.06530), Theorem 5, for a total shift of mu deviations."""
    return lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e + norm.logcdf(-mu / 2 - e / mu))


def one_sampled_step_delta(rate, noise):
    """Hockey-stick divergence of (1−q)N(0,σ²) + qN(1,σ²) against N(0,σ²), removal direction, in closed form."""

    def delta_at(e):
        ratio = math.log(math.expm1(e) / rate + 1) if e < 700 else e - math.log(rate)
        cut = noise**2 * ratio + 0.5
        both = (1 - rate) * norm.sf(cut / noise) + rate * norm.sf((cut - 1) / noise)
        return both - math.exp(min(e + norm.logsf(cut / noise), 0.0))

    return delta_at


@pytest.mark.parametrize(("setting", "expected"), CORNERS)
def test_the_odd_corners_agree_with_the_finest_grid(setting, expected):
    *mechanism, delta = setting
    assert epsilon(steps(*mechanism), delta=delta) == pytest.approx(expected, rel=5e-3)


@given(st.floats(0.3, 30), st.integers(1, 200), st.sampled_from([1e-3, 1e-5, 1e-8]))
@settings(max_examples=8)
def test_plain_gaussian_noise_costs_its_closed_form(noise, count, delta):
    exact = largest_epsilon(delta, gaussian_delta(math.sqrt(count) / noise))
    for event in (dp.GaussianDpEvent(noise), dp.PoissonSampledDpEvent(1.0, dp.GaussianDpEvent(noise))):
        found = epsilon([(event, count)], delta=delta)
        assert exact * (1 - 1e-9) - 1e-9 <= found <= exact * 1.005 + 1e-6


@given(st.floats(1e-4, 0.9), st.floats(0.2, 10), st.sampled_from([1e-3, 1e-5, 1e-8]))
@settings(max_examples=8)
def test_one_sampled_step_costs_its_closed_form(rate, noise, delta):
    exact = largest_epsilon(delta, one_sampled_step_delta(rate, noise))
    found = epsilon(steps(rate, noise, 1), delta=delta)
    assert exact * (1 - 1e-9) - 1e-9 <= found <= exact * 1.005 + 1e-6


def test_laplace_noise_costs_its_closed_form():
    assert epsilon([(dp.LaplaceDpEvent(2.0), 1)], delta=1e-9) == pytest.approx(0.5, rel=5e-3)
    # One Laplace query at δ: ε = 1/b + 2·log(1 − δ), from δ(ε) = 1 − exp((ε − 1/b)/2).
    assert epsilon([(dp.LaplaceDpEvent(2.0), 1)], delta=0.01) == pytest.approx(0.5 + 2 * math.log(0.99), rel=5e-3)


MECHANISMS = st.tuples(st.floats(1e-4, 0.5), st.floats(0.5, 8.0), st.integers(1, 1000))
DELTAS = st.floats(-9, -2).map(lambda power: 10.0**power)
SLACK = 1.002  # two figures of one mechanism on two grids differ by 0.1 % each at most


@given(MECHANISMS, DELTAS, st.floats(1.05, 4))
@settings(max_examples=3)
def test_more_steps_less_noise_higher_rate_and_smaller_delta_never_cost_less(mechanism, delta, factor):
    rate, noise, count = mechanism
    base = epsilon(steps(rate, noise, count), delta=delta)
    assert 0 <= base < math.inf
    for dearer in (
        epsilon(steps(rate, noise, math.ceil(count * factor)), delta=delta),
        epsilon(steps(rate, noise / factor, count), delta=delta),
        epsilon(steps(min(1.0, rate * factor), noise, count), delta=delta),
        epsilon(steps(rate, noise, count), delta=delta / factor),
    ):
        assert dearer * SLACK + 1e-6 >= base


@given(st.lists(MECHANISMS.map(lambda m: steps(*m)[0]), min_size=1, max_size=4), st.randoms())
@settings(max_examples=2)
def test_order_and_grouping_change_nothing(history, random):
    shuffled = [*history, *history]
    random.shuffle(shuffled)
    assert epsilon(shuffled, delta=1e-5) == epsilon([(event, 2 * times) for event, times in history], delta=1e-5)


@given(MECHANISMS, DELTAS)
@settings(max_examples=4)
def test_the_claim_stands_between_its_neighbours(mechanism, delta):
    claim = spent(steps(*mechanism), delta=delta)
    assert claim.epsilon <= claim.cross_check  # both bound the truth from above; PLD is the tighter, or RDP is taken
    assert claim.replace_one >= claim.epsilon / SLACK
    assert claim.events == mechanism[2]


def test_replace_one_stands_beside_the_claim():
    claim = spent(steps(256 / 60000, 1.1, 14000), delta=1e-5)
    assert claim.replace_one == pytest.approx(4.2106, rel=1e-3)
    assert claim.cross_check == pytest.approx(2.5904, rel=1e-3)
    assert claim.method == "pld"
    assert spent(steps(1, 1, 1), delta=1e-5, relation=Relation.REPLACE_ONE).epsilon == pytest.approx(9.997, rel=1e-3)


@pytest.mark.parametrize("event", [dp.GaussianDpEvent(4.0), dp.PoissonSampledDpEvent(1.0, dp.GaussianDpEvent(4.0))])
def test_replacing_a_record_moves_the_sum_twice_as_far(event):
    exact = largest_epsilon(1e-5, gaussian_delta(2 * math.sqrt(3) / 4.0))
    found = epsilon([(event, 3)], delta=1e-5, relation=Relation.REPLACE_ONE)
    assert exact * (1 - 1e-9) <= found <= exact * 1.005


@pytest.mark.parametrize("noise", [0.0255, 0.026, 0.0265, 0.027])
def test_where_exponentials_underflow_the_figure_still_holds(noise):
    exact = largest_epsilon(1e-5, one_sampled_step_delta(0.25, noise))
    assert 600 < exact < 1000
    assert exact * (1 - 1e-6) <= epsilon(steps(0.25, noise, 1), delta=1e-5) <= exact * 1.005


def test_a_large_figure_still_comes_from_the_grid():
    claim = spent(steps(0.25, 0.5, 2164), delta=1e-5)
    assert claim.method == "pld"
    assert 600 < claim.epsilon < 0.8 * claim.cross_check


def test_no_noise_is_infinite_and_nothing_done_is_free():
    assert spent(steps(0.1, 0.0, 1), delta=1e-5).epsilon == math.inf
    assert spent([(dp.NonPrivateDpEvent(), 1)], delta=1e-5).epsilon == math.inf
    for nothing in ([], steps(0.0, 0.0, 1), steps(0.5, 1.0, 0), [(dp.NoOpDpEvent(), 9)]):
        assert spent(nothing, delta=1e-5).epsilon == 0


@pytest.mark.parametrize("noise", [1e-6, 1e-2, 1e6])
@pytest.mark.parametrize("delta", [0.0, 1e-300, 1e-12, 0.5, 1.0])
def test_extremes_end_in_a_number_zero_or_above(noise, delta):
    for relation in Relation:
        found = epsilon(steps(0.01, noise, 3), delta=delta, relation=relation)
        assert found >= 0


def test_a_tiny_delta_is_bounded_by_renyi_accounting():
    claim = spent(steps(0.001, 1.0, 10000), delta=1e-14)
    assert (claim.method, claim.interval) == ("rdp", 0.0)
    assert claim.epsilon == claim.cross_check


def test_events_are_refused_by_name_where_a_relation_cannot_price_them():
    with pytest.raises(UnknownEventError, match=r"PoissonSampledDpEvent.*replace-one"):
        sampled = dp.PoissonSampledDpEvent(0.1, dp.LaplaceDpEvent(1.0))
        spent([(sampled, 1)], delta=1e-5, relation=Relation.REPLACE_ONE)
    with pytest.raises(UnknownEventError, match=r"RandomizedResponseDpEvent.*add-or-remove-one"):
        spent([(dp.RandomizedResponseDpEvent(0.5, 3), 1)], delta=1e-5)
    with pytest.raises(UnknownEventError, match="ZCDpEvent"):
        spent([(dp.ZCDpEvent(1.0), 1)], delta=1e-5)
    for delta in (-1e-5, 1.5, math.nan):
        with pytest.raises(ValueError, match="delta="):
            spent(steps(0.1, 1.0, 1), delta=delta)


def test_the_curve_rises_to_the_claim():
    history = [*steps(0.01, 1.0, 300), *steps(0.02, 1.5, 200)]
    curve = epsilon_curve(history, delta=1e-5, points=5)
    counts, costs = zip(*curve, strict=True)
    assert (counts[0], counts[-1], costs[0]) == (0, 500, 0.0)
    assert costs[-1] == epsilon(history, delta=1e-5)
    assert np.all(np.diff(costs) >= 0)
    exact = epsilon(steps(0.01, 1.0, counts[2]), delta=1e-5)
    assert exact <= costs[2] * SLACK
    assert costs[2] <= exact * 1.02


def test_a_remembered_figure_is_the_figure_of_that_event_alone():
    """Events that differ in one number of one list, or in their class, are told apart."""

    def of(shares, deviation=1.0):
        return epsilon([(MixtureOfGaussiansDpEvent(deviation, [0, 1, 2], shares), 10)], delta=1e-5)

    first = of([0.9, 0.08, 0.02])
    assert of([0.9, 0.07, 0.03]) > first > of([0.9, 0.08, 0.02], deviation=1.1)
    assert of([0.9, 0.08, 0.02]) == first
    noise = [(dp.GaussianDpEvent(2.0), 1)], [(dp.LaplaceDpEvent(2.0), 1)]
    assert len({epsilon(events, delta=1e-5) for events in noise}) == 2
