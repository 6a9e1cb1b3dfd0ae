# SPDX-License-Identifier: Apache-2.0
"""One row of a budget book: what changes, when, who says so, and the signature that a change of a run needs.

The time never goes back and is not ahead of the reader's clock. ``actor`` is the writer's own word, for people to read;
what decides is the signature. It covers the row and the head of all rows before it, so that no signed row can be moved,
repeated or carried into another book.
"""

import getpass
import socket
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from privguard import _canon
from privguard.attest.statement import Identity, SigningKey, pae

_TYPE = "application/vnd.privguard.book-row"
_FAST = timedelta(hours=1)  # how far clocks of one team may be apart


def now(after: str) -> str:
    """The time of the next row, to the second; that of the row before it where this clock is slow."""
    return max(after, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def actor() -> str:
    """Who writes, as the operating system names them."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return f"unknown@{socket.gethostname()}"


def signed(row: Mapping[str, Any], head: str, by: SigningKey) -> dict[str, Any]:
    """The row with a signature; ``head`` is the chain over all rows before it."""
    signature = b64encode(by.sign(_message(row, head))).decode("ascii")
    return {**row, "signature": {"by": by.identity.to_json(), "value": signature}}


def signer(row: Mapping[str, Any], head: str) -> Identity | None:
    """Whose signature the row carries, verified; None where it has none.

    Raises:
        TamperedError: the signature does not hold here.
    """
    if "signature" not in row:
        return None
    identity = Identity.from_json(row["signature"]["by"])
    identity.verify(b64decode(row["signature"]["value"], validate=True), _message(row, head))
    return identity


def check(row: Mapping[str, Any], *, after: str) -> None:
    """Check time and actor of a row that follows one written at ``after``; raises ``ValueError``."""
    time = row["time"]
    limit = (datetime.now(UTC) + _FAST).strftime("%Y-%m-%dT%H:%M:%SZ")
    datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ")  # noqa: DTZ007 — only the form is checked
    if not after <= time <= limit:
        raise ValueError(f"time={time}: expected from {after or 'any'} to {limit}; check the clocks of the machines")
    if type(row["actor"]) is not str or not row["actor"]:
        raise ValueError(f"actor={row['actor']!r}: expected who wrote the row")


def _message(row: Mapping[str, Any], head: str) -> bytes:
    body = _canon.canonical({key: value for key, value in row.items() if key != "signature"})
    return pae(_TYPE, bytes.fromhex(head) + body)
