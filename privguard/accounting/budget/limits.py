# SPDX-License-Identifier: Apache-2.0
"""Whether something more fits: lifetime limits of a family, windows, last days and teams, and where a data set stands.

Privacy loss does not expire. A window limits how fast it is spent, and a last day what is reserved after it; the total
over the lifetime never falls, and has a limit of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, final

from privguard.accounting import accountant, events
from privguard.accounting.budget import parallel
from privguard.accounting.budget.grants import DataSet, Grant, Terms
from privguard.accounting.budget.rules import Account
from privguard.accounting.budget.tally import Balance, Block, Run
from privguard.accounting.calibrate import Budget
from privguard.errors import BudgetExceededError
from privguard.records import Record, Relation

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@final
@dataclass(frozen=True, kw_only=True)
class Standing(Record):
    """Where a data set stands: its limit, and the ε of everything reserved or spent on its family.

    ``recent`` is the ε of what was reserved within the window of its terms; ``teams`` is the ε of each team that has a
    limit; ``person`` is the total over all data sets of its declared population, since one person may be in all.
    """

    data_set: DataSet
    limit: Budget | None
    epsilon: float
    family: tuple[str, ...]
    runs: Mapping[str, Balance]
    head: str
    size: int
    terms: Terms = field(default_factory=Terms)
    recent: float | None = None
    teams: Mapping[str, float] = field(default_factory=dict[str, float])
    person: float | None = None


def standing(account: Account, sha256: str) -> Standing:
    """Where a data set stands; ε is at its own limit's δ and relation, or its nearest granted ancestor's.

    Args:
        account: the book's state.
        sha256: digest of the data set, in hexadecimal.
    """
    data_set, grant, family = account.known(sha256), account.limit(sha256), account.family(sha256)
    budget = grant.budget if grant is not None else None
    runs, population = account.runs_on(set(family)), account.population(sha256)
    sharing = {other for other in account.data_sets if account.population(other) == population}
    teams = {
        team: _worst(account, [run for run in runs if run.team == team], limit.budget, within=sha256)
        for (_, team), limit in _grants(account, sha256).items()
        if team
    }
    window = grant.terms.window_days if grant is not None else None
    return Standing(
        data_set=data_set,
        limit=budget,
        epsilon=_worst(account, runs, budget, within=sha256),
        family=tuple(family),
        runs={name: run.balance() for name, run in account.runs.items() if run.data_set in set(family)},
        head=account.head,
        size=account.size,
        terms=grant.terms if grant is not None else Terms(),
        recent=None if window is None else _worst(account, runs, budget, within=sha256, since=_since(window)),
        teams=teams,
        person=_worst(account, account.runs_on(sharing), budget) if population else None,
    )


def course(account: Account, sha256: str, *, points: int) -> list[tuple[str, float]]:
    """(time, ε) pairs of how a granted data set's spending grew, at no more than so many times of its reservations.

    What was given back since is left out: a pair says what of today's total was reserved by then, the last is today's.

    Args:
        account: the book's state.
        sha256: digest of the data set, in hexadecimal.
        points: how many pairs at most.
    """
    grant, runs = account.limit(sha256), account.runs_on(set(account.family(sha256)))
    times = sorted({block.time for run in runs for block in run.blocks})
    if grant is None or not times:
        return []
    shown = sorted({times[-1 - step * (len(times) - 1) // max(points - 1, 1)] for step in range(points)})
    people = parallel.memberships(account, {run.data_set for run in runs}, within=sha256)
    if grant.budget.relation is Relation.REPLACE_ONE:
        people = [frozenset(run.data_set for run in runs)]
    courses = [_grown([run for run in runs if run.data_set in person], shown, grant.budget) for person in people]
    return [(time, max(figures)) for time, *figures in zip(shown, *courses, strict=True)]


def _grown(runs: Sequence[Run], times: Sequence[str], limit: Budget) -> list[float]:
    """ε of what was reserved by each time: the last in full, those before it on one grid, an upper bound each."""
    whole = accountant.price(events.fold(_events(runs)), delta=limit.delta, relation=limit.relation)
    coarse = replace(whole, interval=2 * whole.interval)
    earlier = [events.fold(_events([run.until(time) for run in runs])) for time in times[:-1]]
    figures = [accountant.on_grid(some, delta=limit.delta, relation=limit.relation, like=coarse) for some in earlier]
    return [*(min(figure, whole.epsilon) for figure in figures), whole.epsilon]


def require_room(account: Account, sha256: str, more: "list[tuple[DpEvent, int]]", *, team: str = "") -> None:
    """Raise ``BudgetExceededError`` unless everything, with ``more``, keeps every limit of the data set's family.

    Without ``more``, only the lifetime limits are asked: what is reserved already may be used after the last day.

    Args:
        account: the book's state.
        sha256: digest of the data set, in hexadecimal.
        more: pairs of an event and how often it is to happen.
        team: whose share pays; empty for none.
    """
    account.known(sha256)
    if account.limit(sha256) is None:
        raise BudgetExceededError(f"data set={sha256[:16]}…: nothing was granted; ask an officer for a grant")
    if more:
        _require_open(account, sha256, team)
    runs = account.runs_on(set(account.family(sha256)))
    extra = [Run(sha256, team=team, blocks=[_planned(*pair) for pair in more])] if more else []
    for (holder, of), grant in _grants(account, sha256).items():
        mine = [run for run in [*runs, *extra] if of in {"", run.team}]
        name = f"{account.data_sets[holder].name} ({holder[:16]}…)" + (f", team {of}" if of else "")
        _require_below(name, _worst(account, mine, grant.budget, within=holder), grant.budget, over="over all runs")
        days, epsilon = grant.terms.window_days, grant.terms.window_epsilon
        if extra and of in {"", team} and days is not None and epsilon is not None:
            window = Budget(epsilon=epsilon, delta=grant.budget.delta, relation=grant.budget.relation)
            recent = _worst(account, mine, window, within=holder, since=_since(days))
            _require_below(name, recent, window, over=f"within {days} days")


def require_priced(account: Account, sha256: str, event: "DpEvent") -> None:
    """Raise ``UnknownEventError`` where some limit of the data set's family cannot price the event.

    Args:
        account: the book's state.
        sha256: digest of the data set, in hexadecimal.
        event: the event to be priced.
    """
    for grant in _grants(account, sha256).values():
        _epsilon([(event, 1)], grant.budget)


def _planned(event: "DpEvent", times: int) -> Block:
    return Block(0, times, events.to_json(event), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def _require_open(account: Account, sha256: str, team: str) -> None:
    """Whether the data set takes new reservations today, and from this team."""
    line, today = account.ancestors(sha256), datetime.now(UTC).date().isoformat()
    mine = {place: grant for place, grant in account.grants.items() if place[0] in line}
    for (holder, of), grant in mine.items():
        until = grant.terms.until
        if of in {"", team} and until is not None and today > until:
            raise BudgetExceededError(
                f"data set={account.data_sets[holder].name}: its grant took new reservations until {until}; ask for a "
                "new grant"
            )
    teams = sorted({of for _, of in mine if of})
    if teams and team not in teams:
        raise BudgetExceededError(f"team={team!r}: the data set is shared out; name one of {', '.join(teams)}")


def _require_below(name: str, epsilon: float, limit: Budget, *, over: str) -> None:
    if epsilon > limit.epsilon:
        raise BudgetExceededError(
            f"data set={name}: epsilon would be {epsilon:.3f} {over}, the limit is {limit.epsilon:g} at delta "
            f"{limit.delta:g}; plan fewer steps or more noise, or ask for a grant"
        )


def _grants(account: Account, sha256: str) -> dict[tuple[str, str], Grant]:
    """Every grant that a run on this data set has to keep: those of its family whose data sets may hold its records."""
    family = account.family(sha256)
    sharing = {other for person in parallel.memberships(account, family, within=sha256) for other in person}
    return {place: grant for place, grant in account.grants.items() if place[0] in sharing}


def _worst(account: Account, runs: Sequence[Run], limit: Budget | None, *, within: str = "", since: str = "") -> float:
    """The ε of the person for whom it is largest: all runs, or the runs on one part of each partition."""
    if limit is not None and limit.relation is Relation.REPLACE_ONE:
        return _epsilon(_events(runs, since=since), limit)
    people = parallel.memberships(account, {run.data_set for run in runs}, within=within)
    return max(_epsilon(_events([r for r in runs if r.data_set in person], since=since), limit) for person in people)


def _events(runs: Sequence[Run], *, since: str = "") -> "list[tuple[DpEvent, int]]":
    return [pair for run in runs for pair in run.spent(since=since)]


def _since(days: int) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _epsilon(spent: "list[tuple[DpEvent, int]]", limit: Budget | None) -> float:
    if limit is None:
        return 0.0 if not spent else float("inf")
    return accountant.epsilon(spent, delta=limit.delta, relation=limit.relation)
