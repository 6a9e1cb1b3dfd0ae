# SPDX-License-Identifier: Apache-2.0
"""Null models: what a score looks like where there is no mark, and how it then becomes a Verdict.

A null is a frozen value with a sentence, an exact tail and an e-value. The scheme of a mark names its null; nobody
chooses one after looking.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, cast, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privguard import _check
from privguard.records import Verdict
from privguard.watermark.statistics import tails, weighted_bits
from privguard.watermark.statistics.tails import Floats


class Null(Protocol):
    """The law of the sum of ``trials`` scores where there is no mark."""

    @property
    def sentence(self) -> str:
        """The law in words, for the verdict."""
        ...

    @property
    def mean(self) -> float:
        """Expectation of one score."""
        ...

    @property
    def deviation(self) -> float:
        """Standard deviation of one score."""
        ...

    def log10_tail(self, score: ArrayLike, trials: ArrayLike) -> Floats:
        """log10 of P(sum ≥ score), exact."""
        ...

    def log10_e(self, score: ArrayLike, trials: ArrayLike) -> Floats:
        """log10 of an e-value that may be read at any time."""
        ...


@final
@dataclass(frozen=True)
class BinomialCount:
    """Each trial matches with probability ``chance``, independently of the others."""

    chance: Fraction

    def __post_init__(self) -> None:
        _check.probability("chance", float(self.chance))

    @property
    def sentence(self) -> str:
        """The law in words."""
        return f"matches ~ Binomial(trials, {self.chance})"

    @property
    def mean(self) -> float:
        """The chance of one match."""
        return float(self.chance)

    @property
    def deviation(self) -> float:
        """√(p(1−p))."""
        return math.sqrt(self.chance * (1 - self.chance))

    def log10_tail(self, score: ArrayLike, trials: ArrayLike) -> Floats:
        """Exact binomial tail."""
        return tails.log10_binomial_tail(score, trials, self.chance)

    def log10_e(self, score: ArrayLike, trials: ArrayLike) -> Floats:
        """Bets that the odds of a match are e^θ times the null's, averaged over θ from 0.1 to 4."""
        p = float(self.chance)
        return tails.log10_e_value(
            score, trials, lambda theta: np.log1p(p * np.expm1(theta)), tilts=(0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
        )


@final
@dataclass(frozen=True)
class ExponentialSum:
    """Each score is Exp(1), or stochastically smaller; the sum is Gamma(trials, 1)."""

    @property
    def sentence(self) -> str:
        """The law in words."""
        return "score ~ Gamma(trials, 1), the sum of independent Exp(1) scores"

    @property
    def mean(self) -> float:
        """Expectation of Exp(1)."""
        return 1.0

    @property
    def deviation(self) -> float:
        """Deviation of Exp(1)."""
        return 1.0

    def log10_tail(self, score: ArrayLike, trials: ArrayLike) -> Floats:
        """Exact Gamma tail."""
        return tails.log10_gamma_tail(score, trials)

    def log10_e(self, score: ArrayLike, trials: ArrayLike) -> Floats:
        """Bets that the scores are Exp(1−θ), averaged over θ from 0.02 to 0.8."""
        return tails.log10_e_value(
            score, trials, lambda theta: -np.log1p(-theta), tilts=(0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
        )


@final
@dataclass(frozen=True)
class WeightedBits:
    """Each trial gives the weighted sum of independent fair bits, one bit per weight (positive whole numbers)."""

    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        _check.require(
            bool(self.weights) and all(type(w) is int and w > 0 for w in self.weights),
            "weights",
            self.weights,
            wanted="positive whole numbers",
        )

    @property
    def sentence(self) -> str:
        """The law in words."""
        return f"score ~ the sum of {len(self.weights)} weighted fair bits per token"

    @property
    def mean(self) -> float:
        """Half the sum of the weights."""
        return sum(self.weights) / 2

    @property
    def deviation(self) -> float:
        """Half the Euclidean norm of the weights."""
        return math.sqrt(sum(w * w for w in self.weights)) / 2

    def log10_tail(self, score: ArrayLike, trials: ArrayLike) -> Floats:
        """Exact tail by lattice inversion."""
        return weighted_bits.log10_weighted_bits_tail(score, trials, weights=self.weights)

    def log10_e(self, score: ArrayLike, trials: ArrayLike) -> Floats:
        """Bets on tilted bits; the tilts are in units of one score's deviation."""
        w = np.asarray(self.weights, np.float64)
        return tails.log10_e_value(
            score,
            trials,
            lambda theta: cast("Floats", (np.logaddexp(0.0, theta[:, None] * w) - math.log(2)).sum(1)),
            tilts=[t / self.deviation for t in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)],
        )


@final
@dataclass(frozen=True)
class SpreadSigns:
    """One correlation z = ⟨signs, w⟩/‖w‖ with keyed uniform signs; any w fixed before the key. The tail is a bound."""

    @property
    def sentence(self) -> str:
        """The law in words."""
        return "z = ⟨uniform ±1 signs, w⟩/‖w‖ for weights fixed before the key; P(Z ≥ z) ≤ exp(−z²/2)"

    @property
    def mean(self) -> float:
        """Expectation of z."""
        return 0.0

    @property
    def deviation(self) -> float:
        """Deviation of z."""
        return 1.0

    def log10_tail(self, score: ArrayLike, trials: ArrayLike) -> Floats:  # noqa: ARG002 — z is already normalised
        """Hoeffding's upper bound."""
        return tails.log10_spread_bound(score)

    def log10_e(self, score: ArrayLike, trials: ArrayLike) -> Floats:  # noqa: ARG002 — z is already normalised
        """Averages exp(θz − θ²/2): sub-Gaussian, so each has expectation at most 1."""
        theta = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
        z = np.asarray(score, np.float64)
        exponents = z[..., None] * theta - theta**2 / 2
        return tails.log10_mean_exp(exponents)


@final
@dataclass(frozen=True)
class SignedWeights:
    """A sum of whole weights, each under its own keyed uniform sign; the weights are fixed before the key.

    ``weights`` are the distinct absolute values above 0, ascending, and ``counts`` says how many signs each has. Unlike
    the other nulls it is the law of one whole score, so ``trials`` is not read.
    """

    weights: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, weights: NDArray[np.integer[Any]], *, repeats: int = 1) -> "SignedWeights":
        """The law for an array of weights of any sign, each of which meets ``repeats`` signs."""
        counts = np.bincount(np.abs(weights.ravel())) * repeats
        distinct = np.flatnonzero(counts)
        distinct = distinct[distinct > 0]
        return cls(tuple(distinct.tolist()), tuple(counts[distinct].tolist()))

    def times(self, repeats: int) -> "SignedWeights":
        """The law of the sum of ``repeats`` independent such scores."""
        return SignedWeights(self.weights, tuple(count * repeats for count in self.counts))

    @property
    def sentence(self) -> str:
        """The law in words."""
        return "score ~ the sum of its whole weights, each under its own keyed uniform sign, each sign counted once"

    @property
    def signs(self) -> int:
        """How many signs are summed."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Expectation of the score."""
        return 0.0

    @property
    def deviation(self) -> float:
        """The Euclidean norm of all weights."""
        return math.sqrt(sum(n * w * w for w, n in zip(self.weights, self.counts, strict=True)))

    def log10_tail(self, score: ArrayLike, trials: ArrayLike) -> Floats:  # noqa: ARG002 — the law of one whole score
        """Exact tail by lattice inversion; without any weight, 0."""
        if not self.weights:
            return np.zeros(np.shape(score))
        return weighted_bits.log10_signed_sum_tail(score, weights=self.weights, counts=self.counts)

    @property
    def tilts(self) -> Floats:
        """The bets of the e-value, in units of one over the deviation, (8,)."""
        return np.array([1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0]) / (self.deviation or 1.0)

    def cumulant(self, theta: Floats) -> Floats:
        """Logarithm of E exp(θ·score), Σ ln cosh(θw): (R,) to (R,)."""
        x = theta[:, None] * np.asarray(self.weights, np.float64)
        return (np.logaddexp(x, -x) - math.log(2)) @ np.asarray(self.counts, np.float64)

    def log10_e(self, score: ArrayLike, trials: ArrayLike) -> Floats:  # noqa: ARG002 — the law of one whole score
        """Averages exp(θ·score − Σ ln cosh(θw)) over the tilts."""
        return tails.log10_e_value(score, 1, self.cumulant, tilts=self.tilts.tolist())


def verdict(  # noqa: PLR0913 — one argument per fact of the verdict
    null: Null,
    *,
    scheme: str,
    score: float,
    trials: int,
    multiplicity: float = 1.0,
    details: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Verdict:
    """The verdict on a score of ``trials`` trials; ``multiplicity`` counts the tests it has to pay for."""
    return Verdict(
        scheme=scheme,
        null_model=null.sentence,
        log10_p=float(null.log10_tail(score, trials)),
        trials=trials,
        matches=float(score),
        multiplicity=multiplicity,
        bound="hoeffding" if isinstance(null, SpreadSigns) else "exact",
        log10_e=float(null.log10_e(score, trials)),
        details=details or {},
        notes=tuple(notes),
    )
