# SPDX-License-Identifier: Apache-2.0
"""OpenSSF model signatures: a sigstore bundle (v0.3) over a folder, as ``model_signing verify key`` reads it.

The statement lists each file's SHA-256; its subject is the SHA-256 over all of them, in the order of their names. The
reader knows ECDSA keys only, so the key has to be P-256. Sealed folders are signed as they lie, ciphertext and all.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from privguard import _canon
from privguard.attest import statement
from privguard.attest.statement import Envelope, Identity, SigningKey, Statement
from privguard.errors import TamperedError
from privguard.records import Digest

PREDICATE_TYPE = "https://model_signing/signature/v1.0"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def sign_folder(folder: Path, *, by: SigningKey, signature: Path) -> None:
    """Write a bundle over all files below ``folder`` to ``signature``, which itself is left out.

    Args:
        folder: the model's folder.
        by: who signs, or has signed.
        signature: the bundle's file.

    Raises:
        ValueError: the key is not ECDSA P-256, or the folder has no file.
    """
    if by.identity.algorithm == "ed25519":
        raise ValueError(
            "by: expected an ECDSA P-256 key; model_signing reads no Ed25519, use SigningKey.generate_p256()"
        )
    ignored = [signature.name] if signature.parent.resolve() == folder.resolve() else []
    resources = _resources(folder, ignored)
    if not resources:
        raise ValueError(f"folder={str(folder)!r}: expected at least one file")
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": ignored}
    content = Statement(
        subjects=(Digest(name=folder.resolve().name, sha256=_root(resources)),),
        predicate_type=PREDICATE_TYPE,
        predicate={"serialization": serialization, "resources": resources},
    )
    hint = hashlib.sha256(by.identity.pem().encode()).hexdigest()
    material = {"publicKey": {"hint": hint}, "tlogEntries": []}
    envelope = statement.sign(content, by=by).to_json()
    bundle = {"mediaType": BUNDLE_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}
    signature.write_bytes(_canon.canonical(bundle) + b"\n")


def verify_folder(folder: Path, *, by: Identity, signature: Path) -> Statement:
    """The statement in a bundle, once ``by`` signed it and the files below ``folder`` are exactly those that it lists.

    Args:
        folder: the model's folder.
        by: who signs, or has signed.
        signature: the bundle's file.

    Raises:
        TamperedError: another signer, or a file changed, added or missing.
    """
    try:
        bundle = json.loads(signature.read_bytes())
        envelope = Envelope.from_json(bundle["dsseEnvelope"])
    except (KeyError, TypeError, ValueError):
        raise TamperedError(f"signature={str(signature)!r}: not a sigstore bundle in JSON") from None
    content = statement.verify(envelope, by=by)
    ignored = [signature.name] if signature.parent.resolve() == folder.resolve() else []
    resources = _resources(folder, ignored)
    listed = content.predicate.get("resources")
    if (
        content.predicate_type != PREDICATE_TYPE
        or listed != resources
        or content.subjects[0].sha256 != _root(resources)
    ):
        raise TamperedError(f"folder={str(folder)!r}: its files are not the ones that {by} signed")
    return content


def _resources(folder: Path, ignored: list[str]) -> list[dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [(path.relative_to(folder).as_posix(), path) for path in files]
    return [
        {"name": name, "algorithm": "sha256", "digest": _hash(path)}
        for name, path in sorted(paths)
        if name not in ignored
    ]


def _root(resources: list[dict[str, Any]]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(item["digest"]) for item in resources)).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
