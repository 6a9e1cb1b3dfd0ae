"""A timestamp server and a beacon on the team's own machine: for tests, and for teams without a network.

They speak the same formats as the outside ones, so everything downstream runs for real, but they prove nothing against
their own operator. Therefore their :class:`~privguard.attest.timestamp.Authority` and
:class:`~privguard.attest.beacon.Beacon` say ``external=False``, and every verdict that rests on them repeats it.
"""

import hashlib
import hmac
import os
from collections.abc import Sequence
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

from privguard.attest import beacon
from privguard.attest.beacon import Beacon
from privguard.attest.timestamp import Authority

_YEARS = timedelta(days=3650)
_SHA256 = "2.16.840.1.101.3.4.2.1"
_TST_INFO = "1.2.840.113549.1.9.16.1.4"
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
        asked = parser.parse_timestamp_request(request)
        moment = (at or datetime.now(UTC)).astimezone(UTC)
        imprint = _sequence(_sequence(_oid(_SHA256)), _octets(asked.message_imprint.message))
        nonce = [] if asked.nonce is None else [_integer(asked.nonce)]
        serial = _integer(int.from_bytes(os.urandom(16), "big"))
        info = _sequence(_integer(1), _oid(_POLICY), imprint, serial, _time(moment), *nonce)
        return _sequence(_sequence(_integer(0)), self._signed(info))

    def to_json(self) -> dict[str, Any]:
        """Everything needed to go on answering, **the private key included**; for a file with mode 0600."""
        return {
            "authority": self.authority.to_json(),
            "certificate": self._certificate.public_bytes(Encoding.DER).hex(),
            "key": _private(self._key).hex(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TimestampServer":
        """The inverse of :meth:`to_json`."""
        certificate = x509.load_der_x509_certificate(bytes.fromhex(value["certificate"]))
        key = load_der_private_key(bytes.fromhex(value["key"]), password=None)
        return cls(Authority.from_json(value["authority"]), certificate, cast("ec.EllipticCurvePrivateKey", key))

    def _signed(self, info: bytes) -> bytes:
        """CMS SignedData over a TSTInfo (RFC 5652, 5; RFC 3161, 2.4.2; RFC 5816 for the certificate's hash)."""
        own = self._certificate.public_bytes(Encoding.DER)
        attributes = [
            _attribute("1.2.840.113549.1.9.3", _oid(_TST_INFO)),
            _attribute("1.2.840.113549.1.9.4", _octets(hashlib.sha256(info).digest())),
            _attribute(
                "1.2.840.113549.1.9.16.2.47", _sequence(_sequence(_sequence(_octets(hashlib.sha256(own).digest()))))
            ),
        ]
        signature = self._key.sign(_set(attributes), ec.ECDSA(SHA256()))
        issuer = _sequence(self._certificate.issuer.public_bytes(), _integer(self._certificate.serial_number))
        algorithm, ecdsa = _sequence(_oid(_SHA256)), _sequence(_oid("1.2.840.10045.4.3.2"))
        signer = _sequence(_integer(1), issuer, algorithm, _retag(_set(attributes), 0xA0), ecdsa, _octets(signature))
        content = _sequence(_oid(_TST_INFO), _explicit(_octets(info)))
        body = _sequence(_integer(3), _set([algorithm]), content, _retag(_set([own]), 0xA0), _set([signer]))
        return _sequence(_oid("1.2.840.113549.1.7.2"), _explicit(body))


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
            "listValues": [{"uri": uri, "type": link, "value": bytes(64).hex()} for link in beacon._LINKS],  # noqa: SLF001 — one format
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
        """The inverse of :meth:`to_json`."""
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
        .not_valid_before(now - _YEARS)
        .not_valid_after(now + _YEARS)
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not is_root:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
    return builder.sign(signer, SHA256())


def _private(key: _Key) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


# The few lines of DER (X.690) that a timestamp answer needs.


def _tagged(tag: int, body: bytes) -> bytes:
    if len(body) < 0x80:  # noqa: PLR2004 — the short form of a length ends here
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def _sequence(*items: bytes) -> bytes:
    return _tagged(0x30, b"".join(items))


def _set(items: Sequence[bytes]) -> bytes:
    return _tagged(0x31, b"".join(sorted(items)))  # SET OF is sorted by encoding (X.690, 11.6)


def _retag(encoded: bytes, tag: int) -> bytes:
    return bytes([tag]) + encoded[1:]


def _explicit(body: bytes) -> bytes:
    return _tagged(0xA0, body)


def _octets(data: bytes) -> bytes:
    return _tagged(0x04, data)


def _integer(value: int) -> bytes:
    return _tagged(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _time(moment: datetime) -> bytes:
    return _tagged(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    return _tagged(0x06, bytes([40 * first + second]) + b"".join(_base128(part) for part in rest))


def _base128(value: int) -> bytes:
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(0x80 | value & 0x7F)
    return bytes(reversed(digits))


def _attribute(kind: str, value: bytes) -> bytes:
    return _sequence(_oid(kind), _set([value]))
