# SPDX-License-Identifier: Apache-2.0
"""The head of a sealed file: what it is, who may open it, and the two MACs that hold that together.

::

    preamble    magic, version, form, sizes, digests of the sealed ledger and manifest     never changes
    slot        sequence, stanzas, MAC for resume, MAC for audit, checksum                 replaced by a re-wrap

A file key is drawn for every save. The auditor's key is derived from it one way, so who may resume may audit and not
the other way round. The MAC for resume is keyed by the file key and covers the sealed ledger and manifest through
their digests: an auditor, who could seal another ledger under the audit key, cannot make that MAC, and so can neither
forge nor re-wrap. Bytes: docs/spec/checkpoint-v1.md, sections 2 to 5.
"""

import hashlib
import hmac
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import final

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from privguard.checkpoint.content.payload import MalformedError
from privguard.checkpoint.keys import stanza
from privguard.checkpoint.keys.key import Key, Kind, Recipient
from privguard.checkpoint.keys.stanza import KEY_BYTES, Role, Stanza
from privguard.errors import SealError

MAGIC = b"privguard sealed"
VERSION = 1
LEAST_SLOT, MOST_SLOT = 16 << 10, 1 << 20  # bytes
_PREAMBLE = struct.Struct(">16sHHI16sQQQQ32s32s")
PREAMBLE_BYTES = _PREAMBLE.size
_SLOT = struct.Struct(">QH")  # sequence, count of stanzas
_SEAL = 32  # bytes of a MAC and of the checksum


class Form(IntEnum):
    """One file with two slots, or a folder whose head is a file with one."""

    FILE = 1
    FOLDER = 2


@final
@dataclass(frozen=True, kw_only=True)
class Preamble:
    """The part of the head that a re-wrap leaves alone: sizes in bytes, and SHA-256 digests, all of ciphertext."""

    form: Form
    slot_bytes: int
    file_id: bytes
    data_bytes: int
    index_bytes: int
    ledger_bytes: int
    manifest_bytes: int
    ledger_digest: bytes
    manifest_digest: bytes

    def pack(self) -> bytes:
        """The preamble's bytes."""
        return _PREAMBLE.pack(
            MAGIC,
            VERSION,
            self.form,
            self.slot_bytes,
            self.file_id,
            self.data_bytes,
            self.index_bytes,
            self.ledger_bytes,
            self.manifest_bytes,
            self.ledger_digest,
            self.manifest_digest,
        )  # fmt: skip — in the order of the specification's table

    @classmethod
    def unpack(cls, data: bytes) -> "Preamble":
        """The preamble at the beginning of ``data``.

        Raises:
            MalformedError: the bytes are not a preamble.
            SealError: they are, of a version that is not read here.
        """
        if len(data) < PREAMBLE_BYTES or not data.startswith(MAGIC):
            raise MalformedError("no preamble")
        _, version, form, slot_bytes, file_id, *rest = _PREAMBLE.unpack_from(data)
        if version != VERSION:
            raise SealError(
                f"version={version}: expected {VERSION}, which this privguard reads; upgrade to open this file"
            )
        if form not in set(Form) or not LEAST_SLOT <= slot_bytes <= MOST_SLOT or slot_bytes & (slot_bytes - 1):
            raise MalformedError("form or slot size")
        names = ("data_bytes", "index_bytes", "ledger_bytes", "manifest_bytes", "ledger_digest", "manifest_digest")
        return cls(form=Form(form), slot_bytes=slot_bytes, file_id=file_id, **dict(zip(names, rest, strict=True)))

    def digest(self) -> str:
        """SHA-256 of these bytes, in hexadecimal: names one save of one file, whoever may open it by now."""
        return hashlib.sha256(self.pack()).hexdigest()

    @property
    def slots(self) -> int:
        """How many slots follow: two in a file, so that one is whole at any moment; one in a folder's head."""
        return 2 if self.form is Form.FILE else 1

    @property
    def head_bytes(self) -> int:
        """Bytes of preamble and slots."""
        return PREAMBLE_BYTES + self.slots * self.slot_bytes


@final
@dataclass(frozen=True)
class Secrets:
    """The keys to one file that one role holds: all of them are derived from ``root``, 32 bytes.

    For who may resume, ``root`` is the file key; for an auditor it is the audit key, which derives from the file key.
    """

    role: Role
    file_id: bytes
    root: bytes = field(repr=False)

    @classmethod
    def fresh(cls) -> "Secrets":
        """All keys of a new file, from the operating system's entropy: nothing about them is kept between saves."""
        return cls(Role.RESUME, os.urandom(16), os.urandom(KEY_BYTES))

    def audit(self) -> "Secrets":
        """The auditor's keys, derived one way: the file key cannot be computed from them."""
        if self.role is Role.AUDIT:
            return self
        return Secrets(Role.AUDIT, self.file_id, self.derive("audit"))

    def derive(self, label: str) -> bytes:
        """The key for one purpose (HKDF-Expand with SHA-512, RFC 5869)."""
        info = b"privguard/v1 " + label.encode() + b"\0" + self.file_id
        return HKDFExpand(SHA512(), KEY_BYTES, info).derive(self.root)

    def mac(self, preamble: bytes, body: bytes) -> bytes:
        """HMAC-SHA-256 of this role over preamble and slot body."""
        return hmac.digest(self.derive("mac"), preamble + body, hashlib.sha256)


