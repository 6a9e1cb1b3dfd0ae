# SPDX-License-Identifier: Apache-2.0
"""Every vector ends as it says, here and in the second reader, which was written from the specification alone."""

import base64
import contextlib
import hashlib
import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from privguard import _canon
from privguard.checkpoint import Key, Sealed, save, seal
from privguard.checkpoint.content import tree
from privguard.checkpoint.keys import unsafe
from privguard.checkpoint.keys.key import Kind
from privguard.checkpoint.opened import LeftoverWarning
from privguard.errors import SealError, TamperedError
from tests.checkpoint import second_reader
from tests.checkpoint.test_store import snapshot

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS = sorted((FOLDER / "checkpoint-v1").glob("*.json"))
SIGNED = sorted((FOLDER / "checkpoint-v1-signed").glob("*.json"))
KINDS = {kind.label: kind for kind in Kind}


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def unpacked(vector: dict, folder: Path) -> Path:
    target = folder / "vector"
    if vector["shape"] == "folder":
        target.mkdir()
    for name, content in vector["files"].items():
        place = target / name if vector["shape"] == "folder" else target
        place.write_bytes(zlib.decompress(base64.b64decode(content)))
    return target


def the_key(vector: dict) -> Key:
    kind, secret = KINDS[vector["key"]["kind"]], bytes.fromhex(vector["key"]["secret"])
    return Key.from_passphrase(secret.decode()) if kind is Kind.PASSPHRASE else unsafe.key_of(kind, secret)


