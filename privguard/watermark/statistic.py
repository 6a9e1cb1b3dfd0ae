"""Exact tails, e-values and multiplicity: the arithmetic under every verdict of a mark.

Every p-value here is super-uniform under its stated null: P(p ≤ α) ≤ α at every α, for every number of trials. Figures
are base-10 logarithms throughout, so 10⁻⁵⁰⁰ is a number and not a zero. Normal approximations are not offered: at
10⁻⁶ they are wrong by factors (a z-test on 25 trials at chance ¼ has nine times its nominal size).
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from privguard import _check

Floats: TypeAlias = NDArray[np.float64]
Chance: TypeAlias = float | Fraction

LOG10_E = math.log10(math.e)
_CONVERGED = 1e-15  # relative step of a continued fraction
_WHOLE_CIRCLE = 256  # nodes up to which a lattice law is summed over its whole circle
_UNDERFLOW = 1e-280  # below this scipy's tails lose digits, so a series in logarithms takes over


# --------------------------------------------------------------------------------------------------------------- tails


def log10_binomial_tail(matches: ArrayLike, trials: ArrayLike, chance: Chance) -> Floats:
    """log10 P(Bin(trials, chance) ≥ matches), elementwise and exact to about 12 digits; zero trials give 0.

    Raises:
        ValueError: ``chance`` is not in (0, 1), or a count is negative or above its trials.
    """
    _check.probability("chance", float(chance))
    k, n = np.broadcast_arrays(np.asarray(matches, np.float64), np.asarray(trials, np.float64))
    if (k < 0).any() or (k > n).any():
        raise ValueError("matches: expected counts between 0 and trials")
    inside = k > 0
    tail = np.ones(k.shape)
    tail[inside] = special.betainc(k[inside], n[inside] - k[inside] + 1, float(chance))
    deep = tail < _UNDERFLOW
    out = np.asarray(np.log10(np.where(deep, 1.0, tail)))
    out[deep] = _binomial_series(k[deep], n[deep], float(chance)) * LOG10_E
    return np.minimum(out, 0.0)


def _binomial_series(k: Floats, n: Floats, p: float) -> Floats:
    """Logarithm of P(X ≥ k): ln P(X = k) + ln Σ products of term ratios, which are below 1 far in the tail."""
    start = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    start += k * math.log(p) + (n - k) * math.log1p(-p)
    odds, total, term, j = p / (1 - p), np.ones_like(k), np.ones_like(k), k.copy()
    while term.size and (term > 1e-17 * total).any():
        term = term * (n - j) / (j + 1) * odds
        total += term
        j += 1
    return start + np.log(total)


def log10_gamma_tail(score: ArrayLike, shape: ArrayLike) -> Floats:
    """log10 P(Gamma(shape, 1) ≥ score), elementwise: the sum of ``shape`` independent Exp(1) scores; shape 0 gives 0.

    Raises:
        ValueError: a shape is negative, or a score is negative or not finite.
    """
    s, a = np.broadcast_arrays(np.asarray(score, np.float64), np.asarray(shape, np.float64))
    if not (np.isfinite(s).all() and (s >= 0).all() and (a >= 0).all()):
        raise ValueError("score, shape: expected finite numbers, 0 or above")
    some = a > 0
    tail = np.ones(s.shape)
    tail[some] = special.gammaincc(a[some], s[some])
    deep = tail < _UNDERFLOW
    out = np.asarray(np.log10(np.where(deep, 1.0, tail)))
    out[deep] = _gamma_fraction(s[deep], a[deep]) * LOG10_E
    return np.minimum(out, 0.0)


def _gamma_fraction(s: Floats, a: Floats) -> Floats:
    """Logarithm of Q(a, s) by Legendre's continued fraction (DLMF 8.9.2, modified Lentz), for s far above a."""
    b = s + 1 - a
    c, d = np.full_like(s, 1e300), 1 / b
    value = d.copy()
    for i in range(1, 100_000):
        an = -i * (i - a)
        b = b + 2
        d = 1 / (an * d + b)
        c = b + an / c
        step = c * d
        value = value * step
        if not s.size or np.abs(step - 1).max() < _CONVERGED:
            break
    return a * np.log(s) - s - special.gammaln(a) + np.log(value)


