# SPDX-License-Identifier: Apache-2.0
"""The public detector over real HTTP: coarse answers, receipts, a journal without content, and hostile callers."""

import io
import json
import socket
import struct
import threading
import time
import zlib

import anyio
import httpx2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from privguard.attest import journal
from privguard.attest.statement import Envelope, SigningKey
from privguard.errors import MarkError, TamperedError
from privguard.integrations.public_detector.answers import MOST_PIXELS, Answer
from privguard.integrations.public_detector.app import Bounds, PublicDetector
from privguard.integrations.public_detector.receipts import check
from privguard.integrations.public_detector.tokens import Tokens
from tests.watermark.image.test_cli_image import privguard

ANSWERS = {"out/plain.png": "marked", "plain.png": "not marked", "marked.txt": "marked", "plain.txt": "not marked"}


def kind_of(name):
    return "text" if name.endswith("txt") else "image"


def png(size, *chunks):
    """A PNG that says this size and has little behind it."""
    head = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def encoded(rgb, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_one_word_and_a_receipt_that_anybody_can_check(detector, name):
    content = (detector.home / name).read_bytes()
    told = detector.ask(kind_of(name), content)
    assert told.status_code == 200, told.text
    assert told.json()["answer"] == ANSWERS[name]
    assert set(told.json()) == {"answer", "receipt"}
    receipt = check(Envelope.from_json(told.json()["receipt"]), content, by=detector.signer)
    assert (receipt.answer, receipt.log10_level, receipt.kind) == (ANSWERS[name], -8.0, kind_of(name))
    facts = httpx2.get(f"http://127.0.0.1:{detector.port}/v1").json()
    assert facts["profiles"][receipt.kind]["profile"] == receipt.profile
    assert facts["signer"] == detector.signer.pem()


def test_nothing_finer_than_the_answer_leaves(detector):
    content = (detector.home / "out" / "plain.png").read_bytes()
    strong, weak = detector.ask("image", content), detector.ask("image", encoded(_pixels(content), "JPEG", quality=50))
    shown = [json.loads(Envelope.from_json(each.json()["receipt"]).payload)["predicate"] for each in (strong, weak)]
    own = {"number", "time", "content"}
    assert {k: v for k, v in shown[0].items() if k not in own} == {k: v for k, v in shown[1].items() if k not in own}
    for word in ('log10_p"', "identifier", "subkey", "score", "block"):
        assert word not in strong.text + str(shown[0]), word


def test_too_little_is_not_judged(detector):
    words = (detector.home / "marked.txt").read_text().split()
    assert detector.ask("text", " ".join(words[:150]).encode()).json()["answer"] == "too short"
    small = encoded(_pixels((detector.home / "out" / "plain.png").read_bytes())[:191])
    assert detector.ask("image", small).json()["answer"] == "too small"


def test_a_mark_carried_to_another_picture_is_not_called_marked(detector):
    rgb = np.ascontiguousarray(np.rot90(_pixels((detector.home / "plain.png").read_bytes()))[::-1] // 2 + 60)
    known = json.loads(next(journal.read(detector.home / "pictures.log")).role)["identifier"]
    Image.fromarray(rgb).save(detector.home / "foreign.png")
    keyed = ("--profile", detector.home / "p.json", "--secret", detector.home / "s", "--trust", detector.home / "p.pem")
    made = privguard("mark", "image", "write", detector.home / "foreign.png", "-o", detector.home / "carried", *keyed,
                     "--identifier", known)  # fmt: skip
    assert made.code == 0
    carried = detector.home / "carried" / "foreign.png"
    assert privguard("mark", "image", "detect", carried, *keyed).code == 0
    assert detector.ask("image", carried.read_bytes()).json()["answer"] == "not marked"


def test_a_marked_part_in_another_picture_does_not_make_it_marked(detector):
    own = _pixels((detector.home / "out" / "plain.png").read_bytes())
    foreign = np.array(load_sample_images().images[0][:420, :640])
    foreign[:300, :320] = own
    Image.fromarray(foreign).save(detector.home / "collage.png")
    keyed = ("--profile", detector.home / "p.json", "--secret", detector.home / "s", "--trust", detector.home / "p.pem")
    log = ("--log", detector.home / "pictures.log", "--log-trust", detector.home / "p.pem", "--json")
    told = privguard("mark", "image", "attribute", detector.home / "collage.png", *keyed, *log)
    row = json.loads(told.stdout)[0]
    assert (row["answer"], row["accepted"]) == ("found", False)  # the part is found, rightly
    assert row["carrying"] < 0.6
    assert detector.ask("image", (detector.home / "collage.png").read_bytes()).json()["answer"] == "not marked"


def test_a_marked_picture_that_nobody_sees_is_not_called_marked(detector):
    """Below clear pixels lies the marked one; what is seen is another."""
    rgb = _pixels((detector.home / "out" / "plain.png").read_bytes())
    layers = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    layers[50:250, 50:250] = (*np.random.default_rng(0).integers(0, 256, 3), 255)
    assert detector.ask("image", encoded(layers)).json()["answer"] == "not marked"
    layers = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    assert detector.ask("image", encoded(layers)).json()["answer"] == "marked"


def test_the_journal_has_every_answer_and_nothing_of_the_content(detector):
    before = len(list(journal.read(detector.journal))) if detector.journal.exists() else 0
    token = detector.tokens.issue("the press")
    content = (detector.home / "marked.txt").read_bytes()
    told = detector.ask("text", content, token)
    refused = detector.ask("text", b"\xff\xfe", token)
    assert (told.status_code, refused.status_code) == (200, 422)
    journal.verify(detector.journal, trusted=[detector.signer])
    lines = list(journal.read(detector.journal))
    assert len(lines) == before + 1
    facts, receipt = json.loads(lines[-1].role), Envelope.from_json(told.json()["receipt"])
    assert (facts["answer"], facts["client"], lines[-1].sha256) == ("marked", "the press", "")
    assert facts["number"] == check(receipt, content, by=detector.signer).number
    text = detector.journal.read_text()
    assert check(receipt, content, by=detector.signer).content not in text
    assert token not in text


def test_a_one_time_token_is_good_for_one_answer_also_when_all_ask_at_once(detector):
    token, content = detector.tokens.issue("one", one_time=True), (detector.home / "plain.txt").read_bytes()
    assert detector.ask("text", b"\xff", token).status_code == 422  # no answer, so nothing is spent
    codes = []
    askers = [
        threading.Thread(target=lambda: codes.append(detector.ask("text", content, token).status_code))
        for _ in range(6)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sorted(codes) == [200, 401, 401, 401, 401, 401]


@pytest.mark.parametrize("wrong", ["pgd_nothing", "é", "Bearer", "pgd_" + "x" * 5000])
def test_wrong_tokens_get_nothing(detector, wrong):
    headers = {"authorization": b"Bearer " + wrong.encode()}
    told = httpx2.post(f"http://127.0.0.1:{detector.port}/v1/text", content=b"a text", headers=headers)
    assert told.status_code == 401
    assert httpx2.post(f"http://127.0.0.1:{detector.port}/v1/text", content=b"a text").status_code == 401


def test_revoked_and_expired_tokens_end_at_once(detector, monkeypatch):
    token = detector.tokens.issue("gone")
    assert detector.ask("text", b"a b c", token).status_code == 200
    assert detector.tokens.revoke("gone") == 1
    assert detector.ask("text", b"a b c", token).status_code == 401
    with monkeypatch.context() as patch:
        patch.setattr("privguard.integrations.public_detector.tokens.timedelta", lambda days: _minus(days))
        old = detector.tokens.issue("old", days=1)
    assert detector.ask("text", b"a b c", old).status_code == 401
    assert token.encode() not in detector.tokens.path.read_bytes()
    assert detector.tokens.path.stat().st_mode & 0o077 == 0


HOSTILE = {
    "no picture": (b"<svg/>" * 100, "none of PNG, JPEG, WEBP"),
    "a bomb of pixels": (png((50_000, 50_000)), "pixels"),
    "a large one": (png((4096, 2049)), f"at most {MOST_PIXELS} pixels"),
    "cut short": (png((400, 400)), "whole picture"),
    "a bomb of text": (png((300, 300), (b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9))), ""),
    "a bomb of a profile": (png((300, 300), (b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000), 9))), ""),
    "another format": (encoded(np.zeros((300, 300, 3), np.uint8), "TIFF"), "none of PNG, JPEG, WEBP"),
    "nothing": (b"", "none of PNG, JPEG, WEBP"),
    "a name": (b"/etc/passwd", "none of PNG, JPEG, WEBP"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_refused_by_name_and_cheaply(detector, name):
    content, reason = HOSTILE[name]
    start = time.monotonic()
    told = detector.ask("image", content)
    assert told.status_code == 422, told.text
    assert reason in told.json()["error"]
    assert time.monotonic() - start < 5


def test_files_that_are_too_long_are_refused_before_they_are_read(detector):
    assert detector.ask("image", bytes((16 << 20) + 1)).status_code == 413
    assert detector.ask("text", b"a" * 200_001).status_code == 413
    assert "at most 50000" in detector.ask("text", b"a " * 30_000).json()["error"]
    token = detector.tokens.issue("streams")
    with socket.create_connection(("127.0.0.1", detector.port)) as line:
        line.sendall(f"POST /v1/text HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n".encode())
        line.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):  # it never says how long it is, and never ends
            for _ in range(10_000):
                line.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
    assert detector.ask("text", b"a b").status_code == 200


def test_compressed_bodies_and_unknown_kinds_are_refused(detector):
    packed = zlib.compress(bytes(1 << 20))
    assert detector.ask("image", packed, **{"content-encoding": "deflate"}).status_code == 415
    assert detector.ask("audio", b"sound").status_code == 404
    assert httpx2.get(f"http://127.0.0.1:{detector.port}/v1/image").status_code == 405


@pytest.mark.parametrize(
    "text", [" " * 50_000, ">" * 50_000, "> " * 25_000, "a" * 50_000, "\n" * 50_000, "a\u0300" * 25_000]
)
def test_hostile_texts_cost_little(detector, text):
    start = time.monotonic()
    assert detector.ask("text", text.encode()).json()["answer"] in ("too short", "not marked")
    assert time.monotonic() - start < 5


def test_slow_callers_are_cut_off_and_others_served(impatient):
    lines = [socket.create_connection(("127.0.0.1", impatient.port)) for _ in range(20)]
    token = impatient.tokens.issue("slow")
    head = f"POST /v1/image HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 1000\r\n\r\n"
    for number, line in enumerate(lines):
        line.sendall(head.encode() + b"a" if number == 0 else head[: number + 10].encode())
    told = impatient.ask("image", (impatient.home / "out" / "plain.png").read_bytes())
    assert told.json()["answer"] == "marked"
    for number, line in enumerate(lines):
        line.settimeout(5)
        answer = line.recv(4096)
        assert answer == b"" if number else b" 408 " in answer
        line.close()


def test_each_client_has_a_rate_and_one_client_cannot_spend_anothers(impatient):
    picture = (impatient.home / "plain.png").read_bytes()
    first, second = impatient.tokens.issue("busy"), impatient.tokens.issue("busy")
    codes = [impatient.ask("image", picture, token).status_code for token in (first, second, first)]
    assert codes == [200, 200, 429]
    assert int(impatient.ask("image", picture, second).headers["retry-after"]) >= 1
    assert impatient.ask("image", picture, impatient.tokens.issue("another")).status_code == 200


def test_answers_leave_at_the_ticks_of_a_coarse_clock(home, tmp_path, monkeypatch):
    """How long the reading took would tell how much evidence there is."""
    left = []

    async def sleep(seconds):
        left.append((time.monotonic() + seconds) % 0.25)

    monkeypatch.setattr("privguard.integrations.public_detector.app.anyio.sleep", sleep)
    for _ in range(4):
        assert asked(home, tmp_path / "tokens.db", tmp_path / "log", Bounds()).status_code == 200
    assert all(min(phase, 0.25 - phase) < 0.05 for phase in left)
    assert len(left) == 4


def test_an_answer_that_cannot_be_recorded_is_not_given(home, tmp_path):
    (tmp_path / "log").mkdir()  # a folder stands where the journal should be
    told = asked(home, tmp_path / "tokens.db", tmp_path / "log", Bounds(tick=0.01))
    assert told.status_code == 503
    assert set(told.json()) == {"error"}


def test_tokens_that_cannot_be_read_are_no_crash(home, tmp_path):
    def spoil(store):
        store.path.write_bytes(b"no database" * 1000)

    told = asked(home, tmp_path / "tokens.db", tmp_path / "log", Bounds(tick=0.01), before=spoil)
    assert (told.status_code, told.json()) == (503, {"error": "the tokens cannot be read; tell the owner"})


def asked(home, tokens, log, bounds, before=lambda store: None):
    """One question to the application itself, whose reader calls everything marked."""
    key, store = SigningKey.read(home / "signer.key"), Tokens(tokens)
    public = PublicDetector({"text": _Marked()}, key, store, journal.Journal(log, by=key), bounds)

    async def ask():
        transport = httpx2.ASGITransport(public.app())
        headers = {"authorization": f"Bearer {store.issue('a')}"}
        before(store)
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post("/v1/text", content=b"a", headers=headers)

    return anyio.run(ask)


class _Marked:
    kind, most_bytes, log10_level, profile = (
        "text",
        10,
        -8.0,
        type("P", (), {"digest": lambda self: "", "key_id": ""})(),
    )

    def answer(self, content):
        return Answer.MARKED


def test_receipts_of_others_or_about_other_content_do_not_hold(detector, tmp_path):
    content = (detector.home / "plain.txt").read_bytes()
    told = detector.ask("text", content).json()
    envelope = Envelope.from_json(told["receipt"])
    with pytest.raises(TamperedError, match="the very bytes"):
        check(envelope, content + b" ", by=detector.signer)
    with pytest.raises(TamperedError, match="not signed by"):
        check(envelope, content, by=SigningKey.generate().identity)
    (tmp_path / "answer.json").write_text(json.dumps(told))
    words = ("mark", "public", "receipt", tmp_path / "answer.json", "--trust", detector.home / "p.pem", "--content")
    assert privguard(*words, detector.home / "plain.txt").stdout.startswith("not marked")
    assert privguard(*words, detector.home / "marked.txt").code == 3


def test_what_would_answer_wrongly_does_not_start(home, tmp_path):
    words = ("mark", "public", "serve", "--tokens", tmp_path / "t", "--journal", tmp_path / "j", "--image-profile",
             home / "p.json")  # fmt: skip
    own = ("--sign-with", home / "signer.key")
    assert "expected both or neither" in privguard(*words, *own).stderr
    SigningKey.generate().write(tmp_path / "other.key")
    other = privguard(*words, "--image-secret", home / "s", "--sign-with", tmp_path / "other.key")
    assert other.code == 3  # not the key that signed the profile
    bare = privguard("mark", "public", "serve", "--tokens", tmp_path / "t", "--journal", tmp_path / "j", *own)
    assert "expected a reader" in bare.stderr
    rate = privguard(*words, "--image-secret", home / "s", *own, "--rate", "often")
    assert (rate.code, "rate='often'" in rate.stderr) == (2, True)
    key = SigningKey.generate()
    with pytest.raises(MarkError, match="strict"):
        PublicDetector({"text": _Marked()}, key, Tokens(tmp_path / "t"), journal.Journal("j", by=key, strict=False))


def _pixels(content):
    return np.ascontiguousarray(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def _minus(days):
    from datetime import timedelta

    return -timedelta(days=days)
