# SPDX-License-Identifier: Apache-2.0
"""Who may open a sealed file: keys, and the recipients made from them.

A ``Key`` opens, a ``Recipient`` can only be sealed to. The key pair of ``Key.generate`` is X25519 joined with
ML-KEM-768 (HPKE, RFC 9180, with the hybrid KEM of draft-ietf-hpke-pq), so a machine that trains needs the public half
alone and what it writes today stays shut for a quantum computer of tomorrow. Keys never show in ``repr``, are not
picklable and have no door to their bytes here; ``privguard.checkpoint.keys.unsafe`` is that door.
"""

import base64
import binascii
import contextlib
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol, final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from privguard import _check
from privguard.attest.statement import SigningKey
from privguard.checkpoint import durable
from privguard.errors import NoRecipientError, NotAKeyError, SealError

ID_BYTES = 16


class Kind(IntEnum):
    """The five kinds of key; the number is what stands in a stanza."""

    SYMMETRIC = 1
    PASSPHRASE = 2
    X25519 = 3
    X25519_MLKEM768 = 4
    SERVICE = 5

    @property
    def label(self) -> str:
        """The name in key files and on screen, such as ``x25519-mlkem768``."""
        return self.name.lower().replace("_", "-")


_SECRET_BYTES = {Kind.SYMMETRIC: 32, Kind.X25519: 32, Kind.X25519_MLKEM768: 96}
_PUBLIC_BYTES = {Kind.X25519: 32, Kind.X25519_MLKEM768: 1216}
_LABELS = {kind.label: kind for kind in Kind}
_KEY_LINE = re.compile(r"privguard-(key|recipient)-1 ([a-z0-9-]+) ([0-9a-f]{32}) ([A-Za-z0-9+/=]+)")
_LONGEST_KEY_FILE = 8192  # bytes; the hybrid's public half takes 1.7 kB


class KeyService(Protocol):
    """A key that stays elsewhere: a cloud key service, a PKCS#11 token, Vault.

    ``name`` is public and tells which key it is. ``wrap`` returns up to 8 KiB, ``unwrap`` undoes it and raises
    ``ValueError`` for anything that it did not wrap under the same ``context``, which names the file and the role; a
    service that cannot be reached raises what it likes.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 — the class says it

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """Wrap a file's key.

        Args:
            secret: 32 bytes.
            context: names the file and the role; bound to what is returned.
        """
        ...

    def unwrap(self, blob: bytes, context: bytes) -> bytes:
        """Undo ``wrap``.

        Args:
            blob: what ``wrap`` gave.
            context: the same as there.

        Raises:
            ValueError: not wrapped with this key under this context.
        """
        ...


class _Opaque(ABC):
    """A kind, an identity and material that neither prints nor pickles."""

    __slots__ = ("_material", "kind")

    def __init__(self, kind: Kind, material: Any) -> None:
        self.kind = kind
        self._material = material

    @property
    def id(self) -> str:
        """32 hexadecimal characters that name the key without telling anything about its secret."""
        return key_id(self.kind, self._public()).hex()

    @abstractmethod
    def _public(self) -> bytes:
        """The public half, or a name made from the secret where there is none."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind.label}, {'' if self.kind is Kind.PASSPHRASE else self.id[:8]})"

    def __reduce__(self) -> Any:
        raise TypeError(f"{type(self).__name__}: not picklable; write it with {type(self).__name__}.write(path)")