@contextlib.contextmanager
def told_of_leftovers(vector: dict):
    """Opening says a word where, and only where, the vector has something in the slot that does not count."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [each.category for each in caught] == ([LeftoverWarning] if vector.get("leftover") else [])


def everything(sealed: Path, key: Key) -> list[bytes | bytearray]:
    with Sealed(sealed, key) as opened:
        return [opened.ledger, *(opened.read(name) for name in opened.names())]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_there_are_vectors_enough_and_no_two_of_one_name():
    assert len(VECTORS) >= 60
    assert all(read(path)["name"] == path.stem for path in VECTORS)


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vector(path, tmp_path):
    vector = read(path)
    sealed, key = unpacked(vector, tmp_path), the_key(vector)
    if vector["outcome"] != "opens":
        expected = TamperedError if vector["outcome"] == "refused" else SealError
        with pytest.raises(expected):
            everything(sealed, key)
        return
    with told_of_leftovers(vector), Sealed(sealed, key) as opened:
        assert opened.role.name.lower() == vector["role"]
        assert digest(opened.ledger) == vector["plain"]["ledger"]
        assert digest(_canon.canonical(opened.manifest)) == vector["plain"]["manifest"]
        members = {name: digest(opened.read(name)) for name in opened.names()} if vector["role"] == "resume" else {}
        assert members == vector["members"]


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vector_in_the_second_reader(path, tmp_path):
    vector = read(path)
    sealed, key = unpacked(vector, tmp_path), vector["key"]
    arguments = (sealed, KINDS[key["kind"]].value, bytes.fromhex(key["secret"]))
    if vector["outcome"] != "opens":
        expected = second_reader.RefusedError if vector["outcome"] == "refused" else second_reader.UnknownVersionError
        with pytest.raises(expected):
            second_reader.read(*arguments)
        return
    found = second_reader.read(*arguments)
    assert digest(found["ledger"]) == vector["plain"]["ledger"]
    assert digest(_canon.canonical(found["manifest"])) == vector["plain"]["manifest"]
    assert {name: digest(data) for name, data in found.get("members", {}).items()} == vector["members"]


@pytest.mark.parametrize("make", [Key.generate, Key.generate_x25519, Key.generate_symmetric])
def test_the_second_reader_reads_key_files_and_refuses_changed_ones(tmp_path, make):
    key = make()
    key.write(tmp_path / "key")
    text = (tmp_path / "key").read_bytes()
    assert second_reader.key_file(text) == (key.kind.value, unsafe.raw_bytes(key))
    start = text.index(b"privguard-key")
    for at in range(start, len(text) - 1, 7):
        changed = text[:at] + (b"A" if text[at : at + 1] != b"A" else b"B") + text[at + 1 :]
        if is_same_key(key.kind, changed, unsafe.raw_bytes(key)):
            continue
        for read_key in (second_reader.key_file, lambda data: Key.read(write(tmp_path / "changed", data))):
            with pytest.raises((second_reader.RefusedError, SealError)):
                read_key(changed)


def is_same_key(kind: Kind, text: bytes, secret: bytes) -> bool:
    """Whether the change lies where no public half tells of it and no whole ciphertext needs it.

    These are the five bits that X25519 itself sets and clears (RFC 7748, section 5), and ML-KEM's z.
    """
    try:
        other = base64.b64decode(text.split()[-1], validate=True)
    except ValueError:
        return False
    if kind is Kind.X25519:
        return clamped(other) == clamped(secret)
    return kind is Kind.X25519_MLKEM768 and (clamped(other[:32]), other[64:]) == (clamped(secret[:32]), secret[64:])


def clamped(scalar: bytes) -> bytes:
    return bytes([scalar[0] & 248, *scalar[1:31], scalar[31] & 127 | 64]) + scalar[32:]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_the_second_reader_reads_the_tree_of_a_state():
    state = {
        "optimizer": [1, 2**60, -0.1, float("inf"), None, True, "text", b"bytes", (1, (2,)), {3, 4}, 1 + 2j],
        "scheduler": {1: "a", ("b", 2): {"c": []}},
        "generators": {"size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cpu")},
        "extra": [torch.ones(2), np.float32(1.5), np.arange(3)],
    }
    packed, tensors = tree.pack(state, prefix="state")
    found = second_reader.tree(json.loads(_canon.canonical(packed)))
    assert found["optimizer"] == state["optimizer"]
    assert found["scheduler"] == state["scheduler"]
    assert found["generators"] == {
        "size": ("size", [2, 3]),
        "dtype": ("dtype", "bfloat16"),
        "device": ("device", "cpu"),
    }
    kinds = [kind for kind, _ in found["extra"]]
    assert kinds == ["tensor", "numpy", "array"]
    assert found["extra"][0][1] in tensors
    for strange in ([1], 1.5, {"what": 1}, {"int": "1", "list": []}, {}):
        with pytest.raises(second_reader.RefusedError):
            second_reader.tree(strange)


@pytest.mark.parametrize("path", SIGNED, ids=lambda path: path.stem)
def test_signed_vector(path, tmp_path):
    vector = read(path)
    with Sealed(unpacked(vector, tmp_path), the_key(vector)) as opened:
        assert digest(_canon.canonical(opened.manifest)) == vector["plain"]["manifest"]
        if vector["signature"] == "holds":
            opened.verify_signer(vector["signer"])
        else:
            with pytest.raises(TamperedError):
                opened.verify_signer(vector["signer"])


@pytest.mark.parametrize("path", SIGNED, ids=lambda path: path.stem)
def test_signed_vector_in_the_second_reader(path, tmp_path):
    vector = read(path)
    key = vector["key"]
    found = second_reader.read(unpacked(vector, tmp_path), KINDS[key["kind"]].value, bytes.fromhex(key["secret"]))
    try:
        outcome = "holds" if second_reader.signer(found) == vector["signer"] else "refused"
    except second_reader.RefusedError:
        outcome = "refused"
    assert outcome == vector["signature"]


def test_signed_vectors_hold_and_fail():
    outcomes = [read(path)["signature"] for path in SIGNED]
    assert outcomes.count("holds") == 6
    assert outcomes.count("refused") == 15


@pytest.mark.parametrize(
    "make", [Key.generate, Key.generate_x25519, Key.generate_symmetric], ids=["hybrid", "x25519", "symmetric"]
)
def test_the_second_reader_reads_what_is_written_today(make, tmp_path):
    key = make()
    save(snapshot(), tmp_path / "file", to=[key])
    found = second_reader.read(tmp_path / "file", key.kind.value, unsafe.raw_bytes(key))
    assert found["ledger"] == snapshot().ledger
    with Sealed(tmp_path / "file", key) as opened:
        assert found["members"] == {name: bytes(opened.read(name)) for name in opened.names()}
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"content")
    seal(tmp_path / "source", tmp_path / "folder", to=[key])
    found = second_reader.read(tmp_path / "folder", key.kind.value, unsafe.raw_bytes(key))
    assert found["members"] == {"a": b"content"}
