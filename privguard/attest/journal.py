# SPDX-License-Identifier: Apache-2.0
"""Who sealed, opened, re-wrapped, marked, granted or answered what: a chain of signed lines that can only grow.

Keys decide who can open a file; the journal lets others see that it was done. Every line carries the SHA-256 of the
line before it and a signature, so a changed, dropped or reordered line is found. A tail that was cut off is found
against an anchor: the size and head that somebody noted elsewhere. What a journal cannot show is an opening on a
machine that does not keep one.

    with recorded_in(Journal("access.jsonl", by=signing_key)):
        save(snapshot, "run.sealed", to=["team.pub"])

Every way in which a file is sealed, opened or re-wrapped, and a model marked, inside the block is recorded, whichever
adapter does it; with a strict journal it does not happen where it cannot be recorded.
"""

import base64
import contextlib
import getpass
import hashlib
import itertools
import json
import os
import socket
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from privguard import _canon, _check
from privguard.attest.chain import ChainFile, ChangedError
from privguard.attest.statement import Identity, SigningKey
from privguard.errors import TamperedError
from privguard.records import Record

START = "0" * 64  # what stands for the line before the first
ACTIONS = ("seal", "open", "rewrap", "mark", "grant", "answer")
_CONTEXT = b"privguard journal v1\0"
_LONGEST_LINE = 64 << 10


@final
@dataclass(frozen=True, kw_only=True)
class Entry(Record):
    """One line: ``who`` did ``action`` in ``role`` to ``subject`` (a path or name, with its SHA-256), and how it ended.

    ``result`` is ``begun``, ``done``, or ``refused: KIND``. ``by`` is the identity that signed, in base64 of its DER.
    """

    sequence: int
    time: str
    who: str
    action: str
    role: str
    subject: str
    sha256: str
    result: str
    previous: str
    by: str


@final
@dataclass(frozen=True, kw_only=True)
class JournalCheck(Record):
    """A journal that holds: its size, its head to note elsewhere, and the lines of what began and did not end."""

    entries: int
    head: str
    unfinished: tuple[int, ...]
    signers: tuple[str, ...]


@final
@dataclass
class Act:
    """What is being recorded; its fields are set when they become known."""

    role: str = ""
    sha256: str = ""


@final
class Journal:
    """A journal to write to. Where ``strict``, what cannot be recorded does not happen; else there is a warning."""

    def __init__(self, path: str | os.PathLike[str], *, by: SigningKey, who: str = "", strict: bool = True) -> None:
        self.path = Path(path)
        self.strict = strict
        self._by = by
        self._who = who or f"{getpass.getuser()}@{socket.gethostname()}"

    @contextlib.contextmanager
    def around(self, action: str, subject: str) -> Generator[Act]:
        """Record that ``action`` begins, let it happen, and record how it ended.

        Args:
            action: what is done, one word.
            subject: to which file or thing.

        Raises:
            OSError: ``strict`` and the beginning cannot be recorded; the act does not happen.
        """
        act = Act()
        self._try(action, subject, act, "begun")
        try:
            yield act
        except BaseException as error:
            self._try(action, subject, act, f"refused: {type(error).__name__}")
            raise
        self._try(action, subject, act, "done")

    def record(self, action: str, subject: str, *, role: str = "", sha256: str = "", result: str = "done") -> Entry:
        """Append one signed line, and return when it is on disk.

        Args:
            action: what is done, one word.
            subject: to which file or thing.
            role: in which role, such as ``resume``; empty for none.
            sha256: digest of the content, in hexadecimal; empty for none.
            result: how it ended.
        """
        _check.require(action in ACTIONS, "action", action, wanted=f"one of {', '.join(ACTIONS)}")
        with _named(self.path), ChainFile.open(self.path, wait=True, create_mode=0o600) as file:
            last = _last_line(file)
            entry = Entry(
                sequence=_parse(last, f"{self.path}: its last line")[0].sequence + 1 if last else 1,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                who=self._who,
                action=action,
                role=role,
                subject=subject,
                sha256=sha256,
                result=result,
                previous=_hash(last) if last else START,
                by=self._by.identity.to_json(),
            )
            line = _line(entry, self._by)
            if len(line) >= _LONGEST_LINE:
                raise ValueError(f"subject={len(subject)} characters: expected a line of less than 64 KiB; shorten it")
            file.mend(file.size)  # a line that a crash cut short was never acted on
            file.append(line)
        return entry

    def _try(self, action: str, subject: str, act: Act, result: str) -> None:
        try:
            self.record(action, subject, role=act.role, sha256=act.sha256, result=result)
        except (OSError, TamperedError) as error:
            if self.strict:
                raise
            warnings.warn(f"{self.path}: {action} of {subject} is not recorded ({error})", stacklevel=4)


_JOURNAL: "ContextVar[Journal | None]" = ContextVar("privguard journal")
_blocks: "list[Journal]" = []  # of all threads; a thread that was started inside a block does not inherit its context


