# SPDX-License-Identifier: Apache-2.0
"""A public table of bits read under secret shifts: the exact law of a weighted count, whatever the table holds.

transformers' SynthID looks every n-gram up in one public table, once per layer, each layer at its own secret distance.
So the bits of a layer are no fair coins: how many ones n-grams meet is a function of one uniform shift, and its law is
what the table gives over all shifts. Layers with different keys are independent. The sum over layers is convolved after
tilting to the observed score, which keeps twelve digits far out in the tail (Daniels 1987).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from privguard.watermark.statistics.tails import LOG10_E, Floats

_HALVINGS = 60


def counts_by_shift(table: NDArray[np.bool_], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many ones distinct ``places`` (N,) meet under every shift of a cyclic ``table`` (S,): (S,)."""
    hit = np.zeros(len(table))
    hit[places] = 1.0
    spectrum = np.conj(np.fft.rfft(hit)) * np.fft.rfft(table.astype(np.float64))
    return np.rint(np.fft.irfft(spectrum, len(table))).astype(np.int64)


def log10_shifted_tail(score: int, counts: NDArray[np.int64], *, weights: Sequence[int]) -> float:
    """log10 P(Σ wₗ·Cₗ ≥ score), Cₗ independent and uniform over ``counts`` (S,), wₗ positive whole numbers.

    Never below −L·log10(S) where it is finite: a key chosen among few has no smaller p-value.
    """
    values, repeats = np.unique(counts, return_counts=True)
    log_mass = np.log(repeats) - np.log(repeats.sum())
    distinct, layers = np.unique(np.asarray(weights, np.int64), return_counts=True)
    least, most = int(values[0]) * int(distinct @ layers), int(values[-1]) * int(distinct @ layers)
    if score <= least:
        return 0.0
    if score >= most:
        return float(log_mass[-1] * layers.sum() * LOG10_E) if score == most else -np.inf
    theta = _saddle(score, values.astype(np.float64), log_mass, distinct, layers)
    size = 1 << (most - least).bit_length()
    log_mgf, spectrum = 0.0, np.ones(size // 2 + 1, np.complex128)
    for weight, layer in zip(distinct.tolist(), layers.tolist(), strict=True):
        tilted = log_mass + theta * weight * values
        total = float(special.logsumexp(tilted))  # pyright: ignore[reportArgumentType]
        place = np.zeros(size)
        place[weight * (values - values[0])] = np.exp(tilted - total)
        spectrum *= np.fft.rfft(place) ** layer
        log_mgf += layer * total
    law = np.maximum(np.fft.irfft(spectrum, size), 0.0)[: most - least + 1]
    above = law[score - least :] * np.exp(-theta * np.arange(most - score + 1))
    return float(min(0.0, (log_mgf - theta * score + np.log(above.sum())) * LOG10_E))


def _saddle(
    score: int, values: Floats, log_mass: Floats, distinct: NDArray[np.int64], layers: NDArray[np.int64]
) -> float:
    """θ ≥ 0 at which the tilted mean is the score, by bisection; 0 where the score lies below the mean."""
    low, high = 0.0, 60.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tilted = special.softmax(log_mass + middle * distinct[:, None] * values, axis=1)
        mean = float((tilted @ values * distinct) @ layers)
        low, high = (middle, high) if mean < score else (low, middle)
    return low