@final
class Recipient(_Opaque):
    """Someone a file can be sealed to.

    Made by ``Key.recipient``, read from a key or recipient file, or made from a key service. For symmetric keys
    and passphrases the recipient holds the secret itself, because there is no public half.
    """

    __slots__ = ()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Recipient":
        """The recipient in a recipient file, or the one of the key in a key file.

        Args:
            path: the key or recipient file.

        Raises:
            SealError: the file is neither.
        """
        what, kind, material = _read(Path(path))
        return cls(kind, material) if what == "recipient" else Key(kind, material, _door=_DOOR).recipient()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the public half to ``path``; refused where there is none.

        Args:
            path: the key or recipient file.
        """
        _write(Path(path), "recipient", self, self._public_or_refuse(), mode=0o644)

    def text(self) -> str:
        """The line of a recipient file: public, to be sent to whoever seals."""
        return _line("recipient", self, self._public_or_refuse())

    def _public_or_refuse(self) -> bytes:
        if self.kind not in _PUBLIC_BYTES:
            raise SealError(
                f"{self.kind.label}: such a key has no public half; share the key file itself, or make a pair"
            )
        return self._material

    def _public(self) -> bytes:
        return self._material if self.kind in _PUBLIC_BYTES else _name_of_secret(self._material)


@final
class Key(_Opaque):
    """What opens a sealed file.

    >>> key = Key.generate()
    >>> key.recipient().id == key.id
    True
    >>> Key(b"0" * 32)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: Key: not made from raw bytes; use Key.generate(), ...
    """

    __slots__ = ()

    def __init__(self, *material: Any, _door: object = None) -> None:
        if _door is not _DOOR or len(material) != 2:  # noqa: PLR2004 — kind and material
            raise TypeError(
                "Key: not made from raw bytes; use Key.generate(), Key.read(path), Key.from_passphrase(text) "
                "or privguard.checkpoint.keys.unsafe"
            )
        super().__init__(material[0], material[1])

    @classmethod
    def generate(cls) -> "Key":
        """A fresh pair of X25519 and ML-KEM-768: seal to its recipient anywhere, open with the key only."""
        return cls(Kind.X25519_MLKEM768, os.urandom(96), _door=_DOOR)

    @classmethod
    def generate_x25519(cls) -> "Key":
        """A fresh X25519 pair, for short recipients where no adversary keeps files for a quantum computer."""
        return cls(Kind.X25519, os.urandom(32), _door=_DOOR)

    @classmethod
    def generate_symmetric(cls) -> "Key":
        """A fresh 256-bit key that both seals and opens."""
        return cls(Kind.SYMMETRIC, os.urandom(32), _door=_DOOR)

    @classmethod
    def from_passphrase(cls, text: str) -> "Key":
        """A key from a passphrase, by Argon2id with 64 MiB, 3 passes and 4 lanes (RFC 9106, second choice).

        The text is taken as UTF-8, byte for byte: blanks at its ends count. Prefer five or more random words.

        Args:
            text: the passphrase.
        """
        _check.require(bool(text), "passphrase", "", wanted="at least one character")
        return cls(Kind.PASSPHRASE, text.encode(), _door=_DOOR)

    @classmethod
    def from_service(cls, service: KeyService) -> "Key":
        """A key that stays in a key service or token; see ``KeyService`` for the two methods it needs.

        Args:
            service: what wraps and unwraps with a key that stays elsewhere.
        """
        return cls(Kind.SERVICE, service, _door=_DOOR)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Key":
        """The key in a file that ``write`` wrote.

        Args:
            path: the key or recipient file.

        Raises:
            SealError: the file holds no key, or a character of it was changed.
        """
        what, kind, material = _read(Path(path))
        if what != "key":
            raise SealError(f"{path}: a recipient can be sealed to but opens nothing; give the key file")
        return cls(kind, material, _door=_DOOR)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the key to a new file that only its owner can read (mode 0600).

        Args:
            path: the key or recipient file.

        Raises:
            FileExistsError: a key file is never overwritten, since what it opens would be lost.
            SealError: passphrases and key services have no file.
        """
        if self.kind not in _SECRET_BYTES:
            raise SealError(f"{self.kind.label}: such a key has no file; keep it where it is")
        _write(Path(path), "key", self, self._material, mode=0o600)

    def recipient(self) -> Recipient:
        """Who has to be sealed to so that this key opens: the public half, where there is one."""
        return Recipient(self.kind, self._public() if self.kind in _PUBLIC_BYTES else self._material)

    def signer(self) -> SigningKey | None:
        """The Ed25519 key of whoever holds this key, derived from it one way; None where it has no bytes of its own.

        Its public half tells nothing about the key. Passphrases have none, because a derived key could be guessed at
        without the salt of a file. Specification: checkpoint-v1, section 8.
        """
        if self.kind not in _SECRET_BYTES:
            return None
        info = b"privguard/v1 signer\0" + bytes([self.kind])
        return SigningKey.from_seed(HKDFExpand(SHA512(), 32, info).derive(self._material))

    def _public(self) -> bytes:
        if self.kind is Kind.X25519:
            return X25519PrivateKey.from_private_bytes(self._material).public_key().public_bytes_raw()
        if self.kind is Kind.X25519_MLKEM768:
            lattice = MLKEM768PrivateKey.from_seed_bytes(self._material[:64]).public_key().public_bytes_raw()
            return lattice + X25519PrivateKey.from_private_bytes(self._material[64:]).public_key().public_bytes_raw()
        return _name_of_secret(self._material)


