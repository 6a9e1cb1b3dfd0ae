# SPDX-License-Identifier: Apache-2.0
"""A history of events in, what it cost out: ε by privacy-loss distributions, refined until the grid no longer matters.

The arithmetic is Google's ``dp-accounting``: its privacy-loss distributions (PLD) round every loss up (Doroshenko et
al. 2022, arXiv 2207.04380), so each figure is an upper bound at any grid, and a finer grid only brings it down. This
module chooses the grid, cross-checks with Rényi differential privacy, and refuses what cannot be priced.
"""

import functools
import logging
import math
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeAlias, TypeVar, cast, final

import numpy as np

from privguard import _check
from privguard.accounting.events import Events, fold
from privguard.errors import UnknownEventError
from privguard.records import Claim, Relation, Unit

if TYPE_CHECKING:
    from dp_accounting import DpEvent

P = ParamSpec("P")
T = TypeVar("T")

_CONVERGED = 1e-3  # relative change of ε when the interval is halved; the grid's own error is then about a third of it
_LEAST_EPSILON = 1e-7  # below this, two figures of ε are the same
_NARROWEST, _WIDEST = 2.0**-6, 8.0  # of the first interval
_ROUNDING = 2.0**-52  # of δ for each distribution in a power: four times the largest error measured that lowers ε
_MOST_POINTS = 1 << 23  # 64 MiB per array
_NEAR_UNDERFLOW = 600.0  # of exp(−ε)
_REMEMBERED = 256  # figures of a process, the oldest forgotten first
_BEYOND_PLD = 1 << 15  # an ε this large is priced by RDP alone: its losses would not fit on a grid


class HasSpent(Protocol):
    """A ledger, or the history read from one."""

    def spent(self) -> "list[tuple[DpEvent, int]]":
        """(event, times) pairs."""
        ...


Spending: TypeAlias = "HasSpent | Events"
"""A ledger, a history, or a plain sequence of (event, times) pairs."""


def spent(
    history: Spending, *, delta: float, relation: Relation = Relation.ADD_OR_REMOVE_ONE, unit: Unit = Unit.EXAMPLE
) -> Claim:
    """What a history cost: the Claim that reports and budgets rest on.

    Guarantee: the composed events are (``epsilon``, ``delta``)-differentially private under ``relation``; the
    discretisation is pessimistic, and halving its interval once more would change ε by less than 0.1 %. Histories
    that differ only in order or grouping get the same figure, to the last bit. Noise of zero costs ε = ∞.

    Args:
        history: a ledger, its history, or pairs of an event and how often it happened.
        delta: δ of the claim, in [0, 1].
        relation: which data sets count as neighbours.
        unit: whom the claim protects, an example or a user.

    Raises:
        UnknownEventError: an event that cannot be priced under this relation; the message names it.
        ValueError: delta outside [0, 1].
    """
    events = _folded(history)
    figure = price(events, delta=delta, relation=relation)
    return Claim(
        epsilon=figure.epsilon,
        delta=delta,
        relation=relation,
        unit=unit,
        method=figure.method,
        accountant=f"dp-accounting {_version()}",
        interval=figure.interval,
        events=sum(times for _, times in events),
        replace_one=_replace_one(events, delta=delta, relation=relation, figure=figure),
        cross_check=_rdp(events, delta=delta, relation=relation),
    )


def epsilon(history: Spending, *, delta: float, relation: Relation = Relation.ADD_OR_REMOVE_ONE) -> float:
    """The ε of ``spent`` alone, without cross-check and replace-one figure.

    Args:
        history: a ledger, its history, or pairs of an event and how often it happened.
        delta: δ of the claim, in [0, 1].
        relation: which data sets count as neighbours.
    """
    return price(_folded(history), delta=delta, relation=relation).epsilon


