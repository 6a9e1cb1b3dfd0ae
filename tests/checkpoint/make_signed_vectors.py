# SPDX-License-Identifier: Apache-2.0
"""Makes tests/vectors/checkpoint-v1-signed: one file for each signature that holds, and each that does not.

    python -m tests.checkpoint.make_signed_vectors tests/vectors/checkpoint-v1-signed

A vector is one of ``make_vectors`` that opens, with ``signer``, the key id that a reader asks for, and ``signature``,
the outcome of asking: "holds" or "refused".
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from privguard import _canon
from privguard.attest.statement import Envelope, SigningKey, Statement, sign
from privguard.checkpoint.archive import statement
from privguard.checkpoint.keys.key import Key
from tests.checkpoint import make_vectors
from tests.checkpoint.make_vectors import HYBRID, OFFICER, TEAM, File, case

FACTS = {"content": "snapshot", "run": "vectors", "step": 7}
RUN, STRANGER, P256 = SigningKey.generate(), SigningKey.generate(), SigningKey.generate_p256()


def cases() -> Iterator[dict[str, object]]:
    for key in (TEAM, OFFICER, HYBRID):
        derived = key.signer()
        assert derived is not None
        file = File(to=(key,), auditors=())
        yield signed(f"derived-{key.kind.label}", "signed with the key derived from this key", file, derived, key=key)
    yield signed("ed25519", "an Ed25519 signer", File(), RUN)
    yield signed("p256", "an ECDSA P-256 signer", File(), P256)
    yield signed("auditor", "an auditor checks the signature too", File(), RUN, key=OFFICER)
    yield signed("stranger", "somebody else signed", File(), STRANGER, asked=RUN)
    yield vector("unsigned", "no signature", File(), FACTS)

    file = File()
    good = complete(file, RUN)
    yield vector("moved", "the signature and manifest of another file", File(), good)
    yield vector("fact-changed", "a fact was changed after signing", file, good | {"step": 8})
    yield vector("fact-added", "a fact was added after signing", file, good | {"epoch": 1})
    yield vector("signer-missing", "a signature without a signer", file, without(good, "signer"))
    yield vector("signer-no-key", "a signer that is no key", file, good | {"signer": "AAAA"})
    yield vector("signer-changed", "the signer was replaced", file, good | {"signer": STRANGER.identity.to_json()})
    lie = complete(file, STRANGER) | {"signer": RUN.identity.to_json()}
    yield vector("signer-lies", "a stranger's signature under the signer's name", file, lie)
    named = FACTS | {"signer": RUN.identity.to_json()}
    lie = named | {"signature": sign(statement(file.secrets, named), by=STRANGER).to_json()}
    yield vector("signed-by-another", "a statement that names the signer, signed by a stranger", file, lie)
    envelope = Envelope.from_json(good["signature"])
    for name, comment, payload_type, payload in (
        ("payload-type", "another payload type", "text/plain", envelope.payload),
        ("payload", "a byte of the payload flipped", envelope.payload_type, make_vectors.flipped(envelope.payload, 9)),
    ):
        changed = Envelope(payload=payload, payload_type=payload_type, signatures=envelope.signatures)
        yield vector(name, comment, file, good | {"signature": changed.to_json()})
    nobody = Envelope(payload=envelope.payload, payload_type=envelope.payload_type)
    yield vector("no-signatures", "an envelope that nobody signed", file, good | {"signature": nobody.to_json()})
    yield vector("no-envelope", "no envelope", file, good | {"signature": "signed"})
    said = statement(file.secrets, named)
    other = Statement(subjects=said.subjects, predicate_type="https://example.org/v1", predicate=named)
    yield vector("predicate-type", "another predicate type", file, named | {"signature": sign(other, by=RUN).to_json()})


def complete(file: File, signer: SigningKey) -> dict[str, object]:
    manifest = FACTS | {"signer": signer.identity.to_json()}
    return manifest | {"signature": sign(statement(file.secrets, manifest), by=signer).to_json()}


def without(manifest: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in manifest.items() if key != name}


def signed(
    name: str, comment: str, file: File, signer: SigningKey, *, key: Key = TEAM, asked: SigningKey | None = None
) -> dict[str, object]:
    found = vector(name, comment, file, complete(file, signer), key=key, asked=asked or signer)
    return found if asked else found | {"signature": "holds"}


def vector(
    name: str,
    comment: str,
    file: File,
    manifest: dict[str, object],
    *,
    key: Key = TEAM,
    asked: SigningKey = RUN,
) -> dict[str, object]:
    file.manifest = _canon.canonical(manifest)
    role = make_vectors.Role.AUDIT if key in file.auditors else make_vectors.Role.RESUME
    found = case(name, comment, file.whole(), key, file, role=role)
    return found | {"signer": asked.identity.key_id, "signature": "refused"}


if __name__ == "__main__":
    make_vectors.write(cases(), Path(sys.argv[1]))