def current() -> Journal | None:
    """The journal of the block around this.

    A thread that never entered a block stands in the innermost one that is open anywhere in this process: what it does
    may belong to another block's work, and a line too many is better than an opening that nobody recorded.
    """
    inherited = _blocks[-1:] or [None]
    return _JOURNAL.get(inherited[0])


@contextlib.contextmanager
def recorded_in(journal: Journal | None) -> Generator[None]:
    """Record what is sealed, opened, re-wrapped and marked until the block ends, in this thread and those it starts.

    Args:
        journal: where it is recorded; None for nowhere.
    """
    token = _JOURNAL.set(journal)
    if journal is not None:
        _blocks.append(journal)
    try:
        yield
    finally:
        _JOURNAL.reset(token)
        if journal is not None:
            _blocks.remove(journal)


@contextlib.contextmanager
def acting(action: str, subject: object) -> Generator[Act]:
    """One act on one file or thing, in the journal of the block around it; without one nothing is recorded.

    Args:
        action: what is done, one word.
        subject: to which file or thing.
    """
    journal = current()
    if journal is None:
        yield Act()
    else:
        with journal.around(action, str(subject)) as act:
            yield act


def read(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """The entries of a journal, nothing verified.

    Args:
        path: the journal's file.

    Raises:
        TamperedError: a line that is no entry.
    """
    return (entry for entry, _, _ in _entries(Path(path)))


def verify(
    path: str | os.PathLike[str], *, trusted: Sequence[Identity], anchor: tuple[int, str] | None = None
) -> JournalCheck:
    """Check every line's signature and place; ``anchor`` is a size and head noted earlier, which must still be there.

    Args:
        path: the journal's file.
        trusted: who may have signed lines.
        anchor: size and head noted earlier; None for none.

    Raises:
        TamperedError: a line was changed, dropped, reordered or signed by somebody who is not trusted, or the anchor is
            not in the chain: the journal was cut or written anew.
    """
    previous, count, unfinished = START, 0, dict[tuple[str, str, str], list[int]]()
    heads, signers = {0: START}, dict[str, None]()
    identities = {identity.to_json(): identity for identity in trusted}
    for count, (entry, signature, line) in enumerate(_entries(Path(path)), start=1):
        if entry.sequence != count or entry.previous != previous:
            raise TamperedError(f"{path}: line {count} does not follow the line before it; a line was dropped or moved")
        if entry.by not in identities:
            raise TamperedError(
                f"{path}: line {count} is signed by nobody who is trusted; name its signer if it should be"
            )
        identities[entry.by].verify(signature, _CONTEXT + _canon.canonical(entry))
        previous = heads[count] = _hash(line)
        signers[str(identities[entry.by])] = None
        _follow(unfinished, entry)
    if anchor is not None and heads.get(anchor[0]) != anchor[1]:
        raise TamperedError(f"{path}: the noted head of {anchor[0]} lines is not in it; it was cut or written anew")
    return JournalCheck(
        entries=count,
        head=previous,
        unfinished=tuple(sorted(itertools.chain.from_iterable(unfinished.values()))),
        signers=tuple(signers),
    )


def _follow(unfinished: dict[tuple[str, str, str], list[int]], entry: Entry) -> None:
    """An end closes the latest beginning of the same act: one that was killed before it stays open."""
    open_acts = unfinished.setdefault((entry.who, entry.action, entry.subject), [])
    if entry.result == "begun":
        open_acts.append(entry.sequence)
    elif open_acts:
        open_acts.pop()


def _line(entry: Entry, by: SigningKey) -> bytes:
    content = _canon.canonical(entry)
    signature = base64.b64encode(by.sign(_CONTEXT + content)).decode()
    return _canon.canonical({"entry": _canon.to_json(entry), "signature": signature})


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _entries(path: Path) -> Iterator[tuple[Entry, bytes, bytes]]:
    with path.open("rb") as file:
        for number in itertools.count(1):
            if not (line := file.readline(_LONGEST_LINE)):
                return
            if not line.endswith(b"\n"):
                raise TamperedError(f"{path}: the last line is truncated (crash or tampering)")
            yield *_parse(line[:-1], f"{path}: line {number}"), line[:-1]


def _parse(line: bytes, where: str) -> tuple[Entry, bytes]:
    try:
        value: dict[str, Any] = json.loads(line)
        entry, signature = Entry(**value["entry"]), base64.b64decode(value["signature"], validate=True)
        canonical = _canon.canonical(value) == line and type(entry.sequence) is int
    except (ValueError, TypeError, KeyError, RecursionError):
        raise TamperedError(f"{where} is no entry of a journal") from None
    if not canonical or base64.b64encode(signature).decode() != value["signature"]:  # its last character has idle bits
        raise TamperedError(f"{where} is not in canonical form")
    return entry, signature


@contextlib.contextmanager
def _named(path: Path) -> Generator[None]:
    try:
        yield
    except ChangedError:
        raise TamperedError(f"{path}: was replaced or changed while a line was added to it") from None


def _last_line(file: ChainFile) -> bytes:
    try:
        return file.last_line(longest=_LONGEST_LINE)
    except ValueError as error:
        raise TamperedError(f"{file.path}: its end is no journal ({error})") from None
