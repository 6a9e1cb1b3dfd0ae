# SPDX-License-Identifier: Apache-2.0
"""The exact tail of a·X + b·Y for independent Gamma(n, 1) variables: two keys that are scored with unequal weights.

The variable of larger scale is a negative-binomial mixture of Gammas of the smaller one (Moschopoulos 1985), so the sum
is Gamma(2n + K, scale b) with K ~ NegBin(n, b/a): a series of positive terms, without cancellation.
"""

import math

import numpy as np
from scipy import special

from privguard import _check
from privguard.watermark.statistics.tails import LOG10_E, log10_gamma_tail

_FAR = 45.0  # a term e⁻⁴⁵ times the largest adds nothing to a double


def log10_two_gammas_tail(score: float, shape: int, *, weight: float) -> float:
    """log10 P((1−w)·X + w·Y ≥ score), X and Y independent Gamma(shape, 1), w = ``weight`` in [0, 1]."""
    _check.probability("weight", weight, zero=True, one=True)
    small, large = sorted((weight, 1.0 - weight))
    if shape == 0 or score <= 0:
        return 0.0
    if small == 0:
        return float(log10_gamma_tail(score, shape))
    ratio = small / large
    if ratio == 1:
        return float(log10_gamma_tail(score / small, 2 * shape))
    # Beyond the score's own shape every Gamma tail is near 1, and the mixture falls like (1−ratio)^k.
    last = max(score / small, shape * (1 - ratio) / ratio) + (_FAR + 10 * math.sqrt(shape)) / ratio
    k = np.arange(int(last) + 1, dtype=np.float64)
    log_mix = special.gammaln(shape + k) - special.gammaln(shape) - special.gammaln(k + 1)
    log_mix += shape * math.log(ratio) + k * math.log1p(-ratio)
    terms = log_mix + log10_gamma_tail(score / small, 2 * shape + k) / LOG10_E
    return min(0.0, float(special.logsumexp(terms)) * LOG10_E)  # pyright: ignore[reportArgumentType]
