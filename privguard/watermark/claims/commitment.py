# SPDX-License-Identifier: Apache-2.0
"""A claim that holds up: what is fixed before anybody, the owner included, can know what the mark will be.

Order: the owner signs a manifest with the Merkle root of secret seeds (``commit``), has it logged and timestamped
(``Commitment.logged``, ``Commitment.stamped``), and only then the next public pulse decides what the seeds mean
(``Commitment.with_pulse``). ``check`` is what everybody else runs. Format: ``docs/spec/claim-v1.md``.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, final

from privguard import _canon, _check
from privguard.attest import beacon, log, merkle, statement, timestamp
from privguard.attest.beacon import Beacon, Pulse
from privguard.attest.log import Entry, Trusted
from privguard.attest.statement import Envelope, Identity, SigningKey, Statement
from privguard.attest.timestamp import Authority
from privguard.errors import ProtocolInvalidError, TamperedError
from privguard.records import Digest
from privguard.watermark.claims import kinds
from privguard.watermark.claims.leaf import Opening, Tree
from privguard.watermark.secret import Secret

CLAIM_TYPE = statement.PREDICATES + "claim/v1"
WAIT = timedelta(minutes=5)  # from the anchor (log head, else timestamp) to the pulse that counts
SKEW = timedelta(minutes=1)  # by which the timestamp has to precede the pulse, for clocks that disagree
UNLOGGED = 2.0**40  # how many claims an identity is taken to have made when no log counts them


@final
@dataclass(frozen=True, kw_only=True)
class MarkPlan:
    """One mark of a claim: its name, its kind, how many leaves it has, and the settings that its reading needs.

    ``settings`` are public and fixed: input domain and label alphabet for triggers, prompt and answer alphabets for
    fingerprints, tensor shapes for weights, altered share for responses.
    """

    name: str
    kind: str
    leaves: int
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        _check.require(self.kind in kinds.known(), "kind", self.kind, wanted=f"one of {', '.join(kinds.known())}")
        _check.count("leaves", self.leaves)


@final
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an owner commits to: the unmarked model, the marks, the level of proof, and the root of all leaves."""

    owner: Identity
    model: Digest
    marks: tuple[MarkPlan, ...]
    root: bytes
    log10_level: float = -6.0

    def __post_init__(self) -> None:
        _check.require(bool(self.marks), "marks", self.marks, wanted="at least one mark")
        _check.require(self.log10_level <= -6, "log10_level", self.log10_level, wanted="at most -6, the level of v1")  # noqa: PLR2004

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """Names and leaf counts in the tree's order."""
        return [(mark.name, mark.leaves) for mark in self.marks]

    def mark(self, name: str) -> MarkPlan:
        """The mark of this name.

        Args:
            name: the mark's name.

        Raises:
            ProtocolInvalidError: it was not committed.
        """
        for mark in self.marks:
            if mark.name == name:
                return mark
        raise ProtocolInvalidError(f"mark={name!r}: not in the committed manifest")

    def to_json(self) -> dict[str, Any]:
        """The manifest as the commitment's predicate."""
        return {
            "owner": self.owner.to_json(),
            "model": _canon.to_json(self.model),
            "marks": [_canon.to_json(mark) for mark in self.marks],
            "root": self.root.hex(),
            "log10_level": self.log10_level,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Manifest":
        """Read a manifest; what is none raises ``TamperedError``.

        Args:
            value: JSON values, as they were read.
        """
        try:
            return cls(
                owner=Identity.from_json(value["owner"]),
                model=Digest(**value["model"]),
                marks=tuple(MarkPlan(**mark) for mark in value["marks"]),
                root=bytes.fromhex(value["root"]),
                log10_level=float(value["log10_level"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TamperedError(f"manifest: not one of claim v1 ({error})") from None

    def holds(self, opening: Opening) -> bool:
        """Whether an opened leaf stands at its place under the committed root.

        Args:
            opening: a leaf with its Merkle path.
        """
        first = 0
        for name, count in self.sizes:
            if name == opening.leaf.mark and 0 <= opening.leaf.index < count:
                total = sum(size for _, size in self.sizes)
                place = first + opening.leaf.index
                return merkle.verify_inclusion(
                    opening.leaf.hash(), index=place, size=total, proof=opening.path, head=self.root
                )
            first += count
        return False


@final
@dataclass(frozen=True, kw_only=True)
class Commitment:
    """The public side of a claim as it grows: signed, then logged, then timestamped, then given its pulse."""

    envelope: Envelope
    head: Envelope | None = None
    proof: tuple[bytes, ...] = ()
    timestamp: bytes | None = None
    pulse: Mapping[str, Any] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the signed manifest: the claim's name everywhere."""
        return self.envelope.digest()

    def entry(self, owner: Identity) -> Entry:
        """The line that the log has to hold.

        Args:
            owner: who made the commitment.
        """
        return Entry(identity=owner.key_id, kind="commitment", digest=self.digest, details={})

    def message(self) -> bytes:
        """What is timestamped: the signed manifest together with the log head that contains it, if there is one."""
        head = None if self.head is None else self.head.digest()
        return _canon.canonical({"commitment": self.digest, "head": head})

    def logged(self, head: Envelope, *, proof: list[bytes]) -> "Commitment":
        """With the witnessed head whose last entry is this commitment, and its Merkle path.

        Args:
            head: the log's witnessed head.
            proof: hashes from the leaf up to the root.
        """
        return replace(self, head=head, proof=tuple(proof))

    def stamped(self, response: bytes) -> "Commitment":
        """With an RFC 3161 response over ``message``.

        Args:
            response: the authority's answer, DER.
        """
        return replace(self, timestamp=response)

    def with_pulse(self, published: Mapping[str, Any]) -> "Commitment":
        """With the beacon's published JSON of the pulse that counts.

        Args:
            published: the beacon's JSON of one pulse.
        """
        return replace(self, pulse=published)

    def to_json(self) -> dict[str, Any]:
        """The commitment as plain JSON; it holds no secret."""
        return {
            "envelope": self.envelope.to_json(),
            "head": None if self.head is None else self.head.to_json(),
            "proof": [item.hex() for item in self.proof],
            "timestamp": None if self.timestamp is None else base64.b64encode(self.timestamp).decode("ascii"),
            "pulse": _canon.to_json(self.pulse),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Commitment":
        """Read a commitment; what is none raises ``TamperedError``. Nothing in it is verified yet.

        Args:
            value: JSON values, as they were read.
        """
        try:
            stamp, head = value["timestamp"], value["head"]
            return cls(
                envelope=Envelope.from_json(value["envelope"]),
                head=None if head is None else Envelope.from_json(head),
                proof=tuple(bytes.fromhex(item) for item in value["proof"]),
                timestamp=None if stamp is None else base64.b64decode(stamp, validate=True),
                pulse=value["pulse"],
            )
        except (KeyError, TypeError, ValueError):
            raise TamperedError("commitment: expected envelope, head, proof, timestamp and pulse") from None

    def write(self, path: Path) -> None:
        """Write the commitment to ``path`` as canonical JSON.

        Args:
            path: the file.
        """
        path.write_bytes(_canon.canonical(self.to_json()) + b"\n")

    @classmethod
    def read(cls, path: Path) -> "Commitment":
        """Read the commitment in ``path``; nothing in it is verified yet.

        Args:
            path: the file.

        Raises:
            TamperedError: the file holds no commitment.
        """
        try:
            return cls.from_json(_canon.loads(path.read_bytes()))
        except ValueError as error:
            raise TamperedError(f"path={str(path)!r}: not a commitment in JSON ({error})") from None


@final
@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whom a reader believes: timestamp authorities, beacons, one log, and the verifiers who may sign evidence.

    A verdict is worth what these are worth. Nothing is ever taken on trust from the evidence itself.
    """

    authorities: tuple[Authority, ...] = ()
    beacons: tuple[Beacon, ...] = ()
    verifiers: tuple[Identity, ...] = ()
    log: Trusted | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of a trust file, as plain JSON."""
        return {
            "authorities": [item.to_json() for item in self.authorities],
            "beacons": [item.to_json() for item in self.beacons],
            "verifiers": [item.to_json() for item in self.verifiers],
            "log": None if self.log is None else self.log.to_json(),
        }

    @classmethod
    def read(cls, path: Path) -> "Trust":
        """Read a trust file.

        Args:
            path: the file.

        Raises:
            ValueError: the file is not one; it is the reader's own, so this is no tampering.
        """
        try:
            return cls.from_json(json.loads(path.read_bytes()))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path={str(path)!r}: expected a trust file ({error})") from None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Trust":
        """The inverse of ``to_json``.

        Args:
            value: JSON values, as they were read.
        """
        return cls(
            authorities=tuple(Authority.from_json(item) for item in value["authorities"]),
            beacons=tuple(Beacon.from_json(item) for item in value["beacons"]),
            verifiers=tuple(Identity.from_json(item) for item in value["verifiers"]),
            log=None if value["log"] is None else Trusted.from_json(value["log"]),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Standing:
    """A commitment whose order has been checked: who committed to what, when, and the pulse that decided the marks.

    ``basis`` names the authorities it rests on; local ones are called local there.
    """

    manifest: Manifest
    digest: str
    stamped: datetime
    pulse: Pulse
    logged: bool
    basis: tuple[str, ...]


def commit(secret: Secret, *, model: Digest, marks: tuple[MarkPlan, ...], by: SigningKey) -> Commitment:
    """Fix the leaves of all marks under one root and sign the manifest. Nothing about the leaves can be known yet.

    ``model`` is the digest of the *unmarked* model; the only one that weights are ever aligned to.

    Args:
        secret: the owner's secret.
        model: digest of the unmarked model.
        marks: the marks, in the order of their leaves.
        by: the owner's signing key.
    """
    tree = Tree.derive(secret, [(mark.name, mark.leaves) for mark in marks])
    return sign_root(tree.root, model=model, marks=marks, by=by)


def sign_root(root: bytes, *, model: Digest, marks: tuple[MarkPlan, ...], by: SigningKey) -> Commitment:
    """As ``commit``, for leaves that are kept elsewhere, in a hardware module for example.

    Args:
        root: the Merkle root over all leaves, 32 bytes.
        model: digest of the unmarked model.
        marks: the marks, in the order of their leaves.
        by: the owner's signing key.
    """
    manifest = Manifest(owner=by.identity, model=model, marks=marks, root=root)
    said = Statement(subjects=(model,), predicate_type=CLAIM_TYPE, predicate=manifest.to_json())
    return Commitment(envelope=statement.sign(said, by=by))


def read_manifest(commitment: Commitment) -> Manifest:
    """The manifest, once the owner that it names has signed it; its time is not checked here.

    Args:
        commitment: a commitment, as it was read.

    Raises:
        TamperedError: the signature or the form does not hold.
    """
    try:
        named = Identity.from_json(_canon.loads(commitment.envelope.payload)["predicate"]["owner"])
    except (KeyError, TypeError, ValueError):
        raise TamperedError("commitment: names no owner") from None
    said = statement.verify(commitment.envelope, by=named)
    manifest = Manifest.from_json(said.predicate)
    if _canon.canonical(said.to_json()) != commitment.envelope.payload:
        raise TamperedError("commitment: signed, but not in canonical form (RFC 8785), so readers may differ over it")
    if said.predicate_type != CLAIM_TYPE or said.subjects != (replace(manifest.model, size=None),):
        raise TamperedError(f"commitment: expected {CLAIM_TYPE} about the manifest's model")
    return manifest


def check(commitment: Commitment, *, trust: Trust) -> Standing:
    """Check the whole order: signature, log, timestamp, pulse.

    Args:
        commitment: a commitment, as it was read.
        trust: authorities, beacons, verifiers and the log that the reader believes.

    Raises:
        ProtocolInvalidError: something is missing, in the wrong order, or vouched for by nobody whom ``trust`` names.
        TamperedError: a signature or a proof does not hold.
    """
    manifest = read_manifest(commitment)
    if commitment.timestamp is None or commitment.pulse is None:
        raise ProtocolInvalidError(
            "commitment: without timestamp and later pulse nothing shows that marks were not chosen"
        )
    stamped, authority = _stamp(commitment.timestamp, commitment.message(), trust)
    pulse, source = _pulse(commitment.pulse, trust)
    anchor, basis = stamped, [_label("timestamp", authority), _label("beacon", source)]
    logged = commitment.head is not None and trust.log is not None
    if commitment.head is not None and trust.log is not None:
        anchor = _logged_at(commitment, commitment.head, manifest.owner, trust.log)
        basis.append(_label("log", trust.log))
    first = anchor + WAIT
    if not first < pulse.time <= first + timedelta(milliseconds=pulse.period_ms):
        raise ProtocolInvalidError(
            f"pulse: of {pulse.time}; only the first one after {first} counts, nobody may choose"
        )
    if stamped + SKEW > pulse.time:
        raise ProtocolInvalidError(f"timestamp: {stamped} does not precede the pulse of {pulse.time} by {SKEW}")
    return Standing(
        manifest=manifest, digest=commitment.digest, stamped=stamped, pulse=pulse, logged=logged, basis=tuple(basis)
    )


def _stamp(response: bytes, message: bytes, trust: Trust) -> tuple[datetime, Authority]:
    for authority in trust.authorities:
        try:
            return timestamp.verify(response, data=message, authority=authority), authority
        except TamperedError:
            continue
    raise ProtocolInvalidError("timestamp: not over this commitment by any authority that the trust file names")


def _pulse(published: Mapping[str, Any], trust: Trust) -> tuple[Pulse, Beacon]:
    for source in trust.beacons:
        try:
            return beacon.verify(published, beacon=source), source
        except TamperedError:
            continue
    raise ProtocolInvalidError("pulse: not a genuine pulse of any beacon that the trust file names")


def _logged_at(commitment: Commitment, head: Envelope, owner: Identity, trusted: Trusted) -> datetime:
    """The time of the one head that ends with this commitment; the witnesses sign each size once."""
    root, size, time = log.verify_head(head, log=trusted)
    leaf = commitment.entry(owner).leaf()
    if not merkle.verify_inclusion(leaf, index=size - 1, size=size, proof=commitment.proof, head=root):
        raise ProtocolInvalidError("log: this head does not end with this commitment")
    return time


def _label(what: str, source: Authority | Beacon | Trusted) -> str:
    name = source.origin if isinstance(source, Trusted) else source.name
    return f"{what}: {name}" + ("" if source.external else " (local, proves nothing against its operator)")
