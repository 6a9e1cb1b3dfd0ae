# SPDX-License-Identifier: Apache-2.0
"""Privacy-loss distributions of whatever a history holds: Google's, and those that its accountant lacks.

Added here are a stated (ε, δ) and ρ-zCDP, the discrete Gaussian, Laplace noise under replacement, and randomised
response more than once, which dp-accounting 0.6 prices as once. What is known by its Rényi divergences only (ρ-zCDP, a
sweep with random stopping) enters by its privacy profile: the least curve δ(ε) that those divergences allow is that of
some pair of distributions (Zhu, Dong & Wang 2022, arXiv 2106.08567, Prop. 2.10), and such pairs compose.
"""

import math
from typing import Any, final

import numpy as np
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.dp_event import DpEvent
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray

from privguard.accounting.events import Events
from privguard.accounting.releases import ApproximateDp, DiscreteGaussianDp, ZeroConcentratedDp
from privguard.records import Relation

_LEAST = 1e-20  # δ beyond which a profile ends; the rest counts as revealed
_FARTHEST = 600.0  # of a profile's ε, so that exp(ε) is a number
_ORDERS = 1 + np.geomspace(1e-2, 1e5, 400)  # of ρ-zCDP; one step between orders costs about 1e-4 of ε
_FINEST = 32  # steps of the first grid to the smallest stated ε
_MOST_STEPS = 4096  # of the first grid to the sum of all stated ε


@final
class GridAccountant(PLDAccountant):
    """An accountant by privacy-loss distributions for every event of the table, on one grid."""

    def __init__(self, relation: Relation, interval: float = 1e-4) -> None:
        super().__init__(NeighboringRelation[relation.name], interval)
        self._relation, self._interval = relation, interval
        self._by_divergence: list[tuple[DpEvent, int]] = []

    def finish(self) -> "GridAccountant":
        """Take in what is known by its divergences only, all of it at once: it composes best among itself."""
        if self._by_divergence:
            orders, divergence = divergences(self._by_divergence, self._relation)
            self._pld = self._pld.compose(_by_profile(orders, divergence, self._interval))
            self._by_divergence = []
        return self

    def _maybe_compose(self, event: DpEvent, count: int, do_compose: bool) -> Any:  # noqa: FBT001 — the library's
        if isinstance(event, ZeroConcentratedDp | dp_event.RepeatAndSelectDpEvent):
            if do_compose:
                self._by_divergence.append((event, count))
            return None if by_divergence(event, self._relation) else self._refused(event)
        if not _own(event, self._relation):
            return super()._maybe_compose(event, count, do_compose)
        one = _one(event, self._relation, self._interval)
        if one is not None and do_compose and count:
            self._pld = self._pld.compose(one.self_compose(count))
        return self._refused(event) if one is None else None

    def _refused(self, event: DpEvent) -> Any:
        message = f"not known for neighbours by {self._relation}"
        return self.CompositionErrorDetails(invalid_event=event, error_message=message)


def by_divergence(event: DpEvent, relation: Relation) -> bool:
    """Whether an event's Rényi divergences are known; of replaced records, only where a guarantee states them."""
    if isinstance(event, ZeroConcentratedDp):
        return event.under(relation) is not None
    return relation is Relation.ADD_OR_REMOVE_ONE and RenyiAccountant(relation).supports(event)


@final
class RenyiAccountant(RdpAccountant):
    """The library's accountant by Rényi divergences, with ρ-zCDP by its relation."""

    def __init__(self, relation: Relation, orders: "NDArray[np.float64] | None" = None) -> None:
        super().__init__(None if orders is None else list(orders), NeighboringRelation[relation.name])
        self._relation = relation

    def _maybe_compose(self, event: DpEvent, count: int, do_compose: bool) -> Any:  # noqa: FBT001 — the library's
        if isinstance(event, ZeroConcentratedDp) and (rho := event.under(self._relation)) is not None:
            return super()._maybe_compose(dp_event.ZCDpEvent(rho), count, do_compose)
        return super()._maybe_compose(event, count, do_compose)


def only_stateddivergences(events: Events) -> bool:
    """Whether finer orders than the library's may be used, which price sampled steps slowly."""
    return all(isinstance(event, ZeroConcentratedDp | dp_event.GaussianDpEvent) for event, _ in flat(events))


