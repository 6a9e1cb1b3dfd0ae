# SPDX-License-Identifier: Apache-2.0
"""Random stopping: the number of trials has the law that its price assumes."""

import math

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.rdp.rdp_privacy_accountant import _gamma_truncated_negative_binomial

from privguard.accounting.accountant import epsilon, spent
from privguard.accounting.sweep import RandomStopping, _logarithmic_parameter
from privguard.errors import UnknownEventError
from privguard.records import Relation

RUN = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.5)), 500)


@pytest.mark.parametrize("mean", [1.5, 5.0, 40.0])
@pytest.mark.parametrize("shape", [0.0, 1.0, math.inf])
def test_the_law_sums_to_one_and_has_its_mean(mean, shape):
    law = RandomStopping(mean, shape)
    chances = np.array([law.probability(trials) for trials in range(6000)])
    assert chances.sum() == pytest.approx(1, abs=1e-9)
    assert chances @ np.arange(6000) == pytest.approx(mean, rel=1e-6)
    below = np.cumsum(chances)
    for uniform in (0.0, 0.1, 0.5, 0.9, 0.999):
        assert law._quantile(uniform) == np.searchsorted(below, uniform, side="right")


@pytest.mark.parametrize("mean", [1.5, 5.0, 40.0])
def test_the_parameter_is_the_one_that_the_price_assumes(mean):
    assert _logarithmic_parameter(mean) == pytest.approx(_gamma_truncated_negative_binomial(0, mean), rel=1e-6)
    assert 1 / mean == pytest.approx(_gamma_truncated_negative_binomial(1, mean), rel=1e-6)


@pytest.mark.stat
def test_draws_follow_the_law():
    law = RandomStopping(4.0)
    draws = [law.draw() for _ in range(4000)]
    # mean 4, deviation √12; 5 standard errors: a false alarm in about 2 million runs
    assert abs(np.mean(draws) - 4) < 5 * math.sqrt(12 / 4000)
    assert abs(np.mean(draws) - 5) > 5 * math.sqrt(12 / 4000)


def test_a_sweep_costs_two_to_three_runs():
    one = epsilon([(RUN, 1)], delta=1e-5)
    claim = spent([(RandomStopping(20.0).event(RUN), 1)], delta=1e-5)
    assert claim.method == "rdp"
    assert 2 * one < claim.epsilon < 3 * one < epsilon([(RUN, 20)], delta=1e-5)
    with pytest.raises(UnknownEventError, match="RepeatAndSelect"):
        spent([(RandomStopping(20.0).event(RUN), 1)], delta=1e-5, relation=Relation.REPLACE_ONE)


@pytest.mark.parametrize(("mean", "shape"), [(1.0, 1.0), (0.5, 0.0), (math.inf, 1.0), (5.0, 0.5), (0.0, math.inf)])
def test_what_is_no_law_is_refused(mean, shape):
    with pytest.raises(ValueError, match="expected"):
        RandomStopping(mean, shape)
