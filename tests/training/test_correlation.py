# SPDX-License-Identifier: Apache-2.0
"""Noise that is correlated over steps: on the integers as its formula says, white once it is uncorrelated again."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz
from scipy.stats import kstest

from privguard._random import Stream
from privguard.accounting.bands import coefficients, norms
from privguard.errors import PrivacyError
from privguard.training.clip import ClippedSum
from privguard.training.noise.correlation import Correlation, peak
from privguard.training.noise.exact import add_noise, draw, rows
from privguard.training.noise.gaussian import PAIRS, HostPairs, Refiner
from privguard.training.noise.past import Past

SOURCE = Stream.from_insecure_seed(6, "noise")


def layout(count, name="w"):
    return rows({name: torch.zeros(count, dtype=torch.float64)}, lead=True)


def run(strategy, *, steps, count, deviation, first=0, source=SOURCE, restarts=()):
    """The integers of every step, (steps - first, count); at ``restarts`` a new process begins without rows."""
    correlation, made = Correlation(strategy, steps=steps), []
    for position in range(first, steps):
        if position in restarts:
            correlation = Correlation(strategy, steps=steps)
        step = correlation.draw(position, rows=layout(count), deviation=deviation, source=source.child(position))
        (integers,) = step.rows.values()
        made.append(integers.copy())
    return np.stack(made)


def weight(strategy, lengths, t, j, *, deviation):
    """w by its definition (docs/spec/mechanism-v1.md), exactly: c_j · D_t / D_{t-j}, cut off after p binary digits."""
    most = 16 * peak(strategy, steps=len(lengths)) * deviation * sum(map(abs, strategy))
    digits = min(40, math.floor(math.log2(2**53 / most)))
    exact = Fraction(strategy[j] * (lengths[t] / lengths[t - j]))
    return Fraction(math.trunc(exact * 2**digits), 2**digits)


def matrix(strategy, steps, restarts=()):
    """M by its definition: Toeplitz, each column over its norm, cut into blocks where rows were forgotten."""
    column = np.zeros(steps)
    column[: len(strategy)] = strategy
    whole = toeplitz(column, np.zeros(steps))
    whole /= np.linalg.norm(whole, axis=0)
    for restart in restarts:
        whole[restart:, :restart] = 0
    return whole


def reference(words, s, past):
    """rint(s·z - past) of a pair at 400 bits; ``past`` as fractions."""
    with mpmath.workprec(400):
        u, t = mpmath.mpf(2 * words[0] + 1) / 2**64, mpmath.mpf(2 * words[1] + 1) / 2**64
        r = mpmath.mpf(s) * mpmath.sqrt(-2 * mpmath.log(u))
        pair = r * mpmath.cos(mpmath.pi * t), r * mpmath.sin(mpmath.pi * t)
        away = [mpmath.mpf(each.numerator) / each.denominator for each in past]
        return [int(mpmath.nint(z - a)) for z, a in zip(pair, away, strict=True)]


@pytest.mark.parametrize("deviation", [2.0**28, 1.37e4])
def test_every_row_is_the_formula_at_400_bits(deviation):
    """The weights are exact fractions here; the first of two lost bits decides only once in 2⁶³/deviation."""
    strategy, steps, count = coefficients(4, steps=9), 9, 60
    lengths = [float(each) * (1 + 2.0**-40) for each in norms(strategy, steps=steps)]
    made = run(strategy, steps=steps, count=count, deviation=deviation)
    half = count // 2
    for t in range(steps):
        words = SOURCE.child(t).child(0).words(count).view(np.int64).reshape(2, -1)
        past = [Fraction(0)] * count
        for j in range(1, min(t, 3) + 1):
            w = weight(strategy, lengths, t, j, deviation=deviation)
            past = [p + w * int(k) for p, k in zip(past, made[t - j], strict=True)]
        s = math.nextafter(lengths[t] * deviation, math.inf)
        for pair in range(half):
            wanted = reference(
                (int(words[0, pair]) & (2**63 - 1), int(words[1, pair])), s, (past[pair], past[half + pair])
            )
            assert [made[t][pair], made[t][half + pair]] == wanted


def test_integers_in_doubt_are_settled_by_more_precision_and_then_by_further_bits(monkeypatch):
    """At 2³⁷ steps per deviation float64 leaves some pairs in doubt; a refiner that decides all agrees with it."""
    strategy, ways = coefficients(3, steps=5), {"doubtful": 0, "refined": 0}

    def counting(name, method, count):
        def counted(*arguments, **keywords):
            answer = method(*arguments, **keywords)
            ways[name] += count(answer)
            return answer

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(HostPairs, "_doubtful", counting("doubtful", HostPairs._doubtful, len))
        patched.setattr(Refiner, "__call__", counting("refined", Refiner.__call__, lambda _: 1))
        made = run(strategy, steps=5, count=2000, deviation=2.0**37)
    assert 2 < ways["refined"] == ways["doubtful"] < 100  # 12 are expected of 5,000
    with monkeypatch.context() as patched:
        patched.setattr(HostPairs, "_doubtful", lambda _, u, *__, **___: list(range(len(u))))
        assert (run(strategy, steps=5, count=2000, deviation=2.0**37) == made).all()


def test_sums_of_the_past_lose_nothing_in_float64_and_say_so_where_they_would():
    """Against fractions, with rows as large as the digits allow for; beyond that the bound on what is lost holds."""
    rng, weights = np.random.default_rng(1), np.array([0.9, -0.6180339887, 0.3])
    for bits, exact in ((33, True), (46, False)):
        kept = rng.integers(-(2**bits), 2**bits, (3, 4000)).astype(np.float64)
        past = Past.of(kept, weights, digits=18, largest=[2.0**bits] * 3)
        summed = np.empty(4001)
        past.block(0, into=summed)
        off = max(abs(Fraction(summed[i]) - past.exactly(i)) for i in range(4001))
        assert (off == 0, past.lost == 0) == (exact, exact)
        assert off <= past.lost
    assert (np.abs(past.weights) <= np.abs(weights)).all()


def test_noise_too_large_for_the_digits_of_a_weight_is_refused():
    with pytest.raises(PrivacyError, match="plan less noise, fewer ranks or fewer bands"):
        run((1.0, 0.5), steps=3, count=2, deviation=2.0**42)


@pytest.mark.stat
@pytest.mark.parametrize("restarts", [(), (13,)])
def test_the_noise_of_a_run_is_white_once_it_is_uncorrelated(restarts):
    """M·K/s over 40 steps and 8 million values: KS and correlations over lags below b, false-alarm rate 1e-6 each."""
    strategy, steps, count = coefficients(4, steps=40, momentum=0.9), 40, 200_000
    made = run(strategy, steps=steps, count=count, deviation=2.0**20, restarts=restarts) / 2.0**20
    white = matrix(strategy, steps, restarts) @ made
    assert kstest(white.ravel()[::7], "norm").pvalue > 1e-6
    assert abs(white.std() - 1) < 4.9 / math.sqrt(2 * white.size)
    for lag in range(1, 5):
        products = (white[lag:] * white[:-lag]).ravel()
        assert abs(products.mean()) < 4.9 / math.sqrt(products.size)
    assert abs((made[1:13] * made[:12]).mean()) > 0.1  # and it is not white as it was added
    if restarts:
        kept_in_error = (matrix(strategy, steps) @ made)[13:16]
        assert abs(kept_in_error.std() - 1) > 0.1


def test_the_columns_of_what_is_undone_have_at_most_the_norm_that_is_priced(monkeypatch):
    """M as the weights that are used give it, exactly: Σ of squares in fractions, which 1 bounds."""
    strategy, steps, deviation = coefficients(6, steps=17), 17, 2.0**28
    lengths = [float(each) * (1 + 2.0**-40) for each in norms(strategy, steps=steps)]
    correlation, used = Correlation(strategy, steps=steps), {}
    of = Past.of

    def watched(rows, weights, **arguments):
        past = of(rows, weights, **arguments)
        used[position] = [Fraction(w) for w in past.weights.tolist()]
        return past

    monkeypatch.setattr(Past, "of", watched)
    for position in range(steps):
        correlation.draw(position, rows=layout(2), deviation=deviation, source=SOURCE.child(position))
    for i in range(steps):
        entries = [used[i + j][i % 5] if j else Fraction(1) for j in range(min(6, steps - i))]
        assert entries[1:] == [weight(strategy, lengths, i + j, j, deviation=deviation) for j in range(1, len(entries))]
        square = sum((e / Fraction(lengths[i + j])) ** 2 for j, e in enumerate(entries))
        assert 1 - Fraction(1, 10**4) < square <= 1


def test_one_band_is_the_independent_noise_bit_for_bit():
    """A single coefficient takes nothing back; the plan without bands never comes here at all."""
    alone = draw(np.empty(5000, np.int64), deviation=2.0**28, source=SOURCE.child(3).child(0))
    clipped = ClippedSum({"w": torch.zeros(5000)}, 1.0)
    assert (add_noise(clipped, multiplier=1.0, source=SOURCE.child(3)).gradients["w"] != 0).any()
    first = Correlation((1.0, 0.0), steps=10).draw(
        3, rows=layout(5000), deviation=2.0**28 / (1 + 2.0**-40), source=SOURCE.child(3)
    )
    assert np.abs(first.rows[(0,)] - alone).max() <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 2 * PAIRS, 2 * PAIRS + 1, 4 * PAIRS + 7])
def test_every_length_and_any_number_of_threads_gives_the_same(count, monkeypatch):
    strategy = coefficients(3, steps=4)
    alone = run(strategy, steps=4, count=count, deviation=2.0**26)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert (run(strategy, steps=4, count=count, deviation=2.0**26) == alone).all()


def test_the_deviation_that_is_told_is_that_of_the_step():
    """Against the rows of M⁻¹; a step after a restart has the deviation of a first one."""
    strategy, steps = coefficients(4, steps=12, momentum=0.5), 12
    inverse = np.linalg.inv(matrix(strategy, steps))
    correlation, gains = Correlation(strategy, steps=steps), []
    for position in range(steps):
        made = correlation.draw(position, rows=layout(2), deviation=2.0**20, source=SOURCE.child(position))
        gains.append(made.gain)
    assert np.allclose(gains, np.linalg.norm(inverse, axis=1))
    assert peak(strategy, steps=steps) == pytest.approx(max(gains))
    late = Correlation(strategy, steps=steps).draw(5, rows=layout(2), deviation=2.0**20, source=SOURCE.child(5))
    assert late.gain == pytest.approx(gains[0])


def test_a_position_out_of_turn_and_another_layout_are_refused():
    correlation = Correlation((1.0, 0.5), steps=9)
    correlation.draw(0, rows=layout(4), deviation=8.0, source=SOURCE.child(0))
    for position in (0, 2):
        with pytest.raises(PrivacyError, match=r"expected 1; rows"):
            correlation.draw(position, rows=layout(4), deviation=8.0, source=SOURCE.child(position))
    for other, deviation in ((layout(5), 8.0), (layout(4, "v"), 8.0), (layout(4), 9.0)):
        with pytest.raises(PrivacyError, match="changed within a run"):
            correlation.draw(1, rows=other, deviation=deviation, source=SOURCE.child(1))
