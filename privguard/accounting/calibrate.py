# SPDX-License-Identifier: Apache-2.0
"""Budget in, mechanism out: the least noise, the most steps or the highest sampling rate that a budget allows.

Guarantee: the ε that ``spent`` finds for the answer never exceeds the budget, and
the noise and the rate use at least 99.5 % of it. A search runs on the one grid that the accountant itself would choose
near the answer, so that each try costs milliseconds; the answer is then priced again in full before it is returned.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

from privguard import _check
from privguard.accounting import accountant
from privguard.accounting.accountant import Figure
from privguard.accounting.events import Events, fold
from privguard.errors import BudgetExceededError
from privguard.records import Relation

if TYPE_CHECKING:
    from dp_accounting import DpEvent

_SPEND = 0.9995  # the search aims between this share of the budget and all of it
_ROUGH = 0.985  # of a budget, for comparisons; σ is then off by half as much
_LEAST_SPENT = 0.996  # the rest up to the promised 99.5 % is room for the grid
_ENDS = (2.0**-60, 2.0**60)
_PRACTICAL = (1e-4, 1e4)  # of ε: what a search answers in seconds
_MOST_STEPS = 10**6


@final
@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent: at most ``epsilon`` at ``delta`` under ``relation``."""

    epsilon: float
    delta: float
    relation: Relation = Relation.ADD_OR_REMOVE_ONE

    def __post_init__(self) -> None:
        _check.positive("epsilon", self.epsilon, remedy="a budget of zero allows nothing")
        _check.probability("delta", self.delta, remedy="choose it well below 1/N")