def flat(events: Events) -> "list[tuple[DpEvent, int]]":
    """The events inside composed ones, with their counts."""
    leaves: list[tuple[DpEvent, int]] = []
    for event, times in events:
        if isinstance(event, dp_event.SelfComposedDpEvent):
            leaves += flat([(event.event, event.count * times)])
        elif isinstance(event, dp_event.ComposedDpEvent):
            leaves += flat([(inner, times) for inner in event.events])
        else:
            leaves.append((event, times))
    return leaves


def first_interval(events: Events, relation: Relation) -> float | None:
    """A grid that tells single losses apart where some have a probability of their own; None where there are none.

    On a coarser one, two grids in a row may round a loss to the same value, and the answer would seem to stand still.
    """
    sizes = [(size, times) for event, times in flat(events) if (size := _loss(event, relation)) and times]
    if not sizes:
        return None
    wanted = max(min(size for size, _ in sizes) / _FINEST, sum(size * times for size, times in sizes) / _MOST_STEPS)
    return 2.0 ** math.floor(math.log2(wanted))


def _loss(event: DpEvent, relation: Relation) -> float:
    """The loss that an event has with a probability of its own, not a density; 0 for events without one."""
    if isinstance(event, ApproximateDp):
        return (event.under(relation) or (0.0, 0.0))[0]
    if isinstance(event, dp_event.RandomizedResponseDpEvent) and 0 < event.noise_parameter < 1:
        return _log_ratio(event.noise_parameter, event.num_buckets)
    if isinstance(event, dp_event.DiscreteLaplaceDpEvent):
        return event.noise_parameter
    if isinstance(event, dp_event.PoissonSampledDpEvent):
        return math.log1p(event.sampling_probability * math.expm1(min(_loss(event.event, relation), _FARTHEST)))
    return 1 / event.noise_multiplier if isinstance(event, dp_event.LaplaceDpEvent) and event.noise_multiplier else 0.0


def _log_ratio(p: float, buckets: int) -> float:
    return math.log1p((1 - p) * buckets / p)


def _own(event: DpEvent, relation: Relation) -> bool:
    if isinstance(event, ApproximateDp | DiscreteGaussianDp):
        return True
    if isinstance(event, dp_event.RandomizedResponseDpEvent):
        return relation is Relation.REPLACE_ONE and event.noise_parameter > 0 and event.num_buckets > 1
    doubled = isinstance(event, dp_event.LaplaceDpEvent | dp_event.DiscreteLaplaceDpEvent)
    return doubled and relation is Relation.REPLACE_ONE and bool(_noise(event))


def _noise(event: Any) -> float:
    return event.noise_multiplier if isinstance(event, dp_event.LaplaceDpEvent) else event.noise_parameter


def _one(event: DpEvent, relation: Relation, interval: float) -> "pld.PrivacyLossDistribution | None":
    """The distribution of one such event; where a record is replaced, twice what one record moves."""
    moved = 2 if relation is Relation.REPLACE_ONE else 1
    match event:
        case ApproximateDp():
            pair = event.under(relation)
            return None if pair is None else _stated(*pair, interval)
        case dp_event.RandomizedResponseDpEvent():
            return _response(event.noise_parameter, event.num_buckets, interval)
        case _:
            return _noised(event, moved, interval)


def _noised(event: Any, moved: int, interval: float) -> "pld.PrivacyLossDistribution":
    grid: dict[str, Any] = {"value_discretization_interval": interval}
    if isinstance(event, DiscreteGaussianDp):
        return pld.from_discrete_gaussian_mechanism(event.sigma, moved * event.sensitivity, **grid)
    if isinstance(event, dp_event.LaplaceDpEvent):
        return pld.from_laplace_mechanism(event.noise_multiplier / moved, **grid)
    return pld.from_discrete_laplace_mechanism(event.noise_parameter, moved * event.sensitivity, **grid)


def _response(p: float, buckets: int, interval: float) -> "pld.PrivacyLossDistribution":
    """One randomised response, one answer exchanged for another: a third answer tells nothing."""
    return _stated(_log_ratio(p, buckets), 0.0, interval, share=1 - p * (buckets - 2) / buckets)