def epsilon_curve(
    history: Spending, *, delta: float, relation: Relation = Relation.ADD_OR_REMOVE_ONE, points: int = 33
) -> list[tuple[int, float]]:
    """(events so far, ε) pairs along a history, for plots and progress bars; the last pair is the whole history.

    Every ε is an upper bound. All but the last are computed on one grid, twice as wide as the whole history's, so they
    may lie above what ``spent`` would give by up to about a percent.

    Args:
        history: a ledger, its history, or pairs of an event and how often it happened.
        delta: δ of the claim, in [0, 1].
        relation: which data sets count as neighbours.
        points: how many points at most.
    """
    events = pairs(history)
    figure = price(fold(events), delta=delta, relation=relation)
    grid = replace(figure, interval=2 * figure.interval)
    total = sum(times for _, times in events)
    marks = sorted({round(total * step / max(1, points - 1)) for step in range(max(2, points))})
    early = [on_grid(_first(events, mark), delta=delta, relation=relation, like=grid) for mark in marks[:-1]]
    return [*zip(marks, [*(min(value, figure.epsilon) for value in early), figure.epsilon], strict=True)]


def privacy_profile(history: Spending, *, claim: Claim, points: int = 61) -> list[tuple[float, float]]:
    """(ε, δ) pairs that all hold at once, from ε = 0 to twice the claim's: the whole trade-off, not one point of it.

    The best test of an attacker is bounded by every pair, so the smallest of those bounds is the one to report.
    Where the claim was not priced on a grid, its own pair is the only one.

    Args:
        history: a ledger, its history, or pairs of an event and how often it happened.
        claim: the claim whose trade-off is wanted.
        points: how many points at most.
    """
    pair = (claim.epsilon, claim.delta)
    if claim.method != "pld" or claim.interval == 0 or not math.isfinite(claim.epsilon):
        return [pair]
    events = _folded(history)
    accountant, allowance = _composed(events, claim.relation, claim.interval), _rounding(events)
    grid = [2 * claim.epsilon * step / (points - 1) for step in range(points)]
    return [pair, *((at, min(1.0, float(accountant.get_delta(at)) + allowance)) for at in grid)]


def _remembered(function: Callable[P, T]) -> Callable[P, T]:
    """Compute a figure once a process: a claim, its report and its curves ask for the same ones again and again.

    Events are told apart by all of their state, since some hold lists and cannot be hashed; what cannot be compared
    that way is computed each time.
    """
    figures: dict[Hashable, T] = {}

    @functools.wraps(function)
    def cached(*args: P.args, **kwargs: P.kwargs) -> T:
        key = _state((args, tuple(kwargs.items())))
        try:
            known = key in figures
        except TypeError:
            return function(*args, **kwargs)
        if not known:
            if len(figures) >= _REMEMBERED:
                figures.pop(next(iter(figures)))
            figures[key] = function(*args, **kwargs)
        return figures[key]

    return cached


def _state(value: object) -> Hashable:
    """Everything that a figure could hang on, by type and value, down through events in events."""
    from dp_accounting import DpEvent

    if isinstance(value, list | tuple):
        return tuple(_state(each) for each in cast("Sequence[object]", value))
    if isinstance(value, DpEvent):
        slots = [
            name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if name != "__weakref__"
        ]
        names = sorted({*slots, *getattr(value, "__dict__", ())})
        return type(value), tuple((name, _state(getattr(value, name))) for name in names)
    return type(value), cast("Hashable", value)


@final
@dataclass(frozen=True)
class Figure:
    """An upper bound on ε, the grid it came from (0 for none) and the method: ``pld`` or ``rdp``."""

    epsilon: float
    interval: float = 0.0
    method: str = "pld"


def price(events: Events, *, delta: float, relation: Relation) -> Figure:
    """The smallest upper bound on the ε of folded events that the accountants here can give.

    Args:
        events: folded pairs of an event and how often it happened.
        delta: δ of the claim, in [0, 1].
        relation: which data sets count as neighbours.
    """
    _check.probability("delta", delta, zero=True, one=True)
    from privguard.accounting.grid import first_interval as grid_interval

    gridded = _fits_grid(events, relation)
    if delta == 1 or not any(_costs(event) for event, _ in events):
        return Figure(0.0)
    rdp = _rdp(events, delta=delta, relation=relation)
    size = rough_size(events, delta=delta, relation=relation, rdp=rdp)
    if rdp is not None and (rdp == 0 or not gridded):
        return Figure(rdp, method="rdp")
    interval = min(first_interval(size), grid_interval(events, relation) or math.inf)
    figure = Figure(math.inf) if size > _BEYOND_PLD else _refined(events, delta, relation, interval)
    # Both are upper bounds. Where δ is not far above the rounding of the sums, RDP is the smaller one.
    return Figure(rdp, method="rdp") if rdp is not None and rdp < figure.epsilon else figure


