# SPDX-License-Identifier: Apache-2.0
"""A timestamp server and a beacon on the team's own machine: for tests, and for teams without a network.

They speak the same formats as the outside ones, so everything downstream runs for real, but they prove nothing against
their own operator. Therefore their ``Authority`` and
``Beacon`` say ``external=False``, and every verdict that rests on them repeats it.
"""

import hashlib
import hmac
import os
from datetime import UTC, datetime, timedelta
from typing import Any, cast, final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from rfc3161_client import _rust as parser  # its request parser has no public name

from privguard.attest import _der as der
from privguard.attest import beacon
from privguard.attest.beacon import Beacon
from privguard.attest.timestamp import Authority

_VALID = timedelta(days=3650)  # before and after the making of a certificate: tests stamp for the past, too
_SHA256 = "2.16.840.1.101.3.4.2.1"
_ECDSA_WITH_SHA256 = "1.2.840.10045.4.3.2"
_SIGNED_DATA = "1.2.840.113549.1.7.2"
_TST_INFO = "1.2.840.113549.1.9.16.1.4"
_CONTENT_TYPE = "1.2.840.113549.1.9.3"
_MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
_SIGNING_CERTIFICATE_V2 = "1.2.840.113549.1.9.16.2.47"
_POLICY = "1.3.6.1.4.1.99999.1"  # a policy number of nobody: no outside authority uses it


