# SPDX-License-Identifier: Apache-2.0
"""How often members outrank others → μ of Gaussian privacy from below: a bound that uses the scores' values.

A threshold keeps one bit of each score. The number of pairs (member, other) in which the member scores higher keeps
their whole order, and at 1,000 canaries finds a tenth too little noise in most runs, where a threshold mostly does not.

Its law under μ-Gaussian privacy is the least favourable one. Put the scores of those that are out on a uniform scale:
then a member's score lies above 1 - a with chance at most 1 - f(a) for the trade-off curve f, and Gaussian privacy has
every curve above that of N(0, 1) against N(μ, 1). So members' scores are stochastically below Gaussian ones on that
scale, and so is the number of pairs that they win. That number is drawn for Gaussian scores, from a fixed seed.
A seed that is fixed may have drawn too few large values, so their share is held below the level by a binomial margin.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privguard import _check
from privguard.audit.one_run import bound

DRAWS = 1_999
MOST = 20_000  # canaries: the draws of more would not fit into memory


@lru_cache(maxsize=4_096)
def gaussian_rank(wins: int, *, members: int, non_members: int, confidence: float = 0.95) -> float:
    """μ of Gaussian privacy (dimensionless), from ``wins`` of ``members`` · ``non_members`` pairs.

    Guarantee: where the scores of members are draws from one law, those of the others from another one, all of them
    independent, and the release of each is μ-Gaussian private, the value exceeds μ with probability at most
    1 - ``confidence``, over the scores and the draws. Source: the module's first lines.
    """
    _check.require(0 <= wins <= members * non_members, "wins", wins, wanted=f"0 to {members * non_members}")
    error = 1 - _check.probability("confidence", confidence)
    return bound.largest_refuted(
        lambda mu: _allowed(error) + 0.5 - int((_wins(members, non_members, mu) >= wins).sum())
    )


@lru_cache(maxsize=4_096)
def wins_needed(mu: float, *, members: int, non_members: int, confidence: float = 0.95) -> int | None:
    """The least number of pairs won that refutes μ-Gaussian privacy; None where all of them would not."""
    above = _allowed(1 - confidence)
    drawn = np.sort(_wins(members, non_members, mu))[::-1]
    least = int(drawn[max(above, 0)]) + 1
    return least if above >= 0 and least <= members * non_members else None


def count_wins(scores: NDArray[np.floating], included: NDArray[np.bool_]) -> dict[str, int]:
    """Pairs (member, other) in which the member scores strictly higher: a tie is not won."""
    others = np.sort(scores[~included])
    wins = int(np.searchsorted(others, scores[included], side="left").sum())
    return {"wins": wins, "members": int(included.sum()), "non_members": len(others)}


def _allowed(error: float) -> int:
    """Draws that may lie at or above what was seen: so few that a tail above ``error`` shows them once in 1,000."""
    return int(stats.binom(DRAWS, error).ppf(1e-3)) - 1


def _wins(members: int, non_members: int, mu: float) -> NDArray[np.int64]:
    """Pairs won (DRAWS,) where members score N(μ, 1) and others N(0, 1); it rises with μ draw by draw."""
    inside, outside = _draws(members, non_members)
    pairs = zip(inside, outside, strict=True)
    return np.array([np.searchsorted(low, high + mu, side="left").sum() for high, low in pairs], np.int64)


@lru_cache(maxsize=2)
def _draws(members: int, non_members: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sorted standard normals (DRAWS, members) and (DRAWS, non_members), the same ones whenever they are asked for."""
    _check.require(members + non_members <= MOST, "canaries", members + non_members, wanted=f"at most {MOST:,}")
    random = np.random.default_rng([members, non_members])
    sizes = ((DRAWS, members), (DRAWS, non_members))
    first, second = (np.sort(random.standard_normal(size, np.float32), axis=1) for size in sizes)
    return first, second
