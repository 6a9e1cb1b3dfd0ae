"""The journal that the doors of this package write to while a block lasts.

    with recorded_in(Journal("access.jsonl", by=signing_key)):
        save(snapshot, "run.sealed", to=["team.pub"])

Every way in which a file is sealed, opened or re-wrapped inside the block is recorded, whichever adapter does it; with
a strict journal it does not happen where it cannot be recorded. The block holds for its own thread and task.
"""

import contextlib
import hashlib
from collections.abc import Generator
from contextvars import ContextVar
from pathlib import Path

from privguard.attest.journal import Act, Journal
from privguard.checkpoint.envelope import Preamble

_JOURNAL: ContextVar[Journal | None] = ContextVar("privguard journal", default=None)


@contextlib.contextmanager
def recorded_in(journal: Journal) -> Generator[None]:
    """Record what is sealed, opened and re-wrapped until the block ends."""
    token = _JOURNAL.set(journal)
    try:
        yield
    finally:
        _JOURNAL.reset(token)


@contextlib.contextmanager
def act(action: str, path: Path) -> Generator[Act]:
    """One act on one file; without a journal nothing is recorded."""
    journal = _JOURNAL.get()
    if journal is None:
        yield Act()
    else:
        with journal.around(action, str(path)) as recorded:
            yield recorded


def digest(preamble: Preamble) -> str:
    """What the journal calls a sealed file: SHA-256 of its preamble, which a re-wrap leaves alone."""
    return hashlib.sha256(preamble.pack()).hexdigest()
