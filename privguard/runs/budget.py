"""A private run in a team's budget book: reserved whole before it starts, watched while it runs, settled at the end."""

import os
from pathlib import Path
from typing import TypeAlias, final

from privguard import _check
from privguard.accounting.budget.book import Book
from privguard.accounting.ledger import Ledger
from privguard.training.plan import Plan

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
        held = self._book.held(run)
        self._run = run
        if held < plan.steps:
            self._book.reserve(run, self._data_set, plan.event(), plan.steps - held)

    def permit(self) -> None:
        """Let the run take its next block of steps, unless a limit was lowered below what is spent and reserved.

        Raises:
            BudgetExceededError: it was; the run stops here and gives the rest back.
        """
        self._head = self._book.require_within(self._data_set, unless=self._head)

    def settle(self, ledger: Path) -> None:
        """Give back what the run's ledger shows as unused; harmless when done twice.

        Raises:
            OSError: the book cannot be written; the reservation stands.
        """
        if self._open:
            history = Ledger.read(ledger)
            self._book.settle(self._run or "", history.position, ledger=history)
            self._run = None

    def cancel(self) -> None:
        """Give everything back: the run never took a step, for it has no ledger."""
        if self._open:
            self._book.settle(self._run or "", 0)
            self._run = None

    @property
    def _open(self) -> bool:
        return self._run is not None and self._process == os.getpid()
