# SPDX-License-Identifier: Apache-2.0
"""One test over everything that was tested: attacks, statistics, both directions and groups, under one error rate.

A rank sum misses forty named people among two thousand; a count at the top misses a small lead of everybody. So both
are taken, and the largest of all is held against the largest of all under drawn memberships (Westfall and Young 1993,
single-step max-T). What the marginal p-values are computed from is only a common scale: the level is that of the draw.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from privguard import _check

TOPS = (15, 30, 100)  # records at the top of a ranking whose members are counted
ALARMS = 0.001  # false-positive rate at which members above the threshold are counted
DRAWS = 1_999
_FAR = 400  # members above the threshold that are told apart; more of them are as telling as so many
_CELLS = 1 << 22  # of drawn memberships held at a time
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@final
@dataclass(frozen=True, kw_only=True)
class Best:
    """The most telling statistic of one attack: its name, and the p-value that pays for all that was tested."""

    p_value: float
    statistic: str


def max_t(
    statistics: Mapping[str, FloatArray],
    members: BoolArray,
    *,
    chances: FloatArray | None = None,
    groups: NDArray[np.generic] | None = None,
    draws: int = DRAWS,
) -> dict[str, Best]:
    """Adjusted p-values that membership has nothing to do with any of ``statistics``, each (n,), one per attack.

    Memberships are drawn by permutation, or, with ``chances`` (n,), by independent coins of these chances: then the
    question is whether the statistics say more than the chances do. ``groups`` (n,) adds every statistic within every
    group. The draws come from a digest of the statistics, so that the same input gives the same p.

    Guarantee: where members were a random subset, the least of the returned values is at or below α with probability at
    most α, whatever the statistics and ties among them (Phipson and Smyth 2010). With ``chances`` the same holds as far
    as these are the true ones.
    """
    _check.count("draws", draws)
    random = np.random.default_rng(list(_digest(statistics)))
    rankings = {
        name: [_Ranking(values, part, label, random) for part, label in _parts(groups, len(members))]
        for name, values in statistics.items()
    }
    law = np.full(len(members), members.mean()) if chances is None else chances
    for ranking in (ranking for some in rankings.values() for ranking in some):
        ranking.prepare(law, others=int((~members).sum()))
    seen = {name: _most(some, members[None]) for name, some in rankings.items()}
    above = dict.fromkeys(rankings, 1)
    at_once = max(1, _CELLS // len(members))
    for start in range(0, draws, at_once):
        masks = _drawn(members, chances, min(at_once, draws - start), random)
        largest = np.max([_most(some, masks)[0] for some in rankings.values()], axis=0)
        for name in above:
            above[name] += int((largest >= seen[name][0][0] - 1e-9).sum())
    return {name: Best(p_value=above[name] / (draws + 1), statistic=seen[name][1]) for name in rankings}


@final
class _Ranking:
    """One attack on one part of the records: its order, and tables that turn counts into −log p."""

    def __init__(self, values: FloatArray, part: NDArray[np.int64], label: str, random: np.random.Generator) -> None:
        own = values[part]
        self._order = part[np.lexsort((random.random(len(own)), -own))]  # best first; ties fall by lot
        self._part, self._suffix = part, label
        self._ranks = (stats.rankdata(own) - (len(own) + 1) / 2).astype(np.float32)
        self._law = np.zeros(0)
        self._deviation = 1.0
        self._tables: list[list[FloatArray]] = []
        self._alarms: list[FloatArray] = []
        self._allowed = 0

    def prepare(self, law: FloatArray, *, others: int) -> None:
        """Tables for draws of these chances; ``others`` is the number of non-members in all."""
        own = law[self._part]
        self._law = own
        self._deviation = max(float(np.sqrt((own * (1 - own) * self._ranks.astype(float) ** 2).sum())), 1e-12)
        share = round(others * len(self._part) / len(law))
        self._allowed = math.floor(ALARMS * share + 1e-9)
        for order in (self._order, self._order[::-1]):
            means = np.cumsum(law[order]) / np.arange(1, len(order) + 1)
            self._tables.append([_upper_tail(top, float(means[top - 1])) for top in self._tops])
            far = min(_FAR, len(order) - self._allowed)
            sizes = np.arange(far + 1) + self._allowed
            passed = stats.binom.logcdf(self._allowed, sizes, 1 - means[np.maximum(sizes, 1) - 1])
            self._alarms.append(np.maximum(-passed, 0))

    @property
    def _tops(self) -> list[int]:
        return [top for top in TOPS if top <= len(self._order) // 2] or [max(1, len(self._order) // 2)]

    def scores(self, masks: BoolArray) -> tuple[FloatArray, list[str]]:
        """−log p (draws, statistics) of each statistic under drawn memberships (draws, n), and their names."""
        own = masks[:, self._part].astype(np.float32)
        z = (own @ self._ranks - float(self._law @ self._ranks)) / self._deviation
        columns, names = [-special.log_ndtr(-z), -special.log_ndtr(z)], ["rank sum", "rank sum, lower"]
        for order, tables, alarms, side in zip(
            (self._order, self._order[::-1]), self._tables, self._alarms, ("", ", lower"), strict=True
        ):
            reach = min(len(order), max(_FAR + self._allowed, *self._tops))
            leading = masks[:, order[:reach]]
            hits = np.cumsum(leading, axis=1, dtype=np.int32)
            columns += [table[hits[:, top - 1]] for top, table in zip(self._tops, tables, strict=True)]
            others = np.arange(1, reach + 1) - hits
            above = np.where(others <= self._allowed, hits, 0).max(1)
            columns.append(alarms[np.minimum(above, len(alarms) - 1)])
            names += [f"top {top}{side}" for top in self._tops] + [f"TPR at {ALARMS:.1%} FPR{side}"]
        return np.stack(columns, 1), [f"{name}{self._suffix}" for name in names]


def _most(rankings: list[_Ranking], masks: BoolArray) -> tuple[FloatArray, str]:
    """The largest −log p (draws,) over all rankings of an attack, and the name of the statistic that gave the first."""
    largest, best = np.full(len(masks), -np.inf), ""
    for ranking in rankings:
        scores, names = ranking.scores(masks)
        if scores[0].max() > largest[0]:
            best = names[int(scores[0].argmax())]
        largest = np.maximum(largest, scores.max(1))
    return largest, best


def _drawn(members: BoolArray, chances: FloatArray | None, count: int, random: np.random.Generator) -> BoolArray:
    if chances is not None:
        return random.random((count, len(members)), np.float32) < chances.astype(np.float32)
    return random.permuted(np.broadcast_to(members, (count, len(members))), axis=1)


def _parts(groups: NDArray[np.generic] | None, count: int) -> list[tuple[NDArray[np.int64], str]]:
    parts = [(np.arange(count), "")]
    if groups is not None:
        named = [(np.flatnonzero(groups == value), f" in group {value}") for value in np.unique(groups)]
        parts += [(part, label) for part, label in named if 1 < len(part) < count]
    return parts


def _upper_tail(size: int, mean: float) -> FloatArray:
    """−log P[X >= hits] for hits = 0 … size, X binomial."""
    return np.maximum(-stats.binom.logsf(np.arange(size + 1) - 1, size, mean), 0)


def _digest(statistics: Mapping[str, FloatArray]) -> bytes:
    state = hashlib.sha256()
    for name, values in statistics.items():
        state.update(name.encode() + b"\0" + np.ascontiguousarray(values, np.float64).tobytes())
    return state.digest()
