"""The budget book: every run of everybody on a data set, composed, under limits that only an officer's key can raise.

The book is one append-only table of an SQL database (SQLite unless told otherwise), so it can be shared by a team. Each
row carries a hash over all rows before it: a changed, missing or moved row is found by whoever reads. A run reserves
its events here before its ledger does, and settles with its ledger afterwards; a run that crashed holds its reservation
until it is settled, so nothing leaks and nothing is spent twice. The rules are in
:mod:`privguard.accounting.budget.rules`.
"""

import json
import os
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

from privguard import _canon, _check
from privguard.accounting import accountant, events
from privguard.accounting.budget.rules import FORMAT, Account, Balance, DataSet, Grant
from privguard.accounting.calibrate import Budget
from privguard.accounting.history import History
from privguard.attest.statement import Envelope, Identity, SigningKey
from privguard.errors import BookUnavailableError, BudgetExceededError, LedgerError, PrivguardError
from privguard.records import Record

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from sqlalchemy import Connection, Engine

_WAIT = 60  # seconds that a writer waits for its turn


@final
@dataclass(frozen=True, kw_only=True)
class Standing(Record):
    """Where a data set stands: its limit, and the ε of everything reserved or spent on its family."""

    data_set: DataSet
    limit: Budget | None
    epsilon: float
    family: tuple[str, ...]
    runs: Mapping[str, Balance]
    head: str
    size: int


