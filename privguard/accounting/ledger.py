# SPDX-License-Identifier: Apache-2.0
"""The append-only history of a run: every private step is reserved here, on disk, before it may take effect.

Write-ahead: ``Ledger.reserve`` returns only after the reservation is durable, so a step without its event cannot
exist. A clean stop gives back what was reserved and not used; after a crash all that was reserved counts as spent.
Each event has a ledger *position* (0, 1, 2, …), which names the sampler's and the noise's stream of its step; a
position that may have been used is never handed out again.

One writer at a time (``flock``); readers need no lock and never write.
"""

import contextlib
import os
import secrets
import weakref
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from privguard import _canon, _check, _os
from privguard.accounting import events, history
from privguard.accounting.history import FORMAT, History
from privguard.attest.chain import ChainFile, ChangedError
from privguard.errors import LedgerError, ResumeError

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@final
class Ledger:
    """A ledger open for writing. Make one with ``create`` or ``open``; it is a context manager.

    Leaving the ``with`` block closes the file and settles nothing: say what was used with ``settle``. The
    attributes of ``History`` are current after every call.
    """

    def __init__(self, file: ChainFile, state: history.Replay) -> None:
        self.path = file.path
        self._file = file
        self._state = state
        _open_ledgers.add(self)

    @classmethod
    def create(cls, path: "str | os.PathLike[str]", facts: Mapping[str, Any]) -> "Ledger":
        """Begin a new ledger that opens with ``facts``: run, relation, unit, delta, plan; plain JSON values, public.

        Args:
            path: the ledger file.
            facts: what the run is, as public JSON values.

        Raises:
            FileExistsError: there is a file already; a ledger is never overwritten.
            TypeError, ValueError: the facts are not plain JSON.
        """
        path = Path(path)
        record = {"kind": "open", "format": FORMAT, "id": secrets.token_hex(16), "facts": _canon.to_json(facts)}
        line = history.Replay().line(record)
        with _one_writer(path):
            ledger = cls(ChainFile.create(path, mode=0o644), history.Replay())
        ledger._write(line)
        _os.sync_directory(path.parent)
        return ledger

    @classmethod
    def open(cls, path: "str | os.PathLike[str]") -> "Ledger":
        """Take up an existing ledger; what was reserved and not settled before stays spent.

        An unfinished last line, left by a crash or a full disk, is cut off and its size recorded: the reservation in
        it was never acknowledged, so no step can have used it.

        Args:
            path: the ledger file.

        Raises:
            LedgerError: the file is missing, edited, reordered or cut in the middle.
            ResumeError: another process is writing to it.
        """
        path = Path(path)
        try:
            with _one_writer(path):
                file = ChainFile.open(path, wait=False)
        except FileNotFoundError:
            raise LedgerError(f"ledger={path}: missing; a run is resumed with its ledger or not at all") from None
        ledger = cls(file, history.Replay())
        try:
            ledger._take_up()
        except BaseException:
            ledger.close()
            raise
        return ledger

    @staticmethod
    def read(path: "str | os.PathLike[str]") -> History:
        """The history in a ledger file, checked line by line; the file is not touched.

        Args:
            path: the ledger file.

        Raises:
            LedgerError: missing, empty, edited, reordered or cut in the middle; the message names the line.
        """
        return history.read(path)

    @property
    def history(self) -> History:
        """What this ledger says now, as a frozen value."""
        return self._state.history()

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the run said about itself when it began."""
        return self._state.facts

    @property
    def head(self) -> str:
        """Merkle head over all lines, 64 hexadecimal characters."""
        return self._state.heads[-1]

    @property
    def size(self) -> int:
        """Number of lines."""
        return len(self._state.heads)

    @property
    def position(self) -> int:
        """The next free ledger position."""
        return self._state.position

    @property
    def paid(self) -> int:
        """The first position that no event covers; ``begin`` hands out those before it."""
        return self._state.paid

    @property
    def place(self) -> tuple[int, int]:
        """Device and inode of the file: the same after it was moved, and another for a copy."""
        there = os.fstat(self._writable().descriptor)
        return there.st_dev, there.st_ino

    def spent(self) -> "list[tuple[DpEvent, int]]":
        """(event, times) in ledger order: all that was reserved, less what a clean stop gave back."""
        return self.history.spent()

    def extends(self, head: str, size: int) -> bool:
        """Whether the first ``size`` lines are those that ``head`` stands for.

        Args:
            head: digest of a ledger's last line, in hexadecimal.
            size: how many lines it had then.
        """
        return 0 < size <= self.size and self._state.heads[size - 1] == head

    def key(self, label: str, nonce: str) -> None:
        """Record that from the next position on samples and noise come from a new key.

        Args:
            label: how they are made from it; a change of the method is a change of the label.
            nonce: the key's public name, 64 hexadecimal characters (``privguard._random.Stream.nonce``).

        Raises:
            ValueError: this ledger names the key already; its noise would be drawn twice.
        """
        new = all(keyed.nonce != nonce for keyed in self._state.streams)
        _check.require(new and _canon.is_digest(nonce), "nonce", nonce, wanted="64 hexadecimal characters, never used")
        self._record({"kind": "stream", "label": label, "nonce": nonce, "first": self._state.position})

    def data(self, commitment: str, reason: str) -> None:
        """Record that from the next position on the run reads another data set than before, and why.

        Args:
            commitment: the salted digest of the new data set.
            reason: one sentence, which goes into the ledger.
        """
        _check.require(_canon.is_digest(commitment), "commitment", commitment, wanted="64 hexadecimal characters")
        first = self._state.position
        self._record({"kind": "data", "commitment": commitment, "reason": reason, "first": first})

    def reserve(self, event: "DpEvent", times: int = 1, *, span: int = 1) -> range:
        """Set aside ``times`` equal events and return the positions that they cover; durable when this returns.

        An event may cover ``span`` positions, as one that prices a whole block of steps does. The first of them is
        begun by this call, and each of the others by ``begin``.

        Args:
            event: a privacy event that the accountants here can price.
            times: how many equal events, at least 1.
            span: how many positions one event covers.

        Returns:
            The positions, in order.

        Raises:
            UnknownEventError: no accountant here can price the event.
            ValueError: positions that were paid for before are not begun yet.
            OSError: the disk is full or failed; nothing was reserved, and this ledger takes no more writes.
            LedgerError: the file changed under this writer.
        """
        _check.count("times", times)
        _check.count("span", span)
        first = self._state.position
        _check.require(self.paid == first, "position", first, wanted=f"{self.paid}", remedy="begin what is paid for")
        record = {"kind": "reserve", "event": events.to_json(event), "times": times, "span": span, "first": first}
        self._record(record)
        return range(first, first + times * span)

    def begin(self) -> int:
        """The next position inside what is paid for, as begun; durable when this returns. It costs no further event.

        Raises:
            ValueError: all that is paid for is begun; reserve first.
        """
        position = self._state.position
        _check.require(position < self.paid, "position", position, wanted="a paid one", remedy="reserve first")
        self._record({"kind": "begin", "position": position})
        return position

    def advance(self, event: "DpEvent", *, span: int) -> None:
        """Begin the next position: inside what is paid for, or the first of a new ``event`` over ``span`` positions.

        Args:
            event: a privacy event that the accountants here can price.
            span: how many positions one event covers.
        """
        if self.position < self.paid:
            self.begin()
        else:
            self.reserve(event, span=span)

    def settle(self, used: int) -> None:
        """Record a clean stop: positions below ``used`` took effect, the others were never drawn and are free again.

        Only what this writer reserved since it opened or last settled can be given back, and of an event that covers
        several positions nothing once the first of them is begun.

        Args:
            used: the first position that did not take effect.

        Raises:
            ValueError: ``used`` would give back what an earlier writer reserved, or counts more than was reserved.
        """
        low, high = self._state.floor, self._state.position
        inside = type(used) is int and low <= used <= high
        _check.require(inside, "used", used, wanted=f"a position between {low} and {high}")
        self._record({"kind": "settle", "used": used})

    def void(self, reason: str) -> None:
        """Record why nothing in this ledger has a claim, whatever it cost; the report prints no ε.

        Args:
            reason: one sentence, which goes into the ledger.
        """
        self._record({"kind": "void", "reason": reason})

    def note_checks(self, checked: int) -> None:
        """Record how many more steps were checked for examples that interact.

        Args:
            checked: steps checked since the last note.
        """
        self._record({"kind": "checks", "checked": checked})

    def close(self) -> None:
        """Close the file and let the lock go; harmless when done twice."""
        self._file.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r}, size={self.size}, position={self.position})"

    def _take_up(self) -> None:
        self._state = history.replay(self.path)
        torn, self._state.torn = self._state.torn, 0
        self._file.mend(self._state.bytes)
        here = {"position": self._state.position, "torn": torn, "id": secrets.token_hex(16)}  # no two resumes are equal
        self._record({"kind": "resume", **here})

    def _record(self, record: Mapping[str, Any]) -> None:
        self._write(self._state.line(record))

    def _write(self, line: bytes) -> None:
        try:
            self._writable().append(line)
        except ChangedError:
            raise LedgerError(
                f"ledger={self.path}: removed, replaced or changed while this run was writing to it"
            ) from None
        except OSError as error:
            # A failed sync leaves the file's state on disk unknown, so nothing more is promised from here.
            self.close()
            said = f"{error.strerror}; nothing was reserved, and the ledger is closed: make room and resume"
            raise OSError(error.errno, said, str(self.path)) from error
        self._state.apply(line)

    def _writable(self) -> ChainFile:
        if self._file.closed:
            raise ValueError(f"ledger={self.path}: closed; open it again with Ledger.open")
        return self._file


@contextlib.contextmanager
def _one_writer(path: Path) -> Generator[None]:
    try:
        yield
    except BlockingIOError:
        raise ResumeError(
            f"ledger={path}: another process is writing to it; stop that run, or start one in its own folder"
        ) from None
    except _os.LocksUnsupportedError:
        raise ResumeError(
            f"ledger={path}: this file system has no working lock, so two runs could spend one budget; put the run "
            "folder on a local disk"
        ) from None


_open_ledgers: "weakref.WeakSet[Ledger]" = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """A forked child lets go: a worker must neither write to its parent's ledger nor keep its lock alive."""
    for ledger in list(_open_ledgers):
        ledger.close()


_os.in_forked_children(_leave_to_the_parent)
