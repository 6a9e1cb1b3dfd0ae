# SPDX-License-Identifier: Apache-2.0
"""A sealed file or folder: named members, a ledger and a manifest behind one head.

A file is the head, the members, the index of their names and sizes, the ledger and the manifest, in this order. A
folder holds the same parts as files of their own under names that begin with the file id, and the head as
``privguard.seal``: ``privguard.checkpoint.sealed_folder``.

Members and index open with the file key; ledger and manifest also with the auditor's.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from privguard import _canon
from privguard.attest import journal
from privguard.attest.statement import PREDICATES, SigningKey, Statement, sign
from privguard.checkpoint import durable, envelope
from privguard.checkpoint.content.payload import Bytes, Content, Member, Place, sealed_size
from privguard.checkpoint.envelope import Form, Preamble, Secrets
from privguard.checkpoint.keys.key import Recipient, To, recipients
from privguard.checkpoint.keys.stanza import Stanza
from privguard.records import Digest

HEAD = "privguard.seal"
SMALL = ("index", "ledger", "manifest")
WEIGHTS, STATE, STATE_TENSORS = "weights.safetensors", "state.json", "state.safetensors"  # members of a snapshot
Advance = Callable[[int], object]
Places = dict[int | str, Place]


@final
@dataclass(frozen=True, kw_only=True)
class Contents:
    """What goes into a sealed file: members by name, JSON values for the manifest, and the ledger's lines."""

    members: Mapping[str, Content]
    manifest: Mapping[str, Any] = field(default_factory=dict[str, Any])
    ledger: bytes = b""
    signer: SigningKey | None = None

    @property
    def sizes(self) -> list[int]:
        """Bytes of plaintext of each member."""
        return [member.size for member in self.members.values()]

    def small(self, secrets: Secrets) -> dict[str, bytes]:
        """Index, ledger and manifest as bytes, the manifest with the signature where there is a signer."""
        manifest = dict(self.manifest)
        if self.signer is not None:
            manifest["signer"] = self.signer.identity.to_json()
            manifest["signature"] = sign(statement(secrets, manifest), by=self.signer).to_json()
        return _small({name: member.size for name, member in self.members.items()}, manifest, self.ledger)


@final
@dataclass(frozen=True)
class Audience:
    """Who may resume (everything) and who may audit (ledger and manifest)."""

    to: tuple[Recipient, ...]
    auditors: tuple[Recipient, ...] = ()

    @classmethod
    def of(cls, to: To, auditors: To = ()) -> "Audience":
        """From recipients, keys or paths of their files.

        Raises:
            NoRecipientError: nobody could open the content.
        """
        return cls(recipients(to), recipients(auditors) if auditors else ())


def write_file(path: Path, contents: Contents, audience: Audience, *, advance: Advance | None = None) -> None:
    """Seal ``contents`` into one file that takes the place of ``path``, whole or not at all."""
    secrets = Secrets.fresh()
    stanzas = envelope.wrap(secrets, audience.to, audience.auditors)
    small = contents.small(secrets)
    sketch = draft(Form.FILE, secrets, stanzas, contents.sizes, small)
    with journal.acting("seal", path) as act, durable.replacing(path) as descriptor:
        _seal_members(secrets, contents, places_in_file(path, descriptor, sketch, contents.sizes), advance)
        act.sha256 = _complete(path, descriptor, secrets, stanzas, sketch=sketch, small=small)


def complete_file(
    path: Path,
    descriptor: int,
    secrets: Secrets,
    stanzas: list[Stanza],
    *,
    sizes: Mapping[str, int],
    manifest: Mapping[str, Any],
) -> str:
    """Write index, manifest and head around members that are written already; returns the preamble's digest, in hex.

    ``sizes`` are the members' bytes of plaintext by name, in the order in which they lie in the file.
    """
    small = _small(sizes, manifest, b"")
    sketch = draft(Form.FILE, secrets, stanzas, list(sizes.values()), small)
    return _complete(path, descriptor, secrets, stanzas, sketch=sketch, small=small)


