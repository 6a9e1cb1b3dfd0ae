# SPDX-License-Identifier: Apache-2.0
"""Content credentials, offline: only a root of one's own is trusted, and a changed byte of the picture is seen."""

import io
import json
import socket
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image
from sklearn.datasets import load_sample_images

from privguard.attest.local import TimestampServer
from privguard.attest.timestamp import Authority
from privguard.errors import MarkError
from privguard.integrations import c2pa_chain
from privguard.integrations.c2pa import CredentialSigner, Made, State, read, sign
from privguard.integrations.c2pa_chain import TestChain
from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.image.write import ImageMark
from privguard.watermark.secret import Secret
from tests.watermark.image.test_cli_image import privguard

c2pa = pytest.importorskip("c2pa")
PROFILE = ImageProfile.create(Secret(bytes(range(32))))
BINDING = ImageDetector(PROFILE, Secret(bytes(range(32)))).binding(0xABC)
CHAIN, OTHER = TestChain.generate("Example"), TestChain.generate("Somebody else")
SIGNER = CredentialSigner.from_pem(CHAIN.key.encode(), CHAIN.chain)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def picture(kind, size=(200, 220)):
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind)
    return file.getvalue()


def signed(suffix, kind, **options):
    return sign(picture(kind), suffix=suffix, profile=PROFILE, binding=BINDING, signer=SIGNER, **options)


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP"), (".tif", "TIFF")])
def test_a_round_trip_is_trusted_and_says_what_was_signed(suffix, kind):
    told = read(signed(suffix, kind), suffix=suffix, roots=[OTHER.root, CHAIN.root])
    assert told.accepted
    assert (told.binding, told.profile, told.key_id) == (BINDING, PROFILE.digest(), PROFILE.key_id)
    assert (told.signer, told.failures) == ("Example", ())


def test_the_manifest_is_what_another_reader_finds():
    content = signed(".png", "PNG", made=Made.COMPOSITE)
    told = json.loads(c2pa.Reader("image/png", io.BytesIO(content)).json())
    manifest = told["manifests"][told["active_manifest"]]
    data = {each["label"]: each["data"] for each in manifest["assertions"]}
    assert [each["action"] for each in data["c2pa.actions.v2"]["actions"]] == ["c2pa.created", "c2pa.watermarked.bound"]
    assert data["c2pa.actions.v2"]["actions"][0]["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")
    assert data["c2pa.soft-binding"]["blocks"][0]["value"] == BINDING
    assert "thumbnail" not in json.dumps(manifest)


def test_a_root_that_is_not_ours_is_not_enough():
    told = read(signed(".png", "PNG"), suffix=".png", roots=[OTHER.root])
    assert (told.state, told.accepted) == (State.VALID, False)
    assert "signingCredential.untrusted" in told.failures
    assert told.binding is told.profile is told.signer is None
    assert "anybody can make one that is valid" in told.meaning


def test_every_changed_byte_of_the_picture_is_seen():
    content, plain = signed(".png", "PNG"), picture("PNG")
    places = np.random.default_rng(1).integers(100, len(plain) - 100, 25)
    for place in places.tolist():
        at = content.index(plain[place : place + 24])
        changed = bytearray(content)
        changed[at] ^= 1
        told = read(bytes(changed), suffix=".png", roots=[CHAIN.root])
        assert told.state is State.INVALID
        assert told.failures


def test_bytes_after_the_picture_are_seen_and_roots_need_no_last_line_end():
    content = signed(".png", "PNG")
    assert read(content + b"more", suffix=".png", roots=[CHAIN.root]).state is State.INVALID
    roots = [OTHER.root.rstrip(), CHAIN.root.rstrip()]  # C2PA reads one text: the second root was lost
    assert read(content, suffix=".png", roots=roots).accepted


