# SPDX-License-Identifier: Apache-2.0
"""RFC 3161 timestamps: what an outside authority says about when some bytes already existed.

The request goes to the authority by whatever means the user has (``curl -H 'Content-Type:
application/timestamp-query'``); privguard opens no connection of its own. Answers are verified offline with
``rfc3161-client`` against roots that the reader trusts, at the time in the answer, so they stay good after the
authority's certificate has run out. A server for tests and offline teams is in ``privguard.attest.local``.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, final

import rfc3161_client
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from privguard.errors import TamperedError


@final
@dataclass(frozen=True, kw_only=True)
class Authority:
    """A timestamp authority that a reader trusts: its name, its root and intermediate certificates (DER).

    ``external`` is false for a server that one of the parties runs; every verdict built on it says so.
    """

    name: str
    root: bytes
    intermediates: tuple[bytes, ...] = ()
    external: bool = True

    def to_json(self) -> dict[str, Any]:
        """The authority as plain JSON, certificates in base64."""
        chain = [base64.b64encode(item).decode("ascii") for item in self.intermediates]
        root = base64.b64encode(self.root).decode("ascii")
        return {"name": self.name, "root": root, "intermediates": chain, "external": self.external}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Authority":
        """The inverse of ``to_json``.

        Args:
            value: JSON values, as they were read.
        """
        chain = tuple(base64.b64decode(item, validate=True) for item in value["intermediates"])
        root = base64.b64decode(value["root"], validate=True)
        return cls(name=str(value["name"]), root=root, intermediates=chain, external=bool(value["external"]))

    @classmethod
    def from_pem(cls, name: str, pem: bytes) -> "Authority":
        """An outside authority from its published PEM bundle: the self-signed certificate is the root.

        Args:
            name: how the authority is called.
            pem: certificates in PEM form.

        Raises:
            ValueError: the bundle does not hold exactly one self-signed certificate.
        """
        certificates = x509.load_pem_x509_certificates(pem)
        roots = [item for item in certificates if item.issuer == item.subject]
        if len(roots) != 1:
            raise ValueError(
                f"pem: found {len(roots)} self-signed certificates; expected one root and its intermediates"
            )
        chain = tuple(item.public_bytes(Encoding.DER) for item in certificates if item not in roots)
        return cls(name=name, root=roots[0].public_bytes(Encoding.DER), intermediates=chain)


def request(data: bytes) -> bytes:
    """A timestamp request (DER) for the SHA-256 of ``data``, with a nonce, asking for the authority's certificate.

    Args:
        data: the bytes that are stamped.
    """
    builder = rfc3161_client.TimestampRequestBuilder().data(data)
    return builder.hash_algorithm(rfc3161_client.HashAlgorithm.SHA256).build().as_bytes()


def verify(response: bytes, *, data: bytes, authority: Authority) -> datetime:
    """The time (UTC) at which ``authority`` saw ``data``.

    Args:
        response: the authority's answer, DER.
        data: the bytes that are stamped.
        authority: whose answer it has to be.

    Raises:
        TamperedError: the response is malformed, not signed under the authority's root, or over other bytes.
    """
    try:
        answer = rfc3161_client.decode_timestamp_response(response)
        builder = rfc3161_client.VerifierBuilder().add_root_certificate(x509.load_der_x509_certificate(authority.root))
        for item in authority.intermediates:
            builder = builder.add_intermediate_certificate(x509.load_der_x509_certificate(item))
        builder.build().verify_message(answer, data)
    except (rfc3161_client.VerificationError, ValueError) as error:
        raise TamperedError(f"timestamp: not {authority.name}'s over these bytes ({error})") from None
    return answer.tst_info.gen_time


def stated_time(response: bytes, *, data: bytes) -> datetime:
    """The time (UTC) in an answer over ``data``, whoever gave it; only ``verify`` says whether to believe it.

    Args:
        response: the authority's answer, DER.
        data: the bytes that are stamped.

    Raises:
        ValueError: no answer of a timestamp authority, one that grants nothing, or one over other bytes.
    """
    try:
        info = rfc3161_client.decode_timestamp_response(response).tst_info
    except ValueError as error:
        raise ValueError(f"timestamp: expected an authority's granted answer (RFC 3161); {error}") from None
    if info.message_imprint.message != hashlib.sha256(data).digest():
        raise ValueError("timestamp: expected an answer to this claim's request.tsq; this one is over other bytes")
    return info.gen_time
