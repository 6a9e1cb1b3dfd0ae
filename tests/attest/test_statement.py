# SPDX-License-Identifier: Apache-2.0
"""Signed statements: the round trip, and everything that must not pass."""

import json
import stat
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from privguard.attest import statement as dsse
from privguard.attest.statement import Envelope, Identity, SigningKey, Statement
from privguard.errors import TamperedError
from privguard.records import Digest

KEYS = {"ed25519": SigningKey.generate(), "ecdsa-p256-sha256": SigningKey.generate_p256()}
SAID = Statement(
    subjects=(Digest(name="model", sha256="00" * 32),),
    predicate_type=dsse.PREDICATES + "test/v1",
    predicate={"a": [1, "ε"]},
)


@pytest.fixture(params=KEYS, ids=str)
def key(request):
    return KEYS[request.param]


def test_what_is_signed_comes_back(key):
    envelope = dsse.sign(SAID, by=key)
    assert dsse.verify(envelope, by=key.identity) == SAID
    assert Envelope.from_json(json.loads(json.dumps(envelope.to_json()))) == envelope


def test_the_encoding_is_the_one_of_the_dsse_specification():
    # The example of the DSSE protocol document, and a non-ASCII type whose length is counted in bytes.
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert dsse.pae("ε", b"") == b"DSSEv1 2 \xce\xb5 0 "


def test_the_published_dsse_vector_verifies():
    # DSSE protocol.md, "Test Vectors": P-256 key given by X and Y, ECDSA with SHA-256, deterministic nonce (RFC 6979).
    x = 46950820868899156662930047687818585632848591499744589407958293238635476079160
    y = 5640078356564379163099075877009565129882514886557779369047442380624545832820
    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    identity = Identity.from_pem(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    )
    raw = dsse._from_base64("A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==")
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    identity.verify(encode_dss_signature(r, s), dsse.pae("http://example.com/HelloWorld", b"hello world"))


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_one_changed_byte_anywhere_is_refused(position, flip):
    for key in KEYS.values():
        envelope = dsse.sign(SAID, by=key)
        payload = bytearray(envelope.payload)
        payload[position % len(payload)] ^= flip
        with pytest.raises(TamperedError):
            dsse.verify(replace(envelope, payload=bytes(payload)), by=key.identity)
        [(name, signature)] = envelope.signatures
        broken = bytearray(signature)
        broken[position % len(broken)] ^= flip
        with pytest.raises(TamperedError):
            dsse.verify(replace(envelope, signatures=((name, bytes(broken)),)), by=key.identity)


def test_another_signer_another_type_and_no_signature_are_refused(key):
    envelope = dsse.sign(SAID, by=key)
    stranger = SigningKey.generate()
    with pytest.raises(TamperedError, match="not signed by"):
        dsse.verify(envelope, by=stranger.identity)
    renamed = replace(envelope, signatures=((stranger.identity.key_id, envelope.signatures[0][1]),))
    with pytest.raises(TamperedError):
        dsse.verify(renamed, by=stranger.identity)
    with pytest.raises(TamperedError):
        dsse.verify(replace(envelope, signatures=()), by=key.identity)
    with pytest.raises(TamperedError, match="payloadType"):
        dsse.verify(replace(envelope, payload_type="text/plain"), by=key.identity)


def test_a_signature_over_bare_bytes_is_no_signature_of_a_statement(key):
    envelope = dsse.sign(SAID, by=key)
    bare = replace(envelope, signatures=((key.identity.key_id, key.sign(envelope.payload)),))
    with pytest.raises(TamperedError):
        dsse.verify(bare, by=key.identity)


def test_a_signed_payload_that_is_no_statement_is_refused(key):
    for payload in (b"not json", b"[]", b"{}", b'{"_type": "https://in-toto.io/Statement/v0.1"}', b"null", b"1"):
        with pytest.raises(TamperedError):
            dsse.verify(dsse.countersign(Envelope(payload=payload), by=key), by=key.identity)


def test_two_signers_can_both_be_found(key):
    second = SigningKey.generate()
    envelope = dsse.countersign(dsse.sign(SAID, by=key), by=second)
    assert dsse.verify(envelope, by=key.identity) == dsse.verify(envelope, by=second.identity) == SAID
    assert dsse.verify_any(envelope, by=[SigningKey.generate().identity, second.identity]) == (SAID, second.identity)
    with pytest.raises(TamperedError, match="nobody"):
        dsse.verify_any(envelope, by=[])


def test_a_key_survives_its_file_and_is_its_owners_alone(key, tmp_path):
    key.write(tmp_path / "key.pem")
    assert SigningKey.read(tmp_path / "key.pem").identity == key.identity
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        key.write(tmp_path / "key.pem")
    key.identity.write(tmp_path / "key.pub")
    assert Identity.read(tmp_path / "key.pub") == key.identity == Identity.from_json(key.identity.to_json())


def test_the_private_key_is_never_shown(key, tmp_path):
    key.write(tmp_path / "key.pem")
    secret = (tmp_path / "key.pem").read_text().splitlines()[1]
    assert secret not in repr(key)
    assert key.identity.key_id[:16] in repr(key)
    (tmp_path / "broken.pem").write_text((tmp_path / "key.pem").read_text().replace("BEGIN", "BEGUN"))
    with pytest.raises(ValueError, match="unencrypted PEM") as caught:
        SigningKey.read(tmp_path / "broken.pem")
    assert secret not in str(caught.value)
    import copy

    with pytest.raises(TypeError, match="not picklable"):
        copy.deepcopy(key)


def test_other_kinds_of_key_are_refused(tmp_path):
    foreign = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(
        foreign.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(ValueError, match="Ed25519 or P-256"):
        SigningKey.read(tmp_path / "rsa.pem")
    with pytest.raises(ValueError, match="Ed25519 or P-256"):
        SigningKey(ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(ValueError, match="Ed25519 or P-256"):
        Identity.from_pem("nothing")
    with pytest.raises(ValueError, match="public key"):
        Identity(b"nothing")


def test_an_envelope_survives_its_file(key, tmp_path):
    envelope = dsse.sign(SAID, by=key)
    envelope.write(tmp_path / "said.json")
    assert Envelope.read(tmp_path / "said.json") == envelope
    (tmp_path / "said.json").write_text('{"payload": "!!"}')
    with pytest.raises(TamperedError):
        Envelope.read(tmp_path / "said.json")
    (tmp_path / "said.json").write_text("nothing")
    with pytest.raises(TamperedError):
        Envelope.read(tmp_path / "said.json")


def test_a_statement_names_what_it_is_about():
    with pytest.raises(ValueError, match="at least one artefact"):
        Statement(subjects=(), predicate_type="https://example.com/x")
    with pytest.raises(ValueError, match="a URI"):
        replace(SAID, predicate_type="x")
