# SPDX-License-Identifier: Apache-2.0
"""Tests of a private training step, each for one thing that must hold whatever the data.

Every check returns a p-value: the chance that a correct step looks at least this wrong, or a bound above it; none is
asymptotic. ``examine`` runs those that one trace allows and shares one false-alarm rate among them. Deterministic
facts (the ledger knows every step) give 0 or 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from privguard import _check
from privguard.audit.membership.roc import holm
from privguard.audit.steps.audit import FloatArray, Trace
from privguard.records import Measurement

FALSE_ALARM = 1e-3  # of all checks of one examination together, where nothing else was asked for
PAIR_DISTANCES = 64  # at which records are checked for a shared coin
_BLOCK = 1024  # rows that are held against all later ones at a time


@final
@dataclass(frozen=True, kw_only=True)
class Examination(Measurement):
    """p-values of all checks, after Holm over them, and the names of those at or below ``level``."""

    p_values: dict[str, float]
    failed: tuple[str, ...]
    level: float = FALSE_ALARM


def examine(
    trace: Trace,
    *,
    noise_multiplier: float,
    giant: int | None = None,
    others: Mapping[str, float] | None = None,
    level: float = FALSE_ALARM,
) -> Examination:
    """Run every check that a trace allows; ``others`` brings in p-values from ledger, sampler or other ranks.

    ``giant`` is the number of a canary whose raw gradient is far larger than the others'. A correct step fails any
    check at all with probability at most ``level``.

    Args:
        trace: the observed trials.
        noise_multiplier: the claimed σ, dimensionless.
        giant: number of the canary with a huge raw gradient; None where there is none.
        others: p-values by name, from elsewhere; None for none.
        level: chance that a correct step fails any check, in (0, 1).
    """
    _check.probability("level", level)
    sigma = _check.positive("noise_multiplier", noise_multiplier)
    p_values = {
        "noise level": noise_level(trace, sigma),
        "contribution": contribution(trace, sigma),
        "contribution of each": contribution_of_each(trace, sigma),
        "noise across steps": noise_across_steps(trace, sigma),
        "noise across coordinates": noise_across_coordinates(trace, sigma),
        "public denominator": public_denominator(trace, sigma),
        **({} if giant is None else {"influence of a giant": influence(trace, sigma, giant=giant)}),
        **(others or {}),
    }
    adjusted = holm(p_values)
    failed = tuple(name for name, p in adjusted.items() if p <= level)
    return Examination(p_values=adjusted, failed=failed, level=level)


def noise_level(trace: Trace, sigma: float) -> float:
    """The noise has the claimed variance: Σ residual² / σ² is χ² with one degree of freedom per trial.

    Args:
        trace: the observed trials.
        sigma: the claimed noise multiplier, dimensionless.
    """
    trials = trace.scores.size
    total = float((trace.residuals**2).sum()) / sigma**2
    return _chi_square(total, trials)


def contribution(trace: Trace, sigma: float) -> float:
    """A record moves the sum by exactly the clipping norm, neither more (not clipped, counted twice) nor less.

    Args:
        trace: the observed trials.
        sigma: the claimed noise multiplier, dimensionless.
    """
    own = trace.residuals[trace.included]
    return _normal(float(own.sum()) / (sigma * math.sqrt(max(1, len(own)))))


def contribution_of_each(trace: Trace, sigma: float) -> float:
    """As ``contribution``, for every canary on its own (Bonferroni): a single record counted twice shows.

    Args:
        trace: the observed trials.
        sigma: the claimed noise multiplier, dimensionless.
    """
    counts = np.maximum(trace.included.sum(0), 1)
    z = np.where(trace.included, trace.residuals, 0).sum(0) / (sigma * np.sqrt(counts))
    return min(1.0, len(z) * _normal(float(np.abs(z).max())))


def influence(trace: Trace, sigma: float, *, giant: int) -> float:
    """Another canary's score does not depend on whether a huge one is in the batch: records are clipped one by one.

    Args:
        trace: the observed trials.
        sigma: the claimed noise multiplier, dimensionless.
        giant: number of the canary with a huge raw gradient; None where there is none.
    """
    others = np.arange(trace.scores.shape[1]) != giant
    present = trace.included[:, giant]
    sums, counts = _per_step(trace, others)
    with_it, without = counts[present].sum(), counts[~present].sum()
    if not with_it or not without:
        return 1.0
    difference = sums[present].sum() / with_it - sums[~present].sum() / without
    return _normal(difference / (sigma * math.sqrt(1 / with_it + 1 / without)))


def noise_across_steps(trace: Trace, sigma: float) -> float:
    """No step's noise appears in another step: neither at a fixed lag all along, nor in any one pair of steps.

    Args:
        trace: the observed trials.
        sigma: the claimed noise multiplier, dimensionless.
    """
    return _reuse(trace.residuals / sigma)


def noise_across_coordinates(trace: Trace, sigma: float) -> float:
    """No coordinate's noise appears in another one: neither at a fixed distance, nor in any one pair of coordinates.

    Args:
        trace: the observed trials.
        sigma: the claimed noise multiplier, dimensionless.
    """
    return _reuse(trace.residuals.T / sigma)


def public_denominator(trace: Trace, sigma: float) -> float:
    """What a canary contributes does not shrink as the batch grows: the divisor is public, not the realised size.

    Args:
        trace: the observed trials.
        sigma: the claimed noise multiplier, dimensionless.
    """
    sums, counts = _per_step(trace, np.ones(trace.scores.shape[1], bool))
    spread = trace.sizes - trace.sizes.mean()
    deviation = sigma * math.sqrt(float((spread**2 * counts).sum()))
    return _normal(float((spread * sums).sum()) / deviation) if deviation > 0 else 1.0


def noise_across_ranks(one: Trace, another: Trace, sigma: float) -> float:
    """Two ranks that are meant to add independent noise do: the sign of one's says nothing about the other's.

    Args:
        one: trials of one rank.
        another: the same trials on another rank.
        sigma: the claimed noise multiplier, dimensionless.
    """
    agreement = float((np.sign(one.residuals) * another.residuals).sum()) / sigma
    return _normal(agreement / math.sqrt(one.scores.size))


def every_step_recorded(*, taken: int, recorded: int) -> float:
    """The ledger knows every step: 0 where a step was taken that it does not hold, otherwise 1.

    Args:
        taken: steps that were taken.
        recorded: steps that the ledger holds.
    """
    return 0.0 if taken > recorded else 1.0


def poisson_inclusion(draws: Sequence[NDArray[np.int64]], *, records: int, rate: float) -> float:
    """The sampler is Poisson: how often a record comes per epoch is binomial, and so is the size of a batch.

    A shuffled loader gives each record exactly once per epoch and batches of one size. ``draws`` are the records of
    successive steps; an epoch is ⌈1 / rate⌉ of them. Four tests, Bonferroni: number of inclusions (exact), spread of
    inclusions per record and epoch, spread of batch sizes (both from above, see ``_binomial_spread``). A fourth,
    ``paired_inclusion``, sees coins that two records share.

    Args:
        draws: record numbers of each draw.
        records: how many records there are.
        rate: the claimed sampling rate, in (0, 1].
    """
    _check.probability("rate", rate)
    epoch = math.ceil(1 / rate)
    epochs = len(draws) // epoch
    _check.require(epochs >= 1, "draws", len(draws), wanted=f"at least {epoch}, one epoch")
    whole = draws[: epochs * epoch]
    counts = np.stack([_counts(whole[start : start + epoch], records) for start in range(0, len(whole), epoch)])
    sizes = np.array([len(draw) for draw in whole])
    inclusions = _binomial(int(sizes.sum()), len(whole) * records, rate)
    spreads = _binomial_spread(counts.ravel(), epoch, rate), _binomial_spread(sizes, records, rate)
    return min(1.0, 4 * min(inclusions, *spreads, paired_inclusion(whole, records=records, rate=rate)))


def paired_inclusion(draws: Sequence[NDArray[np.int64]], *, records: int, rate: float) -> float:
    """No two records share a coin: how often partners are in together is binomial with the rate squared.

    Partners are neighbours at each distance up to 64 and at half of the records, in disjoint pairs, so that the count
    is exact; Bonferroni over the distances. At a rate of 0.01 a shared coin makes a pair a hundred times as frequent,
    which neither counts per record nor batch sizes show.

    Args:
        draws: record numbers of each draw.
        records: how many records there are.
        rate: the claimed sampling rate, in (0, 1].
    """
    included = np.zeros((len(draws), records), bool)
    for step, draw in enumerate(draws):
        included[step, draw] = True
    distances = [lag for lag in sorted({*range(1, PAIR_DISTANCES + 1), records // 2}) if 0 < lag <= records // 2]
    least = 1.0
    for lag in distances:
        first = np.flatnonzero((np.arange(records - lag) // lag) % 2 == 0)
        together = int((included[:, first] & included[:, first + lag]).sum())
        least = min(least, _binomial(together, len(draws) * len(first), rate**2))
    return min(1.0, len(distances) * least)


def _counts(draws: Sequence[NDArray[np.int64]], records: int) -> NDArray[np.int64]:
    return np.bincount(np.concatenate(draws), minlength=records)


def _reuse(noise: FloatArray) -> float:
    """Whether standard normal rows (n, width) share anything with later rows, at any lag or in any pair (Bonferroni).

    Exact for every size. A normal variable times the sign of another that it is independent of is normal again, so
    along each lag, and in each pair, Σ sign(earlier) · later is a sum of independent normals: each term is one given
    all rows before it. The product of both noises, which one would write first, has tails far heavier than a normal's
    when it is summed over few canaries: at 8 of them it failed a correct step 3.5 times as often as it said.
    """
    rows, width = noise.shape
    if rows < 2:  # noqa: PLR2004 — nothing to share with
        return 1.0
    signs = np.sign(noise)
    size = 2 * rows  # zeros keep the end from meeting the beginning
    spectrum = np.conj(np.fft.rfft(signs, size, axis=0)) * np.fft.rfft(noise, size, axis=0)
    lags = np.arange(1, rows)
    along = np.abs(np.fft.irfft(spectrum.sum(1), size)[lags]) / np.sqrt(width * (rows - lags))
    nearest = max(_largest_later(signs, noise, start) for start in range(0, rows, _BLOCK)) / math.sqrt(width)
    pairs = rows * (rows - 1) // 2
    return min(1.0, 2 * min(len(lags) * _normal(float(along.max())), pairs * _normal(nearest)))


def _largest_later(signs: FloatArray, noise: FloatArray, start: int) -> float:
    """The largest |Σ sign(row) · later row| for a block of rows."""
    products = signs[start : start + _BLOCK] @ noise[start:].T
    return float(np.abs(np.triu(products, 1)).max())


def _binomial(hits: int, trials: int, rate: float) -> float:
    """Two-sided p-value of a count, exact."""
    law = stats.binom(trials, rate)
    return min(1.0, 2 * min(float(law.cdf(hits)), float(law.sf(hits - 1))))


def _binomial_spread(values: NDArray[np.int64], trials: int, rate: float) -> float:
    """Two-sided p-value, from above, that Σ (x - np)² is so large or so small for independent binomials x.

    Chernoff 1952: P[S >= s] <= exp(n K(t) - t s) for every t > 0, and likewise below, with K the exact cumulant
    function of (x - np)². It holds for any number of values and any t, so a minimum found roughly costs power only.
    """
    support = np.arange(trials + 1)
    chances, squares = stats.binom.logpmf(support, trials, rate), (support - trials * rate) ** 2
    total, variance = float(((values - trials * rate) ** 2).sum()), trials * rate * (1 - rate)

    def exponent(t: float) -> float:
        return len(values) * float(np.logaddexp.reduce(chances + t * squares)) - t * total

    ends = ((0.0, 1 / variance), (-50 / variance, 0.0))
    found: list[Any] = [optimize.minimize_scalar(exponent, bounds=end, method="bounded") for end in ends]
    return min(1.0, 2 * math.exp(min(0.0, *(float(one.fun) for one in found))))


def _per_step(trace: Trace, canaries: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Per step (trials,): sum of the residuals of the included ones among ``canaries``, and their number."""
    chosen = trace.included & canaries
    return np.where(chosen, trace.residuals, 0).sum(1), chosen.sum(1).astype(np.float64)


def _normal(z: float) -> float:
    return float(2 * special.ndtr(-abs(z)))


def _chi_square(total: float, freedom: float) -> float:
    """Two-sided p-value of a χ² statistic."""
    return min(1.0, 2 * min(float(special.chdtr(freedom, total)), float(special.chdtrc(freedom, total))))
