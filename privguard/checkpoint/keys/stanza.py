# SPDX-License-Identifier: Apache-2.0
"""One file key wrapped for one recipient, and unwrapped with that recipient's key.

Each stanza binds the file and the role: a stanza moved to another file, or relabelled from audit to resume, does not
open. The bytes are laid down in docs/spec/checkpoint-v1.md, section 4.
"""

import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from privguard.checkpoint.keys.key import ID_BYTES, Key, KeyService, Kind, Recipient

KEY_BYTES = 32
_HEAD = struct.Struct(">HH16sI")  # kind, role, key id, length of the body
_COST = struct.Struct(">III")  # Argon2id: KiB of memory, passes, lanes
_DEFAULT_COST = (64 << 10, 3, 4)  # RFC 9106, section 4, second recommended option
_LOWEST_COST, _HIGHEST_COST = (8 << 10, 1, 1), (1 << 20, 16, 16)  # up to 1 GiB; more is a denial of service, not a key


class Role(IntEnum):
    """What a key may do with a file: everything, or read the ledger and the manifest."""

    RESUME = 1
    AUDIT = 2


@final
@dataclass(frozen=True)
class Stanza:
    """One wrapped key as it stands in the header."""

    kind: Kind
    role: Role
    key_id: bytes
    body: bytes

    @property
    def name(self) -> str:
        """Whom it is for, as people read it: the kind of key and its identity; a passphrase has none."""
        return self.kind.label if self.kind is Kind.PASSPHRASE else f"{self.kind.label} {self.key_id.hex()}"

    def pack(self) -> bytes:
        """The stanza's bytes."""
        return _HEAD.pack(self.kind, self.role, self.key_id, len(self.body)) + self.body


def unpack(data: bytes) -> tuple[Stanza, bytes]:
    """The first stanza of ``data`` and what follows it.

    Raises:
        ValueError: an unknown kind or role, or a length that points outside.
    """
    if len(data) < _HEAD.size:
        raise ValueError("stanza cut short")
    kind, role, name, length = _HEAD.unpack_from(data)
    body = data[_HEAD.size : _HEAD.size + length]
    if len(body) != length:
        raise ValueError("stanza cut short")
    return Stanza(Kind(kind), Role(role), name, body), data[_HEAD.size + length :]


def wrap(secret: bytes, recipient: Recipient, *, role: Role, file_id: bytes) -> Stanza:
    """``secret`` wrapped so that only the recipient's key gives it back, for this file and this role."""
    info = _info(recipient.kind, role, file_id)
    name = bytes(ID_BYTES) if recipient.kind is Kind.PASSPHRASE else bytes.fromhex(recipient.id)
    return Stanza(recipient.kind, role, name, _WRAP[recipient.kind](secret, recipient._material, info))  # noqa: SLF001 — this module is the lock that the material fits


def unwrap(stanza: Stanza, key: Key, *, file_id: bytes) -> bytes | None:
    """The secret in ``stanza``, or None where it is not for ``key`` or was changed."""
    if stanza.kind is not key.kind or (key.kind is not Kind.PASSPHRASE and stanza.key_id.hex() != key.id):
        return None
    info = _info(stanza.kind, stanza.role, file_id)
    try:
        secret = _UNWRAP[stanza.kind](stanza.body, key._material, info)  # noqa: SLF001
    except (InvalidTag, ValueError, struct.error):
        return None
    return secret if len(secret) == KEY_BYTES else None


def _info(kind: Kind, role: Role, file_id: bytes) -> bytes:
    return b"privguard/v1 stanza\0" + struct.pack(">HH", kind, role) + file_id


def _expand(secret: bytes, info: bytes) -> AESGCM:
    return AESGCM(HKDFExpand(SHA512(), KEY_BYTES, info).derive(secret))


# The zero nonce is safe in both functions below: each key-encryption key comes from a fresh salt and is used once.
_ONCE = bytes(12)


def _wrap_symmetric(secret: bytes, material: bytes, info: bytes) -> bytes:
    salt = os.urandom(32)
    return salt + _expand(material, info + salt).encrypt(_ONCE, secret, None)


def _unwrap_symmetric(body: bytes, material: bytes, info: bytes) -> bytes:
    return _expand(material, info + body[:32]).decrypt(_ONCE, body[32:], None)


def _wrap_passphrase(secret: bytes, material: bytes, info: bytes) -> bytes:
    head = _COST.pack(*_DEFAULT_COST) + os.urandom(16)
    return head + _expand(_stretch(material, head), info + head).encrypt(_ONCE, secret, None)


def _unwrap_passphrase(body: bytes, material: bytes, info: bytes) -> bytes:
    head = body[: _COST.size + 16]
    if len(body) != len(head) + KEY_BYTES + 16:
        raise ValueError("a passphrase stanza of the wrong length")
    return _expand(_stretch(material, head), info + head).decrypt(_ONCE, body[len(head) :], None)


def _stretch(passphrase: bytes, head: bytes) -> bytes:
    memory, passes, lanes = cost = _COST.unpack_from(head)
    if not all(low <= value <= high for low, value, high in zip(_LOWEST_COST, cost, _HIGHEST_COST, strict=True)):
        raise ValueError("Argon2id parameters out of bounds")
    salt = head[_COST.size :]
    return Argon2id(salt=salt, length=KEY_BYTES, iterations=passes, lanes=lanes, memory_cost=memory).derive(passphrase)


_X25519 = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_HYBRID = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def _wrap_x25519(secret: bytes, material: bytes, info: bytes) -> bytes:
    return _X25519.encrypt(secret, X25519PublicKey.from_public_bytes(material), info=info)


def _unwrap_x25519(body: bytes, material: bytes, info: bytes) -> bytes:
    return _X25519.decrypt(body, X25519PrivateKey.from_private_bytes(material), info=info)


def _wrap_hybrid(secret: bytes, material: bytes, info: bytes) -> bytes:
    lattice = MLKEM768PublicKey.from_public_bytes(material[:1184])
    return _HYBRID.encrypt(
        secret, MLKEM768X25519PublicKey(lattice, X25519PublicKey.from_public_bytes(material[1184:])), info=info
    )


def _unwrap_hybrid(body: bytes, material: bytes, info: bytes) -> bytes:
    lattice = MLKEM768PrivateKey.from_seed_bytes(material[:64])
    return _HYBRID.decrypt(
        body, MLKEM768X25519PrivateKey(lattice, X25519PrivateKey.from_private_bytes(material[64:])), info=info
    )


def _wrap_service(secret: bytes, material: KeyService, info: bytes) -> bytes:
    return material.wrap(secret, info)


def _unwrap_service(body: bytes, material: KeyService, info: bytes) -> bytes:
    return material.unwrap(body, info)


_WRAP = {
    Kind.SYMMETRIC: _wrap_symmetric,
    Kind.PASSPHRASE: _wrap_passphrase,
    Kind.X25519: _wrap_x25519,
    Kind.X25519_MLKEM768: _wrap_hybrid,
    Kind.SERVICE: _wrap_service,
}
_UNWRAP = {
    Kind.SYMMETRIC: _unwrap_symmetric,
    Kind.PASSPHRASE: _unwrap_passphrase,
    Kind.X25519: _unwrap_x25519,
    Kind.X25519_MLKEM768: _unwrap_hybrid,
    Kind.SERVICE: _unwrap_service,
}
