# SPDX-License-Identifier: Apache-2.0
"""Evidence along a text whose writer may change: an e-process by fixed shares, and who wrote which part of it.

A hidden state says which source wrote a block of tokens: none, or one of M keys. A key's block multiplies its weight by
a factor of mean at most 1 under the null, and shares of the weight move between the states at fixed rates (Herbster and
Warmuth 1998). The total weight is therefore a test martingale: it may be watched along the text, 1/max of it is a
p-value by Ville's inequality, and its last value is an e-value, which may be averaged or multiplied; the maximum may
not. Sources: Shafer et al. 2011, "Test martingales, Bayes factors and p-values"; Ramdas et al. 2023.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from privguard.watermark.statistics.null import BinomialCount, ExponentialSum, Null, WeightedBits
from privguard.watermark.statistics.tails import LOG10_E, Floats

START = 0.3  # share of the weight that the keys begin with
BEGIN = 1 / 40  # per token: none becomes a key's
END = 1 / 40  # per token: a key's part ends, half in none and half in another key's
BLOCK = 4  # tokens between two moves of the shares; watching at their ends only keeps the martingale


def bets(null: Null, scores: Floats) -> Floats:
    """What each score multiplies a stake by: the mean of e^{θ·score − κ(θ)} over three tilts θ, so of mean at most 1.

    The tilts suit text of 0.5 to 1.5 nats a token; none depends on the text.
    """
    if isinstance(null, ExponentialSum):
        root = np.exp(0.2 * scores)  # θ = 0.2, 0.4, 0.6
        return root * (0.8 + root * (0.6 + root * 0.4)) / 3
    if isinstance(null, BinomialCount):
        chance = float(null.chance)
        tilts = [(theta, np.log1p(chance * np.expm1(theta))) for theta in (0.5, 1.0, 1.5)]
    elif isinstance(null, WeightedBits):
        weights = np.asarray(null.weights, np.float64)
        tilts = [
            (theta, float((np.logaddexp(0.0, theta * weights) - np.log(2)).sum()))
            for theta in np.array([0.25, 0.5, 1.0]) / null.deviation
        ]
    else:
        return 10.0 ** null.log10_e(scores, 1)
    return np.mean([np.exp(theta * scores - cumulant) for theta, cumulant in tilts], axis=0)


@final
@dataclass(frozen=True)
class Blocks:
    """The factors of D documents in blocks: ``factors`` (B, M) in text order, the document of each, and its place."""

    factors: Floats
    document: NDArray[np.int64]
    place: NDArray[np.int64]
    documents: int


@final
@dataclass(frozen=True)
class Evidence:
    """``log10_final`` and ``log10_max`` of the e-process, per document (D,)."""

    log10_final: Floats
    log10_max: Floats

    @property
    def log10_p(self) -> Floats:
        """1/max as a p-value (Ville)."""
        return np.minimum(-self.log10_max, 0.0)


def blocks(factors: Floats, document: NDArray[np.int64], *, documents: int) -> Blocks:
    """Factors (N, M) of tokens in text order, documents together, to products over blocks of ``BLOCK`` tokens."""
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    within = np.arange(len(document)) - np.repeat(starts, np.diff(starts, append=len(document)))
    heads = np.flatnonzero(within % BLOCK == 0)
    product = np.multiply.reduceat(factors, heads, axis=0) if len(heads) else factors
    return Blocks(product, document[heads], within[heads] // BLOCK, documents)


def watch(made: Blocks) -> Evidence:
    """The e-process of every document, from left to right."""
    final, top = np.zeros(made.documents), np.zeros(made.documents)
    for rows, totals, _ in _forward(made):
        final[rows] += np.log(totals)
        top[rows] = np.maximum(top[rows], final[rows])
    return Evidence(final * LOG10_E, top * LOG10_E)


def each(made: Blocks) -> Evidence:
    """The e-process of every key alone, in which the others are no states: (D·M,), the keys of a document together.

    Its null is "this key wrote nothing here", whoever else did.
    """
    size = made.factors.shape[1]
    document = (made.document[:, None] * size + np.arange(size)).ravel()
    place = np.repeat(made.place, size)
    return watch(Blocks(made.factors.reshape(-1, 1), document, place, made.documents * size))


def sources(made: Blocks) -> NDArray[np.int64]:
    """The likeliest source of every block, (B,): a key's number, or −1 for none; forward and backward weights."""
    steps = list(_forward(made))
    order = _steps(made)
    out = np.full(len(made.factors), -1, np.int64)
    size = made.factors.shape[1]
    behind = np.ones((made.documents, size + 1))
    for (rows, _, weights), (_, at) in zip(reversed(steps), reversed(order), strict=True):
        likely = (weights * behind[rows]).argmax(1)
        out[at] = likely - 1
        factor = np.concatenate([np.ones((len(at), 1)), made.factors[at]], 1)
        before = _move_back(factor * behind[rows])
        behind[rows] = before / before.max(1, keepdims=True)
    return out


def _steps(made: Blocks) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each place along the texts the documents that reach it, and the index of their blocks."""
    order = np.argsort(made.place, kind="stable")
    ends = np.flatnonzero(np.diff(made.place[order], append=-1)) + 1
    return [(made.document[at], at) for at in np.split(order, ends[:-1])] if len(order) else []


def _forward(made: Blocks) -> list[tuple[NDArray[np.int64], Floats, Floats]]:
    """At each place: the documents, the growth of their e-process, and their weights (D', M+1) with this block."""
    size = made.factors.shape[1]
    state = np.full((made.documents, size + 1), START / size)
    state[:, 0] = 1 - START
    out: list[tuple[NDArray[np.int64], Floats, Floats]] = []
    for rows, at in _steps(made):
        weights = state[rows]
        weights[:, 1:] *= made.factors[at]
        totals = weights.sum(1)
        weights /= totals[:, None]
        out.append((rows, totals, weights))
        state[rows] = _move(weights)
    return out


def _rates() -> tuple[float, float]:
    return 1 - (1 - BEGIN) ** BLOCK, 1 - (1 - END) ** BLOCK


def _move(weights: Floats) -> Floats:
    begin, end = _rates()
    size = weights.shape[1] - 1
    none, keys = weights[:, :1], weights[:, 1:]
    ended = keys.sum(1, keepdims=True) * end / 2
    moved = keys * (1 - end) + (none * begin + ended) / size
    return np.concatenate([none * (1 - begin) + ended, moved], 1)


def _move_back(behind: Floats) -> Floats:
    """The transpose of ``_move``."""
    begin, end = _rates()
    none, keys = behind[:, :1], behind[:, 1:]
    mean = keys.mean(1, keepdims=True)
    return np.concatenate([none * (1 - begin) + begin * mean, keys * (1 - end) + end / 2 * (none + mean)], 1)
