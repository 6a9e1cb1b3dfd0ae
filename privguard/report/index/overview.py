# SPDX-License-Identifier: Apache-2.0
"""All runs and, with a budget book, what is left of each data set: the record behind the index page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from privguard.accounting import accountant
from privguard.accounting.budget import limits
from privguard.accounting.budget.book import Book
from privguard.accounting.budget.rules import Account
from privguard.accounting.budget.tally import Run
from privguard.attest.statement import Identity
from privguard.records import Record
from privguard.report.index.entry import Entry, read

POINTS = 6
"""Points of a data set's spending over time, at most; each is a composition of its own."""


@final
@dataclass(frozen=True, kw_only=True)
class Balance(Record):
    """A data set of the book: its limit, what all runs on its family spent, and how that grew.

    Attributes:
        name, sha256: what people call it, and its digest.
        limit, delta: its limit; None where nothing was granted.
        epsilon: what is spent and reserved.
        person: the total over all data sets of its population; None where it names none.
        teams: (team, ε) of each team with a share.
        until: the last day for new reservations.
        course: (time, ε) pairs, the last one being now.
        runs: how many runs spent on it or its family.
    """

    name: str
    sha256: str
    limit: float | None
    delta: float | None
    epsilon: float
    person: float | None
    teams: tuple[tuple[str, float], ...]
    until: str | None
    course: tuple[tuple[str, float], ...]
    runs: int


@final
@dataclass(frozen=True, kw_only=True)
class Overview(Record):
    """All runs, and the data sets of the book; ``book`` is its id and ``head`` what to keep, or empty without one."""

    entries: tuple[Entry, ...]
    balances: tuple[Balance, ...] = ()
    book: str = ""
    head: str = ""


def overview(
    folders: Sequence[Path],
    *,
    book: Book | None = None,
    signers: Sequence[Identity] = (),
    done: Callable[[], None] = lambda: None,
) -> Overview:
    """Read every run, and the book.

    Args:
        folders: run folders.
        book: the budget book; runs that only it knows are lines too.
        signers: whose signed reports are believed without pricing the ledger again.
        done: called after each run, for a progress bar.
    """
    entries: list[Entry] = []
    for folder in folders:
        entries.append(read(folder, signers=signers))
        done()
    entries = _doubled(entries)
    if book is None:
        return Overview(entries=tuple(entries))
    account = book.verify()
    known = {entry.run for entry in entries}
    entries = [_placed(entry, account) for entry in entries]
    entries += [_booked(name, run, account) for name, run in account.runs.items() if name not in known]
    balances = tuple(_balance(account, sha256) for sha256 in account.data_sets)
    return Overview(entries=tuple(entries), balances=balances, book=account.id, head=account.head)


def _doubled(entries: list[Entry]) -> list[Entry]:
    """Two folders of one run are copies: only one of them may have gone on."""
    places: dict[str, int] = {}
    for entry in entries:
        places[entry.run] = places.get(entry.run, 0) + 1
    return [
        replace(entry, alarm=f"{entry.alarm} {places[entry.run]} folders hold this run".strip())
        if places[entry.run] > 1
        else entry
        for entry in entries
    ]


def _placed(entry: Entry, account: Account) -> Entry:
    run = account.runs.get(entry.run)
    if run is None:
        return entry
    return replace(entry, data_set=account.data_sets[run.data_set].name, team=run.team)


def _booked(name: str, run: Run, account: Account) -> Entry:
    """A run, or what another tool released, that only the book knows."""
    grant = account.limit(run.data_set)
    priced = (
        None
        if grant is None
        else accountant.epsilon(run.spent(), delta=grant.budget.delta, relation=grant.budget.relation)
    )
    return Entry(
        run=name,
        created=run.blocks[0].time if run.blocks else "",
        data_set=account.data_sets[run.data_set].name,
        team=run.team,
        epsilon=priced,
        delta=None if grant is None else grant.budget.delta,
        relation="" if grant is None else grant.budget.relation.value,
        basis="book only" if grant is not None else "book only; nothing was granted to price it by",
        steps=run.position,
        signature="no report",
    )


def _balance(account: Account, sha256: str) -> Balance:
    standing = limits.standing(account, sha256)
    limit = standing.limit
    return Balance(
        name=standing.data_set.name,
        sha256=sha256,
        limit=None if limit is None else limit.epsilon,
        delta=None if limit is None else limit.delta,
        epsilon=standing.epsilon,
        person=standing.person,
        teams=tuple(standing.teams.items()),
        until=standing.terms.until,
        course=() if limit is None else tuple(limits.course(account, sha256, points=POINTS)),
        runs=len(standing.runs),
    )
