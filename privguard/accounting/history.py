# SPDX-License-Identifier: Apache-2.0
"""What a ledger says: its lines replayed and checked, as a frozen value.

Each line is canonical JSON (RFC 8785) of one record with the RFC 6962 head over all records so far, itself included.
So a changed byte, a missing, a doubled or a moved line shows at that line; a cut at the end shows against a head that
was kept elsewhere (a sealed snapshot, a signed report). The format is written down in ``docs/spec/ledger-v1.md``.

Records: ``open`` (facts), ``stream`` (the public name of the key that samples and noise come from, from here on),
``data`` (from here on the run reads another data set), ``reserve`` (an event, how often, from which position, and how
many positions one event covers), ``begin`` (the next position inside what one event covers), ``settle`` (a clean stop:
so many positions were used), ``resume`` (a writer came back; what was reserved and not settled stays spent), ``void``
(a reason why nothing recorded here has a claim), ``checks`` (so many steps were checked for interactions).
"""

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from privguard import _canon
from privguard.accounting import events
from privguard.attest import merkle
from privguard.errors import LedgerError, NotALedgerError, UnknownEventError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

FORMAT = "privguard ledger v1"


@final
@dataclass(frozen=True)
class Entry:
    """``times`` equal events, each over ``span`` positions, from ``first`` on; ``event`` is its JSON form."""

    first: int
    times: int
    event: Mapping[str, Any]
    span: int = 1

    @property
    def end(self) -> int:
        """The first position that it does not cover."""
        return self.first + self.times * self.span


@final
@dataclass(frozen=True)
class Keyed:
    """From position ``first`` on, samples and noise come from the key whose public name is ``nonce``.

    ``label`` says how they are made from it. Two ledgers that share a nonce shared a key: the noise of one position is
    then the same in both.
    """

    first: int
    label: str
    nonce: str


@final
@dataclass(frozen=True)
class OtherData:
    """From position ``first`` on the run read another data set, for the reason that whoever resumed it gave."""

    first: int
    commitment: str
    reason: str

    def __str__(self) -> str:
        return f"From step {self.first} on the run read another data set, in the words of who resumed it: {self.reason}"


@final
@dataclass(frozen=True)
class History:
    """A ledger as it was read.

    ``facts`` is what the run said about itself when it began; ``entries`` what counts as spent; ``position`` the next
    free ledger position; ``size`` the number of lines and ``head`` (hexadecimal) their Merkle head; ``settled``
    whether the last writer stopped cleanly; ``torn`` how many bytes of an unfinished last line were left aside: such a
    line was never acknowledged, so no step has taken effect on it; ``crashed`` whether a writer before the last one
    ended without settling what it had reserved: that stays spent, and may not have taken effect. ``void`` holds the
    reasons, if any, why the run has no claim whatever it spent, and ``checked`` how many steps were checked while
    training, None where no writer said. ``streams`` are the keys, in the order of their use; ``other_data`` says where
    a resumed run read other data than the manifest names, and ``leaves`` the hashes of the lines under the heads.
    """

    facts: Mapping[str, Any]
    entries: tuple[Entry, ...]
    position: int
    heads: tuple[str, ...]
    settled: bool
    torn: int = 0
    crashed: bool = False
    void: tuple[str, ...] = ()
    checked: int | None = None
    streams: tuple[Keyed, ...] = ()
    other_data: tuple[OtherData, ...] = ()
    leaves: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def events(self) -> int:
        """Number of events that count as spent; the number of positions where none of them spans several."""
        return sum(entry.times for entry in self.entries)

    @property
    def size(self) -> int:
        """Number of lines."""
        return len(self.heads)

    @property
    def head(self) -> str:
        """Merkle head over all lines, 64 hexadecimal characters."""
        return self.heads[-1]

    @property
    def unchecked(self) -> tuple[str, ...]:
        """What the checks while training leave open, and what else was read than the manifest names, in words."""
        other = tuple(map(str, self.other_data))
        if self.checked is None:
            return other
        share = f"{self.checked:,} of {self.position:,} steps were checked for examples that interact"
        none = "; every batch had one record, or a compiler made a graph that is gone through once"
        none = "" if self.checked or not self.position else none
        return (
            f"While training, {share}{none}; one that is rare, or that two random halves do not part, can pass.",
            *other,
        )

    def spent(self) -> "list[tuple[DpEvent, int]]":
        """(event, times) in ledger order: all that was reserved, less what a clean stop gave back."""
        return [(events.from_json(entry.event), entry.times) for entry in self.entries]

    def extends(self, head: str, size: int) -> bool:
        """Whether the first ``size`` lines are those that ``head`` stands for.

        Args:
            head: digest of a ledger's last line, in hexadecimal.
            size: how many lines it had then.
        """
        return 0 < size <= self.size and self.heads[size - 1] == head

    def growth(self, size: int) -> list[str]:
        """Proof that the first ``size`` lines are a prefix of these (RFC 6962, 2.1.2), hashes in hexadecimal.

        Args:
            size: how many lines it had then.
        """
        return [node.hex() for node in merkle.consistency_proof(self.leaves, size)]


