# SPDX-License-Identifier: Apache-2.0
"""Releases of other tools in a budget book: priced as an independent composition prices them, whatever their mixture.

The reference shares no code with the accountant: every mechanism's losses from its own formula, rounded down to a fine
grid and convolved, which gives a lower bound; rounded up, an upper one.
"""

import math

import dp_accounting as dp
import numpy as np
import pytest
from scipy import optimize, signal, stats

from privguard.accounting import accountant
from privguard.accounting.releases import ApproximateDp, ZeroConcentratedDp, one_event, parse
from privguard.accounting.sweep import RandomStopping
from privguard.errors import UnknownEventError
from privguard.records import Relation

ADD, REPLACE = Relation
DELTA, STEP = 1e-5, 2.0**-12


class Losses:
    """Losses of a mechanism as probabilities at first, first + 1, … grid steps, and the probability of ∞."""

    def __init__(self, first, probs, infinite=0.0):
        self.first, self.probs, self.infinite = first, np.maximum(probs, 0), infinite

    @classmethod
    def of_atoms(cls, atoms, rounded, infinite=0.0):
        places = [int(rounded(loss / STEP)) for loss, _ in atoms]
        probs = np.zeros(max(places) - min(places) + 1)
        np.add.at(probs, np.array(places) - min(places), [probability for _, probability in atoms])
        return cls(min(places), probs, infinite)

    @classmethod
    def of_density(cls, cdf, low, high, rounded):
        """A continuous loss: the mass between two points goes to the lower or the upper one."""
        points = np.arange(math.floor(low / STEP), math.ceil(high / STEP) + 1)
        below = cdf(points * STEP)
        first = points[0] if rounded is math.floor else points[1]
        return cls(int(first), np.diff(below), 1 - below[-1] if rounded is math.ceil else 0.0)

    def __add__(self, other):
        infinite = 1 - (1 - self.infinite) * (1 - other.infinite)
        return Losses(self.first + other.first, signal.fftconvolve(self.probs, other.probs), infinite)

    def times(self, count):
        if count == 1:
            return self
        half = self.times(count // 2)
        return half + half + self if count % 2 else half + half

    def epsilon(self):
        losses = (self.first + np.arange(self.probs.size)) * STEP

        def delta(epsilon):
            above = losses > epsilon
            return self.infinite + self.probs[above] @ -np.expm1(epsilon - losses[above]) - DELTA

        return 0.0 if delta(0.0) <= 0 else optimize.brentq(delta, 0.0, losses[-1] + 1, xtol=1e-9)


def stated(epsilon, delta=0.0):
    """Murtagh & Vadhan 2016, section 2: the worst (ε, δ)-private mechanism."""
    up = (1 - delta) / (1 + math.exp(-epsilon))
    return lambda rounded: Losses.of_atoms([(epsilon, up), (-epsilon, 1 - delta - up)], rounded, delta)


def gaussian(sigma):
    """Dong, Roth & Su 2022: the loss of Gaussian noise is itself Gaussian."""
    mu = 1 / sigma
    law = stats.norm(mu**2 / 2, mu)
    return lambda rounded: Losses.of_density(law.cdf, *law.interval(1 - 1e-14), rounded)


def laplace(scale):
    """|x − 1|/b − |x|/b for x with Laplace noise: half its mass at 1/b, an end of exp(−1/b)/2 at −1/b."""
    shift = 1 / scale

    def losses(rounded):
        low, high = math.exp(-shift) / 2, 0.5
        inner = Losses.of_density(
            lambda loss: np.exp((np.clip(loss, -shift, shift) - shift) / 2) / 2, -shift, shift, rounded
        )
        ends = Losses.of_atoms([(shift, high), (-shift, low)], rounded)
        first = min(inner.first, ends.first)
        probs = np.zeros(max(inner.first + inner.probs.size, ends.first + ends.probs.size) - first)
        for part in (inner, ends):
            probs[part.first - first :][: part.probs.size] += part.probs
        return Losses(first, probs)

    return losses


def discrete(weight, shift, reach=400):
    """Integer noise with these weights, moved by ``shift``."""
    points = np.arange(-reach, reach + 1)
    weights = np.array([weight(int(x)) for x in points])
    probs = weights / weights.sum()
    atoms = [
        (math.log(weight(int(x)) / weight(int(x) - shift)), p) for x, p in zip(points, probs, strict=True) if p > 1e-30
    ]
    return lambda rounded: Losses.of_atoms(atoms, rounded)


def response(p, buckets):
    kept, other = 1 - p + p / buckets, p / buckets
    loss = math.log(kept / other)
    return lambda rounded: Losses.of_atoms([(loss, kept), (-loss, other), (0.0, 1 - kept - other)], rounded)


def profile(rho):
    """The pair whose δ(ε) is what ρ-zCDP allows (Canonne, Kamath & Steinke 2020, Prop. 12), by a search for each ε."""

    def delta(epsilon):
        def exponent(log_order):
            order = 1 + math.exp(log_order)
            return (order - 1) * (order * rho - epsilon + math.log1p(-1 / order)) - math.log(order)

        return min(1.0, math.exp(optimize.minimize_scalar(exponent, bounds=(-5, 12), method="bounded").fun))

    def losses(rounded):
        width, last = 2.0**-8, 2**8 * 4
        above = np.array([delta(i * width) for i in range(last + 1)])
        above[0] = min(above[0], math.sqrt(1 - math.exp(-rho)))
        points = np.arange(-last, last + 1) * width
        deltas = np.concatenate(
            [1 - np.exp(-above[:0:-1] * 0 - np.arange(last, 0, -1) * width) * (1 - above[:0:-1]), above]
        )
        x = np.exp(points)
        hull = [0]
        for i in range(1, x.size):
            slopes = (deltas[i + 1 :] - deltas[i]) / (x[i + 1 :] - x[i]) if i + 1 < x.size else np.array([0.0])
            last_slope = (deltas[i] - deltas[hull[-1]]) / (x[i] - x[hull[-1]])
            if last_slope <= slopes.min() + 1e-15:
                hull.append(i)
        bent = np.diff(
            np.diff(np.interp(x, x[hull], deltas[hull])) / np.diff(x)
        )  # the density is the second derivative
        return Losses.of_atoms(
            list(zip(points[1:-1], np.maximum(bent * x[1:-1], 0), strict=True)), rounded, float(above[-1])
        )

    return losses


# What is typed, the relation that is asked for, and the same in the reference's own words.
HISTORIES = [
    (["dp 0.5 x 30"], ADD, [(stated(0.5), 30)]),
    (["dp 0.03125 1e-8 x 200"], ADD, [(stated(0.03125, 1e-8), 200)]),
    (["laplace 2 x 12", "gaussian 4 x 9"], ADD, [(laplace(2), 12), (gaussian(4), 9)]),
    (["laplace 1", "dp 0.7", "dp 0.1 1e-7 x 4"], ADD, [(laplace(1), 1), (stated(0.7), 1), (stated(0.1, 1e-7), 4)]),
    (["laplace 20"], ADD, [(laplace(20), 1)]),
    (["discrete-laplace 3 2 x 6", "laplace 5 x 3"], ADD,
     [(discrete(lambda x: math.exp(-abs(x) / 3), 2), 6), (laplace(5), 3)]),
    (["discrete-gaussian 3 x 7", "dp 0.2 x 5"], ADD,
     [(discrete(lambda x: math.exp(-x * x / 18), 1, 60), 7), (stated(0.2), 5)]),
    (["gaussian 10 x 40", "laplace 20 x 40", "dp 0.01 x 9"], ADD,
     [(gaussian(10), 40), (laplace(20), 40), (stated(0.01), 9)]),
    (["randomised-response 0.5 10 x 3"], REPLACE, [(response(0.5, 10), 3)]),
    (["randomised-response 0.9 4 x 25", "gaussian 6 x 4"], REPLACE, [(response(0.9, 4), 25), (gaussian(3), 4)]),
    (["laplace 8 x 10", "randomised-response 0.8 2 x 6"], REPLACE, [(laplace(4), 10), (response(0.8, 2), 6)]),
    (["discrete-laplace 6 x 5", "discrete-gaussian 8 x 5"], REPLACE,
     [(discrete(lambda x: math.exp(-abs(x) / 6), 2), 5), (discrete(lambda x: math.exp(-x * x / 128), 2, 200), 5)]),
    (["zcdp 0.02", "dp 0.4 x 6"], ADD, [(profile(0.02), 1), (stated(0.4), 6)]),
    (["zcdp 0.01 x 3", "laplace 3 x 4", "dp 0.2 1e-7"], REPLACE,
     [(profile(0.03), 1), (laplace(1.5), 4), (stated(0.2, 1e-7), 1)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "relation", "reference"), HISTORIES, ids=[" + ".join(typed) for typed, _, _ in HISTORIES]
)
def test_a_mixed_history_costs_what_an_independent_composition_says(typed, relation, reference):
    def composed(rounded):
        whole, *rest = [mechanism(rounded).times(times) for mechanism, times in reference]
        return sum(rest, start=whole).epsilon()

    low, high = composed(math.floor), composed(math.ceil)
    assert high <= 1.01 * low
    assert low <= accountant.epsilon(parse(typed, relation=relation), delta=DELTA, relation=relation) <= 1.005 * low


def test_what_is_known_by_its_divergences_alone_costs_what_they_say():
    rho, delta = 0.1, 1e-5

    def epsilon(order):  # Canonne, Kamath & Steinke 2020, Prop. 12, solved for ε
        return rho * order + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)

    best = optimize.minimize_scalar(epsilon, bounds=(1.01, 1e4), method="bounded").fun
    for relation in Relation:
        ours = accountant.epsilon([(ZeroConcentratedDp(0.02, relation), 5)], delta=delta, relation=relation)
        assert best <= ours <= 1.001 * best


def test_a_guarantee_holds_for_the_neighbours_that_it_means():
    both = [ApproximateDp(0.5, 1e-8, ADD), ZeroConcentratedDp(0.02, ADD)]
    for event, twice in zip(
        both, [ApproximateDp(1.0, 1e-8 * (1 + math.exp(0.5)), ADD), ZeroConcentratedDp(0.08, ADD)], strict=True
    ):
        replaced = accountant.epsilon([(event, 3)], delta=DELTA, relation=REPLACE)
        assert replaced == pytest.approx(accountant.epsilon([(twice, 3)], delta=DELTA), rel=2e-3)
    for text in ("dp 0.5", "zcdp 0.1", "randomised-response 0.5 2"):
        kind = REPLACE if text[0] != "r" else None
        with pytest.raises(UnknownEventError, match="cannot price it under add-or-remove-one"):
            accountant.epsilon([(one_event(parse([text], relation=kind)), 1)], delta=DELTA)


def test_sweeps_and_stated_guarantees_stand_in_one_history():
    run = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.5)), 100)
    sweep = RandomStopping(10.0).event(run)
    alone = accountant.epsilon([(sweep, 1)], delta=DELTA)
    total = accountant.epsilon([(sweep, 1), (ApproximateDp(0.5, 0.0, ADD), 1)], delta=DELTA)
    assert alone < total < alone + 0.5
    with pytest.raises(UnknownEventError, match="event=RepeatAndSelectDpEvent"):
        accountant.epsilon([(one_event([(sweep, 1)]), 1)], delta=DELTA, relation=REPLACE)


@pytest.mark.parametrize(
    "text",
    ["", "x 3", "dp", "dp 1 2 3", "dp -1", "dp 1 1", "dp nan", "zcdp inf", "laplace 0", "laplace 2 x 0",
     "laplace 2 x 1.5", "gaussian 2 sampled 2", "dp 1 sampled 0.1", "discrete-laplace 2 0.5", "randomised-response 0 3",
     "randomised-response 0.5 1", "cauchy 1", "laplace 2 3", "laplace x"],
)  # fmt: skip
def test_what_is_no_release_is_refused_with_its_text(text):
    with pytest.raises(ValueError, match=r"expected"):
        parse([text], relation=ADD)


def test_a_guarantee_without_its_relation_is_refused():
    with pytest.raises(ValueError, match="give --relation add-or-remove-one or replace-one"):
        parse(["dp 1"])