def dp_sgd(*, sample_rate: float, noise_multiplier: float) -> "DpEvent":
    """The event of one private step: Poisson sampling at ``sample_rate``, then Gaussian noise of deviation σ·C.

    Args:
        sample_rate: the chance that a record is in one step, in (0, 1].
        noise_multiplier: σ, dimensionless: the noise's deviation over the clipping norm.
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

    return PoissonSampledDpEvent(sample_rate, GaussianDpEvent(noise_multiplier))


def least_noise(budget: Budget, *, sample_rate: float, steps: int) -> float:
    """The least noise multiplier whose ``steps`` private steps fit the budget.

    The ε spent at the answer lies between 99.5 % and 100 % of the budget.

    Args:
        budget: the ε and δ that may be spent, and the relation.
        sample_rate: the chance that a record is in one step, in (0, 1].
        steps: how many private steps.

    Raises:
        BudgetExceededError: no amount of noise fits.
    """
    _check.probability("sample_rate", sample_rate, one=True)
    _check.count("steps", steps)
    _require_within_reach(budget, steps)

    family, start = _precision(budget, sample_rate, steps)
    return 1 / _largest(family, budget, start=start)


def rough_noise(budget: Budget, *, sample_rate: float, steps: int, near: float | None = None) -> float:
    """The least noise multiplier to about 1 %, on the safe side mostly, in a tenth of the time: to compare plans by.

    ``near`` is one that it is expected close to.

    Args:
        budget: the ε and δ that may be spent, and the relation.
        sample_rate: the chance that a record is in one step, in (0, 1].
        steps: how many private steps.
        near: a noise multiplier that it is expected close to; None where none is known.

    Raises:
        BudgetExceededError: no amount of noise fits.
    """
    _require_within_reach(budget, steps)
    family, start = _precision(budget, sample_rate, steps)
    goal = _Goal(budget.epsilon, _ROUGH, stride=1.3)
    return 1 / _climb(lambda x: _coarse(family(x), budget), goal, 1 / near if near else start, _ENDS[1])


def _precision(budget: Budget, sample_rate: float, steps: int) -> tuple["_Family", float]:
    """The events of a precision 1/σ, and a guess at the highest that fits."""

    def family(value: float) -> Events:
        return [(dp_sgd(sample_rate=sample_rate, noise_multiplier=1 / value), steps)]

    return family, min(budget.epsilon / (sample_rate * math.sqrt(steps) * _spread(budget)), 2.0)


def highest_rate(budget: Budget, *, noise_multiplier: float, steps: int) -> float:
    """The highest sampling rate, at most 1, whose ``steps`` private steps fit the budget.

    Args:
        budget: the ε and δ that may be spent, and the relation.
        noise_multiplier: σ, dimensionless: the noise's deviation over the clipping norm.
        steps: how many private steps.

    Raises:
        BudgetExceededError: no rate above zero fits.
    """
    _check.positive("noise_multiplier", noise_multiplier)
    _check.count("steps", steps)
    _require_within_reach(budget, steps)

    def rate(value: float) -> Events:
        return [(dp_sgd(sample_rate=value, noise_multiplier=noise_multiplier), steps)]

    guess = budget.epsilon * min(noise_multiplier, 1.0) / (math.sqrt(steps) * _spread(budget))
    return _largest(rate, budget, start=min(guess, 1.0), most=1.0)


def most_steps(budget: Budget, event: "DpEvent", *, after: "accountant.Spending" = (), limit: int = 10**9) -> int:
    """The largest number of ``event`` that fits the budget after a history already spent; 0 where none does.

    The accountant prices the answer within the budget, and one step more beyond it. At most ``limit`` is returned.

    Args:
        budget: the ε and δ that may be spent, and the relation.
        event: the event to be repeated.
        after: what was spent already.
        limit: the most that is wanted.
    """
    before = list(accountant.pairs(after))

    def total(value: float) -> Events:
        return fold([*before, (event, int(value))])

    def fits(count: int) -> bool:
        return _exact(total(count), budget).epsilon <= budget.epsilon

    if not fits(1):
        return 0
    near = _climb(lambda x: _coarse(total(x), budget), _Goal(budget.epsilon, 0.9, gap=1.0), 1.0, limit)
    like = _exact(total(near), budget)
    goal = _Goal(budget.epsilon, 1 - 1e-6, stride=1.04, gap=1.0)
    sharp = _climb(lambda x: _cost(total(x), budget, like), goal, near, limit)
    return _last(fits, int(sharp), limit)


def _require_within_reach(budget: Budget, steps: int) -> None:
    """Refuse, by name and at once, what a search could only answer after minutes or not at all.

    Raises:
        ValueError: more steps or another ε than any run has.
        BudgetExceededError: δ is not above what rounding in the composition of so many steps may hide of it.
    """
    least, most = _PRACTICAL
    _check.require(
        least <= budget.epsilon <= most,
        "epsilon",
        budget.epsilon,
        wanted=f"between {least:g} and {most:g}",
        remedy="below, no model learns anything; above, nothing is protected",
    )
    _check.require(steps <= _MOST_STEPS, "steps", steps, wanted=f"at most {_MOST_STEPS:,}; plan fewer, larger steps")
    if budget.delta <= (hidden := accountant.hidden_by_rounding(steps)):
        raise BudgetExceededError(
            f"delta={budget.delta:g}: rounding in {steps:,} composed steps may hide {hidden:.1g} of it; "
            "choose a larger delta"
        )


_Family: TypeAlias = Callable[[float], Events]
_Point: TypeAlias = tuple[float, float]


@final
@dataclass(frozen=True)
class _Goal:
    """Hit between ``share · top`` and ``top``; look around in strides of ``stride``, each longer than the last."""

    top: float
    share: float
    stride: float = 2.0
    gap: float = 0.0  # closer than this the search may stop: whole numbers have nothing between them

    def met(self, cost: float) -> bool:
        return self.share * self.top <= cost <= self.top

    @property
    def aim(self) -> float:
        return self.top * (1 + self.share) / 2


def _spread(budget: Budget) -> float:
    """ε over the deviation of the whole privacy loss, roughly, where that loss is nearly normal."""
    return 1.5 * math.sqrt(2 * math.log(1 / budget.delta))


def _exact(events: Events, budget: Budget) -> Figure:
    return accountant.price(fold(events), delta=budget.delta, relation=budget.relation)


def _coarse(events: Events, budget: Budget) -> float:
    """A quick upper bound, near enough to begin from."""
    return _cost(events, budget, Figure(budget.epsilon, min(budget.epsilon / 1024, 1.0)))


def _cost(events: Events, budget: Budget, like: Figure) -> float:
    return accountant.on_grid(events, delta=budget.delta, relation=budget.relation, like=like)


def _largest(family: _Family, budget: Budget, *, start: float, most: float = _ENDS[1]) -> float:
    """The largest x whose events fit; their cost rises with x."""
    near = _climb(lambda x: _coarse(family(x), budget), _Goal(budget.epsilon, 0.9), start, most)
    goal = budget.epsilon
    for _ in range(8):
        like = _exact(family(near), budget)
        x = _climb(lambda x, like=like: _cost(family(x), budget, like), _Goal(goal, _SPEND, stride=1.04), near, most)
        spent = _exact(family(x), budget).epsilon
        if spent <= budget.epsilon and (spent >= _LEAST_SPENT * budget.epsilon or x == most):
            return x
        goal, near = (goal * budget.epsilon / spent if spent > budget.epsilon else goal), x
    raise BudgetExceededError(f"epsilon={budget.epsilon}: calibration did not converge; choose another budget")


def _climb(cost: Callable[[float], float], goal: _Goal, start: float, most: float) -> float:
    """An x whose cost meets the goal; cost rises with x, about as a power of it, so log-log lines guess well."""
    low, high = _bracket(cost, goal, start, most)
    for turn in range(60):
        if goal.met(low[1]) or low[0] == most or high[0] - low[0] <= goal.gap:
            break
        x = _between(low, high, goal.aim, halve=not (turn + 1) % 4)
        value = cost(x)
        if value <= goal.top:
            low = (x, value)
        else:
            high = (x, value)
    return low[0]


def _bracket(cost: Callable[[float], float], goal: _Goal, start: float, most: float) -> tuple[_Point, _Point]:
    """Two points with the top between their costs; the closer the start, the shorter the strides."""
    low = high = (start, cost(start))
    stride = goal.stride
    while low[1] > goal.top:
        if low[0] < _ENDS[0]:
            raise BudgetExceededError(f"epsilon={goal.top:g}: not even the most noise or the lowest rate tried fits")
        high, low = low, (low[0] / stride, cost(low[0] / stride))
        stride *= goal.stride
    while high[1] <= goal.top and high[0] < most:
        x = min(stride * high[0], most)
        low, high = high, (x, cost(x))
        stride *= goal.stride
    return (high, high) if high[1] <= goal.top else (low, high)


def _between(low: _Point, high: _Point, aim: float, *, halve: bool) -> float:
    """Where the line through both points in log-log reaches the aim; the geometric middle where there is no line."""
    x = math.sqrt(low[0] * high[0])
    if halve or low[1] <= 0 or not math.isfinite(high[1]):
        return x
    slope = math.log(high[0] / low[0]) / math.log(high[1] / low[1])
    return min(max(low[0] * (aim / low[1]) ** slope, low[0]), high[0])


def _last(fits: Callable[[int], bool], near: int, limit: int) -> int:
    """The last whole number, at most ``limit``, that fits; 1 does, and the answer is expected close to ``near``."""
    low, high, stride = 1, limit + 1, 1
    if fits(near):
        low = near
        while low < limit and fits(min(low + stride, limit)):
            low, stride = min(low + stride, limit), 2 * stride
        high = min(low + stride, limit + 1)
    else:
        high = near
        while (probe := max(high - stride, 1)) > 1 and not fits(probe):
            high, stride = probe, 2 * stride
        low = probe
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
