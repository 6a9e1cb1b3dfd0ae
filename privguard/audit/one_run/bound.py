# SPDX-License-Identifier: Apache-2.0
"""Counts → ε from below: lower bounds whose error is exact, for counts that were decided before looking.

Three bounds, from the widest hypothesis to the narrowest. ``steinke`` speaks about every (ε, δ) mechanism,
``gaussian_one_run`` about mechanisms no more revealing than a Gaussian one, ``gaussian_threshold`` about the
same class when trials are independent. Each is valid for one set of counts; who looks at several has to share the
error between them, which ``privguard.audit.one_run.design.Design`` does.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import cast

import numpy as np
from scipy import optimize, special

from privguard import _check

_NORMAL = NormalDist()
_TOLERANCE = 1e-7  # of a root; far below the three decimals that are printed


@lru_cache(maxsize=65_536)
def steinke(correct: int, *, canaries: int, guesses: int, delta: float, confidence: float = 0.95) -> float:
    """ε of every (ε, δ) mechanism, from one run with ``correct`` right among ``guesses`` guesses.

    Guarantee: where each of ``canaries`` was included by its own fair coin, the number of guesses was fixed, and the
    mechanism is (ε, δ)-private, the returned value exceeds ε with probability at most 1 - ``confidence``.
    Source: Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846), Theorem 5.2.

    Args:
        correct: how many guesses were right.
        canaries: how many coins were flipped.
        guesses: how many guesses were made.
        delta: δ, in [0, 1).
        confidence: of the bound, in (0, 1).
    """
    _check_guesses(correct, canaries=canaries, guesses=guesses, delta=delta, confidence=confidence)
    return largest_refuted(
        lambda epsilon: (1 - confidence) - _steinke_p(epsilon, correct, canaries=canaries, guesses=guesses, delta=delta)
    )


@lru_cache(maxsize=65_536)
def gaussian_one_run(correct: int, *, canaries: int, guesses: int, delta: float, confidence: float = 0.95) -> float:
    """ε of Gaussian mechanisms, from one run with ``correct`` right among ``guesses`` guesses.

    Guarantee: as ``steinke``, for mechanisms whose trade-off curve lies above that of μ-Gaussian privacy; the value
    returned is that curve's ε at ``delta``. It refutes "Gaussian privacy matched to (ε, δ)", a narrower claim than
    (ε, δ) itself. Source: Mahloujifar, Melis, Chaudhuri 2025 (arXiv:2410.22235), Algorithm 3.

    Args:
        correct: how many guesses were right.
        canaries: how many coins were flipped.
        guesses: how many guesses were made.
        delta: δ, in [0, 1).
        confidence: of the bound, in (0, 1).
    """
    _check_guesses(correct, canaries=canaries, guesses=guesses, delta=delta, confidence=confidence)
    _check.probability("delta", delta, remedy="no Gaussian mechanism is private at δ = 0; use steinke")
    mu = largest_refuted(
        lambda mu: _gaussian_excess(mu, correct, canaries=canaries, guesses=guesses, error=1 - confidence)
    )
    return gaussian_epsilon(mu, delta=delta)


def gaussian_threshold(
    *, true_positives: int, members: int, false_positives: int, non_members: int, confidence: float = 0.95
) -> float:
    """μ of Gaussian privacy (dimensionless), from independent trials at a threshold that was fixed beforehand.

    Guarantee: where trials are independent and one release is μ-Gaussian private, the value exceeds μ with probability
    at most 1 - ``confidence``. Both error rates get half of it. Source: Nasr et al. 2023 (arXiv:2302.07956), 4.2, with
    the exact intervals of Clopper and Pearson.

    Args:
        true_positives: members called members.
        members: how many trials had the record in.
        false_positives: others called members.
        non_members: how many trials had it out.
        confidence: of the bound, in (0, 1).
    """
    _check.count("members", members)
    _check.count("non_members", non_members)
    _check.require(0 <= true_positives <= members, "true_positives", true_positives, wanted=f"0 to {members}")
    _check.require(
        0 <= false_positives <= non_members, "false_positives", false_positives, wanted=f"0 to {non_members}"
    )
    half = (1 - _check.probability("confidence", confidence)) / 2
    missed = rate_above(members - true_positives, members, error=half)
    false_alarms = rate_above(false_positives, non_members, error=half)
    return max(0.0, float(special.ndtri(1 - false_alarms) - special.ndtri(missed)))


def rate_above(hits: int, trials: int, *, error: float) -> float:
    """Upper end of a one-sided Clopper-Pearson interval: exceeds the true rate except with probability ``error``.

    Args:
        hits: how often it happened.
        trials: how often it could have.
        error: chance that the bound fails, in (0, 1).
    """
    return 1.0 if hits >= trials else float(special.betaincinv(hits + 1, trials - hits, 1 - error))


def rate_below(hits: int, trials: int, *, error: float) -> float:
    """Lower end of a one-sided Clopper-Pearson interval: above the true rate with probability at most ``error``.

    Args:
        hits: how often it happened.
        trials: how often it could have.
        error: chance that the bound fails, in (0, 1).
    """
    return 0.0 if hits <= 0 else float(special.betaincinv(hits, trials - hits + 1, error))


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """ε at ``delta`` of μ-Gaussian privacy; 0 where δ alone covers it.

    Source: Balle and Wang 2018 (arXiv:1805.06530), Theorem 8: the exact privacy profile of one Gaussian release.

    >>> round(gaussian_epsilon(1.66, delta=1e-5), 2)
    7.97

    Args:
        mu: μ of Gaussian privacy, dimensionless.
        delta: δ, in [0, 1).
    """
    if gaussian_delta(0.0, mu=mu) <= delta:
        return 0.0
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # Mironov 2017 lies above the exact figure
    return _root(lambda epsilon: gaussian_delta(epsilon, mu=mu) - delta, 0.0, high + 1.0)


def gaussian_mu(epsilon: float, *, delta: float) -> float:
    """μ whose ε at ``delta`` is ``epsilon``: the inverse of ``gaussian_epsilon``.

    Args:
        epsilon: ε.
        delta: δ, in [0, 1).
    """
    _check.non_negative("epsilon", epsilon)
    _check.probability("delta", delta)
    high = 1.0
    while gaussian_delta(epsilon, mu=high) < delta:
        high *= 2
    return _root(lambda mu: gaussian_delta(epsilon, mu=mu) - delta, 0.0, high)


def gaussian_delta(epsilon: float, *, mu: float) -> float:
    """δ at ``epsilon`` of μ-Gaussian privacy (Balle and Wang 2018, Theorem 8).

    Args:
        epsilon: ε.
        mu: μ of Gaussian privacy, dimensionless.
    """
    if mu <= 0:
        return 0.0
    reach = epsilon / mu
    return float(special.ndtr(mu / 2 - reach) - np.exp(epsilon + special.log_ndtr(-mu / 2 - reach)))


def _steinke_p(epsilon: float, correct: int, *, canaries: int, guesses: int, delta: float) -> float:
    """P[at least ``correct`` right] at most, over all (ε, δ) mechanisms: β + 2 m δ α (Steinke 2023, Theorem 5.2)."""
    right = special.expit(epsilon)
    fewer = np.arange(correct - 1, -2, -1)  # v-1, v-2, …, -1 right guesses: the tails P[W >= v-i] for i = 0..v
    tails = np.where(fewer < 0, 1.0, special.bdtrc(np.maximum(fewer, 0), guesses, right))
    beta = float(tails[0])
    alpha = float(np.max((tails[1:] - beta) / np.arange(1, correct + 1))) if correct else 0.0
    return min(1.0, beta + 2 * canaries * delta * alpha)


def _gaussian_excess(mu: float, correct: int, *, canaries: int, guesses: int, error: float) -> float:
    """Above zero where μ-Gaussian privacy would see ``correct`` of ``guesses`` less often than ``error``.

    The recursion runs over the number of right guesses from the observed one down to none; ``right`` and ``wrong``
    bound the chance, per canary, that a guess is right and that it is wrong within the tail seen so far.
    """
    right, wrong = error * correct / canaries, error * (guesses - correct) / canaries
    for fewer in range(correct - 1, -1, -1):
        least = _other_world(right, mu)
        if least <= wrong:
            break  # neither moves any more
        right = min(1.0, right + fewer / (guesses - fewer) * (least - wrong))
        wrong = least
    return right + wrong - guesses / canaries


def _other_world(mass: float, mu: float) -> float:
    """The least probability that μ-Gaussian privacy leaves in one world to an event of this mass in the other."""
    if not 0 < mass < 1:
        return mass
    return 0.5 * math.erfc((mu - _NORMAL.inv_cdf(mass)) / math.sqrt(2))


def largest_refuted(excess: Callable[[float], float]) -> float:
    """The largest value that is refuted (``excess`` above zero, falling in its argument), 0 where none is.

    Args:
        excess: above zero where a value is refuted; falls in its argument.
    """
    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return _root(excess, 0.0, high)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling or rising function crosses zero, a tolerance towards ``low`` so that a bound never gains."""
    return max(low, cast("float", optimize.brentq(function, low, high, xtol=_TOLERANCE)) - _TOLERANCE)


def _check_guesses(correct: int, *, canaries: int, guesses: int, delta: float, confidence: float) -> None:
    _check.count("canaries", canaries)
    _check.require(0 < guesses <= canaries, "guesses", guesses, wanted=f"1 to {canaries}, the number of canaries")
    _check.require(0 <= correct <= guesses, "correct", correct, wanted=f"0 to {guesses}, the number of guesses")
    _check.probability("delta", delta, zero=True)
    _check.probability("confidence", confidence)
