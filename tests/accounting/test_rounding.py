# SPDX-License-Identifier: Apache-2.0
"""Does rounding inside the library's Fourier transform ever hide privacy loss? Compared with sums that cannot cancel.

Composing by direct convolution adds non-negative numbers only, so each probability keeps nearly all its digits, far
below the δ of interest. It is slow, so the grids here are coarse; both sides use the same one-step distribution.
"""

import math

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from privguard.accounting import accountant
from privguard.records import Relation

SETTINGS = [
    # rate, σ, steps, interval
    (1e-5, 0.5, 100_000, 2.0**-6),
    (1e-3, 1.0, 10_000, 2.0**-6),
    (0.004, 1.0, 14_000, 2.0**-6),
    (0.01, 0.6, 1_000, 2.0**-5),
    (1e-4, 0.7, 300_000, 2.0**-5),
]
DELTAS = [1e-5, 1e-7, 1e-9, 1e-10, 1e-11, 1e-12]


def exact_delta(setting):
    """ε → δ of the composed distribution on this grid, removal and addition, without cancellation."""
    rate, noise, steps, interval = setting
    one = pld.from_gaussian_mechanism(noise, value_discretization_interval=interval, sampling_prob=rate)
    sides = [composed(side.to_dense_pmf(), steps) for side in (one._pmf_remove, one._pmf_add)]

    def delta_at(epsilon):
        return max(
            infinite + np.dot(np.maximum(0, -np.expm1(epsilon - losses * interval)), probs)
            for losses, probs, infinite in sides
        )

    return delta_at


def composed(pmf, steps):
    probs, first = trimmed(np.array(pmf._probs), pmf._lower_loss)
    total, start = np.ones(1), 0
    left = steps
    while left:
        if left & 1:
            total, start = trimmed(np.convolve(total, probs), start + first)
        left >>= 1
        if left:
            probs, first = trimmed(np.convolve(probs, probs), 2 * first)
    infinite = -math.expm1(steps * math.log1p(-pmf._infinity_mass))
    return np.arange(start, start + len(total)), total, infinite


def trimmed(probs, first, cut=1e-22):
    """Without the tails that together hold less than 1e-22, which is nothing against the least δ here."""
    low = int(np.searchsorted(np.cumsum(probs), cut))
    high = len(probs) - int(np.searchsorted(np.cumsum(probs[::-1]), cut))
    return probs[low:high], first + low


def found(setting, delta):
    rate, noise, steps, interval = setting
    events = [(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise)), steps)]
    evaluate = accountant._pld.__wrapped__  # not a remembered figure: the margin is changed below
    return evaluate(events, delta, Relation.ADD_OR_REMOVE_ONE, interval)[0]


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_loss_hides_in_the_rounding(setting):
    delta_at = exact_delta(setting)
    for delta in DELTAS:
        epsilon = found(setting, delta)
        assert math.isinf(epsilon) or delta_at(epsilon) <= delta * (1 + 1e-9)


def test_without_the_margin_the_loss_does_hide(monkeypatch):
    monkeypatch.setattr(accountant, "_ROUNDING", 0.0)
    setting = SETTINGS[4]
    delta_at = exact_delta(setting)
    assert delta_at(found(setting, 1e-11)) > 1.05e-11  # the library alone claims 1e-11; 1.19e-11 was measured