def test_an_ended_certificate_is_not_called_a_changed_picture(monkeypatch):
    monkeypatch.setattr(c2pa_chain, "_VALID", timedelta(seconds=1.5))
    chain = TestChain.generate("Example")
    signer = CredentialSigner.from_pem(chain.key.encode(), chain.chain)
    content = sign(picture("PNG"), suffix=".png", profile=PROFILE, binding=BINDING, signer=signer)
    time.sleep(2.5)  # C2PA has no clock that could be set
    told = read(content, suffix=".png", roots=[chain.root])
    assert (told.state, told.accepted, told.binding) == (State.EXPIRED, False, None)
    assert "certificate has ended" in told.meaning
    changed = content[:-60] + bytes([content[-60] ^ 1]) + content[-59:]
    assert read(changed, suffix=".png", roots=[chain.root]).state is State.INVALID


def test_a_timestamp_outlives_the_certificate_where_its_root_is_trusted(monkeypatch):
    monkeypatch.setattr(c2pa_chain, "_VALID", timedelta(seconds=2))
    chain = TestChain.generate("Example")
    signer = CredentialSigner.from_pem(chain.key.encode(), chain.chain)
    with timestamp_authority() as (address, root):
        named = {"profile": PROFILE, "binding": BINDING, "timestamp": address}
        content = sign(picture("PNG"), suffix=".png", signer=signer, **named)
    assert read(content, suffix=".png", roots=[chain.root]).time is None  # of an authority that nobody named
    time.sleep(2.5)
    assert read(content, suffix=".png", roots=[chain.root]).state is State.EXPIRED
    told = read(content, suffix=".png", roots=[chain.root, root])
    assert told.accepted
    assert abs((datetime.fromisoformat(told.time) - datetime.now(UTC)).total_seconds()) < 60
    with pytest.raises(MarkError, match="timestamp"):
        sign(picture("PNG"), suffix=".png", signer=SIGNER, **named)


@contextmanager
def timestamp_authority():
    """An RFC 3161 authority over HTTP on loopback: its address, and its root in PEM."""
    above, below = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    names = c2pa_chain._name("Authority", "root"), c2pa_chain._name("Authority", "clock")
    now = datetime.now(UTC)
    certificates = []
    for name, key in zip(names, (above, below), strict=True):
        builder = x509.CertificateBuilder(names[0], name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=9))
        builder = builder.add_extension(x509.BasicConstraints(ca=key is above, path_length=None), critical=True)
        builder = builder.add_extension(c2pa_chain._usage(is_root=key is above), critical=True)
        if key is below:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
            builder = builder.add_extension(usage, critical=True)
            above_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key())
            builder = builder.add_extension(above_id, critical=False)
        own_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificates.append(builder.add_extension(own_id, critical=False).sign(above, hashes.SHA256()))
    authority = Authority(name="clock", root=certificates[0].public_bytes(Encoding.DER), external=False)
    clock = TimestampServer(authority, certificates[1], below)

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            told = clock.answer(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", "application/timestamp-reply")
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_args):
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", c2pa_chain._pem(certificates[0])
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP"), (".tif", "TIFF")])
def test_credentials_are_not_replaced(suffix, kind):
    content = signed(suffix, kind)
    with pytest.raises(MarkError, match="has some already"):
        sign(content, suffix=suffix, profile=PROFILE, binding="0" * 32, signer=SIGNER)


def test_saving_again_leaves_nothing():
    file = io.BytesIO()
    Image.open(io.BytesIO(signed(".png", "PNG"))).save(file, "PNG")
    assert read(file.getvalue(), suffix=".png", roots=[CHAIN.root]).state is State.NONE


def test_what_cannot_be_signed_or_trusted_is_refused():
    with pytest.raises(ValueError, match="first certificate"):
        CredentialSigner.from_pem(OTHER.key.encode(), CHAIN.chain)
    with pytest.raises(ValueError, match="private key in PEM"):
        CredentialSigner.from_pem(b"nothing", CHAIN.chain)
    with pytest.raises(ValueError, match="at least one certificate"):
        CredentialSigner(ec.generate_private_key(ec.SECP256R1()), "nothing")
    with pytest.raises(ValueError, match="roots"):
        read(picture("PNG"), suffix=".png", roots=[])
    with pytest.raises(ValueError, match="suffix"):
        read(picture("PNG"), suffix=".bmp", roots=[CHAIN.root])
    with pytest.raises(MarkError, match="C2PA"):
        sign(b"no picture", suffix=".png", profile=PROFILE, binding=BINDING, signer=SIGNER)


