# SPDX-License-Identifier: Apache-2.0
"""Signed statements: in-toto v1 inside a DSSE envelope, under an Ed25519 or ECDSA P-256 key.

What is signed is never bare bytes but their DSSE pre-authentication encoding, so a signature made for one kind of
payload is worth nothing for another. ``verify(sign(statement, by=key), by=key.identity)`` gives the statement back;
everything else raises ``TamperedError``. Sources: DSSE v1.0 protocol, in-toto Statement v1. A
timestamp (``privguard.attest.timestamp``) says when, a log (``privguard.attest.log``) says how often.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256

from privguard import _canon, _check
from privguard.errors import TamperedError, UnrecognisedError
from privguard.records import Digest

IN_TOTO = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATES = "https://privguard.dev/"  # predicate types of our own start here and end in their version

_Public = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
_Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
_SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


@final
@dataclass(frozen=True)
class Identity:
    """A public key: who may be believed. Two identities are equal when their keys are.

    ``der`` is the key's SubjectPublicKeyInfo; build one with ``from_pem`` or ``SigningKey.identity``.
    """

    der: bytes

    def __post_init__(self) -> None:
        _supported(_public_key(self.der))

    @property
    def key_id(self) -> str:
        """SHA-256 of the key's DER form, in hexadecimal: its name in envelopes, logs and trust files."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def algorithm(self) -> str:
        """``"ed25519"`` or ``"ecdsa-p256-sha256"``."""
        return "ed25519" if isinstance(_public_key(self.der), ed25519.Ed25519PublicKey) else "ecdsa-p256-sha256"

    def verify(self, signature: bytes, message: bytes) -> None:
        """Return when ``signature`` is this identity's over ``message``; raise ``TamperedError`` when it is not.

        Args:
            signature: the signature's bytes.
            message: the bytes that are signed.
        """
        key = _public_key(self.der)
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, message)
            else:
                key.verify(signature, message, ec.ECDSA(SHA256()))
        except InvalidSignature:
            raise TamperedError(
                f"signature: not made by {self} over these bytes; ask the signer for the original"
            ) from None

    def pem(self) -> str:
        """The public key as PEM, for a file that others may read."""
        return _public_key(self.der).public_bytes(serialization.Encoding.PEM, _SPKI).decode("ascii")

    def write(self, path: Path) -> None:
        """Write the PEM form to ``path``.

        Args:
            path: the file.
        """
        path.write_text(self.pem(), encoding="ascii")

    @classmethod
    def from_pem(cls, text: str) -> "Identity":
        """Read a public key in PEM form.

        Args:
            text: what to_pem or to_json gave.

        Raises:
            ValueError: when the text is no PEM public key of a supported kind.
        """
        try:
            key = serialization.load_pem_public_key(text.encode())
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError("public key: expected PEM text of an Ed25519 or P-256 public key") from None
        return cls(_supported(key).public_bytes(serialization.Encoding.DER, _SPKI))

    @classmethod
    def read(cls, path: Path) -> "Identity":
        """Read the PEM public key in ``path``.

        Args:
            path: the file.

        Raises:
            ValueError: when it is no PEM public key of a supported kind; the message names the file.
        """
        try:
            return cls.from_pem(path.read_text(encoding="ascii", errors="replace"))
        except ValueError as error:
            raise ValueError(f"path={str(path)!r}: {error}") from None

    def to_json(self) -> str:
        """The DER form in base64: how records carry an identity."""
        return base64.b64encode(self.der).decode("ascii")

    @classmethod
    def from_json(cls, text: str) -> "Identity":
        """The inverse of ``to_json``; a key that cannot be read raises ``ValueError``.

        Args:
            text: what to_pem or to_json gave.
        """
        return cls(base64.b64decode(text, validate=True))

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.key_id[:16]}"