def log10_weighted_bits_tail(score: ArrayLike, trials: ArrayLike, *, weights: Sequence[int]) -> Floats:
    """log10 P(Σₗ wₗ·Bin(trials, ½) ≥ score) for independent fair bits with positive whole weights wₗ.

    Exact to about 10 digits: the lattice inversion of the generating function along the circle through its saddle
    point (Daniels 1987), where the sum over equally spaced nodes has no discretisation error but an aliasing term, kept
    below 10⁻¹⁴ of the result.

    Raises:
        ValueError: a weight is not a positive whole number, or a score lies outside [0, trials·Σw].
    """
    w, repeats = np.unique(np.asarray(weights), return_counts=True)
    if not (np.issubdtype(w.dtype, np.integer) and w.size and (w > 0).all()):
        raise ValueError(f"weights={list(weights)}: expected positive whole numbers")
    s, n = (np.array(a, np.float64) for a in np.broadcast_arrays(score, trials))
    top = n * float(np.dot(w, repeats))
    if (s < 0).any() or (s > top).any():
        raise ValueError("score: expected between 0 and trials times the sum of the weights")
    s = np.ceil(s)
    below = s <= top / 2  # P(S ≥ s) = 1 − P(S ≥ top − s + 1), by the symmetry of fair bits
    upper = np.where(below, top - s + 1, s)
    out = np.zeros(s.shape)
    proper = (n > 0) & (upper <= top)
    out[proper] = _lattice_tail(upper[proper], n[proper], w.astype(np.float64), repeats.astype(np.float64))
    with np.errstate(divide="ignore"):
        flipped = np.log10(-np.expm1(np.minimum(out / LOG10_E, 0.0)))
    return np.where(below, np.where(proper, flipped, 0.0), out)


