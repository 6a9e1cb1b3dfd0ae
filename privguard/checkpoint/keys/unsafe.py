# SPDX-License-Identifier: Apache-2.0
"""Raw key bytes, for who has to move a key into another system. privguard itself never imports this module.

Whatever holds these bytes can open everything that was sealed to the key: logs, swap, core dumps and shells included.
"""

from privguard import _check
from privguard.checkpoint.keys.key import _DOOR, _SECRET_BYTES, Key, Kind


def symmetric_key(raw: bytes) -> Key:
    """A symmetric key from 32 bytes that came from a good source of chance."""
    return key_of(Kind.SYMMETRIC, raw)


def key_of(kind: Kind, raw: bytes) -> Key:
    """A key of ``kind`` from its secret bytes, as ``raw_bytes`` gives them."""
    _check.require(kind in _SECRET_BYTES, "kind", kind, wanted="a kind of key with a file form")
    _check.require(len(raw) == _SECRET_BYTES[kind], "len(raw)", len(raw), wanted=f"{_SECRET_BYTES[kind]} bytes")
    return Key(kind, bytes(raw), _door=_DOOR)


def raw_bytes(key: Key) -> bytes:
    """The secret bytes of a key: 32 (symmetric, X25519), 96 (the lattice seed, then X25519), or a passphrase."""
    return key._material  # noqa: SLF001
