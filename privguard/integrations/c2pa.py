# SPDX-License-Identifier: Apache-2.0
"""Content credentials (C2PA) for marked pictures: signed and verified offline, bound to the mark.

A manifest says who signed which bytes; any later save of the file drops it, and the mark is what stays. Only *Trusted*
is accepted: "Valid" means that the bytes fit a certificate, which anybody can make for himself. Extra ``c2pa``.
Specification: C2PA 2.x, actions ``c2pa.created`` and ``c2pa.watermarked.bound``, assertion ``c2pa.soft-binding``.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias, cast, final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from privguard.errors import MarkError
from privguard.records import Record
from privguard.watermark.image.profile import ImageProfile

SOFT_BINDING = "dev.privguard.image-mark.1"
ASSERTION = "dev.privguard.image-mark"
MIME = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp",
    ".tif": "image/tiff", ".tiff": "image/tiff",
}  # fmt: skip
_EXPIRED = "signingCredential.expired"
_SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Made(StrEnum):
    """How a picture was made, in IPTC's words; the manifest says it, so it has to be true."""

    GENERATED = "trainedAlgorithmicMedia"
    COMPOSITE = "compositeWithTrainedAlgorithmicMedia"


class State(StrEnum):
    """What a file's credentials are worth. Only TRUSTED is accepted."""

    TRUSTED = "trusted"
    VALID = "valid"
    EXPIRED = "expired"
    INVALID = "invalid"
    NONE = "none"


MEANING = {
    State.TRUSTED: "signed under a root that you named, and unchanged since",
    State.VALID: "unchanged since it was signed, but under no root of yours: anybody can make one that is valid",
    State.EXPIRED: "unchanged since, but the signer's certificate has ended, and nothing dates the signature",
    State.INVALID: "changed after it was signed, or signed wrongly",
    State.NONE: "no credentials; they vanish whenever a file is saved again, so this says nothing",
}