def rough_size(events: Events, *, delta: float, relation: Relation, rdp: float | None = None) -> float:
    """An ε of the right order of magnitude, to choose a grid by; never a claim.

    Args:
        events: folded pairs of an event and how often it happened.
        delta: δ of the claim, in [0, 1].
        relation: which data sets count as neighbours.
        rdp: ε by Rényi accounting, where it is known; None otherwise.
    """
    if rdp is None:
        rdp = _rdp(events, delta=delta, relation=relation)
    if rdp is None:
        rdp = _rdp(events, delta=delta, relation=Relation.ADD_OR_REMOVE_ONE)
    return 1.0 if rdp is None else rdp


def _refined(events: Events, delta: float, relation: Relation, interval: float) -> Figure:
    """Halve the interval until ε stands still; where rounding errors push it up again, keep the larger figure."""
    epsilon, points = _pld(events, delta, relation, interval)
    while epsilon > 0 and math.isfinite(epsilon) and 2 * points <= _MOST_POINTS:
        interval /= 2
        finer, points = _pld(events, delta, relation, interval)
        if epsilon - finer <= max(_CONVERGED * finer, _LEAST_EPSILON):
            return Figure(finer, interval)
        epsilon = finer
    return Figure(epsilon, interval)


def first_interval(size: float) -> float:
    """A coarse start, a sixteenth of a rough ε as a power of two: the last, finest grid costs most of the time.

    Args:
        size: a rough ε.
    """
    return 2.0 ** math.floor(math.log2(min(max(size / 16, _NARROWEST), _WIDEST)))


def on_grid(events: Events, *, delta: float, relation: Relation, like: Figure) -> float:
    """ε by the same method and on the same grid as another figure: an upper bound, in one evaluation.

    Args:
        events: folded pairs of an event and how often it happened.
        delta: δ of the claim, in [0, 1].
        relation: which data sets count as neighbours.
        like: the figure whose method and grid are used.
    """
    events = fold(events)
    if like.method == "rdp":
        rdp = _rdp(events, delta=delta, relation=relation)
        return math.inf if rdp is None else rdp
    return _pld(events, delta, relation, like.interval)[0] if like.interval else like.epsilon


@_remembered
def _pld(events: Events, delta: float, relation: Relation, interval: float) -> tuple[float, int]:
    """ε on one grid, and how many points the composed distribution has.

    The library composes by raising a Fourier transform to the power T, which moves δ by up to about T · 2⁻⁵³ in either
    direction (measured against sums without cancellation, ``tests/accounting/test_rounding.py``). δ pays for it here.
    """
    accountant = _composed(events, relation, interval)
    points = accountant._pld._pmf_remove.size  # noqa: SLF001 — the library shows its size nowhere else
    left = delta - _rounding(events)
    return (_epsilon_at(accountant, left) if left > 0 or delta == 0 else math.inf), points


def _composed(events: Events, relation: Relation, interval: float) -> Any:
    from privguard.accounting.grid import GridAccountant

    accountant = GridAccountant(relation, interval)
    for event, times in events:
        accountant.compose(event, times)
    return accountant.finish()


def _rounding(events: Events) -> float:
    """What rounding in the library's transforms may hide of δ."""
    return sum(_transforms(event) * times for event, times in events) * _ROUNDING


def hidden_by_rounding(steps: int) -> float:
    """What rounding in the composition of as many sampled steps may hide of δ; ε is infinite at or below it.

    Args:
        steps: sampled steps composed.
    """
    return steps * _ROUNDING


def _epsilon_at(accountant: Any, delta: float) -> float:
    """ε at δ; where exp(−ε) nears the smallest double, the library's formula overflows and its δ at ε is inverted."""
    with np.errstate(over="ignore", divide="ignore"):
        epsilon = float(accountant.get_epsilon(delta))
    if epsilon < _NEAR_UNDERFLOW:
        return max(0.0, epsilon)
    low, high = 0.0, _NEAR_UNDERFLOW
    while accountant.get_delta(high) > delta:
        low, high = high, 2 * high
        if high > 4 * _BEYOND_PLD:
            return math.inf
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if accountant.get_delta(middle) > delta else (low, middle)
    return high