def _stated(epsilon: float, delta: float, interval: float, *, share: float = 1.0) -> "pld.PrivacyLossDistribution":
    """The worst pair that is (ε, δ)-private: it reveals with probability δ, else its loss is ±ε.

    ``share`` is how often the loss is ±ε; else it is zero, as in a randomised response that gave a third answer. The
    profile is taken at the grid's points around each loss and joined by chords, which lie above it.
    """
    steps = epsilon / interval
    points = np.array(sorted({math.floor(-steps), math.ceil(-steps), 0, math.floor(steps), math.ceil(steps)}))
    return _joined(points, _worst_profile(points * interval, epsilon, delta, share), interval)


def _worst_profile(at: "NDArray[np.float64]", epsilon: float, delta: float, share: float) -> "NDArray[np.float64]":
    def gain(probability: float, loss: float) -> "NDArray[np.float64]":
        return probability * np.maximum(0, -np.expm1(np.minimum(at - loss, 0.0)))

    lost = gain(share / (1 + math.exp(-epsilon)), epsilon) + gain(
        share * math.exp(-epsilon) / (1 + math.exp(-epsilon)), -epsilon
    )
    return delta + (1 - delta) * (lost + gain(1 - share, 0.0))


def divergences(events: Events, relation: Relation) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Rényi orders and what the events cost at each, where the library's sum is a number that holds."""
    accountant = RenyiAccountant(relation, _ORDERS if only_stateddivergences(events) else None)
    for event, times in events:
        accountant.compose(event, times)
    orders, costs = np.asarray(accountant.orders), np.asarray(accountant.rdp)
    held = (costs >= 0) & np.isfinite(costs) & (orders > 1.01 - 1e-12)
    return orders[held], costs[held]


def _by_profile(
    orders: "NDArray[np.float64]", costs: "NDArray[np.float64]", interval: float
) -> "pld.PrivacyLossDistribution":
    """The pair whose profile is the convex hull of what the divergences allow (Canonne et al. 2020, Prop. 12)."""
    if not orders.size:  # infinite at every order
        return pld.PrivacyLossDistribution(pld_pmf.create_pmf({0: 0.0}, interval, 1.0, pessimistic_estimate=True))
    ends = (math.log(1 / _LEAST) - np.log(orders)) / (orders - 1) + costs + np.log1p(-1 / orders)
    last = max(1, math.ceil(min(float(np.min(ends)), _FARTHEST) / interval))
    above = np.arange(last + 1) * interval
    logs = np.full(above.size, 0.0)
    for order, cost in zip(orders, costs, strict=True):
        np.minimum(logs, (order - 1) * (cost - above + math.log1p(-1 / order)) - math.log(order), out=logs)
    deltas = np.exp(logs)
    deltas[0] = min(deltas[0], math.sqrt(-math.expm1(-float(np.min(costs)))))  # Bretagnolle & Huber 1979
    below = 1 - np.exp(-above[:0:-1]) * (1 - deltas[:0:-1])  # the same profile, with the two distributions exchanged
    points = np.arange(-last, last + 1)
    return _joined(points, _hull(np.exp(points * interval), np.concatenate([below, deltas])), interval)


def _hull(x: "NDArray[np.float64]", y: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The largest convex curve below the points: a true profile is convex in exp(ε), so it lies below this too."""
    kept: list[int] = []
    for i in range(x.size):
        while len(kept) > 1 and (y[kept[-1]] - y[kept[-2]]) * (x[i] - x[kept[-1]]) >= (y[i] - y[kept[-1]]) * (
            x[kept[-1]] - x[kept[-2]]
        ):
            kept.pop()
        kept.append(i)
    return np.interp(x, x[kept], y[kept])


def _joined(
    points: "NDArray[np.int64]", deltas: "NDArray[np.float64]", interval: float
) -> "pld.PrivacyLossDistribution":
    """A symmetric distribution whose profile joins these points by chords (Doroshenko et al. 2022, Algorithm 1)."""
    falling = np.minimum.accumulate(np.clip(deltas, 0.0, 1.0))
    return pld.PrivacyLossDistribution(pld_pmf.create_pmf_pessimistic_connect_dots(interval, points, falling))
