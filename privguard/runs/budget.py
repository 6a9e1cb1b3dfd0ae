# SPDX-License-Identifier: Apache-2.0
"""A private run in a team's budget book: reserved whole before it starts, watched while it runs, settled at the end.

The run has a key of its own, in its folder, that signs its rows in the book. The book is told of steps before they take
effect: whatever becomes of folder, ledger and key, they stay spent.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar, final

from privguard import _check
from privguard.accounting.budget.book import Book
from privguard.accounting.budget.tally import Balance, Writer
from privguard.accounting.history import History
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.errors import BookUnavailableError, BudgetExceededError, ResumeError
from privguard.runs.folder import BOOK_KEY as KEY
from privguard.training.plan import Plan

T = TypeVar("T")

_ASK_EVERY = 1.0  # seconds between two questions of a run to its book
_PATIENCE = 120.0  # seconds for which what has to be written is tried again
_PAUSE = 1.0  # seconds between two tries
_SHARE = 64  # a run tells the book so often which of its steps it begins
_REQUIRED = "PRIVGUARD_REQUIRE_BOOK"

BookOrPlace: TypeAlias = "Book | str | os.PathLike[str] | None"


@final
class Charge:
    """What one run owes a budget book.

    Guarantee: at every moment the book holds at least what the run's ledger holds. The book reserves first, and it gets
    back only what a settled ledger shows as unused. So a crash, at any point, leaves the reservation standing: nothing
    is spent twice, and ``begin`` of the resumed run takes it over, or ``privguard ledger budget settle`` ends it.
    """

    def __init__(self, book: Book, data_set: str, *, team: str = "", purpose: str = "") -> None:
        self._book, self._data_set = book, data_set
        self._writer = Writer(key=SigningKey.generate(), team=team, purpose=purpose)
        self._begun = 0
        self._plan: Plan | None = None
        self._head = ""
        self._run: str | None = None
        self._asked = -math.inf  # when the book was asked last
        self._process = os.getpid()  # a forked worker must not settle what the run goes on to use

    @classmethod
    def to(cls, book: BookOrPlace, data_set: str | None, *, team: str = "", purpose: str = "") -> "Charge | None":
        """A charge to ``book`` (or its place) for the data set of this digest; None where neither is given.

        Args:
            book: a budget book, or its place: a path, or a database's address.
            data_set: SHA-256 of the data set, in hexadecimal.
            team: whose share of the budget it is; empty for none.
            purpose: why the data is used, for the book's rows.

        Raises:
            ValueError: only one of the two is given, or the book does not know the data set.
            BudgetExceededError: no book is given where ``PRIVGUARD_REQUIRE_BOOK`` asks for one, or another one.
            LedgerError: there is no book at that place, or it was changed.
        """
        required = os.environ.get(_REQUIRED, "")
        if book is None and data_set is None:
            if required:
                raise BudgetExceededError(
                    f"book=None: {_REQUIRED} is set here, so every run is charged; give book= and data_set="
                )
            return None
        both = book is not None and data_set is not None
        _check.require(both, "book, data_set", (book, data_set), wanted="both; a budget is one data set's in one book")
        opened = book if isinstance(book, Book) else Book.open(book or "")
        account = opened.verify()
        account.known(data_set or "")
        if required not in {"", "1", account.id}:
            raise BudgetExceededError(f"book={account.id}: {_REQUIRED} asks for the book {required}; give that one")
        return cls(opened, data_set or "", team=team, purpose=purpose)

    @property
    def id(self) -> str:
        """The book's public identity, which a run's manifest names."""
        return self._book.verify().id

    def begin(self, run: str, plan: Plan) -> None:
        """Reserve what ``run`` still lacks to the end of its plan.

        Args:
            run: the run's identity.
            plan: the plan that the run follows.

        Raises:
            BudgetExceededError: it does not fit beside what everybody reserved or spent; nothing was reserved.
            BookUnavailableError: the book has not answered for two minutes.
        """

        def reserve() -> None:
            held = self._book.held(run)  # asked anew: a try whose answer was lost may have been written
            if held < times:
                self._book.reserve(run, self._data_set, event, times - held, by=self._writer)

        ((event, times),) = plan.events()
        self._run, self._plan = run, plan
        _patiently(reserve)

    def keep_key(self, folder: Path) -> None:
        """Keep the run's key in its folder, for whoever resumes or settles it; only its owner may read it.

        Args:
            folder: the run's folder.
        """
        key = self._writer.key
        if key is not None:
            key.write(folder / KEY)

    def resume(self, run: str, plan: Plan, *, left: History, ledger: Ledger, exact: bool) -> None:
        """Take the run over from the process before it, unless the book knows a later ledger of it than ``left``.

        ``ledger`` is the same one as it is now; with ``exact``, ``left`` has to be what the book knows.

        Args:
            run: the run's identity.
            plan: the plan that the run follows.
            left: the ledger as the process before left it.
            ledger: the run's ledger.
            exact: whether the book has to know exactly this ledger, as after a clean stop.

        Raises:
            LedgerError: this folder is a copy, or was put back from a backup, and the run has gone on elsewhere.
            ResumeError: the run's key is not in its folder.
            BudgetExceededError: as ``begin``.
        """
        key = read_key(ledger.path.parent)
        if key is None:
            raise ResumeError(f"run={ledger.path.parent}: no {KEY}, so nobody can go on in the book under its name")
        self._writer = replace(self._writer, key=key)
        now = ledger.history

        def note() -> None:
            if not self._book.knows(run, now):  # a try whose answer was lost may have been written
                self._book.note(run, now, by=key, after=left, exactly=exact)

        _patiently(note)
        self.begin(run, plan)

    def note(self, ledger: Ledger) -> None:
        """Keep the ledger's head in the book, where no copy of the folder brings it back; the next time if not now.

        The head is what tells an older copy of the run from the newest one.

        Args:
            ledger: the run's ledger.
        """
        if self._open:
            with contextlib.suppress(BookUnavailableError):
                self._book.note(self._run or "", ledger.history, by=self._writer.key)

    def permit(self, ledger: Ledger, upto: int) -> None:
        """Let the run take its steps below ``upto``, unless a limit was lowered below what is spent and reserved.

        The book hears of them first, some more at once in a long run: at most a sixty-fourth of it. It is asked for its
        limits once a second at most; where it does not answer that, the next steps that it has to hear of wait for it.

        Args:
            ledger: the run's ledger.
            upto: the first position that is not permitted.

        Raises:
            BudgetExceededError: it was lowered; the run stops here and gives the rest back.
            BookUnavailableError: the book has not answered for two minutes.
        """
        now = time.monotonic()
        if now - self._asked >= _ASK_EVERY:
            self._asked = now
            with contextlib.suppress(BookUnavailableError):
                self._head = self._book.require_within(self._data_set, unless=self._head)
        if upto > self._begun:
            self._begin(ledger, upto)

    def _begin(self, ledger: Ledger, upto: int) -> None:
        """Tell the book of the events that cover the positions below ``upto``, and of some more in a long run."""
        plan, key = self._plan, self._writer.key
        if plan is not None and key is not None:
            ahead = min(plan.steps, max(upto, ledger.position + plan.steps // _SHARE))
            history, (whole,) = ledger.history, plan.events()
            events = min(whole[1], history.events + plan.rounds(max(0, ahead - ledger.paid)))
            _patiently(lambda: self._book.begin(self._run or "", events, by=key, ledger=history))
            self._begun = ahead

    def settle(self, ledger: Path) -> None:
        """Give back what the run never began, as its ledger shows; harmless when done twice.

        Args:
            ledger: path of the run's ledger.

        Raises:
            BookUnavailableError: the book has not answered for two minutes; the reservation stands.
        """
        if self._open:
            history = Ledger.read(ledger)
            run, key = self._run or "", self._writer.key
            _patiently(lambda: self._book.settle(run, _used(self._book, run, history), by=key, ledger=history))
            self._run = None

    def cancel(self) -> None:
        """Give everything back: the run never took a step, for it has no ledger."""
        if self._open:
            self._book.settle(self._run or "", 0, by=self._writer.key)
            self._run = None

    @property
    def _open(self) -> bool:
        return self._run is not None and self._process == os.getpid()


def read_key(folder: Path) -> SigningKey | None:
    """The key of the run in ``folder``, which signs its rows in a budget book; None where there is none.

    Args:
        folder: the run's folder.
    """
    path = folder / KEY
    return SigningKey.read(path) if path.is_file() else None


def settle(book: Book, run: str, folder: Path, history: History) -> Balance:
    """Settle a run that nobody goes on with, from its folder: what it began is spent, the rest given back.

    Args:
        book: a budget book, or its place: a path, or a database's address.
        run: the run's identity.
        folder: the run's folder.
        history: the run's ledger, replayed.
    """
    return book.settle(run, _used(book, run, history), by=read_key(folder), ledger=history)


def _used(book: Book, run: str, history: History) -> int:
    """What a run has spent: its ledger's events, and all that it told the book it would begin."""
    return max(history.events, book.least(run))


def _patiently(action: Callable[[], T]) -> T:
    """What ``action`` returns; a book that does not answer is asked again for two minutes."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return action()
        except BookUnavailableError:
            if time.monotonic() >= until:
                raise
            time.sleep(_PAUSE)