def _transforms(event: "DpEvent") -> int:
    """How many distributions one event adds to the power; plain Gaussian noise composes in closed form."""
    match type(event).__name__:
        case "SelfComposedDpEvent":
            return cast("Any", event).count * _transforms(cast("Any", event).event)
        case "ComposedDpEvent":
            return sum(map(_transforms, cast("Any", event).events))
        case name:
            return name not in {"GaussianDpEvent", "NoOpDpEvent", "NonPrivateDpEvent"}


def _replace_one(events: Events, *, delta: float, relation: Relation, figure: Figure) -> float | None:
    if relation is Relation.REPLACE_ONE:
        return figure.epsilon
    try:
        return price(events, delta=delta, relation=Relation.REPLACE_ONE).epsilon
    except UnknownEventError:
        return None


@_remembered
def _rdp(events: Events, *, delta: float, relation: Relation) -> float | None:
    """ε by Rényi differential privacy, or None where dp-accounting has no formula that holds."""
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    from privguard.accounting import grid

    if not _rdp_prices(events, relation):
        return None
    with _quiet():
        orders, costs = grid.divergences(events, relation)
        if not orders.size:  # every order cancelled below zero, or is infinite: nothing is known
            return None
        return float(compute_epsilon(list(orders), list(costs), delta)[0])


@contextmanager
def _quiet() -> Generator[None]:
    """The library warns about single orders that it leaves out; the minimum over the others is still a bound."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fits_grid(events: Events, relation: Relation) -> bool:
    """Whether privacy-loss distributions should price these events; if not, whether RDP can, or nobody."""
    from privguard.accounting.grid import GridAccountant

    accountant = GridAccountant(relation)
    stranger = next((event for event, _ in events if not accountant.supports(event)), None)
    if stranger is None:
        return not (_sweeps(events) and _rdp_prices(events, relation))
    if _rdp_prices(events, relation):
        return False
    raise UnknownEventError(
        f"event={_unknown(stranger, relation)}: the accountant cannot price it under {relation.value}; "
        "account for it apart, or bound it by one of the known events"
    )


def _unknown(event: "DpEvent", relation: Relation) -> str:
    """The name of what cannot be priced; inside of a composed event, its own."""
    from privguard.accounting.grid import GridAccountant, flat

    accountant = GridAccountant(relation)
    inner = (leaf for leaf, _ in flat([(event, 1)]) if not accountant.supports(leaf))
    return type(next(inner, event)).__name__


def _sweeps(events: Events) -> bool:
    """Whether a sweep is among them: RDP alone then gives what the profile of its divergences would."""
    from privguard.accounting.grid import flat

    return any(type(event).__name__ == "RepeatAndSelectDpEvent" for event, _ in flat(events))


def _rdp_prices(events: Events, relation: Relation) -> bool:
    """Whether the library's RDP holds: it does not double a replaced record's shift, so add-or-remove only."""
    from privguard.accounting.grid import by_divergence

    return relation is Relation.ADD_OR_REMOVE_ONE and all(by_divergence(event, relation) for event, _ in events)


def _costs(event: "DpEvent") -> bool:
    return type(event).__name__ != "NoOpDpEvent" and getattr(event, "sampling_probability", 1.0) > 0


def pairs(history: Spending) -> Events:
    """The (event, times) pairs of a ledger, a history or a sequence of them.

    Args:
        history: a ledger, its history, or pairs of an event and how often it happened.
    """
    return history if isinstance(history, Sequence) else history.spent()


def _folded(history: Spending) -> Events:
    return fold(pairs(history))


def _first(events: Events, count: int) -> Events:
    """The first ``count`` events of a history."""
    taken: list[tuple[DpEvent, int]] = []
    if count == 0:
        return taken
    for event, times in events:
        taken.append((event, min(times, count)))
        count -= taken[-1][1]
        if count <= 0:
            break
    return taken


@functools.cache
def _version() -> str:
    from importlib.metadata import version

    return version("dp-accounting")