@final
class Book:
    """A budget book that any number of processes read and write. Make one with :meth:`create` or :meth:`open`.

    ``place`` is a path (SQLite) or any SQLAlchemy URL. Every change is one durable transaction that first reads what
    others wrote. A book may be used after a fork: it holds no connection between calls.
    """

    def __init__(self, place: "str | os.PathLike[str]") -> None:
        self._engine = _engine(place)
        self._account = Account()

    @classmethod
    def create(cls, place: "str | os.PathLike[str]", *, officers: Sequence[Identity]) -> "Book":
        """Begin a book whose limits are set by these officers' signatures.

        Raises:
            ValueError: there is a book already, or nobody could ever grant anything.
            OSError: the database cannot be written.
        """
        _check.require(bool(officers), "officers", officers, wanted="at least one public key")
        from sqlalchemy.exc import DBAPIError

        book = cls(place)
        try:
            _table().create(book._engine, checkfirst=True)
        except DBAPIError as error:
            raise OSError(f"{place}: no book can be written there ({error.orig}); name another place") from error
        keys = [officer.to_json() for officer in officers]
        book._append(lambda _: {"kind": "open", "format": FORMAT, "id": secrets.token_hex(16), "officers": keys})
        return book

    @classmethod
    def open(cls, place: "str | os.PathLike[str]") -> "Book":
        """Take up an existing book; every row is checked.

        Raises:
            LedgerError: there is no book, or a row was changed, moved or taken out.
        """
        if "://" not in str(place) and not Path(place).is_file():  # SQLite would make an empty one
            raise FileNotFoundError(
                f"book={str(place)!r}: no such book; create it (privguard ledger budget open), or name the right place"
            )
        book = cls(place)
        book.verify()
        return book

    def add(self, data_set: DataSet) -> None:
        """Enter a data set; a derived one after its parent. It has no budget before a grant."""
        self._append(lambda _: {"kind": "data set", "data_set": data_set.to_json()})

    def draft(self, sha256: str, budget: Budget, *, reason: str) -> Grant:
        """The next grant for a data set, for an officer to sign; it is worth nothing unsigned."""
        account = self._fresh()
        account.known(sha256)
        serial = account.serials.get(sha256, 0) + 1
        return Grant(book=account.id, sha256=sha256, serial=serial, budget=budget, reason=reason)

    def grant(self, sha256: str, budget: Budget, *, by: SigningKey, reason: str) -> None:
        """Set the limit of a data set, signed on the spot; see :meth:`enter` for a grant signed elsewhere."""
        self.enter(self.draft(sha256, budget, reason=reason).sign(by))

    def enter(self, envelope: Envelope) -> None:
        """Enter a signed grant; its limit holds from here on.

        Raises:
            TamperedError: not signed by an officer of this book, or changed since.
            LedgerError: signed for another book, or out of turn, so that an old grant cannot come back.
        """
        self._append(lambda _: {"kind": "grant", "envelope": envelope.to_json()})

    def cap(self, sha256: str, epsilon: float, *, reason: str) -> None:
        """Lower a limit without a signature.

        Raises:
            BudgetExceededError: it would raise the limit, or there is none; that takes a grant.
        """
        _check.positive("epsilon", epsilon)

        def row(account: Account) -> Mapping[str, Any]:
            account.known(sha256)
            limit = account.limits.get(sha256)
            if limit is None or epsilon > limit.epsilon:
                now = "nothing" if limit is None else f"{limit.epsilon:g}"
                raise BudgetExceededError(f"epsilon={epsilon:g}: the limit is {now}; only an officer's grant raises it")
            return {"kind": "cap", "data_set": sha256, "epsilon": epsilon, "reason": reason}

        self._append(row)

    def reserve(self, run: str, sha256: str, event: "DpEvent", times: int = 1) -> range:
        """Set aside events of a run on a data set, if all that was ever reserved or spent there still fits.

        Reserve a whole run before it starts, or blocks while it runs; either stops at the limit. Returns the run's
        positions in this book, durable when this returns.

        Raises:
            BudgetExceededError: some limit of the data set's family would be passed, or nothing was granted.
            UnknownEventError: the event cannot be priced.
            BookUnavailableError: the database does not answer; nothing was reserved.
        """
        _check.count("times", times)

        def row(account: Account) -> Mapping[str, Any]:
            _require_room(account, sha256, [(event, times)])
            return _block(run, sha256, event, times, account)

        first: int = self._append(row)["first"]
        return range(first, first + times)

    def settle(self, run: str, used: int, *, ledger: History | None = None) -> Balance:
        """Give back what a run reserved beyond its first ``used`` events; its ledger, if given, is the evidence.

        For a crashed run that will not be resumed, ``used`` is its ledger's ``position``, or, where the ledger was
        lost, everything that the run reserved.

        Raises:
            ValueError: unknown run, more than it reserved, or less than its ledger shows or it settled before.
        """
        if ledger is not None:
            _check.require(used >= ledger.events, "used", used, wanted=f"its ledger's {ledger.events} or above")

        def row(account: Account) -> Mapping[str, Any]:
            _check.require(run in account.runs, "run", run, wanted="one of this book")
            evidence = {"head": ledger.head, "size": ledger.size} if ledger is not None else None
            return {"kind": "settle", "run": run, "used": used, "ledger": evidence}

        self._append(row)
        return self._account.runs[run].balance()

    def note(self, run: str, ledger: History, *, after: History | None = None, exactly: bool = False) -> None:
        """Keep the head of a run's ledger here, outside of its folder, so that an older copy of the run is told.

        ``after`` is the ledger as a writer found it before it went on: it has to extend what was noted last, and with
        ``exactly`` has to be it, as the run left it when it settled. Two writers that go on from one state come one
        after the other, and the second finds the first one's note.

        Raises:
            LedgerError: a later ledger of this run was noted, so this one is a copy, or was put back from a backup.
        """

        def row(account: Account) -> Mapping[str, Any]:
            noted = account.runs[run].ledger if run in account.runs else None
            if after is not None and noted is not None and not after.extends(*noted):
                raise LedgerError(
                    f"run={run}: the budget book knows a later ledger of this run than the one here, so this folder is "
                    "a copy or was put back from a backup, and what it no longer counts was spent: find the newest one"
                )
            if exactly and (after is None or noted != (after.head, after.size)):
                raise LedgerError(f"run={run}: the budget book does not have the head of this ledger as its newest")
            return {"kind": "note", "run": run, "ledger": {"head": ledger.head, "size": ledger.size}}

        self._append(row)

    def held(self, run: str) -> int:
        """Events that a run holds here, spent or open; 0 for a run that the book does not know."""
        runs = self._fresh().runs
        return runs[run].position if run in runs else 0

    def require_within(self, sha256: str, *, unless: str = "") -> str:
        """Check that what was reserved and spent still fits every limit; returns the head that this was true at.

        A limit can be lowered while runs hold reservations. ``unless`` is a head known to be fine: while the book has
        not moved on from it, nothing is priced again.

        Raises:
            BudgetExceededError: it does not fit any more.
        """
        account = self._fresh()
        if account.head != unless:
            _require_room(account, sha256, [])
        return account.head

    def take_over(self, run: str, sha256: str, ledger: History) -> Balance:
        """Enter a run that was not reserved here, from its ledger: what it spent counts from now on, also past a limit.

        It has happened, so it is never refused; whatever comes after is. What the book holds of the run already is not
        counted again, so a second call, and a call after a broken one, add only what is new.

        Raises:
            ValueError: the run stands in the book under another data set.
        """
        known = self.held(run)
        for event, times in ledger.spent():
            new, known = max(0, times - known), max(0, known - times)
            if new:
                self._append(partial(_block, run, sha256, event, new))
        return self.settle(run, ledger.events, ledger=ledger)

    def standing(self, sha256: str) -> Standing:
        """Where a data set stands now; ε is at its own limit's δ and relation, or its nearest granted ancestor's."""
        account = self._fresh()
        one = account.known(sha256)
        limit = next((account.limits[other] for other in account.ancestors(sha256) if other in account.limits), None)
        family = account.family(sha256)
        return Standing(
            data_set=one,
            limit=limit,
            epsilon=_epsilon(account.spent(sha256), limit),
            family=tuple(family),
            runs={name: run.balance() for name, run in account.runs.items() if run.data_set in set(family)},
            head=account.head,
            size=account.size,
        )

    def data_sets(self) -> tuple[DataSet, ...]:
        """All data sets of the book, in the order of their entry."""
        return tuple(self._fresh().data_sets.values())

    def balance(self, run: str) -> Balance:
        """A run's events, by what became of them."""
        runs = self._fresh().runs
        _check.require(run in runs, "run", run, wanted="one of this book")
        return runs[run].balance()

    def verify(self, *, head: str = "", size: int = 0) -> Account:
        """Read every row again, and check that the first ``size`` rows are those that ``head`` stands for.

        Raises:
            LedgerError: a row was changed, moved or taken out; the message names the first one that does not follow.
        """
        self._account = Account()
        account = self._fresh()
        if size and (size > account.size or account.heads[size - 1] != head):
            raise LedgerError(
                f"book: its first {size} rows are not those of head {head[:16]}…, so it was cut or rewritten"
            )
        return account

    def _fresh(self) -> Account:
        """The state after all rows that anybody has written."""
        from sqlalchemy.exc import DBAPIError

        try:
            with self._engine.connect() as connection:
                self._catch_up(connection)
        except DBAPIError as error:
            raise BookUnavailableError(f"book: {error.orig}; nothing was read") from error
        return self._account

    def _append(self, make: Callable[[Account], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Write the row that ``make`` builds from the newest state, while nobody else can write."""
        with self._writing() as connection:
            self._catch_up(connection, may_be_empty=True)
            row = _canon.to_json(make(self._account))
            body = _canon.canonical(row)
            seq, head = self._account.size, self._account.next_head(body)
            self._account.apply(body, row)
            connection.execute(_table().insert().values(seq=seq, body=body.decode(), head=head))
        return row

    @contextmanager
    def _writing(self) -> "Generator[Connection]":
        from sqlalchemy.exc import DBAPIError

        try:
            with self._engine.begin() as connection:
                _take_turn(connection)
                yield connection
        except DBAPIError as error:
            self._account = Account()  # what was applied and not committed never happened
            raise BookUnavailableError(f"book: {error.orig}; nothing was written") from error
        except BaseException:
            self._account = Account()
            raise

    def _catch_up(self, connection: "Connection", *, may_be_empty: bool = False) -> None:
        import sqlalchemy
        from sqlalchemy import select
        from sqlalchemy.exc import DBAPIError

        table = _table()
        try:
            rows = connection.execute(
                select(table).where(table.c.seq >= self._account.size).order_by(table.c.seq)
            ).all()
        except DBAPIError as error:
            if sqlalchemy.inspect(connection).has_table(table.name):
                raise
            raise LedgerError(f"book: cannot be read ({error.orig}); create it, or name the right place") from error
        for row in rows:
            _replay(self._account, *cast("tuple[int, str, str]", row))
        if not self._account.size and not may_be_empty:
            raise LedgerError("book: empty; create it first")


def _replay(account: Account, seq: int, body: str, head: str) -> None:
    try:
        row = json.loads(body)
        follows = (seq, head) == (account.size, account.next_head(body.encode()))
        _check.require(
            follows and _canon.canonical(row) == body.encode(),
            "head",
            head,
            wanted="the hash that follows from the rows before it; a row was changed, moved or taken out",
        )
        account.apply(body.encode(), row)
    except (ValueError, KeyError, TypeError, PrivguardError) as error:
        raise LedgerError(f"book, row {seq}: {error}") from error


def _block(run: str, sha256: str, event: "DpEvent", times: int, account: Account) -> Mapping[str, Any]:
    """The row that sets the next events of a run aside."""
    account.known(sha256)
    first = account.runs[run].position if run in account.runs else 0
    block = {"event": events.to_json(event), "times": times, "first": first}
    return {"kind": "reserve", "run": run, "data_set": sha256, **block}


def _require_room(account: Account, sha256: str, more: "list[tuple[DpEvent, int]]") -> None:
    account.known(sha256)
    limits = account.limits_of(sha256)
    if not limits:
        raise BudgetExceededError(f"data set={sha256[:16]}…: nothing was granted; ask an officer for a grant")
    after = [*account.spent(sha256), *more]
    for one, limit in limits.items():
        epsilon = _epsilon(after, limit)
        if epsilon > limit.epsilon:
            name = account.data_sets[one].name
            raise BudgetExceededError(
                f"data set={name} ({one[:16]}…): epsilon would be {epsilon:.3f} over all runs, the limit is "
                f"{limit.epsilon:g} at delta {limit.delta:g}; plan fewer steps or more noise, or ask for a grant"
            )


def _epsilon(spent: "list[tuple[DpEvent, int]]", limit: Budget | None) -> float:
    if limit is None:
        return 0.0 if not spent else float("inf")
    return accountant.epsilon(spent, delta=limit.delta, relation=limit.relation)


def _table() -> Any:
    from sqlalchemy import Column, Integer, MetaData, String, Table, Text

    columns = (Column("seq", Integer, primary_key=True, autoincrement=False), Column("body", Text, nullable=False))
    return Table("privguard_book", MetaData(), *columns, Column("head", String(64), nullable=False, unique=True))


def _engine(place: "str | os.PathLike[str]") -> "Engine":
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import NullPool

    url = str(place) if "://" in str(place) else f"sqlite:///{Path(place)}"
    sqlite = url.startswith("sqlite")
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": _WAIT} if sqlite else {})
    if sqlite:  # let SQLAlchemy, not the driver, say when a transaction begins (SQLAlchemy's documented recipe)
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _take_turn(connection: "Connection") -> None:
    """Wait until this is the only writer. SQLite began that way; elsewhere the primary key is the last guard."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE privguard_book IN EXCLUSIVE MODE")
