# SPDX-License-Identifier: Apache-2.0
"""The exact tail of a weighted sum of fair bits, by inverting its generating function on a circle (Daniels 1987).

Let S = Σₗ wₗ·Bin(n, ½) with whole weights, M(θ) = E e^{θS} its moment generating function, and θ > 0. Summed over N
equally spaced points of the circle of radius e^θ,

    (1/N) Σₖ M(θ+iuₖ)·e^{−(θ+iuₖ)s} / (1−e^{−(θ+iuₖ)})  =  Σⱼ e^{θjN}·P(S ≥ s+jN),   uₖ = 2πk/N.

The term j = 0 is the tail, the others are its aliases; there is no discretisation error besides, since S lives on whole
numbers. So any θ > 0 is exact once N is large enough. The saddle point, where the mean of the law tilted by θ is s,
makes the terms of one size and so avoids cancellation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from privguard.watermark.statistics.tails import LOG10_E, Floats

_FEW_NODES = 256  # up to here the whole circle is summed
_NEAR_NODES = 28  # else so many: of 16σ nodes the 28th lies at u = 10/σ, where |M(θ+iu)| is below e⁻⁵⁰ of M(θ)
_BOUNDING, _NEGLIGIBLE = 8, -60.0  # factors that bound a node; below e⁻⁶⁰ it is left out


def log10_weighted_bits_tail(score: ArrayLike, trials: ArrayLike, *, weights: Sequence[int]) -> Floats:
    """log10 P(Σₗ wₗ·Bin(trials, ½) ≥ score) for independent fair bits with positive whole weights wₗ, elementwise.

    Exact to about 10 digits; aliases are kept below 10⁻¹⁴ of the result.

    Raises:
        ValueError: a weight is not a positive whole number, or a score lies outside [0, trials·Σw].
    """
    distinct, repeats = np.unique(np.asarray(weights), return_counts=True)
    if not (np.issubdtype(distinct.dtype, np.integer) and distinct.size and (distinct > 0).all()):
        raise ValueError(f"weights={list(weights)}: expected positive whole numbers")
    s, n = (np.array(a, np.float64) for a in np.broadcast_arrays(score, trials))
    return _log10_tail(_Bits(distinct.astype(np.float64), repeats.astype(np.float64)), s, n)


def log10_signed_sum_tail(score: ArrayLike, *, weights: Sequence[int], counts: Sequence[int]) -> Floats:
    """log10 P(Σᵢ sᵢwᵢ ≥ score) for independent uniform signs, ``counts[l]`` of them on weight ``weights[l]``.

    The signed sum is 2·Σᵢ bᵢwᵢ − Σᵢ wᵢ for fair bits b, so it moves in steps of 2 and its tail is theirs. Exact to
    about 10 digits, elementwise over ``score``.

    Raises:
        ValueError: weights that do not ascend, weights or counts that are no positive whole numbers, or a score that
            is out of reach.
    """
    w, repeats = np.asarray(weights), np.asarray(counts)
    whole = all(np.issubdtype(a.dtype, np.integer) and bool((a > 0).all()) for a in (w, repeats))
    if not (w.size and w.shape == repeats.shape and whole and (np.diff(w) > 0).all()):
        raise ValueError("weights, counts: expected ascending positive whole weights, and how many signs each has")
    total = float(np.dot(w.astype(np.float64), repeats))
    s = np.ceil((np.array(score, np.float64) + total) / 2)
    return _log10_tail(_Bits(w.astype(np.float64), repeats.astype(np.float64), alone=True), s, np.ones_like(s))


def _log10_tail(bits: "_Bits", s: Floats, n: Floats) -> Floats:
    """log10 P(S ≥ s) under n trials each, any shape; weights are first divided by what divides them all."""
    step = float(np.gcd.reduce(bits.weights.astype(np.int64)))
    bits, s = _Bits(bits.weights / step, bits.repeats, bits.alone), s / step
    top = n * float(np.dot(bits.weights, bits.repeats))
    if (s < 0).any() or (s > top).any():
        raise ValueError(
            "score: out of reach; expected between 0 and all weights of all trials, or within ± all signed ones"
        )
    s = np.ceil(s)
    below = s <= top / 2  # P(S ≥ s) = 1 − P(S ≥ top − s + 1), by the symmetry of fair bits
    upper = np.where(below, top - s + 1, s)
    out = np.zeros(s.shape)
    proper = (n > 0) & (upper <= top)
    out[proper] = _log10_upper_tail(bits, upper[proper], n[proper])
    with np.errstate(divide="ignore"):
        flipped = np.log10(-np.expm1(np.minimum(out / LOG10_E, 0.0)))
    return np.where(below, np.where(proper, flipped, 0.0), out)


@final
@dataclass(frozen=True)
class _Bits:
    """The bits of one trial: ``repeats`` (L,) of them with each of the distinct ``weights`` (L,), ascending."""

    weights: Floats
    repeats: Floats
    alone: bool = False  # one trial holds all bits, so nothing makes its law smooth

    def odds(self, theta: Floats) -> Floats:
        """The chance of a one after tilting by θ: (R,) to (R, L)."""
        return special.expit(theta[:, None] * self.weights)

    def log_mgf(self, theta: Floats) -> Floats:
        """Logarithm of M(θ) for one trial, (R,)."""
        return np.logaddexp(0.0, theta[:, None] * self.weights) @ self.repeats - self.repeats.sum() * math.log(2)

    def mean(self, theta: Floats) -> Floats:
        """Mean of the tilted law of one trial, (R,)."""
        return self.odds(theta) @ (self.repeats * self.weights)

    def variance(self, theta: Floats) -> Floats:
        """Variance of the tilted law of one trial, (R,)."""
        odds = self.odds(theta)
        return (odds * (1 - odds)) @ (self.repeats * self.weights * self.weights)

    def mgf_ratio(self, theta: Floats, turn: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """M(θ+iu)/M(θ) of one trial, where ``turn`` is e^{iu}, (R, N)."""
        ratio, power, exponent = np.ones(turn.shape, np.complex128), np.ones(turn.shape, np.complex128), 0
        for weight, count in zip(self.weights.astype(int), self.repeats.astype(int), strict=True):
            for _ in range(weight - exponent):
                power *= turn
            exponent = weight
            odds = special.expit(theta * weight)[:, None]
            factor = odds * power
            factor += 1 - odds
            ratio *= factor if count == 1 else factor ** int(count)
        return ratio


def _log10_upper_tail(bits: _Bits, s: Floats, n: Floats) -> Floats:
    """log10 P(S ≥ s) for whole s above the mean, (R,), under n trials each, (R,)."""
    # No θ below 3 over the deviation: with a smaller one the 40/θ nodes below would be more than the law is wide.
    theta = np.maximum(_saddle(bits, s, n), 3 / np.sqrt(n * np.dot(bits.repeats, bits.weights * bits.weights) / 4))
    sigma = np.sqrt(n * bits.variance(theta))
    # Aliases: 16 deviations of the tilted law leave nothing of the term j = 1, and e^{−θN} ≤ e⁻⁴⁰ little of j = −1.
    nodes = np.ceil(np.maximum(16 * sigma, 40 / theta)) + 8
    log_mgf = n * bits.log_mgf(theta)
    out = np.empty(s.shape)
    whole = nodes <= _FEW_NODES
    for rows, width in ((whole, _FEW_NODES // 2 + 1), (~whole, _NEAR_NODES)):
        if rows.any():
            if width == _NEAR_NODES and bits.alone:
                value = np.array([_single(bits, *row) for row in zip(s[rows], theta[rows], nodes[rows], strict=True)])
            else:
                value = _circle(bits, s[rows], n[rows], theta[rows], nodes[rows], np.arange(width))
            out[rows] = (log_mgf[rows] - theta[rows] * s[rows] + np.log(value)) * LOG10_E
    return np.minimum(out, 0.0)


def _single(bits: _Bits, s: float, theta: float, nodes: float) -> float:
    """The module's sum for one trial of many bits, from every node that could matter.

    At a node, no factor of M(θ+iu)/M(θ) is above 1, so a few of them bound it all; where their product is below e⁻⁶⁰,
    the node is left out. With near nodes alone, weights that nearly share a divisor would be read wrongly.
    """
    k = np.arange(int(nodes) // 2 + 1)
    angle = 2 * np.pi * k / nodes
    bound = np.zeros(len(k))
    for index in np.argsort(bits.repeats)[-_BOUNDING:]:
        odds = special.expit(theta * bits.weights[index])
        square = 1 - 2 * odds * (1 - odds) * (1 - np.cos(bits.weights[index] * angle))
        bound += bits.repeats[index] / 2 * np.log(np.maximum(square, 1e-300))
    kept = k[bound > _NEGLIGIBLE]
    one = np.array([theta]), np.array([nodes])
    return float(_circle(bits, np.array([s]), np.ones(1), *one, kept)[0])


def _circle(bits: _Bits, s: Floats, n: Floats, theta: Floats, nodes: Floats, k: NDArray[np.int64]) -> Floats:
    """The module's sum divided by M(θ)·e^{−θs}, (R,), from the nodes ``k`` with u ≥ 0.

    Nodes at u and −u are conjugates, so one half stands for both; the one at u = π is its own.
    """
    u = 2 * np.pi * k / nodes[:, None]
    turn = np.exp(1j * u)
    ratio = bits.mgf_ratio(theta, turn)
    log_ratio = np.log(np.where(ratio == 0, 1e-300, ratio))  # of many bits in one trial, far nodes underflow: e⁻⁶⁹⁰
    terms = np.exp(n[:, None] * log_ratio - 1j * u * s[:, None]) / (1 - np.exp(-theta)[:, None] * turn.conj())
    fold = np.where(k == 0, 1.0, 2.0) * (2 * k <= nodes[:, None]) * np.where(2 * k == nodes[:, None], 0.5, 1.0)
    return np.maximum((terms.real * fold).sum(1) / nodes, 5e-324)  # the least double, where the sum underflows


def _saddle(bits: _Bits, s: Floats, n: Floats) -> Floats:
    """θ ≥ 0 at which the tilted mean is s, (R,), roughly: 24 halvings of [0, 40], beyond which the law is a point."""
    low, high = np.zeros_like(s), np.full_like(s, 40.0)
    for _ in range(24):
        middle = (low + high) / 2
        small = n * bits.mean(middle) < s
        low, high = np.where(small, middle, low), np.where(small, high, middle)
    return (low + high) / 2
