# SPDX-License-Identifier: Apache-2.0
"""A witnessed append-only log: how often has this identity claimed?

Whoever may claim a thousand times will be right by chance a thousand times as often. So commitments and challenges go
into a log that its operator cannot shorten or rewrite unseen: its head is an RFC 6962 tree head, signed by the
operator and countersigned by witnesses, each of which signs only what extends everything it signed before. A reader
gets all entries and the head, rebuilds the tree, and counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, final

from privguard import _canon, _check
from privguard.attest import merkle, statement
from privguard.attest.statement import Envelope, Identity, SigningKey, Statement
from privguard.errors import TamperedError
from privguard.records import Digest

HEAD_TYPE = statement.PREDICATES + "log-head/v1"
DRIFT = timedelta(minutes=5)


@final
@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the log: who, what kind of act, the digest of what was done, and the details that count later."""

    identity: str
    kind: str
    digest: str
    details: Mapping[str, Any]

    def leaf(self) -> bytes:
        """The Merkle leaf hash of the entry's canonical JSON."""
        return merkle.leaf_hash(_canon.canonical(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Entry":
        """Read an entry; what is none raises ``TamperedError``.

        Args:
            value: JSON values, as they were read.
        """
        try:
            return cls(
                identity=str(value["identity"]),
                kind=str(value["kind"]),
                digest=str(value["digest"]),
                details=dict(value["details"]),
            )
        except (KeyError, TypeError, ValueError):
            raise TamperedError("log entry: expected identity, kind, digest and details") from None


@final
@dataclass(frozen=True, kw_only=True)
class Trusted:
    """A log that a reader trusts: its origin, its operator's key, its witnesses, and how many of them must have signed.

    ``external`` is false where one of the parties runs the log and all its witnesses.
    """

    origin: str
    operator: Identity
    witnesses: tuple[Identity, ...] = ()
    quorum: int = 0
    external: bool = True

    def __post_init__(self) -> None:
        _check.require(
            0 <= self.quorum <= len(self.witnesses),
            "quorum",
            self.quorum,
            wanted=f"0 to {len(self.witnesses)} witnesses",
        )

    def to_json(self) -> dict[str, Any]:
        """The log's trust as plain JSON."""
        return {
            "origin": self.origin,
            "operator": self.operator.to_json(),
            "witnesses": [witness.to_json() for witness in self.witnesses],
            "quorum": self.quorum,
            "external": self.external,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Trusted":
        """The inverse of ``to_json``.

        Args:
            value: JSON values, as they were read.
        """
        return cls(
            origin=str(value["origin"]),
            operator=Identity.from_json(value["operator"]),
            witnesses=tuple(Identity.from_json(item) for item in value["witnesses"]),
            quorum=int(value["quorum"]),
            external=bool(value["external"]),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Extract:
    """What travels in evidence: every entry up to a signed head."""

    entries: tuple[Entry, ...]
    head: Envelope

    def to_json(self) -> dict[str, Any]:
        """The extract as plain JSON."""
        return {"entries": [_canon.to_json(entry) for entry in self.entries], "head": self.head.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Extract":
        """Read an extract; what is none raises ``TamperedError``.

        Args:
            value: JSON values, as they were read.
        """
        try:
            entries = tuple(Entry.from_json(item) for item in value["entries"])
            return cls(entries=entries, head=Envelope.from_json(value["head"]))
        except (KeyError, TypeError):
            raise TamperedError("log extract: expected entries and head") from None


@final
class Log:
    """The operator's side: append entries, sign heads. The entries are public."""

    def __init__(self, origin: str, key: SigningKey, entries: Sequence[Entry] = ()) -> None:
        self.origin, self._key = origin, key
        self.entries = list(entries)

    def append(self, entry: Entry) -> int:
        """Add one entry at the end and return its index.

        Args:
            entry: the line to be added.
        """
        self.entries.append(entry)
        return len(self.entries) - 1

    def head(self, *, at: datetime | None = None) -> Envelope:
        """The present head with the time, signed by the operator alone.

        Args:
            at: the time; None for now.
        """
        moment = (at or datetime.now(UTC)).astimezone(UTC)
        root = merkle.root([entry.leaf() for entry in self.entries])
        content = Statement(
            subjects=(Digest(name=self.origin, sha256=root.hex()),),
            predicate_type=HEAD_TYPE,
            predicate={"origin": self.origin, "size": len(self.entries), "time": moment.isoformat(timespec="seconds")},
        )
        return statement.sign(content, by=self._key)

    def consistency(self, earlier: int) -> list[bytes]:
        """The proof that the first ``earlier`` entries are still what they were; empty for an empty beginning.

        Args:
            earlier: how many entries there were.
        """
        leaves = [entry.leaf() for entry in self.entries]
        return merkle.consistency_proof(leaves, earlier) if earlier else []

    def extract(self, *witnesses: "Witness", at: datetime | None = None) -> Extract:
        """All entries with a head that these witnesses have countersigned.

        Args:
            at: the time; None for now.
            *witnesses: who countersigns.
        """
        head = self.head(at=at)
        for witness in witnesses:
            head = witness.cosign(head, proof=self.consistency(witness.size), at=at)
        return Extract(entries=tuple(self.entries), head=head)


@final
class Witness:
    """Signs a head only when it extends the last head it signed and tells the right time; each size once.

    It remembers one size and root, and lends its clock: a head more than five minutes off is refused.
    """

    def __init__(self, key: SigningKey, *, operator: Identity, size: int = 0, root: bytes = merkle.EMPTY_ROOT) -> None:
        self.key, self._operator = key, operator
        self.size, self.root = size, root

    @property
    def identity(self) -> Identity:
        """Whose countersignature this is."""
        return self.key.identity

    def cosign(self, head: Envelope, *, proof: Sequence[bytes], at: datetime | None = None) -> Envelope:
        """The head with one more signature; ``at`` is the witness's own time, by default the present.

        Args:
            head: a signed head.
            proof: hashes that the witness checks growth by.
            at: the time; None for now.

        Raises:
            TamperedError: the head is not the operator's, does not extend what was signed, or tells a wrong time.
        """
        root, size, time, _ = _read_head(statement.verify(head, by=self._operator))
        if abs(time - (at or datetime.now(UTC))) > DRIFT:
            raise TamperedError(
                f"log head: says {time}, which is not the present; expected the operator's clock to be right"
            )
        if size <= self.size:
            raise TamperedError(
                f"log head: {size} entries; {self.size} are signed already, and each size is signed once"
            )
        if self.size and not merkle.verify_consistency(
            earlier=self.size, earlier_head=self.root, size=size, head=root, proof=proof
        ):
            raise TamperedError(
                f"log head: {size} entries do not extend the {self.size} signed before; history was rewritten"
            )
        self.size, self.root = size, root
        return statement.countersign(head, by=self.key)


def verify(extract: Extract, *, log: Trusted) -> tuple[Entry, ...]:
    """All entries of a trusted log up to the extract's head.

    Args:
        extract: all entries under a head.
        log: operator and witnesses that are believed.

    Raises:
        TamperedError: a wrong operator, too few witnesses, or entries that are not the ones under the head.
    """
    root, size, _ = verify_head(extract.head, log=log)
    if size != len(extract.entries) or merkle.root([entry.leaf() for entry in extract.entries]) != root:
        raise TamperedError("log extract: its entries are not the ones under its head")
    return extract.entries


def verify_head(head: Envelope, *, log: Trusted) -> tuple[bytes, int, datetime]:
    """Root, size and time of a head, once the operator and enough witnesses signed it.

    Args:
        head: a signed head.
        log: operator and witnesses that are believed.

    Raises:
        TamperedError: they did not, or it is another log's.
    """
    root, size, time, origin = _read_head(statement.verify(head, by=log.operator))
    signed = sum(_signed(head, witness) for witness in set(log.witnesses))
    if signed < log.quorum:
        raise TamperedError(f"log head: {signed} of the trusted witnesses signed; expected {log.quorum}")
    if origin != log.origin:
        raise TamperedError(f"log head: of {origin!r}; expected {log.origin!r}")
    return root, size, time


def _read_head(content: Statement) -> tuple[bytes, int, datetime, str]:
    try:
        if content.predicate_type != HEAD_TYPE:
            raise TamperedError(f"predicateType={content.predicate_type!r}: expected {HEAD_TYPE}")
        root, size = bytes.fromhex(content.subjects[0].sha256), int(content.predicate["size"])
        return root, size, datetime.fromisoformat(content.predicate["time"]), str(content.predicate["origin"])
    except (KeyError, TypeError, ValueError):
        raise TamperedError("log head: expected a root, a size, a time and an origin") from None


def _signed(envelope: Envelope, by: Identity) -> bool:
    try:
        statement.verify(envelope, by=by)
    except TamperedError:
        return False
    return True