def read(path: "str | os.PathLike[str]") -> History:
    """Replay a ledger file without writing to it.

    Args:
        path: the ledger file.

    Raises:
        LedgerError: missing, empty, edited, reordered or cut in the middle; the message names the line.
        UnknownEventError: an event that this version cannot price.
    """
    return replay(Path(path)).history()


def replay(path: Path) -> "Replay":
    """Replay the whole lines of the file; an unfinished last line is left aside and its bytes counted.

    Args:
        path: the ledger file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise LedgerError(f"ledger={path}: missing; a run is resumed with its ledger or not at all") from None
    *lines, tail = data.split(b"\n")
    _require_ledger(path, lines[0] if lines else tail)
    if not lines:
        raise LedgerError(f"ledger={path}: no complete line, so nothing was recorded here; start the run anew")
    state = Replay(torn=len(tail))
    for number, line in enumerate(lines, start=1):
        try:
            state.apply(line)
        except UnknownEventError as error:
            raise UnknownEventError(f"ledger={path}, line {number}: {error}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LedgerError(f"ledger={path}, line {number}: {_why(error)}") from error
    return state


def _require_ledger(path: Path, first: bytes) -> None:
    """Refuse a file that never was a ledger; one whose first line was damaged cannot be told from that by its bytes."""
    if first and not first.startswith(b'{"facts":') and b'"kind":"open"' not in first:
        raise NotALedgerError(
            f"ledger={path}: does not begin as a ledger does, so it is another file (or its first line was destroyed); "
            "name the run folder or its ledger.jsonl"
        )


class Replay:
    """The state machine behind reader and writer: lines go in, what is spent comes out."""

    def __init__(self, *, torn: int = 0) -> None:
        self.facts: Mapping[str, Any] = {}
        self.entries: list[Entry] = []
        self.streams: list[Keyed] = []
        self.other_data: list[OtherData] = []
        self.position = 0
        self.floor = 0
        self.settled = False
        self.torn = torn
        self.crashed = False
        self.void: list[str] = []
        self.checked: int | None = None
        self.heads: list[str] = []
        self.leaves: list[bytes] = []
        self.bytes = 0
        self._frontier = merkle.Frontier()

    def history(self) -> History:
        """A frozen copy."""
        return History(
            facts=self.facts,
            entries=tuple(self.entries),
            position=self.position,
            heads=tuple(self.heads),
            settled=self.settled,
            torn=self.torn,
            crashed=self.crashed,
            void=tuple(self.void),
            checked=self.checked,
            streams=tuple(self.streams),
            other_data=tuple(self.other_data),
            leaves=tuple(self.leaves),
        )

    @property
    def paid(self) -> int:
        """The first position that no event covers; beyond ``position`` where an event spans several."""
        return max(self.position, self.entries[-1].end) if self.entries else self.position

    def line(self, record: Mapping[str, Any]) -> bytes:
        """The next line (without its newline) that would carry this record; changes nothing.

        Args:
            record: one line's content, as JSON values.
        """
        frontier = copy.deepcopy(self._frontier)
        frontier.append(merkle.leaf_hash(_canon.canonical(record)))
        return _canon.canonical({**record, "head": frontier.root().hex()})

    def apply(self, line: bytes) -> None:
        """Check one line against all before it, then take it in.

        Args:
            line: one line without its newline.

        Raises:
            ValueError, KeyError, TypeError: the line is not the one that may stand here.
        """
        given = json.loads(line)
        record = {key: value for key, value in given.items() if key != "head"}
        if self.line(record) != line:
            raise ValueError("its head does not follow from the lines before it, so a line was edited, moved or cut")
        self._take(record)
        self.leaves.append(merkle.leaf_hash(_canon.canonical(record)))
        self._frontier.append(self.leaves[-1])
        self.heads.append(given["head"])
        self.bytes += len(line) + 1

    def _take(self, record: Mapping[str, Any]) -> None:
        kind = record["kind"]
        if (kind == "open") != (not self.heads):
            raise ValueError("a ledger opens once, on its first line")
        take = {
            "open": self._open,
            "stream": self._stream,
            "data": self._data,
            "reserve": self._reserve,
            "begin": self._begin,
            "settle": self._settle,
            "resume": self._resume,
            "void": self._void,
            "checks": self._checks,
        }
        if kind not in take:
            raise ValueError(f"kind={kind!r}: expected one of {sorted(take)}")
        take[kind](record)
        if kind not in {"void", "checks"}:
            self.settled = kind == "settle"

    def _open(self, record: Mapping[str, Any]) -> None:
        if record["format"] != FORMAT:
            raise ValueError(
                f"format={record['format']!r}: expected {FORMAT!r}; read it with the version that wrote it"
            )
        self.facts = record["facts"]

    def _stream(self, record: Mapping[str, Any]) -> None:
        first, label, nonce = record["first"], record["label"], record["nonce"]
        if first != self.position or not isinstance(label, str) or not _canon.is_digest(nonce):
            raise ValueError(
                f"stream {label!r} of {nonce!r} from position {first}: expected to begin at {self.position}"
            )
        if any(keyed.nonce == nonce for keyed in self.streams):
            raise ValueError(f"nonce={nonce}: stands before; a key that begins again draws the same noise again")
        self.streams.append(Keyed(first, label, nonce))

    def _data(self, record: Mapping[str, Any]) -> None:
        first, commitment, reason = record["first"], record["commitment"], record["reason"]
        if first != self.position or not _canon.is_digest(commitment) or not isinstance(reason, str):
            raise ValueError(f"data {commitment!r} from position {first}: expected to begin at {self.position}")
        self.other_data.append(OtherData(first, commitment, reason))

    def _reserve(self, record: Mapping[str, Any]) -> None:
        first, times, span = record["first"], record["times"], record["span"]
        if first != self.paid or first != self.position:
            raise ValueError(f"first={first}: expected {self.position}, with all that is paid for begun ({self.paid})")
        if not all(type(number) is int and number >= 1 for number in (times, span)):
            raise ValueError(f"times={times}, span={span}: expected whole numbers from 1 on")
        events.check_json(record["event"])
        last = self.entries[-1] if self.entries else None
        if last is not None and (last.event, last.span, last.end, span) == (record["event"], 1, first, 1):
            self.entries[-1] = replace(last, times=last.times + times)
        else:
            self.entries.append(Entry(first, times, record["event"], span))
        self.position += times if span == 1 else 1

    def _begin(self, record: Mapping[str, Any]) -> None:
        if record["position"] != self.position or not self.position < self.paid:
            raise ValueError(f"position={record['position']}: expected {self.position}, below {self.paid}")
        self.position += 1

    def _settle(self, record: Mapping[str, Any]) -> None:
        used = record["used"]
        if type(used) is not int or not self.floor <= used <= self.position:
            raise ValueError(f"used={used}: expected between {self.floor} and {self.position}")
        self.entries = [
            replace(entry, times=min(entry.times, -((entry.first - used) // entry.span)))  # a begun event stays whole
            for entry in self.entries
            if entry.first < used
        ]
        self.position = self.floor = used

    def _resume(self, record: Mapping[str, Any]) -> None:
        if record["position"] != self.position:
            raise ValueError(f"position={record['position']}: expected {self.position}")
        if type(record["id"]) is not str:
            raise ValueError(f"id={record['id']!r}: expected text")
        self.crashed |= self.position > self.floor
        self.floor = self.position

    def _void(self, record: Mapping[str, Any]) -> None:
        if type(record["reason"]) is not str:
            raise ValueError(f"reason={record['reason']!r}: expected text")
        self.void.append(record["reason"])

    def _checks(self, record: Mapping[str, Any]) -> None:
        checked = record["checked"]
        if type(checked) is not int or checked < 0:
            raise ValueError(f"checked={checked!r}: expected a count")
        self.checked = (self.checked or 0) + checked


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "not a line of JSON, so it was edited or damaged"
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)
