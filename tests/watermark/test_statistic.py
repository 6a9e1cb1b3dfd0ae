# SPDX-License-Identifier: Apache-2.0
"""Tails against exact arithmetic in fractions, super-uniformity, e-values against Ville, multiplicity."""

import math
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privguard.watermark.statistics import tails as statistic
from privguard.watermark.statistics import weighted_bits
from privguard.watermark.statistics.null import BinomialCount, ExponentialSum, SpreadSigns, WeightedBits, verdict

LN10 = math.log(10)


def log10_fraction(value: Fraction) -> float:
    """log10 of a fraction of any size; logarithms of whole numbers never underflow."""
    return (math.log(value.numerator) - math.log(value.denominator)) / LN10


def binomial_exact(k: int, n: int, p: Fraction) -> float:
    return log10_fraction(sum(comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1)))


@given(st.data(), st.integers(1, 60), st.fractions(Fraction(1, 1000), Fraction(999, 1000), max_denominator=1000))
def test_binomial_tail_equals_the_sum_of_fractions(data, n, p):
    k = data.draw(st.integers(0, n))
    assert statistic.log10_binomial_tail(k, n, p) == pytest.approx(binomial_exact(k, n, p), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize(
    ("k", "n", "p"), [(900, 1000, Fraction(1, 4)), (128, 128, Fraction(1, 50_000)), (2000, 3000, Fraction(1, 10))]
)
def test_binomial_tail_below_the_smallest_double_is_still_exact(k, n, p):
    assert statistic.log10_binomial_tail(k, n, p) == pytest.approx(binomial_exact(k, n, p), rel=1e-11)


@given(st.integers(1, 50), st.integers(0, 4000))
def test_gamma_tail_equals_the_poisson_sum(n, tenths):
    """P(Gamma(n) ≥ s) = P(Poisson(s) < n); the sum of fractions is exact, e^{-s} is a logarithm."""
    s = Fraction(tenths, 10)
    terms = sum((s**j / math.factorial(j) for j in range(n)), Fraction(0))
    expected = log10_fraction(terms) - float(s) / LN10
    assert statistic.log10_gamma_tail(float(s), n) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def weighted_exact(weights: tuple[int, ...], n: int) -> list[int]:
    """How many of the 2^(n·layers) outcomes give each score, by whole-number convolution."""
    counts = [1]
    for w in list(weights) * n:
        shifted = [0] * w + counts
        counts = [a + b for a, b in zip(counts + [0] * w, shifted, strict=True)]
    return counts


TEN = tuple(10 - layer // 3 for layer in range(30))


@pytest.mark.parametrize(
    ("weights", "n"), [((1,), 7), ((3, 1), 1), ((2, 4), 9), (TEN, 1), (TEN, 3), (TEN, 40), ((1,) * 9, 60)]
)
def test_weighted_bits_tail_equals_the_convolution_at_every_score(weights, n):
    counts = weighted_exact(weights, n)
    tails, total = [], 0
    for count in reversed(counts):
        total += count
        tails.append(total)
    expected = [log10_fraction(Fraction(t, 2 ** (len(weights) * n))) if t else 0 for t in reversed(tails)]
    scores = np.unique(np.linspace(0, len(counts) - 1, 400).astype(int))
    found = weighted_bits.log10_weighted_bits_tail(scores, n, weights=weights)
    assert found == pytest.approx([expected[s] for s in scores], rel=1e-9, abs=2e-10)


def test_zero_trials_say_nothing():
    for null in (BinomialCount(Fraction(1, 4)), ExponentialSum(), WeightedBits((2, 1))):
        assert null.log10_tail(0, 0) == 0
        assert null.log10_e(0, 0) == pytest.approx(0)


@pytest.mark.parametrize("bad", [{"matches": -1, "trials": 3}, {"matches": 4, "trials": 3}])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(ValueError, match="between 0 and trials"):
        statistic.log10_binomial_tail(bad["matches"], bad["trials"], 0.5)


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        statistic.log10_gamma_tail(math.nan, 3)
    with pytest.raises(ValueError, match="between 0"):
        weighted_bits.log10_weighted_bits_tail(7, 1, weights=(2, 1))


NULLS = [BinomialCount(Fraction(1, 4)), BinomialCount(Fraction(1, 50_000)), ExponentialSum(), WeightedBits(TEN)]


def sample(null, rng, *, runs, trials):
    if isinstance(null, BinomialCount):
        return (rng.random((runs, trials)) < float(null.chance)).astype(float)
    if isinstance(null, ExponentialSum):
        return rng.exponential(size=(runs, trials))
    return rng.integers(0, 2, (runs, trials, len(null.weights))) @ np.array(null.weights, float)


@pytest.mark.stat
@pytest.mark.parametrize("null", NULLS, ids=repr)
def test_p_values_are_super_uniform_and_not_wastefully_so(null):
    """Seeded; each cell raises a false alarm with probability below 1e-4."""
    scores = sample(null, np.random.default_rng(5), runs=20_000, trials=25).sum(1)
    p = 10 ** null.log10_tail(scores, 25)
    for level in (0.1, 0.01, 1e-3):
        assert (p <= level).sum() <= np.ceil(20_000 * level + 4 * math.sqrt(20_000 * level))
    if not isinstance(null, BinomialCount):
        assert (p <= 0.1).mean() > 0.09


@pytest.mark.stat
@pytest.mark.parametrize("null", NULLS, ids=repr)
def test_an_e_value_watched_all_the_time_keeps_its_promise(null):
    """Ville: P(sup E ≥ 10) ≤ 0.1. False alarm below 1e-4, seeded."""
    steps = sample(null, np.random.default_rng(6), runs=4_000, trials=60).cumsum(1)
    e = 10 ** null.log10_e(steps, np.arange(1, 61))
    assert (e.max(1) >= 10).mean() <= 0.1 + 4 * math.sqrt(0.09 / 4000)


def test_an_e_value_of_a_count_has_mean_one_exactly():
    for null, n in ((BinomialCount(Fraction(1, 4)), 30), (BinomialCount(Fraction(1, 50_000)), 4)):
        p = float(null.chance)
        weights = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        assert np.dot(weights, 10 ** null.log10_e(np.arange(n + 1), n)) == pytest.approx(1.0)


def test_a_planted_mark_is_seen_by_p_and_e_alike():
    marked = np.random.default_rng(7).exponential(1.6, (100, 200)).sum(1)
    null = ExponentialSum()
    assert (null.log10_tail(marked, 200) < -5).mean() > 0.9
    assert (null.log10_e(marked, 200) > 4).mean() > 0.9


@given(st.lists(st.floats(-40, 0), min_size=1, max_size=12))
def test_holm_is_between_nothing_and_bonferroni(values):
    adjusted = statistic.holm(values)
    assert (adjusted >= np.array(values) - 1e-12).all()
    assert (adjusted <= statistic.bonferroni(values, len(values)) + 1e-12).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(adjusted[order]) >= -1e-12).all()


def test_holm_on_a_worked_example():
    """Three p-values 0.01, 0.04, 0.03 give 0.03, 0.06, 0.06 (Holm 1979)."""
    assert 10 ** statistic.holm(np.log10([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])


def test_matches_needed_reproduces_the_published_table():
    """n=100, K=10 needs 21/28/33 matches for 1e-3/1e-6/1e-9; n=16, K=50,000 needs 1/2/3."""
    for n, k, expected in ((100, 10, (21, 28, 33)), (16, 50_000, (1, 2, 3)), (20, 10, (8, 11, 14))):
        found = tuple(statistic.matches_needed(n, Fraction(1, k), log10_level=level) for level in (-3, -6, -9))
        assert found == expected


def test_the_spread_bound_is_above_the_truth():
    rng = np.random.default_rng(8)
    z = rng.choice([-1.0, 1.0], (20_000, 64)) @ (np.ones(64) / 8)
    for level in (1.0, 2.0, 3.0):
        assert np.log10((z >= level).mean()) <= statistic.log10_spread_bound(level)


def test_a_verdict_says_its_null_and_whether_it_is_a_bound():
    exact = verdict(BinomialCount(Fraction(1, 10)), scheme="triggers", score=33, trials=100, multiplicity=10)
    assert exact.bound == "exact"
    assert exact.log10_p == pytest.approx(binomial_exact(33, 100, Fraction(1, 10)))
    assert exact.log10_p_corrected == pytest.approx(exact.log10_p + 1)
    assert "1/10" in exact.null_model
    assert verdict(SpreadSigns(), scheme="weights", score=25.0, trials=1).bound == "hoeffding"
