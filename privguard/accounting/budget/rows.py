# SPDX-License-Identifier: Apache-2.0
"""Rows of a budget book as they are built and as they are read back."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from privguard import _canon, _check
from privguard.accounting import events
from privguard.accounting.budget.rules import Account
from privguard.accounting.budget.tally import Writer
from privguard.accounting.history import History
from privguard.errors import LedgerError, PrivguardError, UnrecognisedError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

Change = Mapping[str, Any]


def replay(account: Account, seq: int, body: str, head: str) -> None:
    """Take in a row as it was stored, or say which one does not follow."""
    try:
        row = json.loads(body)
        if seq == account.size == 0 and row["kind"] == "open":
            Account().apply(body.encode(), row)  # another format is said so before its chain is
        follows = (seq, head) == (account.size, account.next_head(body.encode()))
        _check.require(
            follows and _canon.canonical(row) == body.encode(),
            "head",
            head,
            wanted="the hash that follows from the rows before it; a row was changed, moved or taken out",
        )
        account.apply(body.encode(), row)
    except UnrecognisedError as error:
        raise UnrecognisedError(f"book: {error}") from None
    except (ValueError, KeyError, TypeError, PrivguardError) as error:
        raise LedgerError(f"book, row {seq}: {error}") from error


def block(account: Account, run: str, sha256: str, pair: "tuple[DpEvent, int]", writer: Writer) -> Change:
    """The row that sets the next events of a run aside."""
    account.known(sha256)
    event, times = pair
    first = account.runs[run].position if run in account.runs else 0
    block = {"event": events.to_json(event), "times": times, "first": first}
    return {
        "kind": "reserve",
        "run": run,
        "data_set": sha256,
        "team": writer.team,
        "purpose": writer.purpose,
        **block,
    }


def anchor(account: Account, run: str, ledger: History) -> Change:
    """The ledger's head with the proof that it grew from the one that the book has."""
    noted = account.run(run).ledger
    if noted is not None:
        require_later(run, ledger, noted)
    return {"head": ledger.head, "size": ledger.size, "proof": [] if noted is None else ledger.growth(noted[1])}


def require_later(run: str, ledger: History, noted: tuple[str, int]) -> None:
    """Raise ``LedgerError`` where a ledger did not grow from the one that was noted."""
    if not ledger.extends(*noted):
        raise LedgerError(
            f"run={run}: the budget book knows a later ledger of this run than the one here, so this folder is a "
            "copy or was put back from a backup, and what it no longer counts was spent: find the newest one"
        )
