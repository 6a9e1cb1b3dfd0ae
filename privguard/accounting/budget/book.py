# SPDX-License-Identifier: Apache-2.0
"""The budget book: every run of everybody on a data set, composed, under limits that only officers' keys can raise.

The book is one append-only table of an SQL database (SQLite unless told otherwise), so it can be shared by a team. Each
row carries a hash over all rows before it: a changed, missing or moved row is found by whoever reads. A run reserves
its events here before its ledger does, says here which of them it begins, and settles with its ledger afterwards; a run
that crashed holds its reservation until it is settled, so nothing leaks and nothing is spent twice. The rules are in
``privguard.accounting.budget.rules``, the limits in ``privguard.accounting.budget.limits``.
"""

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from privguard import _canon, _check
from privguard.accounting import events
from privguard.accounting.budget import limits, rows, signed_rows
from privguard.accounting.budget.database import Database
from privguard.accounting.budget.grants import DataSet, Grant, Partition, Release, Terms
from privguard.accounting.budget.limits import Standing
from privguard.accounting.budget.rows import Change
from privguard.accounting.budget.rules import FORMAT, Account
from privguard.accounting.budget.tally import Balance, Writer
from privguard.accounting.calibrate import Budget
from privguard.accounting.history import History
from privguard.attest.statement import Envelope, Identity, SigningKey
from privguard.errors import BudgetExceededError, LedgerError

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from sqlalchemy import Connection


