# SPDX-License-Identifier: Apache-2.0
"""Public randomness: NIST Randomness Beacon 2.0 pulses, verified offline.

A pulse is 512 bits that nobody knew before its time, signed by the beacon. What is derived from a secret committed
*before* a pulse and from that pulse can be chosen by no one. Source: NISTIR 8213 (draft), "A Reference for Randomness
Beacons", sections 4 and 5; the byte layout is tested against pulses of NIST's chain 1. A beacon for tests and offline
teams is in ``privguard.attest.local``.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.serialization import Encoding

from privguard.errors import TamperedError

PERIOD_MS = 60_000
LINKS = ("previous", "hour", "day", "month", "year")  # earlier pulses that a pulse names, in the order of signing


@final
@dataclass(frozen=True, kw_only=True)
class Beacon:
    """A beacon that a reader trusts: its name, its certificate (DER), the chain, and whether a third party runs it."""

    name: str
    certificate: bytes
    chain: int
    external: bool = True

    @property
    def certificate_id(self) -> str:
        """SHA-512 of the certificate's DER form: how a pulse names its signer."""
        return hashlib.sha512(self.certificate).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The beacon as plain JSON, the certificate in base64."""
        certificate = base64.b64encode(self.certificate).decode("ascii")
        return {"name": self.name, "certificate": certificate, "chain": self.chain, "external": self.external}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Beacon":
        """The inverse of ``to_json``.

        Args:
            value: JSON values, as they were read.
        """
        certificate = base64.b64decode(value["certificate"], validate=True)
        return cls(
            name=value["name"], certificate=certificate, chain=int(value["chain"]), external=bool(value["external"])
        )

    @classmethod
    def from_pem(cls, name: str, pem: bytes, *, chain: int) -> "Beacon":
        """An outside beacon from its published PEM certificate.

        Args:
            name: how the beacon is called.
            pem: its certificate in PEM form.
            chain: number of its chain.
        """
        return cls(name=name, certificate=x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER), chain=chain)


@final
@dataclass(frozen=True, kw_only=True)
class Pulse:
    """A verified pulse: its time (UTC), its place in the chain, its output (64 bytes) and its predecessor's output."""

    time: datetime
    chain: int
    index: int
    period_ms: int
    output: bytes
    previous: bytes


def verify(published: Mapping[str, Any], *, beacon: Beacon) -> Pulse:
    """The pulse in a beacon's JSON, once its certificate, signature and output value hold.

    Args:
        published: the beacon's JSON of one pulse.
        beacon: whose pulse it has to be.

    Raises:
        TamperedError: a field is missing or changed, or another beacon or chain signed it.
    """
    try:
        fields = published.get("pulse", published)
        message = signed_bytes(fields)
        signature = bytes.fromhex(fields["signatureValue"])
        time = datetime.fromisoformat(fields["timeStamp"]).astimezone(UTC)
        certificate_id, chain, status = fields["certificateId"].lower(), fields["chainIndex"], fields["statusCode"]
        output = bytes.fromhex(fields["outputValue"])
        previous = bytes.fromhex(fields["listValues"][0]["value"])
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise TamperedError(f"pulse: not in the form of beacon 2.0 ({type(error).__name__}: {error})") from None
    if certificate_id != beacon.certificate_id or chain != beacon.chain:
        raise TamperedError(f"pulse: not of {beacon.name}, chain {beacon.chain}; expected that beacon's certificate")
    if status != 0:  # 0 is a regular pulse; anything else says that something was irregular, and none is needed
        raise TamperedError(f"statusCode={status}: the beacon itself marks this pulse as irregular; expected 0")
    _check_signature(signature, message, beacon)
    if output_value(message, signature) != output:
        raise TamperedError("outputValue: not the SHA-512 of the signed fields and their signature")
    index, period = fields["pulseIndex"], fields["period"]
    return Pulse(time=time, chain=chain, index=index, period_ms=period, output=output, previous=previous)


def signed_bytes(fields: Mapping[str, Any]) -> bytes:
    """The fields of a pulse in the order and layout in which they are signed; text and hashes carry a 4-byte length.

    Args:
        fields: fields of the pulse by name.
    """
    external, links = fields["external"], {item["type"]: item["value"] for item in fields["listValues"]}
    if tuple(item["type"] for item in fields["listValues"]) != LINKS:
        raise ValueError(f"listValues: expected {', '.join(LINKS)}")
    return b"".join(
        [
            _text(fields["uri"]),
            _text(fields["version"]),
            _number(fields["cipherSuite"], 4),
            _number(fields["period"], 4),
            _hex(fields["certificateId"]),
            _number(fields["chainIndex"], 8),
            _number(fields["pulseIndex"], 8),
            _text(fields["timeStamp"]),
            _hex(fields["localRandomValue"]),
            _hex(external["sourceId"]),
            _number(external["statusCode"], 4),
            _hex(external["value"]),
            *(_hex(links[link]) for link in LINKS),
            _hex(fields["precommitmentValue"]),
            _number(fields["statusCode"], 4),
        ]
    )


def output_value(message: bytes, signature: bytes) -> bytes:
    """SHA-512 over the signed bytes and the signature: the pulse's 64 public random bytes.

    NIST's chain hashes the signature without a length before it, whatever the draft says; a real pulse decides.

    Args:
        message: the signed bytes.
        signature: the signature over them.
    """
    return hashlib.sha512(message + signature).digest()


def _check_signature(signature: bytes, message: bytes, beacon: Beacon) -> None:
    key = x509.load_der_x509_certificate(beacon.certificate).public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise TamperedError(f"certificate of {beacon.name}: expected an RSA key (cipher suite 0)")
    try:
        key.verify(signature, message, padding.PKCS1v15(), SHA512())
    except InvalidSignature:
        raise TamperedError(f"pulse: its signature is not {beacon.name}'s") from None


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _text(value: str) -> bytes:
    return _sized(value.encode())


def _hex(value: str) -> bytes:
    return _sized(bytes.fromhex(value))


def _number(value: int, width: int) -> bytes:
    return int(value).to_bytes(width, "big")
