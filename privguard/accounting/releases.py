# SPDX-License-Identifier: Apache-2.0
"""What other tools released: a guarantee as they state it, or the mechanism itself; and what a person types for it.

A known mechanism says more than its guarantee, and composes better: type ``laplace 2``, not ``dp 0.5``. A stated
guarantee holds for the neighbours that its tool means, so it carries its relation.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from dp_accounting import dp_event
from dp_accounting.dp_event import DpEvent

from privguard import _check
from privguard.records import Relation

_LARGEST = 700.0  # whose exponential is a number
FORMS = (
    "dp EPSILON [DELTA]",
    "zcdp RHO",
    "gaussian SIGMA [sampled RATE]",
    "laplace SCALE [sampled RATE]",
    "discrete-gaussian SIGMA [SENSITIVITY]",
    "discrete-laplace SCALE [SENSITIVITY]",
    "randomised-response P BUCKETS",
)


@final
@dataclass(frozen=True)
class ApproximateDp(DpEvent):
    """Something (``epsilon``, ``delta``)-differentially private for neighbours by ``relation``; no more is known.

    It composes as the worst mechanism of that guarantee does (Kairouz, Oh & Viswanath 2015, arXiv 1311.0776).
    """

    epsilon: float
    delta: float
    relation: Relation

    def under(self, relation: Relation) -> "tuple[float, float] | None":
        """(ε, δ) for neighbours by ``relation``: a replaced record is one removed and one added. None where unknown.

        Args:
            relation: which data sets count as neighbours.
        """
        if relation is self.relation:
            return self.epsilon, self.delta
        if self.relation is Relation.REPLACE_ONE:
            return None
        return 2 * self.epsilon, min(1.0, self.delta * (1 + math.exp(min(self.epsilon, _LARGEST))))


@final
@dataclass(frozen=True)
class ZeroConcentratedDp(DpEvent):
    """Something that is ``rho``-zero-concentrated differentially private (Bun & Steinke 2016) by ``relation``."""

    rho: float
    relation: Relation

    def under(self, relation: Relation) -> float | None:
        """ρ for neighbours by ``relation``, fourfold for a replaced record (Prop. 1.9); None where unknown.

        Args:
            relation: which data sets count as neighbours.
        """
        if relation is self.relation:
            return self.rho
        return None if self.relation is Relation.REPLACE_ONE else 4 * self.rho


@final
@dataclass(frozen=True)
class DiscreteGaussianDp(DpEvent):
    """One whole number released with discrete Gaussian noise; one record moves it by at most ``sensitivity``.

    ``sigma`` is the parameter of the noise. A vector is not this event: state its ρ (Canonne, Kamath & Steinke 2020).
    """

    sigma: float
    sensitivity: int


def parse(texts: Sequence[str], *, relation: Relation | None = None) -> "list[tuple[DpEvent, int]]":
    """Releases as typed → (event, times) pairs.

    Args:
        texts: one release each, in one of the ``FORMS``, with ``x N`` at its end for N equal ones.
        relation: whose neighbours a stated guarantee (``dp``, ``zcdp``) means; needed for those only.

    Raises:
        ValueError: not one of the forms, a number out of its range, or a guarantee without its relation.
    """
    return [_release(text, relation) for text in texts]


def one_event(pairs: "Sequence[tuple[DpEvent, int]]") -> DpEvent:
    """All of it as one event, for a book to take in whole or not at all.

    Args:
        pairs: events, and how often each happened.
    """
    return dp_event.ComposedDpEvent([dp_event.SelfComposedDpEvent(event, times) for event, times in pairs])


def _release(text: str, relation: Relation | None) -> tuple[DpEvent, int]:
    words, times = _ending(text.split(), "x")
    words, rate = _ending(words, "sampled")
    name = words[0] if words else ""
    least, most = _ARGUMENTS.get(name, (1, 0))
    if not least < len(words) <= most + 1 or (rate is not None and name not in {"gaussian", "laplace"}):
        raise _unclear(text)
    event = _event(name, [_number(text, word) for word in words[1:]], relation, text)
    if rate is not None:
        share = _check.probability("rate", _number(text, rate), one=True)
        event = dp_event.PoissonSampledDpEvent(share, event)
    return event, 1 if times is None else _whole(text, times)


def _ending(words: list[str], mark: str) -> "tuple[list[str], str | None]":
    """The words without what the mark at their end introduces, and that."""
    return (words[:-2], words[-1]) if mark in words[-2:-1] else (words, None)


_ARGUMENTS = {
    "dp": (1, 2),
    "zcdp": (1, 1),
    "gaussian": (1, 1),
    "laplace": (1, 1),
    "discrete-gaussian": (1, 2),
    "discrete-laplace": (1, 2),
    "randomised-response": (2, 2),
}


def _event(name: str, numbers: list[float], relation: Relation | None, text: str) -> DpEvent:
    if name == "dp":
        delta = _check.probability("delta", numbers[1] if numbers[1:] else 0.0, zero=True)
        return ApproximateDp(_check.non_negative("epsilon", numbers[0]), delta, _stated(relation, text))
    if name == "zcdp":
        return ZeroConcentratedDp(_check.non_negative("rho", numbers[0]), _stated(relation, text))
    if name == "randomised-response":
        buckets = _check.count("buckets", _whole(text, numbers[1]), least=2)
        return dp_event.RandomizedResponseDpEvent(_check.probability("p", numbers[0], one=True), buckets)
    return _noise(name, _check.positive("scale", numbers[0]), _whole(text, numbers[1] if numbers[1:] else 1))


def _noise(name: str, scale: float, sensitivity: int) -> DpEvent:
    match name:
        case "gaussian":
            return dp_event.GaussianDpEvent(scale)
        case "laplace":
            return dp_event.LaplaceDpEvent(scale)
        case "discrete-laplace":
            return dp_event.DiscreteLaplaceDpEvent(1 / scale, sensitivity)
        case _:
            return DiscreteGaussianDp(scale, sensitivity)


def _stated(relation: Relation | None, text: str) -> Relation:
    if relation is None:
        raise ValueError(
            f"release={text!r}: a stated guarantee holds for one kind of neighbours; give --relation "
            f"{Relation.ADD_OR_REMOVE_ONE} or {Relation.REPLACE_ONE}, as its tool's documentation says"
        )
    return relation


def _number(text: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise _unclear(text) from None


def _whole(text: str, word: "str | float") -> int:
    if not re.fullmatch(r"[0-9]{1,12}(\.0)?", str(word)) or float(word) < 1:
        raise _unclear(text)
    return int(float(word))


def _unclear(text: str) -> ValueError:
    return ValueError(f"release={text!r}: expected one of {'; '.join(FORMS)}; with x N at the end for N of them")


CLASSES: "Mapping[str, Any]" = {kind.__name__: kind for kind in (ApproximateDp, ZeroConcentratedDp, DiscreteGaussianDp)}