def statement(secrets: Secrets, manifest: Mapping[str, Any]) -> Statement:
    """What a signer says of a sealed file: that the file of this key is theirs, with this manifest.

    The key's commitment is one way and binds everything that is sealed under it, at no cost that grows with the size:
    who has the public key of a recipient only cannot put another content under this signature. A recipient can, who
    has the file key; sign the digest of the whole file where recipients do not trust each other.
    """
    commitment = hashlib.sha256(secrets.audit().derive("commitment")).hexdigest()
    subject = Digest(name=secrets.file_id.hex(), sha256=commitment)
    return Statement(subjects=(subject,), predicate_type=PREDICATES + "sealed/v1", predicate=manifest)


def member(secrets: Secrets, number: int) -> Member:
    """What seals and opens the member of this number; its key derives from the file key, so auditors have none."""
    return Member(secrets.derive("data"), secrets.file_id, number)


def small_part(secrets: Secrets, name: str) -> Member:
    """What seals and opens the index, under the file key, or the ledger or manifest, under the auditors' key."""
    owner = secrets if name == "index" else secrets.audit()
    return Member(owner.derive(name), secrets.file_id, 0)


def places_in_file(path: Path, descriptor: int, preamble: Preamble, sizes: list[int]) -> Places:
    """Where each member, the index, the ledger and the manifest lie in a single file; ``sizes`` are the members'."""
    offset, places = preamble.head_bytes, Places()
    for number, size in enumerate(sizes):
        places[number] = Place(path, descriptor, offset, sealed_size(size))
        offset += places[number].size
    offset = preamble.head_bytes + preamble.data_bytes
    for name, size in zip(SMALL, (preamble.index_bytes, preamble.ledger_bytes, preamble.manifest_bytes), strict=True):
        places[name] = Place(path, descriptor, offset, size)
        offset += size
    return places


def part_name(preamble: Preamble, name: int | str) -> str:
    """The file in a sealed folder that holds one part."""
    return f"{preamble.file_id.hex()}.{name}"


def draft(form: Form, secrets: Secrets, stanzas: list[Stanza], sizes: list[int], small: dict[str, bytes]) -> Preamble:
    """The preamble with all sizes, before the digests are known."""
    return Preamble(
        form=form,
        slot_bytes=envelope.slot_bytes_for(stanzas),
        file_id=secrets.file_id,
        data_bytes=sum(sealed_size(size) for size in sizes),
        index_bytes=sealed_size(len(small["index"])),
        ledger_bytes=sealed_size(len(small["ledger"])),
        manifest_bytes=sealed_size(len(small["manifest"])),
        ledger_digest=b"",
        manifest_digest=b"",
    )


def _small(sizes: Mapping[str, int], manifest: Mapping[str, Any], ledger: bytes) -> dict[str, bytes]:
    """The plaintext of the three parts in ``SMALL``, by name."""
    index = [{"name": name, "size": size} for name, size in sizes.items()]
    return {"index": _canon.canonical(index), "ledger": ledger, "manifest": _canon.canonical(manifest)}


def _seal_members(secrets: Secrets, contents: Contents, places: Places, advance: Advance | None) -> None:
    for number, content in enumerate(contents.members.values()):
        member(secrets, number).seal(content, places[number], advance=advance)


def finished(sketch: Preamble, digests: Mapping[str, bytes]) -> Preamble:
    """The preamble, once the digests of the sealed ledger and manifest are known."""
    return replace(sketch, ledger_digest=digests["ledger"], manifest_digest=digests["manifest"])


def _complete(
    path: Path,
    descriptor: int,
    secrets: Secrets,
    stanzas: list[Stanza],
    *,
    sketch: Preamble,
    small: dict[str, bytes],
) -> str:
    """Write everything but the members into a file, the head last; returns the preamble's digest, in hexadecimal."""
    places, digests = places_in_file(path, descriptor, sketch, []), dict[str, bytes]()
    for name in SMALL:
        small_part(secrets, name).seal(Bytes(small[name]), places[name])
        digests[name] = digest(places[name])
    preamble = finished(sketch, digests)
    slot = envelope.pack_slot(preamble, secrets, stanzas, sequence=1)
    durable.pwrite_all(descriptor, preamble.pack() + slot + bytes(preamble.slot_bytes), 0)
    return preamble.digest()


def digest(place: Place) -> bytes:
    """SHA-256 of a part's ciphertext."""
    state, buffer = hashlib.sha256(), memoryview(bytearray(min(place.size, 1 << 20)))
    for position in range(0, place.size, len(buffer) or 1):
        piece = buffer[: min(len(buffer), place.size - position)]
        place.read(piece, position)
        state.update(piece)
    return state.digest()
