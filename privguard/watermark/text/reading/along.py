# SPDX-License-Identifier: Apache-2.0
"""Reading along a text: evidence where the sub-key changes from piece to piece, and who wrote which stretch.

A chat, a stitched or an edited text is written in pieces, each under a sub-key of its own, and the best sub-key of the
whole then says little. The e-process of ``privguard.watermark.statistics.evalues`` follows the pieces. Once a text
is found, each sub-key is tested alone for having written any of it, at a family-wise rate of its own, and the stretches
of those that did are marked out.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from privguard.records import Record
from privguard.watermark.statistics import evalues
from privguard.watermark.statistics.tails import Floats
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.ngrams import Ngrams

LOG10_NAMED = -2.0  # family-wise rate at which sub-keys are named: in 1 % of texts one that wrote nothing of it
SHORTEST = 32  # n-grams under one sub-key that make a stretch; forgeries from stolen lists have shorter runs
WORTH_NAMING = -2.0  # log10 p of a text above which no sub-key is named


@final
@dataclass(frozen=True, kw_only=True)
class Stretch(Record):
    """Tokens ``start`` up to ``stop`` of one document, written under ``subkey``; ``scored`` of them were counted.

    Guarantee: over all sub-keys of a document, P(one is named that wrote nothing of it) ≤ 10^``LOG10_NAMED``. Where a
    stretch begins and ends is an estimate, good to a few tokens.
    """

    start: int
    stop: int
    subkey: int
    scored: int
    mean_score: float


@final
@dataclass(frozen=True)
class Along:
    """The evidence along D documents: ``log10_p`` by Ville, ``log10_e`` at the end, and the stretches of each.

    ``beside`` is the sum of the scores of all sub-keys but the one that wrote each part, without the parts' ends, and
    ``compared`` how many scores that are.
    """

    log10_p: Floats
    log10_e: Floats
    stretches: tuple[tuple[Stretch, ...], ...]
    beside: Floats
    compared: NDArray[np.int64]


def read_along(profile: Profile, scores: Floats, ngrams: Ngrams, *, log10_p: Floats) -> Along:
    """Evidence and stretches from the scores (M, N) of n-grams; ``log10_p`` (D,) is what else is known of each.

    Args:
        profile: the signed profile.
        scores: score of every n-gram under every sub-key, (M, N).
        ngrams: the unique n-grams.
        log10_p: log10 p of each document by other means, (D,).
    """
    factors = evalues.bets(profile.scheme.null, np.ascontiguousarray(scores.T))
    made = evalues.blocks(factors, ngrams.document, documents=ngrams.documents)
    seen = evalues.watch(made)
    beside, compared = np.zeros(ngrams.documents), np.zeros(ngrams.documents, np.int64)
    stretches: list[tuple[Stretch, ...]] = [()] * ngrams.documents
    worth = np.minimum(log10_p, seen.log10_p) <= WORTH_NAMING
    if worth.any():
        some, number = worth[made.document], np.cumsum(worth) - 1
        chosen = evalues.Blocks(made.factors[some], number[made.document[some]], made.place[some], int(worth.sum()))
        rows = np.flatnonzero(worth[ngrams.document])
        document = ngrams.document[rows]
        owner = _long_runs(evalues.sources(chosen)[np.cumsum(_heads(document)) - 1], document)
        named = (evalues.each(chosen).log10_max >= np.log10(len(scores)) - LOG10_NAMED).reshape(-1, len(scores))
        inside = _interior(owner, document)
        at, keys = rows[inside], owner[inside]
        rest = scores[:, at].sum(0) - np.where(keys >= 0, scores[keys, at], 0.0)
        beside += np.bincount(ngrams.document[at], weights=rest, minlength=ngrams.documents)
        counted = (len(scores) - (keys >= 0)).astype(np.float64)
        compared += np.bincount(ngrams.document[at], weights=counted, minlength=ngrams.documents).astype(np.int64)
        owner = np.where((owner >= 0) & named[number[document], owner], owner, -1)
        for found in np.flatnonzero(worth):
            own = document == found
            stretches[found] = _runs(profile, owner[own], rows[own], scores, ngrams)
    return Along(seen.log10_p, seen.log10_final, tuple(stretches), beside, compared)


def _long_runs(owner: NDArray[np.int64], document: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sources without those of runs too short for a writer: a forgery changes its source from word to word."""
    starts = np.flatnonzero((np.diff(owner, prepend=-2) != 0) | (np.diff(document, prepend=-1) != 0))
    lengths = np.diff(starts, append=len(owner))
    return np.where(np.repeat(lengths >= SHORTEST, lengths), owner, -1)


def _heads(document: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the blocks of ``evalues.blocks`` begin."""
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    within = np.arange(len(document)) - np.repeat(starts, np.diff(starts, append=len(document)))
    return within % evalues.BLOCK == 0


def _interior(owner: NDArray[np.int64], document: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Not within a block of a change of source, where the estimate of it may err."""
    out = np.ones(len(owner), np.bool_)
    changes = np.flatnonzero((np.diff(owner) != 0) | (np.diff(document) != 0))
    for shift in range(-evalues.BLOCK + 1, evalues.BLOCK + 1):
        out[(changes + shift).clip(0, len(owner) - 1)] = False
    return out


def _runs(
    profile: Profile, owner: NDArray[np.int64], rows: NDArray[np.int64], scores: Floats, ngrams: Ngrams
) -> tuple[Stretch, ...]:
    """Neighbouring n-grams of one source as stretches, in the tokens of their document."""
    ends = np.flatnonzero(np.diff(owner, append=-2)) + 1
    out: list[Stretch] = []
    for at in np.split(np.arange(len(owner)), ends[:-1]):
        key = int(owner[at[0]])
        if key >= 0:
            place = ngrams.place[rows[at]] - ngrams.offset[ngrams.document[rows[at[0]]]]
            mean = float(scores[key, rows[at]].mean())
            start = int(place[0]) - profile.context_width
            out.append(Stretch(start=start, stop=int(place[-1]) + 1, subkey=key, scored=len(at), mean_score=mean))
    return tuple(out)
