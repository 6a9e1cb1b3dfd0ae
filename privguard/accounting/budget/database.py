# SPDX-License-Identifier: Apache-2.0
"""Where a budget book is kept: one append-only table, of which a writer needs INSERT and SELECT and nothing more.

Writers take turns: SQLite locks its file, PostgreSQL an advisory lock, which needs no right on the table. Elsewhere the
primary key lets only one of two rows in.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

from privguard.errors import BookUnavailableError, LedgerError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_WAIT = 60  # seconds that a writer waits for its turn
_TURN = 0x70726976626F6F6B  # the advisory lock's number


@final
class Database:
    """The table of a book at a path (SQLite) or SQLAlchemy URL. It holds no connection between calls."""

    def __init__(self, place: "str | os.PathLike[str]") -> None:
        self._place = place
        self._engine = _engine(place)

    def create(self) -> None:
        """Make the table, where it is not there; raises ``OSError`` where that cannot be done."""
        from sqlalchemy.exc import DBAPIError

        try:
            _table().create(self._engine, checkfirst=True)
        except DBAPIError as error:
            raise OSError(f"{self._place}: no book can be written there ({error.orig}); name another place") from error

    @contextmanager
    def reading(self) -> "Generator[Connection]":
        """A connection to read with; raises ``BookUnavailableError``."""
        from sqlalchemy.exc import DBAPIError

        try:
            with self._engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            raise BookUnavailableError(f"book: {error.orig}; nothing was read") from error

    @contextmanager
    def writing(self) -> "Generator[Connection]":
        """One durable transaction, while nobody else can write; raises ``BookUnavailableError``."""
        from sqlalchemy.exc import DBAPIError

        try:
            with self._engine.begin() as connection:
                _take_turn(connection)
                yield connection
        except DBAPIError as error:
            raise BookUnavailableError(f"book: {error.orig}; nothing was written") from error

    def rows(self, connection: "Connection", *, after: int, head: str) -> list[tuple[int, str, str]]:
        """(seq, body, head) of all rows from ``after`` on; the one before them still has to carry ``head``."""
        import sqlalchemy
        from sqlalchemy.exc import DBAPIError

        table = _table()
        query = sqlalchemy.select(table).where(table.c.seq >= after - 1).order_by(table.c.seq)
        try:
            rows = [cast("tuple[int, str, str]", tuple(row)) for row in connection.execute(query).all()]
        except DBAPIError as error:
            if error.connection_invalidated or sqlalchemy.inspect(connection).has_table(table.name):
                raise
            raise LedgerError(f"book: cannot be read ({error.orig}); create it, or name the right place") from error
        if not after:
            return rows
        if not rows or (rows[0][0], rows[0][2]) != (after - 1, head):
            raise LedgerError(f"book, row {after - 1}: it was read before and is gone or another; the book was cut")
        return rows[1:]

    def append(self, connection: "Connection", row: tuple[int, bytes, str]) -> None:
        """Add one row, (seq, body, head), inside of ``writing``."""
        seq, body, head = row
        connection.execute(_table().insert().values(seq=seq, body=body.decode(), head=head))


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
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_WAIT}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TURN})")
