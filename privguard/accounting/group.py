# SPDX-License-Identifier: Apache-2.0
"""What a history costs a person who gave several records: ε for a group, from the mechanism's own loss distribution.

(ε, δ) for one record implies (kε, δ·(e^{kε} − 1)/(e^ε − 1)) for k of them (Dwork & Roth 2014, Theorem 2.2 with Lemma
2.3 of Vadhan 2017), and the second number is soon useless: at ε = 3, δ = 1e-5 and k = 4 it is 0.085. The mechanism's
own figure is far smaller. In a Poisson-sampled step each of the k records is drawn by itself, so j of them take part
with the binomial probability, and the sum moves by at most j clipping norms: a mixture of Gaussians (Ganesh 2024,
arXiv 2401.10294, Theorem 3.1), which privacy-loss distributions price as it is.
"""

import math
from typing import TYPE_CHECKING, Any, cast

from privguard.accounting import accountant
from privguard.accounting.accountant import Figure, Spending
from privguard.records import Claim, Relation, Unit

if TYPE_CHECKING:
    from dp_accounting import DpEvent

SIZES = (2, 4, 8)
_FINER = 16  # than the accountant's first interval: ε is then at most about 2 % above the finest grid's


def epsilons(history: Spending, *, claim: Claim, sizes: tuple[int, ...] = SIZES) -> list[tuple[int, float]]:
    """ε of adding or removing k records of one person together, at the claim's δ, for each k of ``sizes``.

    Guarantee: every figure is an upper bound, as the claim's own is.

    Args:
        history: what happened to the data.
        claim: what ``privguard.accounting.accountant.spent`` says of it for one record.
        sizes: how many records one person gave.

    Returns:
        (k, ε) pairs; none where the unit is a user already, where the neighbouring relation replaces records, or where
        an event has no known loss for a group.
    """
    if claim.unit is Unit.USER or claim.relation is not Relation.ADD_OR_REMOVE_ONE:
        return []
    figures: list[tuple[int, float]] = []
    for records in sizes:
        events = [(_of_group(event, records), times) for event, times in accountant.pairs(history)]
        if any(event is None for event, _ in events):
            return []
        known = cast("list[tuple[DpEvent, int]]", events)
        grid = Figure(0.0, accountant.first_interval(records * claim.epsilon) / _FINER)
        epsilon = accountant.on_grid(known, delta=claim.delta, relation=claim.relation, like=grid)
        figures.append((records, epsilon))
    return figures


def _of_group(event: "DpEvent", records: int) -> "DpEvent | None":
    """The event as a group of ``records`` records meets it; None where that is not known."""
    from dp_accounting.dp_event import GaussianDpEvent, LaplaceDpEvent

    any_event = cast("Any", event)
    match type(event).__name__:
        case "NoOpDpEvent" | "NonPrivateDpEvent":
            return event
        case "GaussianDpEvent":
            return GaussianDpEvent(any_event.noise_multiplier / records)
        case "LaplaceDpEvent":
            return LaplaceDpEvent(any_event.noise_multiplier / records)
        case "PoissonSampledDpEvent" if type(any_event.event).__name__ == "GaussianDpEvent":
            return _sampled(any_event.sampling_probability, any_event.event.noise_multiplier, records)
        case _:
            return None


def _sampled(rate: float, deviation: float, records: int) -> "DpEvent":
    """A Poisson-sampled Gaussian step, as ``records`` records meet it."""
    from dp_accounting.dp_event import GaussianDpEvent, MixtureOfGaussiansDpEvent

    if rate == 1:
        return GaussianDpEvent(deviation / records)
    return MixtureOfGaussiansDpEvent(deviation, list(range(records + 1)), _binomial(records, rate))


def _binomial(count: int, rate: float) -> list[float]:
    """Probabilities that 0, 1, … ``count`` of as many records are drawn; they sum to 1 to the last bit."""
    shares = [math.comb(count, j) * rate**j * (1 - rate) ** (count - j) for j in range(1, count + 1)]
    return [1 - math.fsum(shares), *shares]