def test_the_commands_sign_what_is_marked_and_verify(tmp_path):
    rgb = np.ascontiguousarray(np.asarray(load_sample_images().images[0])[171:427, 200:520])
    (tmp_path / "in").mkdir()
    Image.fromarray(rgb).save(tmp_path / "in" / "a.png")
    Image.fromarray(rgb).save(tmp_path / "unmarked.png")
    keyed = ["--profile", tmp_path / "p.json", "--secret", tmp_path / "s"]
    privguard("mark", "image", "setup", *keyed, "--sign-with", tmp_path / "k")
    keyed += ["--trust", tmp_path / "p.pem"]
    told = privguard("mark", "image", "write", tmp_path / "in", "-o", tmp_path / "out", *keyed, "--json")
    identifier = json.loads(told.stdout)[0]["identifier"]
    group = ("mark", "image", "credentials")
    assert privguard(*group, "test-chain", tmp_path / "ca", "--organisation", "Example").code == 0
    assert privguard(*group, "test-chain", tmp_path / "ca", "--organisation", "Example").code == 2
    assert (tmp_path / "ca" / "leaf.key").stat().st_mode & 0o077 == 0
    with_key = [*keyed, "--chain", tmp_path / "ca" / "chain.pem", "--key", tmp_path / "ca" / "leaf.key"]
    assert privguard(*group, "sign", tmp_path / "out", "-o", tmp_path / "signed", *with_key).code == 0
    refused = privguard(*group, "sign", tmp_path / "unmarked.png", "-o", tmp_path / "signed", *with_key)
    assert (refused.code, (tmp_path / "signed" / "unmarked.png").exists()) == (1, False)
    root = ["--root", tmp_path / "ca" / "root.pem"]
    rows = json.loads(privguard(*group, "verify", tmp_path / "signed", *root, *keyed, "--json").stdout)
    assert [(row["state"], row["mark"]) for row in rows] == [("trusted", "named")]
    known = ImageProfile.create(Secret.read(tmp_path / "s"))
    assert rows[0]["binding"] == ImageDetector(known, Secret.read(tmp_path / "s")).binding(identifier)
    manifest = c2pa.Reader("image/png", io.BytesIO((tmp_path / "signed" / "a.png").read_bytes())).json()
    assert f"{identifier:06x}" not in manifest.lower()  # whoever learns from many pictures must not know it
    other = ImageMark(known, Secret.read(tmp_path / "s")).write(rgb, identifier=identifier ^ 1).pixels
    file = io.BytesIO()
    Image.fromarray(other).save(file, "PNG")
    signer = CredentialSigner.from_pem((tmp_path / "ca/leaf.key").read_bytes(), (tmp_path / "ca/chain.pem").read_text())
    swapped = sign(file.getvalue(), suffix=".png", profile=known, binding=rows[0]["binding"], signer=signer)
    (tmp_path / "swapped.png").write_bytes(swapped)
    told = privguard(*group, "verify", tmp_path / "swapped.png", *root, *keyed)
    assert (told.code, "mark another" in told.stdout) == (1, True)
    assert privguard(*group, "verify", tmp_path / "swapped.png", *root).code == 0  # without the secret nobody can tell
    (tmp_path / "other.pem").write_text(OTHER.root)
    assert privguard(*group, "verify", tmp_path / "signed", "--root", tmp_path / "other.pem").code == 1
    changed = bytearray((tmp_path / "signed" / "a.png").read_bytes())
    changed[-60] ^= 1
    (tmp_path / "bad.png").write_bytes(changed)
    assert privguard(*group, "verify", tmp_path / "bad.png", *root).code == 3