@final
class TimestampServer:
    """A timestamp authority with a root and a signing certificate of its own, both P-256.

    It says whatever time its operator wants it to say; nothing but the operator makes it honest.
    """

    def __init__(self, authority: Authority, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.authority, self._certificate, self._key = authority, certificate, key

    @classmethod
    def generate(cls, name: str = "local timestamp server") -> "TimestampServer":
        """A server with fresh keys."""
        key, root_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        root = _certificate(f"{name} root", root_key, issuer=f"{name} root", signer=root_key)
        certificate = _certificate(name, key, issuer=f"{name} root", signer=root_key)
        return cls(Authority(name=name, root=root.public_bytes(Encoding.DER), external=False), certificate, key)

    def answer(self, request: bytes, *, at: datetime | None = None) -> bytes:
        """The timestamp response (DER) to a request, for the present or for the time ``at``."""
        question = parser.parse_timestamp_request(request)
        moment = (at or datetime.now(UTC)).astimezone(UTC)
        imprint = der.sequence(der.sequence(der.oid(_SHA256)), der.octets(question.message_imprint.message))
        nonce = [] if question.nonce is None else [der.integer(question.nonce)]
        serial = der.integer(int.from_bytes(os.urandom(16), "big"))
        info = der.sequence(der.integer(1), der.oid(_POLICY), imprint, serial, der.time(moment), *nonce)
        granted = der.sequence(der.integer(0))
        return der.sequence(granted, self._signed(info))

    def to_json(self) -> dict[str, Any]:
        """Everything needed to go on answering, **the private key included**; for a file with mode 0600."""
        return {
            "authority": self.authority.to_json(),
            "certificate": self._certificate.public_bytes(Encoding.DER).hex(),
            "key": _private(self._key).hex(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TimestampServer":
        """The inverse of ``to_json``."""
        certificate = x509.load_der_x509_certificate(bytes.fromhex(value["certificate"]))
        key = load_der_private_key(bytes.fromhex(value["key"]), password=None)
        return cls(Authority.from_json(value["authority"]), certificate, cast("ec.EllipticCurvePrivateKey", key))

    def _signed(self, info: bytes) -> bytes:
        """CMS SignedData over a TSTInfo (RFC 5652, 5; RFC 3161, 2.4.2; RFC 5816 for the certificate's hash)."""
        certificate = self._certificate.public_bytes(Encoding.DER)
        own_hash = der.sequence(der.sequence(der.sequence(der.octets(hashlib.sha256(certificate).digest()))))
        attributes = der.set_of(
            [
                der.attribute(_CONTENT_TYPE, der.oid(_TST_INFO)),
                der.attribute(_MESSAGE_DIGEST, der.octets(hashlib.sha256(info).digest())),
                der.attribute(_SIGNING_CERTIFICATE_V2, own_hash),
            ]
        )
        signature = der.octets(self._key.sign(attributes, ec.ECDSA(SHA256())))
        issuer = der.sequence(self._certificate.issuer.public_bytes(), der.integer(self._certificate.serial_number))
        digest, ecdsa = der.sequence(der.oid(_SHA256)), der.sequence(der.oid(_ECDSA_WITH_SHA256))
        signer = der.sequence(der.integer(1), issuer, digest, der.implicit(attributes), ecdsa, signature)
        content = der.sequence(der.oid(_TST_INFO), der.explicit(der.octets(info)))
        certificates = der.implicit(der.set_of([certificate]))
        body = der.sequence(der.integer(3), der.set_of([digest]), content, certificates, der.set_of([signer]))
        return der.sequence(der.oid(_SIGNED_DATA), der.explicit(body))


@final
class LocalBeacon:
    """A beacon 2.0 chain with an RSA key of its own; a pulse may be asked for at any time that is a whole minute."""

    def __init__(self, beacon: Beacon, key: rsa.RSAPrivateKey, seed: bytes) -> None:
        self.beacon, self._key, self._seed = beacon, key, seed

    @classmethod
    def generate(cls, name: str = "local beacon", *, bits: int = 3072) -> "LocalBeacon":
        """A beacon with a fresh RSA key of so many bits."""
        key = rsa.generate_private_key(65537, bits)
        certificate = _certificate(name, key, issuer=name, signer=key).public_bytes(Encoding.DER)
        return cls(Beacon(name=name, certificate=certificate, chain=1, external=False), key, os.urandom(64))

    def pulse_after(self, moment: datetime) -> dict[str, Any]:
        """The published JSON of the first pulse strictly after ``moment``: one per minute, however often it is asked.

        It keeps no chain (its links are zero), and its operator knows every pulse beforehand. That is why verdicts name
        a local beacon.
        """
        index = int(moment.timestamp() * 1000) // beacon.PERIOD_MS + 1
        time = datetime.fromtimestamp(index * beacon.PERIOD_MS / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        uri = f"urn:privguard:local-beacon:chain:1:pulse:{index}"
        fields: dict[str, Any] = {
            "uri": uri,
            "version": "Version 2.0",
            "cipherSuite": 0,
            "period": beacon.PERIOD_MS,
            "certificateId": self.beacon.certificate_id,
            "chainIndex": 1,
            "pulseIndex": index,
            "timeStamp": time,
            "localRandomValue": self._random(index).hex(),
            "external": {"sourceId": bytes(64).hex(), "statusCode": 0, "value": bytes(64).hex()},
            "listValues": [{"uri": uri, "type": link, "value": bytes(64).hex()} for link in beacon.LINKS],
            "precommitmentValue": hashlib.sha512(self._random(index + 1)).hexdigest(),
            "statusCode": 0,
        }
        message = beacon.signed_bytes(fields)
        signature = self._key.sign(message, padding.PKCS1v15(), SHA512())
        output = beacon.output_value(message, signature)
        return {"pulse": {**fields, "signatureValue": signature.hex(), "outputValue": output.hex()}}

    def to_json(self) -> dict[str, Any]:
        """Everything needed to go on pulsing, **the private key included**; for a file with mode 0600."""
        return {"beacon": self.beacon.to_json(), "key": _private(self._key).hex(), "seed": self._seed.hex()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "LocalBeacon":
        """The inverse of ``to_json``."""
        key = load_der_private_key(bytes.fromhex(value["key"]), password=None)
        return cls(Beacon.from_json(value["beacon"]), cast("rsa.RSAPrivateKey", key), bytes.fromhex(value["seed"]))

    def _random(self, index: int) -> bytes:
        return hmac.digest(self._seed, index.to_bytes(8, "big"), "sha512")


_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def _certificate(name: str, key: _Key, *, issuer: str, signer: _Key) -> x509.Certificate:
    now, is_root = datetime.now(UTC), name == issuer
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not is_root:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
    return builder.sign(signer, SHA256())


def _private(key: _Key) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
