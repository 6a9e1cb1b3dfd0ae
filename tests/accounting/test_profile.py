# SPDX-License-Identifier: Apache-2.0
"""The privacy profile against the closed form of the Gaussian mechanism, and against the claim it belongs to."""

import math

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from scipy.stats import norm

from privguard.accounting.accountant import epsilon, privacy_profile, spent


def exact(sigma, at):
    """δ of one Gaussian mechanism at ε = ``at`` (Balle & Wang 2018, Theorem 8)."""
    a, b = 1 / (2 * sigma), at * sigma
    return norm.cdf(a - b) - math.exp(at) * norm.cdf(-a - b)


@pytest.mark.parametrize("steps", [1, 16])
def test_every_pair_bounds_the_exact_delta_closely(steps):
    events = [(GaussianDpEvent(2.0), steps)]
    claim = spent(events, delta=1e-5)
    for at, delta in privacy_profile(events, claim=claim):
        truth = exact(2.0 / math.sqrt(steps), at)
        assert truth - 1e-12 <= delta <= truth * 1.1 + 1e-9  # the grid rounds losses up


def test_the_profile_contains_the_claim_and_falls():
    events = [(PoissonSampledDpEvent(0.01, GaussianDpEvent(1.0)), 1000)]
    claim = spent(events, delta=1e-6)
    pair, *curve = privacy_profile(events, claim=claim)
    assert pair == (claim.epsilon, claim.delta)
    deltas = [delta for _, delta in curve]
    assert deltas == sorted(deltas, reverse=True)
    for at, delta in curve[5:40:10]:
        assert epsilon(events, delta=delta) == pytest.approx(at, rel=0.02)


def test_a_run_without_noise_has_the_empty_promise_alone():
    events = [(GaussianDpEvent(0.0), 1)]
    claim = spent(events, delta=1e-6)
    assert privacy_profile(events, claim=claim) == [(math.inf, 1e-6)]
