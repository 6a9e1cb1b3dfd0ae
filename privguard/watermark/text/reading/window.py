# SPDX-License-Identifier: Apache-2.0
"""A marked part inside a long document: fixed windows over its unique n-grams, all of them paid for.

A mark in 200 of 5,000 tokens drowns in the sum over the whole. Windows of 50, 100, 200, … n-grams, each moved by a
quarter of its length, find it; their number is known before looking, so Bonferroni over them keeps the p-value true.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from privguard import _check
from privguard.watermark.statistics import tails
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents, scored_ngrams

SHORTEST = 50


@final
@dataclass(frozen=True)
class Window:
    """A part of one document: tokens ``start`` up to ``stop`` of it, and its p-value after all windows and sub-keys."""

    start: int
    stop: int
    log10_p: float
    scored: int
    subkey: int


def find_windows(detector: Detector, document: Documents, *, log10_level: float = -3.0) -> list[Window]:
    """The marked parts of one document, best first, not overlapping; each p-value pays for every window tried.

    Args:
        detector: the detector of profile and secret.
        document: one document.
        log10_level: log10 of the level, at most 0.

    Raises:
        ValueError: more than one document.
    """
    _check.require(len(document) == 1, "len(document)", len(document), wanted="one document")
    profile = detector.profile
    ngrams = scored_ngrams(profile, document)
    if not len(ngrams):
        return []
    sums = np.concatenate([np.zeros((profile.subkeys, 1)), detector.scores(ngrams).cumsum(1)], 1)
    starts, lengths = _grid(len(ngrams))
    scores = sums[:, starts + lengths] - sums[:, starts]
    best = scores.argmax(0)
    top = np.maximum(scores[best, np.arange(len(starts))], 0.0)
    log10_p = tails.bonferroni(profile.scheme.null.log10_tail(top, lengths), len(starts) * profile.subkeys)
    out: list[Window] = []
    for i in np.argsort(log10_p, kind="stable"):
        if log10_p[i] > log10_level:
            break
        start = int(ngrams.place[starts[i]]) - profile.context_width
        stop = int(ngrams.place[starts[i] + lengths[i] - 1]) + 1
        if all(stop <= window.start or start >= window.stop for window in out):
            out.append(Window(start, stop, float(log10_p[i]), int(lengths[i]), int(best[i])))
    return out


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of all windows; a document shorter than the shortest window is one window."""
    starts, lengths = [np.zeros(1, np.int64)], [np.full(1, size, np.int64)]
    length = SHORTEST
    while length < size:
        first = np.arange(0, size - length + 1, max(1, length // 4))
        starts.append(first)
        lengths.append(np.full(len(first), length))
        length *= 2
    return np.concatenate(starts), np.concatenate(lengths)