def _lattice_tail(s: Floats, n: Floats, w: Floats, repeats: Floats) -> Floats:
    """ln-scale contour sum for s above the mean; one row per score, one column per node."""
    theta = np.maximum(_saddle(s, n, w, repeats), 3 / np.sqrt(n * np.dot(repeats, w * w) / 4))
    odds = special.expit(theta[:, None] * w)
    sigma = np.sqrt(n * ((odds * (1 - odds)) @ (repeats * w * w)))
    nodes = np.ceil(np.maximum(16 * sigma, 40 / theta)) + 8
    log_mgf = n * (np.logaddexp(0.0, theta[:, None] * w) @ repeats - repeats.sum() * math.log(2))
    out = np.empty(s.shape)
    whole = nodes <= _WHOLE_CIRCLE  # a wide law is negligible beyond ten deviations
    for rows, width in ((whole, _WHOLE_CIRCLE // 2 + 1), (~whole, 28)):
        if rows.any():
            value = _contour(s[rows], n[rows], theta[rows], nodes[rows], (w, repeats, width))
            out[rows] = (log_mgf[rows] - theta[rows] * s[rows] + np.log(value)) * LOG10_E
    return np.minimum(out, 0.0)


def _contour(s: Floats, n: Floats, theta: Floats, nodes: Floats, law: tuple[Floats, Floats, int]) -> Floats:
    """(1/N) Σ_k M(θ+iu_k)/M(θ)·e^{−iu_k s}/(1−e^{−(θ+iu_k)}), folded by conjugate symmetry onto u ≥ 0."""
    w, repeats, width = law
    k = np.arange(width)
    u = 2 * np.pi * k / nodes[:, None]
    turn = np.exp(1j * u)
    ratio, power, exponent = np.ones(u.shape, np.complex128), np.ones(u.shape, np.complex128), 0
    for weight, count in zip(w.astype(int), repeats.astype(int), strict=True):
        for _ in range(weight - exponent):
            power *= turn
        exponent = weight
        odds = special.expit(theta * weight)[:, None]
        factor = odds * power
        factor += 1 - odds
        for _ in range(int(count)):
            ratio *= factor
    with np.errstate(divide="ignore"):
        log_ratio = np.log(ratio)
    terms = np.exp(n[:, None] * log_ratio - 1j * u * s[:, None]) / (1 - np.exp(-theta)[:, None] * turn.conj())
    fold = np.where(k == 0, 1.0, 2.0) * (2 * k <= nodes[:, None]) * np.where(2 * k == nodes[:, None], 0.5, 1.0)
    return np.maximum((terms.real * fold).sum(1) / nodes, 5e-324)


def _saddle(s: Floats, n: Floats, w: Floats, repeats: Floats) -> Floats:
    """θ ≥ 0 with K′(θ) = s, by bisection; near the largest possible score it stops where the law is a point."""
    low, high = np.zeros_like(s), np.full_like(s, 40.0)
    for _ in range(24):  # any θ > 0 is exact; a good one only avoids cancellation
        middle = (low + high) / 2
        small = n * (special.expit(middle[:, None] * w) @ (repeats * w)) < s
        low, high = np.where(small, middle, low), np.where(small, high, middle)
    return (low + high) / 2


def log10_spread_bound(z: ArrayLike) -> Floats:
    """log10 of exp(−z²/2), an upper bound on P(Z ≥ z) for z = ⟨signs, w⟩/‖w‖ with uniform ±1 signs and any fixed w.

    Source: Hoeffding 1963. A bound, not a probability: label it so (``Verdict.bound="hoeffding"``). At z ≤ 0 it is 1.
    """
    positive = np.maximum(np.asarray(z, np.float64), 0.0)
    return -(positive**2) / 2 * LOG10_E


def log10_mean_bound(mean: ArrayLike, trials: ArrayLike, chance: Chance) -> Floats:
    """log10 of exp(−n·KL(mean‖chance)), an upper bound for the mean of independent scores in [0, 1].

    Guarantee: holds where every score has expectation at most ``chance``; the scores need not be equal in law. Source:
    Hoeffding 1963, Theorem 1 (the Chernoff form).
    """
    p = _check.probability("chance", float(chance))
    x, n = np.broadcast_arrays(np.clip(mean, 0.0, 1.0), np.asarray(trials, np.float64))
    divergence = special.rel_entr(x, p) + special.rel_entr(1 - x, 1 - p)
    return np.where(x > p, -n * divergence * LOG10_E, 0.0)


# ------------------------------------------------------------------------------------------------------------ e-values


def log10_e_value(
    score: ArrayLike, trials: ArrayLike, cumulant: Callable[[Floats], Floats], *, tilts: Sequence[float]
) -> Floats:
    """An e-value: log10 of the average over the tilts θ of exp(θ·score − trials·κ(θ)), κ the null's cumulant per trial.

    Guarantee: each term is a test martingale, so the average is one too: by Ville's inequality, the chance that it ever
    reaches 1/α under the null, however the stopping is done, is at most α. Reading a text until the e-value is large is
    legal; doing so with a p-value is not. Source: Ramdas et al. 2023, "Game-theoretic statistics and safe inference".
    """
    theta = np.asarray(tilts, np.float64)
    s, n = np.broadcast_arrays(np.asarray(score, np.float64), np.asarray(trials, np.float64))
    exponents = s[..., None] * theta - n[..., None] * cumulant(theta)
    return log10_mean_exp(exponents)


def log10_mean_exp(exponents: Floats) -> Floats:
    """log10 of the average of e^x over the last axis, without overflow."""
    top = exponents.max(-1)
    return (top + np.log(np.exp(exponents - top[..., None]).mean(-1))) * LOG10_E


# -------------------------------------------------------------------------------------------------- many tests at once


def bonferroni(log10_p: ArrayLike, tests: float) -> Floats:
    """log10 of the p-value after ``tests`` tests, of which the smallest is quoted; at most 0."""
    _check.require(tests >= 1, "tests", tests, wanted="at least 1")
    return np.minimum(np.asarray(log10_p, np.float64) + math.log10(tests), 0.0)


def holm(log10_p: ArrayLike) -> Floats:
    """Holm's step-down adjusted log10 p-values: rejecting those ≤ α errs anywhere with probability at most α.

    Source: Holm 1979. No independence is needed.
    """
    p = np.asarray(log10_p, np.float64).ravel()
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] + np.log10(np.arange(len(p), 0, -1)))
    out = np.empty_like(p)
    out[order] = np.minimum(steps, 0.0)
    return out


def rank_p_value(own: float, decoys: ArrayLike) -> float:
    """(1 + number of decoys at least as large as ``own``)/(1 + number of decoys).

    Guarantee: valid, and uniform but for ties, when the own key is exchangeable with the decoys, whatever the text is
    like: repetitions and templates that spoil a textbook null spoil it equally for all keys.
    """
    scores = np.asarray(decoys, np.float64)
    return float(1 + np.count_nonzero(scores >= own)) / (1 + scores.size)


def matches_needed(trials: int, chance: Chance, *, log10_level: float) -> int | None:
    """The fewest matches whose binomial tail is at most the level; ``None`` where not even all of them reach it."""
    counts = np.arange(_check.count("trials", trials) + 1)
    reached = np.flatnonzero(log10_binomial_tail(counts, trials, chance) <= log10_level)
    return int(reached[0]) if reached.size else None


def attainable_level(trials: int, chance: Chance, *, log10_level: float) -> float:
    """The true size of "reject when p ≤ level" for a count: the largest attainable p-value not above the level."""
    needed = matches_needed(trials, chance, log10_level=log10_level)
    return 0.0 if needed is None else float(10.0 ** log10_binomial_tail(needed, trials, chance))
