# SPDX-License-Identifier: Apache-2.0
"""Calibration: what comes back spends nearly all of the budget, and never more."""

import math

import dp_accounting as dp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privguard.accounting.accountant import epsilon
from privguard.accounting.calibrate import Budget, dp_sgd, highest_rate, least_noise, most_steps
from privguard.errors import BudgetExceededError
from privguard.records import Relation

SIX = [
    (256 / 60000, 14000, 1e-5, 1, 2.0212),
    (256 / 60000, 14000, 1e-5, 3, 0.9672),
    (256 / 60000, 14000, 1e-5, 8, 0.6552),
    (0.01, 1000, 1e-6, 1, 1.5628),
    (0.01, 1000, 1e-6, 3, 0.8653),
    (0.01, 1000, 1e-6, 8, 0.6167),
]


def cost(rate, noise, steps, budget):
    event = dp_sgd(sample_rate=rate, noise_multiplier=noise)
    return epsilon([(event, steps)], delta=budget.delta, relation=budget.relation)


@pytest.mark.parametrize(("rate", "steps", "delta", "target", "known"), SIX)
def test_the_six_settings_agree_with_a_slow_search(rate, steps, delta, target, known):
    budget = Budget(epsilon=target, delta=delta)
    noise = least_noise(budget, sample_rate=rate, steps=steps)
    assert noise == pytest.approx(known, rel=1e-3)
    assert 0.995 * target <= cost(rate, noise, steps, budget) <= target


BUDGETS = st.builds(
    lambda e, d, r: Budget(epsilon=math.exp(e), delta=10.0**d, relation=r),
    st.floats(math.log(0.05), math.log(20)),
    st.floats(-8, -3),
    st.sampled_from(Relation),
)


@given(BUDGETS, st.floats(1e-3, 1), st.integers(1, 5000))
@settings(max_examples=3)
def test_noise_spends_nearly_all_and_never_more(budget, rate, steps):
    noise = least_noise(budget, sample_rate=rate, steps=steps)
    assert 0.995 * budget.epsilon <= cost(rate, noise, steps, budget) <= budget.epsilon


@given(BUDGETS, st.floats(0.7, 5), st.integers(1, 500))
@settings(max_examples=2)
def test_a_rate_spends_nearly_all_or_is_one(budget, noise, steps):
    rate = highest_rate(budget, noise_multiplier=noise, steps=steps)
    spent = cost(rate, noise, steps, budget)
    assert spent <= budget.epsilon
    assert rate == 1 or spent >= 0.995 * budget.epsilon


@pytest.mark.parametrize(("rate", "noise", "target"), [(0.01, 0.8, 2.0), (1, 8.0, 3.0)])
def test_one_step_more_would_not_fit(rate, noise, target):
    budget = Budget(epsilon=target, delta=1e-5)
    count = most_steps(budget, dp_sgd(sample_rate=rate, noise_multiplier=noise))
    assert cost(rate, noise, count, budget) <= target < cost(rate, noise, count + 1, budget)


def test_steps_after_a_history_fit_beside_it():
    budget, event = Budget(epsilon=2.0, delta=1e-5), dp_sgd(sample_rate=0.01, noise_multiplier=1.0)
    history = [(dp.GaussianDpEvent(5.0), 1)]
    left = most_steps(budget, event, after=history)
    assert 0 < left < most_steps(budget, event)
    assert epsilon([*history, (event, left)], delta=1e-5) <= 2 < epsilon([*history, (event, left + 1)], delta=1e-5)
    assert most_steps(budget, event, after=[(dp.GaussianDpEvent(0.5), 1)]) == 0
    assert most_steps(budget, event, limit=10) == 10


def test_what_cannot_fit_is_refused():
    with pytest.raises(BudgetExceededError, match="delta=1e-15: rounding"):
        least_noise(Budget(epsilon=1e-3, delta=1e-15), sample_rate=1e-3, steps=10_000)
    for wrong in ({"epsilon": 0.0, "delta": 1e-5}, {"epsilon": 1.0, "delta": 0.0}, {"epsilon": math.nan, "delta": 0.1}):
        with pytest.raises(ValueError, match="expected"):
            Budget(**wrong)
    with pytest.raises(ValueError, match="sample_rate"):
        least_noise(Budget(epsilon=1, delta=1e-5), sample_rate=1.5, steps=1)
