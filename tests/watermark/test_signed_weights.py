# SPDX-License-Identifier: Apache-2.0
"""The exact tail of a signed sum against brute force, exact convolution and long arithmetic."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privguard.watermark.statistics import tails, weighted_bits
from privguard.watermark.statistics.null import SignedWeights

WEIGHTS = st.lists(st.integers(-40, 40), min_size=1, max_size=12).filter(any)


@given(WEIGHTS)
def test_every_tail_equals_the_count_over_all_signs(weights):
    w = np.array(weights)
    signs = ((np.arange(2 ** len(w))[:, None] >> np.arange(len(w))) & 1) * 2 - 1
    sums = signs @ w
    scores = np.arange(sums.min(), sums.max() + 1)
    exact = [math.log10(float((sums >= score).mean())) for score in scores]
    assert SignedWeights.of(w).log10_tail(scores, 1) == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("deviations", [0.5, 2.0, 4.0, 6.5])
def test_a_thousand_mixed_weights_equal_exact_convolution(deviations):
    w = np.random.default_rng(3).integers(-12, 13, 1000)
    law = np.array([1.0])
    for weight in np.abs(w[w != 0]):
        wider = np.zeros(len(law) + 2 * weight)
        wider[: len(law)] += law / 2
        wider[2 * weight :] += law / 2
        law = wider
    null, total = SignedWeights.of(w), int(np.abs(w).sum())
    score = int(deviations * null.deviation)
    exact = math.log10(law[score + total + (score + total) % 2 :].sum())
    assert float(null.log10_tail(score, 1)) == pytest.approx(exact, abs=1e-9)


def test_fifty_equal_weights_equal_the_binomial_in_long_arithmetic():
    null = SignedWeights.of(np.full(50, 7))
    with mpmath.workdps(60):
        for ones in (26, 35, 44, 50):
            exact = mpmath.log10(sum(mpmath.binomial(50, k) for k in range(ones, 51)) / mpmath.mpf(2) ** 50)
            assert float(null.log10_tail(7 * (2 * ones - 50), 1)) == pytest.approx(float(exact), abs=1e-9)


def test_many_signs_on_one_weight_stay_exact_far_out():
    """300,000 signs: the far nodes of the circle underflow, and the deep tail must not."""
    n, score = 300_000, 20_000
    with mpmath.workdps(40):
        ones = (n + score) // 2
        term = mpmath.binomial(n, ones) / mpmath.mpf(2) ** n
        total = mpmath.mpf(0)
        while term > mpmath.mpf(10) ** -30 * total:
            total, term, ones = total + term, term * (n - ones) / (ones + 1), ones + 1
        exact = float(mpmath.log10(total))
    assert exact < -280
    assert float(SignedWeights((3,), (n,)).log10_tail(3 * score, 1)) == pytest.approx(exact, abs=1e-7)


def test_weights_that_nearly_share_a_divisor_are_read_whole():
    """Five hundred weights of 64 and three of 1: far from smooth, so near nodes alone would be wrong."""
    law = np.array([1.0])
    for weight in [64] * 500 + [1] * 3:
        wider = np.zeros(len(law) + 2 * weight)
        wider[: len(law)] += law / 2
        wider[2 * weight :] += law / 2
        law = wider
    null = SignedWeights((1, 64), (3, 500))
    for score in (64 * 60 - 3, 64 * 60 + 5, 64 * 61 + 1):
        first = score + 32_003 + (score + 32_003) % 2
        assert float(null.log10_tail(score, 1)) == pytest.approx(math.log10(law[first:].sum()), abs=1e-8)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_bits_that_share_a_divisor_equal_the_bits_without_it(depth):
    """A tournament of one layer weighs 10: its tail is the binomial's."""
    weights = tuple(10 - 10 * layer // depth for layer in range(depth))
    divisor = math.gcd(*weights)
    smaller = tuple(w // divisor for w in weights)
    for score in (280, 300, 310):
        one = weighted_bits.log10_weighted_bits_tail(score * depth, 60, weights=weights)
        other = weighted_bits.log10_weighted_bits_tail(-(-score * depth // divisor), 60, weights=smaller)
        assert float(one) == pytest.approx(float(other), abs=1e-10)
    if depth == 1:
        exact = tails.log10_binomial_tail(40, 60, 0.5)
        assert float(weighted_bits.log10_weighted_bits_tail(400, 60, weights=(10,))) == pytest.approx(float(exact))


def test_repeats_and_times_count_signs_again():
    w = np.array([1, -2, 5, 0])
    assert SignedWeights.of(w, repeats=3) == SignedWeights.of(w).times(3) == SignedWeights.of(np.tile(w, 3))
    assert SignedWeights.of(w).signs == 3


def test_without_weights_nothing_is_evidence():
    null = SignedWeights.of(np.zeros(10, int))
    assert float(null.log10_tail(0, 1)) == 0.0
    assert null.deviation == 0.0


@given(WEIGHTS)
def test_the_e_value_averages_to_at_most_one(weights):
    w = np.array(weights)
    signs = ((np.arange(2 ** len(w))[:, None] >> np.arange(len(w))) & 1) * 2 - 1
    assert (10 ** SignedWeights.of(w).log10_e(signs @ w, 1)).mean() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("weights", "counts"), [([0], [1]), ([2, 1], [1, 1]), ([1], [0]), ([1, 2], [1]), ([1.5], [1])])
def test_what_is_no_list_of_weights_is_refused(weights, counts):
    with pytest.raises(ValueError, match="ascending"):
        weighted_bits.log10_signed_sum_tail(0, weights=weights, counts=counts)


def test_a_score_beyond_all_weights_is_refused():
    with pytest.raises(ValueError, match="out of reach"):
        weighted_bits.log10_signed_sum_tail(4, weights=[1], counts=[3])