_DOOR = object()
One = Recipient | Key | str | os.PathLike[str]
To = One | Iterable[One]  # whom to seal to: recipients, keys, or paths of their files


def recipients(to: To) -> tuple[Recipient, ...]:
    """Recipients from recipients, keys or paths of their files.

    Args:
        to: one recipient, key or path of such a file, or several.

    Raises:
        NoRecipientError: there is none; what is sealed for nobody is lost.
    """
    found = tuple(_recipient(one) for one in _each(to))
    if not found:
        raise NoRecipientError("to=[]: expected at least one recipient; make one with `privguard key new team.key`")
    return found


def key_among(to: To) -> Key | None:
    """The first key, or path of a key file, among recipients: what opens again what is sealed to them.

    Args:
        to: one recipient, key or path of such a file, or several.
    """
    for one in _each(to):
        if isinstance(one, Key):
            return one
        if not isinstance(one, Recipient):
            with contextlib.suppress(SealError):
                return Key.read(one)
    return None


def _each(to: To) -> Iterable[One]:
    return (to,) if isinstance(to, str | os.PathLike | Recipient | Key) else to


def _recipient(one: One) -> Recipient:
    if isinstance(one, Recipient):
        return one
    return one.recipient() if isinstance(one, Key) else Recipient.read(one)


def key_id(kind: Kind, public: bytes) -> bytes:
    """The 16 bytes that name a key: the head of SHA-256 over its kind and public half.

    Args:
        kind: the kind of key.
        public: its public half, or the name made from its secret.
    """
    return hashlib.sha256(b"privguard/v1 key id\0" + bytes([kind]) + public).digest()[:ID_BYTES]


def _name_of_secret(secret: Any) -> bytes:
    if not isinstance(secret, bytes):
        return secret.name.encode()  # a key service names itself
    return hashlib.sha512(b"privguard/v1 name of a secret\0" + secret).digest()[:32]


def _line(what: str, key: _Opaque, material: bytes) -> str:
    return f"privguard-{what}-1 {key.kind.label} {key.id} {base64.b64encode(material).decode()}"


def _write(path: Path, what: str, key: _Opaque, material: bytes, *, mode: int) -> None:
    warning = "# Secret: whoever has this file can open what is sealed to it.\n" if what == "key" else ""
    try:
        durable.create(path, (warning + _line(what, key, material) + "\n").encode(), mode=mode)
    except FileExistsError:
        raise FileExistsError(f"{path}: is there already; choose another name, no {what} is ever overwritten") from None


def _read(path: Path) -> tuple[str, Kind, bytes]:
    with path.open("rb") as file:
        text = file.read(_LONGEST_KEY_FILE).decode("ascii", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = _KEY_LINE.fullmatch(lines[0]) if len(lines) == 1 else None
    if found is None:
        raise NotAKeyError(f"{path}: expected a key or recipient file of privguard; make one with `privguard key new`")
    what, label, name, encoded = found.groups()
    kind = _LABELS.get(label, Kind.SERVICE)
    sizes = _SECRET_BYTES if what == "key" else _PUBLIC_BYTES
    try:
        material = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        material = b""
    if kind not in sizes or len(material) != sizes[kind]:
        raise SealError(f"{path}: expected a whole {what} of a known kind; the file was damaged, take a copy")
    holder = Key(kind, material, _door=_DOOR) if what == "key" else Recipient(kind, material)
    if holder.id != name:
        raise SealError(
            f"{path}: the key does not have the identity written beside it; the file was damaged, take a copy"
        )
    return what, kind, material
