# SPDX-License-Identifier: Apache-2.0
"""A root and a signer's certificate for trials of content credentials, as C2PA's profile of X.509 wants them.

Nobody but you trusts this root: it proves nothing to others. What makes a chain pass: a root that may sign
certificates; a leaf with key usage ``digitalSignature`` alone, extended usage ``emailProtection``, both key identifiers
and an organisation; leaf and root in one PEM file.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = timedelta(days=365)


@final
@dataclass(frozen=True)
class TestChain:
    """PEM texts: the root, the chain (leaf first), and the leaf's **private** key. The root's key is thrown away."""

    __test__ = False  # no test of pytest's

    root: str
    chain: str
    key: str

    @classmethod
    def generate(cls, organisation: str) -> "TestChain":
        """A new P-256 chain that holds for a year."""
        above, below = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        root_name, leaf_name = _name(organisation, "test root"), _name(organisation, "test signer")
        root = _certificate(root_name, root_name, above.public_key(), above, is_root=True)
        leaf = _certificate(leaf_name, root_name, below.public_key(), above, is_root=False)
        key = below.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls(_pem(root), _pem(leaf) + _pem(root), key.decode())

    def write(self, folder: Path) -> None:
        """Write ``root.pem``, ``chain.pem`` and ``leaf.key`` (mode 0600); never over a file.

        Raises:
            FileExistsError: one of them is there already.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, text, mode in (
            ("leaf.key", self.key, 0o600),
            ("chain.pem", self.chain, 0o644),
            ("root.pem", self.root, 0o644),
        ):
            path = folder / name
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                raise FileExistsError(f"{path}: is there already; name another folder") from None
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)


def _name(organisation: str, common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{organisation} {common}"),
        ]
    )


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    by: ec.EllipticCurvePrivateKey,
    *,
    is_root: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(
            issuer, subject, key, x509.random_serial_number(), now - timedelta(hours=1), now + _VALID
        )
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(_usage(is_root=is_root), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if not is_root:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(by, hashes.SHA256())


def _usage(*, is_root: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_root,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_root,
        crl_sign=is_root,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