@final
class Book:
    """A budget book that any number of processes read and write. Make one with ``create`` or ``open``.

    ``place`` is a path (SQLite) or any SQLAlchemy URL. Every change is one durable transaction that first reads what
    others wrote. A book may be used after a fork: it holds no connection between calls.
    """

    def __init__(self, place: "str | os.PathLike[str]") -> None:
        self._database = Database(place)
        self._account = Account()

    @classmethod
    def create(cls, place: "str | os.PathLike[str]", *, officers: Sequence[Identity], quorum: int = 1) -> "Book":
        """Begin a book whose limits are set by ``quorum`` of these officers' signatures.

        Args:
            place: a path of a SQLite file, or the address of a database.
            officers: who may sign grants.
            quorum: how many of their signatures a grant takes, at least 1.

        Raises:
            ValueError: there is a book already, or nobody could ever grant anything.
            OSError: the database cannot be written.
        """
        _check.require(bool(officers), "officers", officers, wanted="at least one public key")
        book = cls(place)
        book._database.create()
        opening = {"format": FORMAT, "officers": [officer.to_json() for officer in officers], "quorum": quorum}
        book._append(lambda _: {"kind": "open", "id": secrets.token_hex(16), **opening})
        return book

    @classmethod
    def open(cls, place: "str | os.PathLike[str]") -> "Book":
        """Take up an existing book; every row is checked.

        Args:
            place: a path of a SQLite file, or the address of a database.

        Raises:
            LedgerError: there is no book, or a row was changed, moved or taken out.
            UnrecognisedError: a book of another format.
        """
        if "://" not in str(place) and not Path(place).is_file():  # SQLite would make an empty one
            raise FileNotFoundError(
                f"book={str(place)!r}: no such book; create it (privguard ledger budget open), or name the right place"
            )
        book = cls(place)
        book.verify()
        return book

    def add(self, data_set: DataSet) -> None:
        """Enter a data set; a derived one after its parent. It has no budget before a grant.

        Args:
            data_set: digest, name, lineage and population of a data set.
        """
        self._append(lambda _: {"kind": "data set", "data_set": data_set.to_json()})

    def draft(self, sha256: str, budget: Budget, *, reason: str, terms: Terms | None = None) -> Grant:
        """The next grant for a data set, for officers to sign; it is worth nothing unsigned.

        Args:
            sha256: digest of the data set, in hexadecimal.
            budget: the limit: ε, δ and relation.
            reason: one sentence, which stands in the signed row.
            terms: last day, window and team of the grant; None for no terms.
        """
        account = self._fresh()
        account.known(sha256)
        serial = account.serials.get(sha256, 0) + 1
        return Grant(
            book=account.id, sha256=sha256, serial=serial, budget=budget, reason=reason, terms=terms or Terms()
        )

    def grant(self, sha256: str, budget: Budget, *, by: SigningKey, reason: str, terms: Terms | None = None) -> None:
        """Set the limit of a data set, signed on the spot; see ``enter`` for a grant signed elsewhere.

        Args:
            sha256: digest of the data set, in hexadecimal.
            budget: the limit: ε, δ and relation.
            by: the key that signs.
            reason: one sentence, which stands in the signed row.
            terms: last day, window and team of the grant; None for no terms.
        """
        self.enter(self.draft(sha256, budget, reason=reason, terms=terms).sign(by))

    def enter(self, envelope: Envelope) -> None:
        """Enter a signed grant; its limit holds from here on.

        Args:
            envelope: the signed statement.

        Raises:
            TamperedError: not signed by enough officers of this book, or changed since.
            LedgerError: signed for another book, or out of turn, so that an old grant cannot come back.
        """
        self._append(lambda _: {"kind": "grant", "envelope": envelope.to_json()})

    def draft_partition(self, parent: str, parts: Sequence[str], *, reason: str) -> Partition:
        """That no person is in two of these parts of a data set, for officers to sign.

        Args:
            parent: digest of the data set that has the parts.
            parts: digests of the parts.
            reason: one sentence, which stands in the signed row.
        """
        return Partition(book=self._fresh().id, parent=parent, parts=tuple(parts), reason=reason)

    def partition(self, envelope: Envelope) -> None:
        """Enter a signed partition: what is spent on its parts from here on counts for the worst of them only.

        Args:
            envelope: the signed statement.

        Raises:
            TamperedError: not signed by enough officers of this book, or changed since.
            ValueError: not parts of the parent, something was spent on one already, or a limit is by replacement.
        """
        self._append(lambda _: {"kind": "partition", "envelope": envelope.to_json()})

    def cap(self, sha256: str, epsilon: float, *, reason: str) -> None:
        """Lower a limit without a signature.

        Args:
            sha256: digest of the data set, in hexadecimal.
            epsilon: the new, lower ε.
            reason: one sentence, which stands in the signed row.

        Raises:
            BudgetExceededError: it would raise the limit, or there is none; that takes a grant.
        """
        _check.positive("epsilon", epsilon)

        def row(account: Account) -> Change:
            account.known(sha256)
            grant = account.grants.get((sha256, ""))
            if grant is None or epsilon > grant.budget.epsilon:
                now = "nothing" if grant is None else f"{grant.budget.epsilon:g}"
                raise BudgetExceededError(f"epsilon={epsilon:g}: the limit is {now}; only an officer's grant raises it")
            return {"kind": "cap", "data_set": sha256, "epsilon": epsilon, "reason": reason}

        self._append(row)

    def reserve(self, run: str, sha256: str, event: "DpEvent", times: int = 1, *, by: Writer | None = None) -> range:
        """Set aside events of a run on a data set, if all that was ever reserved or spent there still fits.

        Reserve a whole run before it starts, or blocks while it runs; either stops at the limit. What is reserved here
        counts as begun, so that nothing of it is given back without an officer, unless ``by`` says that the run will
        name what it begins. Returns the run's positions in this book, durable when this returns.

        Args:
            run: the run's identity.
            sha256: digest of the data set, in hexadecimal.
            event: the event that the run repeats.
            times: how many of it.
            by: who writes, where the run names what it begins; None counts it all as begun.

        Raises:
            BudgetExceededError: some limit of the data set's family would be passed, or nothing was granted.
            UnknownEventError: the event cannot be priced.
            PrivacyError: the run is another key's.
            BookUnavailableError: the database does not answer; nothing was reserved.
        """
        _check.count("times", times)
        writer = by or Writer()

        def row(account: Account) -> Change:
            limits.require_room(account, sha256, [(event, times)], team=writer.team)
            return rows.block(account, run, sha256, (event, times), writer)

        first: int = self._append(row, by=writer.key)["first"]
        return range(first, first + times)

    def begin(self, run: str, upto: int, *, by: SigningKey, ledger: History) -> None:
        """Say that events below ``upto`` take effect from now on, with the run's ledger as it is before they do.

        Whatever becomes of the ledger, they stay spent.

        Args:
            run: the run's identity.
            upto: the first event that does not take effect.
            by: the key that signs.
            ledger: the run's ledger, replayed.

        Raises:
            ValueError: more than the run reserved.
            PrivacyError: the run is another key's.
            LedgerError: a later ledger of it was noted.
        """

        def row(account: Account) -> Change:
            further = max(upto, account.run(run).begun)  # what was begun before stays so
            return {"kind": "begin", "run": run, "upto": further, "ledger": rows.anchor(account, run, ledger)}

        self._append(row, by=by)

    def settle(self, run: str, used: int, *, by: SigningKey | None = None, ledger: History | None = None) -> Balance:
        """Give back what a run reserved beyond its first ``used`` events; its ledger is the evidence.

        Where that is less than it reserved, the run's key signs, and what was begun is spent. Anybody settles a lost
        run at everything that it reserved. See ``release`` for what an officer gives back.

        Args:
            run: the run's identity.
            used: the first event that did not take effect.
            by: the run's key; None for a lost run, settled at all that it reserved.
            ledger: the evidence; None where there is none.

        Raises:
            ValueError: unknown run, more than it reserved, or less than its ledger shows, it began or settled before.
            PrivacyError: not the run's key, or no ledger.
            LedgerError: a ledger that did not grow from the one noted here.
        """
        if ledger is not None:
            _check.require(used >= ledger.events, "used", used, wanted=f"its ledger's {ledger.events} or above")

        def row(account: Account) -> Change:
            account.run(run)
            evidence = rows.anchor(account, run, ledger) if ledger is not None else None
            return {"kind": "settle", "run": run, "used": used, "ledger": evidence, "release": None}

        self._append(row, by=by)
        return self._account.runs[run].balance()

    def draft_release(self, run: str, used: int, *, reason: str) -> Release:
        """A release of what a run reserved beyond its first ``used`` events, for officers to sign.

        Args:
            run: the run's identity.
            used: the first event that did not take effect.
            reason: one sentence, which stands in the signed row.
        """
        account = self._fresh()
        return Release(book=account.id, run=run, serial=account.run(run).rows, used=used, reason=reason)

    def release(self, envelope: Envelope) -> Balance:
        """Give back what officers signed for; never below what the run began.

        Args:
            envelope: the signed statement.

        Raises:
            TamperedError: not signed by enough officers of this book, or changed since.
            LedgerError: signed for another book or run, or out of turn.
            ValueError: the run began more, or settled above.
        """

        def row(account: Account) -> Change:
            release = Release.verify(envelope, account.officers, quorum=account.quorum)
            signed = {"used": release.used, "ledger": None, "release": envelope.to_json()}
            return {"kind": "settle", "run": release.run, **signed}

        return self._account.runs[self._append(row)["run"]].balance()

    def note(
        self,
        run: str,
        ledger: History,
        *,
        by: SigningKey | None = None,
        after: History | None = None,
        exactly: bool = False,
    ) -> None:
        """Keep the head of a run's ledger here, outside of its folder, so that an older copy of the run is told.

        ``after`` is the ledger as a writer found it before it went on: it has to extend what was noted last, and with
        ``exactly`` has to be it, as the run left it when it settled. Two writers that go on from one state come one
        after the other, and the second finds the first one's note.

        Args:
            run: the run's identity.
            ledger: the run's ledger, replayed.
            by: the run's key, where it has one.
            after: the ledger as this writer found it; None where it began the run.
            exactly: whether ``after`` has to be what the book noted last.

        Raises:
            LedgerError: a later ledger of this run was noted, so this one is a copy, or was put back from a backup.
        """

        def row(account: Account) -> Change:
            noted = account.run(run).ledger
            if after is not None and noted is not None:
                rows.require_later(run, after, noted)
            if exactly and (after is None or noted != (after.head, after.size)):
                raise LedgerError(f"run={run}: the budget book does not have the head of this ledger as its newest")
            return {"kind": "note", "run": run, "ledger": rows.anchor(account, run, ledger)}

        self._append(row, by=by)

    def held(self, run: str) -> int:
        """Events that a run holds here, spent or open; 0 for a run that the book does not know.

        Args:
            run: the run's identity.
        """
        runs = self._fresh().runs
        return runs[run].position if run in runs else 0

    def knows(self, run: str, ledger: History) -> bool:
        """Whether this very ledger is the newest one of the run that was noted here.

        Args:
            run: the run's identity.
            ledger: the run's ledger, replayed.
        """
        runs = self._fresh().runs
        return run in runs and runs[run].ledger == (ledger.head, ledger.size)

    def least(self, run: str) -> int:
        """The least that a run can be settled at: what it began, or settled before.

        Args:
            run: the run's identity.
        """
        return self._fresh().run(run).floor

    def require_within(self, sha256: str, *, unless: str = "") -> str:
        """Check that what was reserved and spent still fits every limit; returns the head that this was true at.

        A limit can be lowered while runs hold reservations. ``unless`` is a head known to be fine: while neither limit
        nor spend has changed since, nothing is priced again.

        Args:
            sha256: digest of the data set, in hexadecimal.
            unless: a head at which everything fitted; empty for none.

        Raises:
            BudgetExceededError: it does not fit any more.
        """
        account = self._fresh()
        if account.priced != unless:
            limits.require_room(account, sha256, [])
        return account.priced

    def take_over(self, run: str, sha256: str, ledger: History) -> Balance:
        """Enter a run that was not reserved here, from its ledger: what it spent counts from now on, also past a limit.

        It has happened, so it is never refused; whatever comes after is. What the book holds of the run already is not
        counted again, so a second call, and a call after a broken one, add only what is new. Nothing is given back.

        Args:
            run: the run's identity.
            sha256: digest of the data set, in hexadecimal.
            ledger: the run's ledger, replayed.

        Raises:
            ValueError: the run stands in the book under another data set.
        """
        held = known = self.held(run)
        for event, times in ledger.spent():
            new, known = max(0, times - known), max(0, known - times)
            if new:
                held += new
                self._append(lambda account, pair=(event, new): rows.block(account, run, sha256, pair, Writer()))
        return self.settle(run, held, ledger=ledger)

    def spend(
        self, name: str, sha256: str, releases: events.Events, *, by: Writer | None = None, planned: bool = False
    ) -> None:
        """Enter what another tool released, all of it in one row; composed as tightly as its events are known.

        Args:
            name: what it is called in the book; each name once, so that nothing is entered twice.
            sha256: the data set.
            releases: (event, times) pairs; see ``privguard.accounting.releases.parse``.
            by: whose share it is, and what for. Nothing of it is given back, so no key signs it.
            planned: it has not been released yet, so it is refused where it does not fit. What has happened counts
                also where it passes a limit, and what comes after is refused.

        Raises:
            BudgetExceededError: it is planned and some limit would be passed, or nothing was granted.
            UnknownEventError: it cannot be priced for the neighbours that a limit of the family means.
            ValueError: the name is taken, or the data set is not in the book.
        """
        from privguard.accounting.releases import one_event

        writer, event = by or Writer(), one_event(releases)

        def row(account: Account) -> Change:
            _check.require(name not in account.runs, "name", name, wanted="one that the book does not know yet")
            account.known(sha256)
            if planned:
                limits.require_room(account, sha256, [(event, 1)], team=writer.team)
            limits.require_priced(account, sha256, event)
            return rows.block(account, name, sha256, (event, 1), writer)

        self._append(row)
        self.settle(name, 1)

    def standing(self, sha256: str) -> Standing:
        """Where a data set stands now; ε is at its own limit's δ and relation, or its nearest granted ancestor's.

        Args:
            sha256: digest of the data set, in hexadecimal.
        """
        return limits.standing(self._fresh(), sha256)

    def data_sets(self) -> tuple[DataSet, ...]:
        """All data sets of the book, in the order of their entry."""
        return tuple(self._fresh().data_sets.values())

    def balance(self, run: str) -> Balance:
        """A run's events, by what became of them.

        Args:
            run: the run's identity.
        """
        return self._fresh().run(run).balance()

    def verify(self, *, head: str = "", size: int = 0) -> Account:
        """Read every row again, and check that the first ``size`` rows are those that ``head`` stands for.

        Args:
            head: digest that stands for the first rows, in hexadecimal; empty for none.
            size: how many rows it stands for.

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
        with self._database.reading() as connection:
            self._catch_up(connection)
        return self._account

    def _append(self, make: Callable[[Account], Change], *, by: SigningKey | None = None) -> Change:
        """Write the row that ``make`` builds from the newest state, while nobody else can write."""
        try:
            with self._database.writing() as connection:
                self._catch_up(connection, may_be_empty=True)
                account = self._account
                stamp = {"time": signed_rows.now(account.time), "actor": signed_rows.actor()}
                row = _canon.to_json({**make(account), **stamp})
                row = row if by is None else signed_rows.signed(row, account.head, by)
                body = _canon.canonical(row)
                seq, head = account.size, account.next_head(body)
                account.apply(body, row)
                self._database.append(connection, (seq, body, head))
        except BaseException:
            self._account = Account()  # what was applied and not committed never happened
            raise
        return row

    def _catch_up(self, connection: "Connection", *, may_be_empty: bool = False) -> None:
        for row in self._database.rows(connection, after=self._account.size, head=self._account.head):
            rows.replay(self._account, *row)
        if not self._account.size and not may_be_empty:
            raise LedgerError("book: empty; create it first")