@final
class SigningKey:
    """A private signing key. ``repr`` shows its public identity only; it is not picklable.

    Ed25519 by default; ``generate_p256`` for readers that know only ECDSA, ``model_signing`` among them.
    """

    __slots__ = ("_key", "identity")

    def __init__(self, key: _Private) -> None:
        self._key = key
        self.identity = Identity(_supported(key.public_key()).public_bytes(serialization.Encoding.DER, _SPKI))

    @classmethod
    def generate(cls) -> "SigningKey":
        """A fresh Ed25519 key from the operating system's entropy."""
        return cls(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> "SigningKey":
        """The Ed25519 key of a secret seed of 32 bytes (RFC 8032, section 5.1.5), for keys that are derived.

        Args:
            seed: 32 secret bytes.
        """
        return cls(ed25519.Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def generate_p256(cls) -> "SigningKey":
        """A fresh ECDSA P-256 key from the operating system's entropy."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    def sign(self, message: bytes) -> bytes:
        """Signature over ``message``: 64 bytes for Ed25519, DER for ECDSA with SHA-256.

        Args:
            message: the bytes that are signed.
        """
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        return self._key.sign(message, ec.ECDSA(SHA256()))

    def write(self, path: Path) -> None:
        """Write the key as PEM (PKCS #8, in clear) that only its owner may read (mode 0600); never over a file.

        Args:
            path: the file.

        Raises:
            FileExistsError: when ``path`` is there already, because a lost signing key cannot be got back.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise FileExistsError(f"{path}: is there already; choose another name, no key is overwritten") from None
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(self.to_pem())

    def to_pem(self) -> str:
        """The **private** key as PEM, for a file that this process keeps private."""
        form = serialization.PrivateFormat.PKCS8
        return self._key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode("ascii")

    @classmethod
    def read(cls, path: Path) -> "SigningKey":
        """Read the PEM key in ``path``.

        Args:
            path: the file.

        Raises:
            ValueError: when it is no unencrypted PEM private key of a supported kind; the message shows nothing of it.
        """
        try:
            return cls.from_pem(path.read_text(encoding="ascii", errors="replace"))
        except ValueError as error:
            raise ValueError(f"path={str(path)!r}: {error}") from None

    @classmethod
    def from_pem(cls, text: str) -> "SigningKey":
        """The inverse of ``to_pem``; what is no such key raises ``ValueError``, which shows nothing of it.

        Args:
            text: what to_pem or to_json gave.
        """
        try:
            key = serialization.load_pem_private_key(text.encode(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError("private key: expected an unencrypted PEM key, Ed25519 or P-256") from None
        if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
            raise ValueError("private key: expected an Ed25519 or P-256 key")  # noqa: TRY004 — the content is wrong
        return cls(key)

    def __repr__(self) -> str:
        return f"SigningKey({self.identity})"

    def __reduce__(self) -> Any:
        raise TypeError("SigningKey: not picklable; write it with SigningKey.write(path)")


@final
@dataclass(frozen=True, kw_only=True)
class Statement:
    """An in-toto v1 statement: what is said (``predicate``, of ``predicate_type``) about which artefacts."""

    subjects: tuple[Digest, ...]
    predicate_type: str
    predicate: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        _check.require(bool(self.subjects), "subjects", self.subjects, wanted="at least one artefact")
        _check.require(":" in self.predicate_type, "predicate_type", self.predicate_type, wanted="a URI")

    def to_json(self) -> dict[str, Any]:
        """The statement as in-toto writes it."""
        return {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": subject.name, "digest": {"sha256": subject.sha256}} for subject in self.subjects],
            "predicateType": self.predicate_type,
            "predicate": _canon.to_json(self.predicate),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Statement":
        """Read a statement; what is no in-toto v1 statement raises ``TamperedError``.

        Args:
            value: JSON values, as they were read.
        """
        try:
            if value["_type"] != STATEMENT_TYPE:
                raise TamperedError(f"_type={value['_type']!r}: expected {STATEMENT_TYPE}")
            subjects = tuple(Digest(name=item["name"], sha256=item["digest"]["sha256"]) for item in value["subject"])
            predicate = cast("Mapping[str, Any]", value["predicate"])
            return cls(subjects=subjects, predicate_type=value["predicateType"], predicate=predicate)
        except (KeyError, TypeError, ValueError) as error:
            raise TamperedError(f"statement: not an in-toto v1 statement ({error})") from None


@final
@dataclass(frozen=True, kw_only=True)
class Envelope:
    """A DSSE envelope: the payload's exact bytes, their type, and signatures as (key id, signature) pairs.

    Anybody can build one; only ``verify`` says whose it is.
    """

    payload: bytes
    payload_type: str = IN_TOTO
    signatures: tuple[tuple[str, bytes], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The envelope as DSSE writes it, payload and signatures in base64."""
        signatures = [{"keyid": key_id, "sig": _to_base64(signature)} for key_id, signature in self.signatures]
        return {"payload": _to_base64(self.payload), "payloadType": self.payload_type, "signatures": signatures}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Envelope":
        """Read an envelope; what is none raises ``TamperedError``. Both alphabets of base64 are read, as DSSE asks.

        Args:
            value: JSON values, as they were read.
        """
        try:
            signatures = tuple((str(item.get("keyid", "")), _from_base64(item["sig"])) for item in value["signatures"])
            payload = _from_base64(value["payload"])
            return cls(payload=payload, payload_type=str(value["payloadType"]), signatures=signatures)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TamperedError(f"envelope: not a DSSE envelope ({error})") from None

    def digest(self) -> str:
        """SHA-256 of the envelope's canonical JSON: what is timestamped and logged."""
        return _canon.digest(self.to_json())

    def write(self, path: Path) -> None:
        """Write the envelope's canonical JSON to ``path``.

        Args:
            path: the file.
        """
        path.write_bytes(_canon.canonical(self.to_json()) + b"\n")

    @classmethod
    def read(cls, path: Path) -> "Envelope":
        """Read the envelope in ``path``; nothing in it is verified yet.

        Args:
            path: the file.
        """
        data = path.read_bytes()
        if not data.startswith(b"{"):
            raise UnrecognisedError(f"{path}: expected a DSSE envelope in JSON; this is another file")
        try:
            return cls.from_json(_canon.loads(data))
        except ValueError as error:
            raise TamperedError(f"path={str(path)!r}: not a DSSE envelope in JSON ({error})") from None


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE v1 pre-authentication encoding: the bytes that are signed.

    >>> pae("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'

    Args:
        payload_type: the payload's media type.
        payload: the payload's bytes.
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(statement: Statement, *, by: SigningKey) -> Envelope:
    """The statement's canonical JSON, signed ``by`` this key.

    Args:
        statement: the statement to be signed.
        by: the key that signs.
    """
    return countersign(Envelope(payload=_canon.canonical(statement.to_json())), by=by)


def countersign(envelope: Envelope, *, by: SigningKey) -> Envelope:
    """The same envelope with one more signature over the same payload.

    Args:
        envelope: a signed statement.
        by: the key that signs.
    """
    signature = by.sign(pae(envelope.payload_type, envelope.payload))
    pairs = (*envelope.signatures, (by.identity.key_id, signature))
    return Envelope(payload=envelope.payload, payload_type=envelope.payload_type, signatures=pairs)


def verify(envelope: Envelope, *, by: Identity) -> Statement:
    """The statement inside, once it is certain that ``by`` signed exactly these bytes.

    Nothing of the payload is parsed before the signature holds. Signatures by others are ignored.

    Args:
        envelope: a signed statement.
        by: who has to have signed.

    Raises:
        TamperedError: no valid signature of ``by``, another payload type, or a payload that is no statement.
    """
    if envelope.payload_type != IN_TOTO:
        raise TamperedError(f"payloadType={envelope.payload_type!r}: expected {IN_TOTO}")
    signed = pae(envelope.payload_type, envelope.payload)
    candidates = [signature for key_id, signature in envelope.signatures if key_id in {by.key_id, ""}]
    if not any(_holds(by, signature, signed) for signature in candidates):
        raise TamperedError(f"envelope: not signed by {by}; expected that identity's signature over this payload")
    try:
        value = _canon.loads(envelope.payload)
    except ValueError as error:
        raise TamperedError(f"payload: signed, but not JSON with one meaning ({error})") from None
    return Statement.from_json(value)


def verify_any(envelope: Envelope, *, by: Sequence[Identity]) -> tuple[Statement, Identity]:
    """The statement and the first of these identities that signed it; raises ``TamperedError`` when none did.

    Args:
        envelope: a signed statement.
        by: who may have signed.
    """
    for identity in by:
        try:
            return verify(envelope, by=identity), identity
        except TamperedError:
            continue
    names = ", ".join(map(str, by)) or "nobody"
    raise TamperedError(f"envelope: expected a signature of {names}; name the signer among the trusted identities")


def _holds(identity: Identity, signature: bytes, message: bytes) -> bool:
    try:
        identity.verify(signature, message)
    except TamperedError:
        return False
    return True


def _public_key(der: bytes) -> _Public:
    try:
        return _supported(serialization.load_der_public_key(der))
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("public key: expected DER of an Ed25519 or P-256 public key") from None


def _supported(key: object) -> _Public:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ValueError(f"{type(key).__name__}: expected an Ed25519 or P-256 key")


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
