"""A private run in a team's budget book: reserved whole before it starts, watched while it runs, settled at the end."""

import contextlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar, final

from privguard import _check
from privguard.accounting.budget.book import Book
from privguard.accounting.history import History
from privguard.accounting.ledger import Ledger
from privguard.errors import BookUnavailableError
from privguard.training.plan import Plan

T = TypeVar("T")

_ASK_EVERY = 1.0  # seconds between two questions of a run to its book
_SILENCE = 600.0  # seconds for which a run goes on while the book does not answer
_PATIENCE = 120.0  # seconds for which what has to be written is tried again
_PAUSE = 1.0  # seconds between two tries

BookOrPlace: TypeAlias = "Book | str | os.PathLike[str] | None"


@final
class Charge:
    """What one run owes a budget book.

    Guarantee: at every moment the book holds at least what the run's ledger holds. The book reserves first, and it gets
    back only what a settled ledger shows as unused. So a crash, at any point, leaves the reservation standing: nothing
    is spent twice, and :meth:`begin` of the resumed run takes it over, or ``privguard ledger budget settle`` ends it.
    """

    def __init__(self, book: Book, data_set: str) -> None:
        self._book, self._data_set = book, data_set
        self._head = ""
        self._run: str | None = None
        self._asked = -math.inf  # when the book was asked last
        self._silent: float | None = None  # since when it does not answer
        self._process = os.getpid()  # a forked worker must not settle what the run goes on to use

    @classmethod
    def to(cls, book: BookOrPlace, data_set: str | None) -> "Charge | None":
        """A charge to ``book`` (or its place) for the data set of this digest; None where neither is given.

        Raises:
            ValueError: only one of the two is given, or the book does not know the data set.
            LedgerError: there is no book at that place, or it was changed.
        """
        if book is None and data_set is None:
            return None
        both = book is not None and data_set is not None
        _check.require(both, "book, data_set", (book, data_set), wanted="both; a budget is one data set's in one book")
        opened = book if isinstance(book, Book) else Book.open(book or "")
        opened.standing(data_set or "")
        return cls(opened, data_set or "")

    @property
    def id(self) -> str:
        """The book's public identity, which a run's manifest names."""
        return self._book.verify().id

    def begin(self, run: str, plan: Plan) -> None:
        """Reserve what ``run`` still lacks to the end of its plan.

        Raises:
            BudgetExceededError: it does not fit beside what everybody reserved or spent; nothing was reserved.
        """
        held = _patiently(lambda: self._book.held(run))
        self._run = run
        (whole,) = plan.events()
        if held < whole[1]:
            self._book.reserve(run, self._data_set, whole[0], whole[1] - held)

    def resume(self, run: str, plan: Plan, *, left: History, ledger: Ledger, exact: bool) -> None:
        """Take the run over from the process before it, unless the book knows a later ledger of it than ``left``.

        ``ledger`` is the same one as it is now; with ``exact``, ``left`` has to be what the book knows.

        Raises:
            LedgerError: this folder is a copy, or was put back from a backup, and the run has gone on elsewhere.
            BudgetExceededError: as :meth:`begin`.
        """
        _patiently(lambda: self._book.note(run, ledger.history, after=left, exactly=exact))
        self.begin(run, plan)

    def note(self, ledger: Ledger) -> None:
        """Keep the ledger's head in the book, where no copy of the folder brings it back; the next time if not now.

        The head is what tells an older copy of the run from the newest one.
        """
        if self._open:
            with contextlib.suppress(BookUnavailableError):
                self._book.note(self._run or "", ledger.history)

    def permit(self) -> None:
        """Let the run take its next step, unless a limit was lowered below what is spent and reserved.

        The book is asked once a second at most. While it does not answer, the run goes on for up to ten minutes: all of
        it is reserved, and only a limit that is lowered meanwhile would be seen late.

        Raises:
            BudgetExceededError: it was lowered; the run stops here and gives the rest back.
            BookUnavailableError: the book has not answered for ten minutes.
        """
        now = time.monotonic()
        if now - self._asked < _ASK_EVERY:
            return
        self._asked = now
        try:
            self._head = self._book.require_within(self._data_set, unless=self._head)
            self._silent = None
        except BookUnavailableError:
            self._silent = now if self._silent is None else self._silent
            if now - self._silent > _SILENCE:
                raise

    def settle(self, ledger: Path) -> None:
        """Give back what the run's ledger shows as unused; harmless when done twice.

        Raises:
            BookUnavailableError: the book has not answered for two minutes; the reservation stands.
        """
        if self._open:
            history = Ledger.read(ledger)
            _patiently(lambda: self._book.settle(self._run or "", history.events, ledger=history))
            self._run = None

    def cancel(self) -> None:
        """Give everything back: the run never took a step, for it has no ledger."""
        if self._open:
            self._book.settle(self._run or "", 0)
            self._run = None

    @property
    def _open(self) -> bool:
        return self._run is not None and self._process == os.getpid()


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
