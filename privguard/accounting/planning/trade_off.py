# SPDX-License-Identifier: Apache-2.0
"""What ε means for an attacker's error rates: the trade-off curve of the best membership test.

A test that says "in" has a false-positive rate α and a false-negative rate β. A mechanism that is (ε, δ)-private bounds
β ≥ max(0, 1 - δ - e^ε·α, e^-ε·(1 - δ - α)) (Kairouz, Oh & Viswanath 2015; Dong, Roth & Su 2022, Proposition 2.5), and
one that has a whole profile of pairs bounds β by the largest of those. Advantage is the largest 1 - α - β, which is δ
at ε = 0, as riskcal defines it (Kulynych et al. 2024, arXiv 2407.02191).
"""

import math
from dataclasses import dataclass
from typing import final

from privguard import _check
from privguard.accounting import accountant
from privguard.accounting.events import Events
from privguard.records import Record, Relation

RATES = (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.5)
"""False-positive rates that tables show."""
_FAR = 700.0  # up to there e^ε is a double
_POINTS = 241  # of the profile; fewer ones would only make the attacker look better


@final
@dataclass(frozen=True)
class TradeOff(Record):
    """The best that any test for one record can do against a run.

    Attributes:
        profile: (ε, δ) pairs that all hold at once.
        relation: which two data sets the test tells apart.
    """

    profile: tuple[tuple[float, float], ...]
    relation: Relation

    def false_negatives(self, rate: float) -> float:
        """The least false-negative rate of a test with at most this false-positive rate.

        Raises:
            ValueError: not a rate from 0 to 1.
        """
        _check.probability("rate", rate, zero=True, one=True)
        return max(0.0, *(max(1 - d - math.exp(e) * rate, math.exp(-e) * (1 - d - rate)) for e, d in self._finite))

    @property
    def advantage(self) -> float:
        """The largest true-positive rate less false-positive rate, from 0 to 1."""
        return min([1.0, *(math.tanh(e / 2) + 2 * d / (math.exp(e) + 1) for e, d in self._finite)])

    def odds(self, rate: float) -> float:
        """By what factor a positive answer of the best test with this false-positive rate raises the odds of "in".

        Raises:
            ValueError: not a rate above 0 and at most 1.
        """
        _check.probability("rate", rate, one=True)
        return (1 - self.false_negatives(rate)) / rate

    @property
    def _finite(self) -> list[tuple[float, float]]:
        return [(e, d) for e, d in self.profile if e < _FAR]


def trade_off(events: Events, *, delta: float, relation: Relation = Relation.ADD_OR_REMOVE_ONE) -> TradeOff:
    """The trade-off curve of everything that a run does.

    Args:
        events: privacy events and how often each happens.
        delta: δ of the claim, on whose grid the profile is computed.
        relation: the neighbouring relation.

    Raises:
        UnknownEventError: an event that cannot be priced under this relation.
        ValueError: ``delta`` is no probability.
    """
    claim = accountant.spent(events, delta=delta, relation=relation)
    return TradeOff(tuple(accountant.privacy_profile(events, claim=claim, points=_POINTS)), relation)