@final
@dataclass(frozen=True)
class Slot:
    """Who may open, and the proof that somebody who may resume said so."""

    sequence: int
    stanzas: tuple[Stanza, ...]
    body: bytes
    macs: dict[Role, bytes]

    def names(self, role: Role) -> tuple[str, ...]:
        """Who may do what ``role`` says: kind and identity of each key, as ``Stanza.name`` writes them."""
        return tuple(one.name for one in self.stanzas if one.role is role)

    def opened_by(self, key: Key, preamble: Preamble) -> Secrets | None:
        """The secrets that ``key`` unwraps; None where it unwraps none, or where the MAC of its role does not hold.

        A key that was given both roles resumes.
        """
        for one in sorted(self.stanzas, key=lambda one: one.role):
            secret = stanza.unwrap(one, key, file_id=preamble.file_id)
            if secret is None:
                continue
            secrets = Secrets(one.role, preamble.file_id, secret)
            # Who may resume has the auditors' key as well, and so answers for every byte of the slot.
            both = (secrets, secrets.audit()) if one.role is Role.RESUME else (secrets,)
            holds = [hmac.compare_digest(it.mac(preamble.pack(), self.body), self.macs[it.role]) for it in both]
            return secrets if all(holds) else None
        return None


def wrap(secrets: Secrets, to: Sequence[Recipient], auditors: Sequence[Recipient] = ()) -> list[Stanza]:
    """Stanzas for everybody: the file key for ``to``, the audit key for ``auditors``."""
    both = ((secrets, to), (secrets.audit(), auditors))
    return [
        stanza.wrap(role.root, one, role=role.role, file_id=secrets.file_id)
        for role, everybody in both
        for one in {(each.kind, each.id): each for each in everybody}.values()
    ]


def slot_bytes_for(stanzas: Sequence[Stanza]) -> int:
    """A power of two with room for as many stanzas again."""
    needed = _SLOT.size + 3 * _SEAL + 2 * sum(len(one.pack()) for one in stanzas)
    return max(LEAST_SLOT, 1 << (needed - 1).bit_length())


def pack_slot(preamble: Preamble, secrets: Secrets, stanzas: Sequence[Stanza], *, sequence: int) -> bytes:
    """One slot, MACed for both roles; only who may resume can make it.

    Raises:
        SealError: more stanzas than the slot holds.
    """
    packed = _SLOT.pack(sequence, len(stanzas)) + b"".join(one.pack() for one in stanzas)
    room = preamble.slot_bytes - 3 * _SEAL
    if len(packed) > room:
        raise SealError(
            f"recipients={len(stanzas)}: expected at most {room} bytes of them in this file's head, and they take "
            f"{len(packed)}; remove some, or seal the content again for all of them"
        )
    if _passphrases(stanzas) > 1:
        raise SealError("recipients: expected at most one passphrase, so that opening tries one derivation; remove one")
    body = packed.ljust(room, b"\0")
    head = preamble.pack()
    sealed = body + secrets.mac(head, body) + secrets.audit().mac(head, body)
    return sealed + hashlib.sha256(sealed).digest()


def unpack_slot(data: bytes) -> Slot | None:
    """The slot in ``data``; None where it is empty or torn.

    Raises:
        MalformedError: the checksum holds and the content is not a slot, which no crash can cause.
    """
    sealed, checksum = data[:-_SEAL], data[-_SEAL:]
    if not hmac.compare_digest(hashlib.sha256(sealed).digest(), checksum):
        return None
    body, resume, audit = sealed[: -2 * _SEAL], sealed[-2 * _SEAL : -_SEAL], sealed[-_SEAL:]
    sequence, count = _SLOT.unpack_from(body)
    rest, stanzas = body[_SLOT.size :], list[Stanza]()
    try:
        for _ in range(count):
            one, rest = stanza.unpack(rest)
            stanzas.append(one)
    except ValueError as error:
        raise MalformedError(str(error)) from None
    names = {(one.kind, one.role, one.key_id) for one in stanzas}
    if rest.strip(b"\0") or not sequence or len(names) < len(stanzas) or _passphrases(stanzas) > 1:
        raise MalformedError("padding, sequence, a key named twice or a second passphrase")
    return Slot(sequence, tuple(stanzas), body, {Role.RESUME: resume, Role.AUDIT: audit})


def active(slots: Sequence[bytes]) -> tuple[int, Slot]:
    """The position and content of the slot that counts: the whole one with the greatest sequence.

    Raises:
        MalformedError: none is whole, or two claim to be the newest.
    """
    whole = [(slot.sequence, at, slot) for at, data in enumerate(slots) if (slot := unpack_slot(data)) is not None]
    if not whole or (len(whole) == 2 and whole[0][0] == whole[1][0]):  # noqa: PLR2004 — a file has two slots
        raise MalformedError("no slot")
    _, at, slot = max(whole, key=lambda each: each[0])
    return at, slot


def _passphrases(stanzas: Sequence[Stanza]) -> int:
    return sum(one.kind is Kind.PASSPHRASE for one in stanzas)