@final
@dataclass(frozen=True, kw_only=True)
class Credentials(Record):
    """What the credentials of one file say.

    ``binding``, ``profile`` and ``key_id`` are what the signer says of the mark, and are ``None`` unless the state
    is TRUSTED; whether the mark is there, only its detector says. ``time`` is when it was signed, by a timestamp
    authority under one of your roots, and ``None`` without one. ``failures`` are C2PA's own codes.
    """

    state: State
    meaning: str
    failures: tuple[str, ...] = ()
    signer: str | None = None
    time: str | None = None
    binding: str | None = None
    profile: str | None = None
    key_id: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the state is TRUSTED."""
        return self.state is State.TRUSTED


@final
@dataclass(frozen=True)
class CredentialSigner:
    """A leaf's private key and its chain in PEM, leaf first; P-256 (ES256) or Ed25519.

    Raises:
        ValueError: the chain is none, or the key is not its leaf's.
    """

    key: PrivateKey
    chain: str

    def __post_init__(self) -> None:
        leaf = certificates(self.chain)[0]
        if _public_bytes(leaf.public_key()) != _public_bytes(self.key.public_key()):
            raise ValueError("key: expected the private key of the first certificate of the chain")

    @classmethod
    def from_pem(cls, key: bytes, chain: str) -> "CredentialSigner":
        """Read both from PEM.

        Raises:
            ValueError: no P-256 or Ed25519 key without a password, or not the chain's.
        """
        try:
            loaded = serialization.load_pem_private_key(key, None)
        except (ValueError, TypeError):
            raise ValueError("key: expected a private key in PEM, without a password") from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
            raise ValueError(f"key: {type(loaded).__name__}; expected P-256 or Ed25519")  # noqa: TRY004 — a file's content
        return cls(loaded, chain)

    @property
    def root(self) -> str:
        """The last certificate of the chain, in PEM."""
        return certificates(self.chain)[-1].public_bytes(serialization.Encoding.PEM).decode()

    def signature(self, data: bytes) -> bytes:
        """The signature as COSE wants it: r and s side by side, not in DER."""
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(data)
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def sign(  # noqa: PLR0913 — what is signed, by whom, and what is said of it
    content: bytes,
    *,
    suffix: str,
    profile: ImageProfile,
    binding: str,
    signer: CredentialSigner,
    made: Made = Made.GENERATED,
    timestamp: str | None = None,
) -> bytes:
    """A picture file with credentials; do it last, for every later change of the file breaks them.

    Args:
        content: The file of a marked picture.
        suffix: Its kind, such as ``.png``.
        profile: The profile under which it was marked.
        binding: What stands for the mark's identifier: ``ImageDetector.binding``.
        signer: Key and chain.
        made: How the picture was made.
        timestamp: Address of an RFC 3161 timestamp authority; without one the credentials end with the certificate.

    Returns:
        The signed file, which was verified against the chain's own root.

    Raises:
        MarkError: the file has credentials already, or C2PA does not accept file or chain; its code is in the message.
    """
    c2pa, mime, out = _library(), _mime(suffix), io.BytesIO()
    if _has_credentials(c2pa, mime, content, signer.root):  # new ones would replace them, and say: made just now
        raise MarkError("credentials: the file has some already; sign the file as it was before")
    algorithm = "ED25519" if isinstance(signer.key, ed25519.Ed25519PrivateKey) else "ES256"
    try:
        seal = c2pa.Signer.from_callback(
            cast("Callable[[bytes], bytes]", signer.signature), c2pa.C2paSigningAlg[algorithm], signer.chain, timestamp
        )
        builder = c2pa.Builder(_manifest(profile, binding, made), context=_context(c2pa, [signer.root]))
        builder.sign(seal, mime, io.BytesIO(content), out)
    except c2pa.C2paError as error:
        raise MarkError(f"credentials: C2PA refuses this file, chain or timestamp ({error})") from None
    signed = out.getvalue()
    told = read(signed, suffix=suffix, roots=[signer.root])
    if not told.accepted:
        raise MarkError(f"credentials: signed, but not trusted even under the chain's own root ({told.failures})")
    return signed


def read(content: bytes, *, suffix: str, roots: Sequence[str]) -> Credentials:
    """What the credentials of a picture file say; nothing is fetched from any network.

    Args:
        content: The file.
        suffix: Its kind, such as ``.png``.
        roots: PEM certificates that you trust to vouch for signers.

    Returns:
        State, failures, and what a trusted signer says of the mark.

    Raises:
        ValueError: no root, or a kind of file that carries no credentials here.
    """
    for root in roots:
        certificates(root)
    if not roots:
        raise ValueError("roots: expected at least one; without one nothing can be trusted")
    c2pa, mime = _library(), _mime(suffix)
    try:
        told = json.loads(c2pa.Reader(mime, io.BytesIO(content), context=_context(c2pa, roots)).json())
    except c2pa.C2paError.ManifestNotFound:
        return Credentials(state=State.NONE, meaning=MEANING[State.NONE])
    except c2pa.C2paError as error:
        return Credentials(state=State.INVALID, meaning=MEANING[State.INVALID], failures=(str(error),))
    return _credentials(told)


def _has_credentials(c2pa: Any, mime: str, content: bytes, root: str) -> bool:
    try:
        c2pa.Reader(mime, io.BytesIO(content), context=_context(c2pa, [root]))
    except c2pa.C2paError:  # none, or no picture at all, which signing says better
        return False
    return True


def _credentials(told: Mapping[str, Any]) -> Credentials:
    state = State(str(told.get("validation_state", "Invalid")).lower())
    results = told.get("validation_results", {}).get("activeManifest", {})
    failures = tuple(str(each["code"]) for each in results.get("failure", []))
    if _EXPIRED in failures and all(code.startswith("signingCredential.") for code in failures):
        state = State.EXPIRED  # C2PA calls it invalid, like a picture that was changed
    if state is not State.TRUSTED:
        return Credentials(state=state, meaning=MEANING[state], failures=failures)
    manifest = told["manifests"][told["active_manifest"]]
    assertions = {each["label"]: each["data"] for each in manifest.get("assertions", [])}
    own: Mapping[str, Any] = assertions.get(ASSERTION, {})
    signature = manifest.get("signature_info", {})
    successes = {str(each["code"]) for each in results.get("success", [])}
    return Credentials(
        state=state,
        meaning=MEANING[state],
        failures=failures,
        signer=signature.get("issuer"),
        time=signature.get("time") if "timeStamp.trusted" in successes else None,
        binding=_binding(assertions.get("c2pa.soft-binding", {})),
        profile=own.get("profile"),
        key_id=own.get("key_id"),
    )


def _binding(soft: Mapping[str, Any]) -> str | None:
    try:
        return str(soft["blocks"][0]["value"]) if soft.get("alg") == SOFT_BINDING else None
    except (KeyError, IndexError, TypeError):
        return None


def _manifest(profile: ImageProfile, binding: str, made: Made) -> dict[str, Any]:
    from privguard import __version__

    agent = {"name": "privguard", "version": __version__}
    created = {"action": "c2pa.created", "digitalSourceType": f"{_SOURCES}{made}", "softwareAgent": agent}
    own = {"profile": profile.digest(), "key_id": profile.key_id, "version": profile.version}
    return {
        "claim_generator_info": [agent],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created, {"action": "c2pa.watermarked.bound"}]}},
            {"label": "c2pa.soft-binding", "data": {"alg": SOFT_BINDING, "blocks": [{"scope": {}, "value": binding}]}},
            {"label": ASSERTION, "data": own},
        ],
    }


def _context(c2pa: Any, roots: Sequence[str]) -> Any:
    settings = {
        "trust": {"trust_anchors": "\n".join(roots)},
        "verify": {"verify_trust": True, "remote_manifest_fetch": False, "ocsp_fetch": False},
        "builder": {"thumbnail": {"enabled": False}},  # it would be kilobytes of unmarked picture in every file
    }
    return c2pa.Context(c2pa.Settings.from_json(json.dumps(settings)))


def certificates(pem: str) -> list[x509.Certificate]:
    """The certificates in PEM text.

    Raises:
        ValueError: there are none.
    """
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise ValueError("certificates: expected PEM text with at least one certificate") from None


def _public_bytes(key: Any) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _mime(suffix: str) -> str:
    if suffix.lower() not in MIME:
        raise ValueError(f"suffix={suffix!r}: expected one of {', '.join(MIME)}")
    return MIME[suffix.lower()]


def _library() -> Any:
    try:
        import c2pa
    except ModuleNotFoundError:
        raise ModuleNotFoundError("content credentials need c2pa-python; pip install 'privguard[c2pa]'") from None
    return c2pa
