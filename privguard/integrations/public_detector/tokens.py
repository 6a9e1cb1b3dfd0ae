# SPDX-License-Identifier: Apache-2.0
"""Who may ask: tokens in a small database that holds their digests only, for clients or for one answer each.

A token is 256 bits of the operating system's chance, so its plain SHA-256 gives nothing away. One-time tokens are spent
in one transaction before their answer leaves, also where several processes ask at once or one is killed.
"""

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import final

from privguard import _check

PREFIX = "pgd_"
_SCHEMA = """create table if not exists tokens (
    digest text primary key, client text not null, uses integer, expires text not null)"""


@final
@dataclass(frozen=True)
class Client:
    """Who asks, as the journal and the rate limit know them; ``one_time`` tokens have a limit of their own each."""

    name: str
    one_time: bool
    digest: str

    @property
    def limited_as(self) -> str:
        """What the rate limit counts by."""
        return self.digest if self.one_time else self.name


@final
class Tokens:
    """The tokens in a file, made with mode 0600 where there is none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        with self._database() as database:
            database.execute(_SCHEMA)

    def issue(self, client: str, *, one_time: bool = False, days: int = 365) -> str:
        """A fresh token; only its digest is kept, so it is shown this once.

        Args:
            client: who it is for; all tokens of one name share its rate limit, unless they are one-time.
            one_time: whether it is good for one answer.
            days: how long it holds.

        Raises:
            ValueError: an empty name, or no days.
        """
        _check.require(bool(client.strip()), "client", client, wanted="a name")
        _check.count("days", days)
        token = PREFIX + secrets.token_urlsafe(32)
        expires = (datetime.now(UTC) + timedelta(days=days)).isoformat()
        row = (_digest(token), client, 1 if one_time else None, expires)
        with self._database() as database:
            database.execute("insert into tokens values (?, ?, ?, ?)", row)
        return token

    def client(self, token: str) -> Client | None:
        """Whose token this is; none where it is unknown, spent, revoked or expired.

        Args:
            token: what somebody sent.
        """
        digest = _digest(token)
        with self._database() as database:
            row = database.execute("select client, uses, expires from tokens where digest = ?", (digest,)).fetchone()
        if row is None or row[1] == 0 or row[2] <= datetime.now(UTC).isoformat():
            return None
        return Client(str(row[0]), row[1] is not None, digest)

    def spend(self, client: Client) -> bool:
        """Whether the token is still good, which it is once where it is one-time.

        Args:
            client: what ``client`` said.
        """
        change = "update tokens set uses = uses - 1 where digest = ? and (uses is null or uses > 0)"
        with self._database() as database:
            return database.execute(change, (client.digest,)).rowcount == 1

    def revoke(self, client: str) -> int:
        """End all tokens of a name; returns how many there were.

        Args:
            client: the name they were issued to.
        """
        with self._database() as database:
            return database.execute("delete from tokens where client = ?", (client,)).rowcount

    @contextmanager
    def _database(self) -> Generator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=5)) as database, database:
                yield database
        except sqlite3.DatabaseError as error:
            raise OSError(f"{self.path}: the database of tokens does not answer ({error})") from None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
