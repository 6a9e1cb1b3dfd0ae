# SPDX-License-Identifier: Apache-2.0
"""ε for a person with several records, against the definition of (ε, δ) worked out by integration."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from privguard.accounting import group
from privguard.accounting.accountant import spent
from privguard.accounting.calibrate import dp_sgd
from privguard.records import Relation, Unit


def delta_of(epsilon, *, rate, deviation, records):
    """δ(ε) of one step: the larger hockey-stick divergence of the mixture of Gaussians, summed on a fine grid."""
    x = np.linspace(-60, 60 + records, 2_000_001)
    shares = binom.pmf(range(records + 1), records, rate)
    mixture = sum(share * norm.pdf(x, j, deviation) for j, share in enumerate(shares))
    plain = norm.pdf(x, 0, deviation)
    excess = [np.clip(a - math.exp(epsilon) * b, 0, None).sum() for a, b in ((mixture, plain), (plain, mixture))]
    return max(excess) * (x[1] - x[0])


@pytest.mark.parametrize("records", [2, 4, 8])
@pytest.mark.parametrize(("rate", "deviation"), [(0.1, 1.0), (0.5, 2.0)])
def test_one_step_costs_a_group_what_the_definition_says(records, rate, deviation):
    history = [(dp_sgd(sample_rate=rate, noise_multiplier=deviation), 1)]
    claim = spent(history, delta=1e-5)
    ((_, epsilon),) = group.epsilons(history, claim=claim, sizes=(records,))
    found = delta_of(epsilon, rate=rate, deviation=deviation, records=records)
    assert found <= 1e-5
    assert delta_of(0.9 * epsilon, rate=rate, deviation=deviation, records=records) > 1e-5


def test_a_group_costs_more_than_one_record_and_more_than_k_times_epsilon_at_the_same_delta():
    history = [(dp_sgd(sample_rate=0.01, noise_multiplier=1.0), 1000)]
    claim = spent(history, delta=1e-5)
    figures = dict(group.epsilons(history, claim=claim))
    assert list(figures) == [2, 4, 8]
    assert all(epsilon > records * claim.epsilon for records, epsilon in figures.items())
    assert figures[2] == pytest.approx(3.979, rel=0.03)  # the accountant's own, finest grid


def test_nothing_is_said_where_nothing_is_known():
    from dp_accounting.dp_event import DiscreteLaplaceDpEvent

    history = [(dp_sgd(sample_rate=0.1, noise_multiplier=1.0), 5)]
    assert group.epsilons(history, claim=spent(history, delta=1e-5, unit=Unit.USER)) == []
    assert group.epsilons(history, claim=spent(history, delta=1e-5, relation=Relation.REPLACE_ONE)) == []
    foreign = [(DiscreteLaplaceDpEvent(0.5, 1), 1)]
    assert group.epsilons(foreign, claim=spent(foreign, delta=1e-5)) == []
