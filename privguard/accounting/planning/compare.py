# SPDX-License-Identifier: Apache-2.0
"""Two plans side by side: ε under both relations, what an attacker can do, and how much noise the weights keep."""

from dataclasses import dataclass
from typing import final

from privguard.accounting import accountant
from privguard.accounting.bands import expected_error
from privguard.accounting.events import Events
from privguard.accounting.planning.trade_off import RATES, TradeOff, trade_off
from privguard.records import Record


@final
@dataclass(frozen=True, kw_only=True)
class Side(Record):
    """One plan of a comparison.

    Attributes:
        epsilon: ε of the whole run at ``delta``, adding or removing one record.
        replace_one: the same, replacing one; None where it cannot be priced.
        delta: δ of both.
        advantage: the best test's true-positive less its false-positive rate.
        false_negatives: for each rate of ``RATES``, the least rate of
            records that are missed.
        odds: for each, by what factor a positive answer raises the odds.
        noise_left: root mean square over the steps of the noise in a weight, for C = 1, learning rate 1 and plain SGD.
    """

    epsilon: float
    replace_one: float | None
    delta: float
    advantage: float
    false_negatives: tuple[float, ...]
    odds: tuple[float, ...]
    noise_left: float


def side(events: Events, *, delta: float, strategy: tuple[float, ...], steps: int, noise: float) -> Side:
    """What one plan costs and what it leaves.

    Args:
        events: everything that the run does.
        delta: δ at which ε is told.
        strategy: coefficients of its noise.
        steps: steps of the run.
        noise: deviation of a step's noise over clipping norm and batch size.

    Raises:
        UnknownEventError: an event that cannot be priced.
    """
    claim = accountant.spent(events, delta=delta)
    curve: TradeOff = trade_off(events, delta=delta)
    return Side(
        epsilon=claim.epsilon,
        replace_one=claim.replace_one,
        delta=delta,
        advantage=curve.advantage,
        false_negatives=tuple(map(curve.false_negatives, RATES)),
        odds=tuple(map(curve.odds, RATES)),
        noise_left=noise * expected_error(strategy, steps=steps),
    )
