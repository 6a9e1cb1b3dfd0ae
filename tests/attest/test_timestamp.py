# SPDX-License-Identifier: Apache-2.0
"""RFC 3161: our local server answers so that rfc3161-client and OpenSSL believe it, and nothing else passes."""

import json
import shutil
import subprocess
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from privguard.attest import timestamp
from privguard.attest.local import TimestampServer
from privguard.attest.timestamp import Authority
from privguard.errors import TamperedError

SERVER = TimestampServer.generate()
THEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_timestamp_says_when_these_bytes_were_seen():
    answer = SERVER.answer(timestamp.request(b"commitment"), at=THEN)
    assert timestamp.verify(answer, data=b"commitment", authority=SERVER.authority) == THEN


def test_other_bytes_another_server_and_a_flipped_bit_are_refused():
    answer = SERVER.answer(timestamp.request(b"commitment"), at=THEN)
    with pytest.raises(TamperedError, match="Mismatch between messages"):
        timestamp.verify(answer, data=b"another", authority=SERVER.authority)
    with pytest.raises(TamperedError):
        timestamp.verify(answer, data=b"commitment", authority=TimestampServer.generate().authority)
    clean = 0
    for place in range(0, len(answer), 7):
        broken = bytearray(answer)
        broken[place] ^= 1
        try:
            clean += timestamp.verify(bytes(broken), data=b"commitment", authority=SERVER.authority) != THEN
        except TamperedError:
            continue
    assert clean == 0
    for rubbish in (b"", b"\x30", answer[:-1], b"\x30\x03\x02\x01\x00"):
        with pytest.raises(TamperedError):
            timestamp.verify(rubbish, data=b"commitment", authority=SERVER.authority)


def test_a_server_and_its_authority_survive_their_files():
    again = TimestampServer.from_json(json.loads(json.dumps(SERVER.to_json())))
    answer = again.answer(timestamp.request(b"x"), at=THEN)
    assert timestamp.verify(answer, data=b"x", authority=Authority.from_json(SERVER.authority.to_json())) == THEN
    assert not SERVER.authority.external


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is the second opinion")
def test_openssl_believes_the_local_server(tmp_path):
    request = timestamp.request(b"commitment")
    (tmp_path / "request.tsq").write_bytes(request)
    (tmp_path / "answer.tsr").write_bytes(SERVER.answer(request))
    root = x509.load_der_x509_certificate(SERVER.authority.root).public_bytes(Encoding.PEM)
    (tmp_path / "root.pem").write_bytes(root)
    command = ["openssl", "ts", "-verify", "-in", "answer.tsr", "-queryfile", "request.tsq", "-CAfile", "root.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Verification: OK" in done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is the outside server")
def test_an_authority_that_is_not_ours_is_believed_too(tmp_path):
    def openssl(*arguments):
        return subprocess.run(["openssl", *arguments], cwd=tmp_path, capture_output=True, check=True).stdout

    (tmp_path / "tsa.cnf").write_text(
        "[tsa]\ndefault_tsa=t\n[t]\nserial=./serial\nsigner_digest=sha256\ndefault_policy=1.2.3.4\n"
        "digests=sha256\ness_cert_id_alg=sha256\n[e]\nextendedKeyUsage=critical,timeStamping\n"
    )
    (tmp_path / "serial").write_text("01\n")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "tsa.key", "-out", "tsa.csr", "-subj", "/CN=tsa")
    sign = ["x509", "-req", "-in", "tsa.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "tsa.pem"]
    openssl(*sign, "-extfile", "tsa.cnf", "-extensions", "e")
    (tmp_path / "request.tsq").write_bytes(timestamp.request(b"commitment"))
    reply = [
        "ts",
        "-reply",
        "-queryfile",
        "request.tsq",
        "-config",
        "tsa.cnf",
        "-signer",
        "tsa.pem",
        "-inkey",
        "tsa.key",
    ]
    openssl(*reply, "-out", "answer.tsr")
    authority = Authority.from_pem("outside", (tmp_path / "ca.pem").read_bytes())
    seen = timestamp.verify((tmp_path / "answer.tsr").read_bytes(), data=b"commitment", authority=authority)
    assert abs((datetime.now(UTC) - seen).total_seconds()) < 600
    assert authority.external
