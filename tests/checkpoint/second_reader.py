# SPDX-License-Identifier: Apache-2.0
"""A second reader of sealed files, written from docs/spec/checkpoint-v1.md alone: no code of privguard, no speed.

It opens single files and folders with symmetric keys, X25519, the hybrid and passphrases, gives back all parts, and
tells who signed.
"""

import base64
import hashlib
import hmac
import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import load_der_public_key


class RefusedError(Exception):
    pass


class UnknownVersionError(Exception):
    pass


def need(condition: object) -> None:
    if not condition:
        raise RefusedError


def expand(key: bytes, info: bytes, length: int = 32) -> bytes:
    return HKDFExpand(SHA512(), length, info).derive(key)


def unwrap(kind: int, body: bytes, secret: bytes, info: bytes) -> bytes | None:
    try:
        if kind == 1:
            return AESGCM(expand(secret, info + body[:32])).decrypt(bytes(12), body[32:], None)
        if kind == 2:
            head, wrapped = body[:28], body[28:]
            memory, passes, lanes = struct.unpack(">III", head[:12])
            if not (8192 <= memory <= 1048576 and 1 <= passes <= 16 and 1 <= lanes <= 16):
                return None
            stretched = Argon2id(salt=head[12:], length=32, iterations=passes, lanes=lanes, memory_cost=memory)
            return AESGCM(expand(stretched.derive(secret), info + head)).decrypt(bytes(12), wrapped, None)
        if kind == 3:
            suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
            return suite.decrypt(body, X25519PrivateKey.from_private_bytes(secret), info=info)
        pair = MLKEM768X25519PrivateKey(
            MLKEM768PrivateKey.from_seed_bytes(secret[:64]), X25519PrivateKey.from_private_bytes(secret[64:])
        )
        return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM).decrypt(body, pair, info=info)
    except (InvalidTag, ValueError, struct.error):
        return None


def key_id(kind: int, secret: bytes) -> bytes:
    if kind == 1:
        public = hashlib.sha512(b"privguard/v1 name of a secret\0" + secret).digest()[:32]
    elif kind == 2:
        return bytes(16)
    elif kind == 3:
        public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    else:
        public = MLKEM768PrivateKey.from_seed_bytes(secret[:64]).public_key().public_bytes_raw()
        public += X25519PrivateKey.from_private_bytes(secret[64:]).public_key().public_bytes_raw()
    return hashlib.sha256(b"privguard/v1 key id\0" + bytes([kind]) + public).digest()[:16]


def stanzas(body: bytes, count: int) -> list[tuple[int, int, bytes, bytes]]:
    found, rest = [], body
    for _ in range(count):
        need(len(rest) >= 24)
        kind, role, name, length = struct.unpack(">HH16sI", rest[:24])
        need(kind in (1, 2, 3, 4, 5) and role in (1, 2) and len(rest) >= 24 + length)
        found.append((kind, role, name, rest[24 : 24 + length]))
        rest = rest[24 + length :]
    need(not any(rest))
    need(len({one[:3] for one in found}) == len(found))
    need(sum(one[0] == 2 for one in found) <= 1)
    return found


def message_size(plain: int) -> int:
    return 56 + plain + 16 * (plain // 16384 + 1)


def sealed_size(plain: int) -> int:
    segments = [67108864] * (plain // 67108864)
    if plain % 67108864 or not segments:
        segments.append(plain % 67108864)
    return sum(map(message_size, segments))


def open_part(sealed: bytes, key: bytes, file_id: bytes, number: int) -> bytes:
    plain, segment = b"", 0
    while sealed or not segment:
        message, sealed = sealed[: message_size(67108864)], sealed[message_size(67108864) :]
        context = b"privguard/v1 payload\0" + file_id + struct.pack(">II", number, segment)
        need(len(message) >= 72)
        label = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"
        derived = expand(key, label + message[:24] + context, 76)
        need(derived[44:] == message[24:56])
        chunks = [message[at : at + 16400] for at in range(56, len(message), 16400)]
        if len(chunks[-1]) == 16400:
            raise RefusedError
        for number_of_chunk, chunk in enumerate(chunks):
            nonce = (int.from_bytes(derived[32:44], "big") ^ number_of_chunk).to_bytes(12, "big")
            try:
                plain += AESGCM(derived[:32]).decrypt(nonce, chunk, None)
            except (InvalidTag, ValueError):
                raise RefusedError from None
        segment += 1
    return plain


def read(path: Path, kind: int, secret: bytes) -> dict[str, Any]:
    """Everything that the key opens: role, manifest, ledger, and for resume the members."""
    head = (path / "privguard.seal" if path.is_dir() else path).read_bytes()
    need(len(head) >= 136 and head[:16] == b"privguard sealed")
    version, form, slot_size = struct.unpack(">HHI", head[16:24])
    if version != 1:
        raise UnknownVersionError
    need(form in (1, 2) and slot_size in [1 << bits for bits in range(14, 21)] and (form == 2) is path.is_dir())
    preamble, file_id = head[:136], head[24:40]
    sizes = struct.unpack(">QQQQ", head[40:72])
    slots = 2 if form == 1 else 1
    need(len(head) == 136 + slots * slot_size + (sum(sizes) if form == 1 else 0))
    whole = []
    for at in range(slots):
        slot = head[136 + at * slot_size : 136 + (at + 1) * slot_size]
        if hashlib.sha256(slot[:-32]).digest() == slot[-32:]:
            whole.append((int.from_bytes(slot[:8], "big"), slot))
    need(whole and len({sequence for sequence, _ in whole}) == len(whole))
    sequence, slot = max(whole)
    need(sequence)
    listed = stanzas(slot[10:-96], int.from_bytes(slot[8:10], "big"))
    for stanza_kind, role, name, body in sorted(listed, key=lambda one: one[1]):
        if stanza_kind != kind or name != key_id(kind, secret):
            continue
        info = b"privguard/v1 stanza\0" + struct.pack(">HH", kind, role) + file_id
        root = unwrap(kind, body, secret, info)
        if root is not None and len(root) == 32:
            return contents(path, head, preamble, slot, sizes, role, root)
    raise RefusedError


def parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise RefusedError from None


def contents(path, head, preamble, slot, sizes, role, root) -> dict[str, Any]:
    file_id = preamble[24:40]
    derive = lambda key, label: expand(key, b"privguard/v1 " + label + b"\0" + file_id)
    audit = derive(root, b"audit") if role == 1 else root
    macs = [(root, slot[-96:-64]), (audit, slot[-64:-32])] if role == 1 else [(audit, slot[-64:-32])]
    for key, mac in macs:
        need(hmac.compare_digest(hmac.digest(derive(key, b"mac"), preamble + slot[:-96], "sha256"), mac))
    if path.is_dir():
        take = lambda name: (
            (path / f"{file_id.hex()}.{name}").read_bytes() if (path / f"{file_id.hex()}.{name}").exists() else b""
        )
        small = {name: take(name) for name in ("index", "ledger", "manifest")}
    else:
        rest = head[len(head) - sum(sizes) :]
        cuts = [sum(sizes[:n]) for n in range(5)]
        _, *three = (rest[start:stop] for start, stop in pairwise(cuts))
        small = dict(zip(("index", "ledger", "manifest"), three, strict=True))
    need(hashlib.sha256(small["ledger"]).digest() == preamble[72:104])
    need(hashlib.sha256(small["manifest"]).digest() == preamble[104:136])
    found: dict[str, Any] = {"role": role, "file id": file_id, "commitment": derive(audit, b"commitment")}
    found["ledger"] = open_part(small["ledger"], derive(audit, b"ledger"), file_id, 0)
    found["manifest"] = parse(open_part(small["manifest"], derive(audit, b"manifest"), file_id, 0))
    if role == 2:
        return found
    index = parse(open_part(small["index"], derive(root, b"index"), file_id, 0))
    need(
        type(index) is list
        and all(type(one) is dict and type(one.get("size")) is int and type(one.get("name")) is str for one in index)
    )
    need(all(one["size"] >= 0 for one in index))
    need(sum(sealed_size(one["size"]) for one in index) == sizes[0])
    need(len({one["name"] for one in index}) == len(index))
    members, at = {}, 0
    for number, one in enumerate(index):
        size = sealed_size(one["size"])
        sealed = take(str(number)) if path.is_dir() else rest[at : at + size]
        need(len(sealed) == size)
        members[one["name"]] = open_part(sealed, derive(root, b"data"), file_id, number)
        at += size
    return found | {"members": members}


SECRET_SIZES = {"symmetric": (1, 32), "x25519": (3, 32), "x25519-mlkem768": (4, 96)}


def key_file(text: bytes) -> tuple[int, bytes]:
    """Kind and secret in a key file (section 9)."""
    need(len(text) <= 8192 and text.isascii())
    lines = [line for line in text.decode("ascii").splitlines() if line and not line.startswith("#")]
    need(len(lines) == 1 and len(words := lines[0].split(" ")) == 4)
    what, label, name, encoded = words
    need(what == "privguard-key-1" and label in SECRET_SIZES)
    kind, size = SECRET_SIZES[label]
    try:
        secret = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise RefusedError from None
    need(len(secret) == size and key_id(kind, secret).hex() == name)
    return kind, secret


def tree(value: Any) -> Any:
    """A state's tree (section 9) as plain Python; tensors, sizes, types, devices and arrays stay named tuples."""
    if value is None or type(value) in (bool, str, int):
        return value
    need(type(value) is dict and len(value) == 1)
    ((kind, content),) = value.items()
    if kind in ("list", "tuple", "set"):
        return {"list": list, "tuple": tuple, "set": set}[kind](tree(each) for each in content)
    if kind in ("dict", "ordered", "counter"):
        return {tree(key): tree(item) for key, item in content}
    if kind == "deque":
        return ("deque", content[0], [tree(each) for each in content[1]])
    simple = {"int": int, "float": float.fromhex, "bytes": lambda text: base64.b64decode(text, validate=True)}
    if kind in simple:
        return simple[kind](content)
    if kind == "complex":
        return complex(*map(float.fromhex, content))
    need(kind in ("tensor", "size", "dtype", "device", "numpy", "array"))
    return (kind, content)


def signer(found: dict[str, Any]) -> str:
    """The key id of whoever signed what :func:`read` found."""
    manifest = dict(found["manifest"])
    try:
        envelope = manifest.pop("signature")
        der = base64.b64decode(manifest["signer"], validate=True)
        payload, payload_type = base64.b64decode(envelope["payload"], validate=True), envelope["payloadType"]
        message = b"DSSEv1 %d %b %d %b" % (len(payload_type), payload_type.encode(), len(payload), payload)
        need(any(holds(der, base64.b64decode(one["sig"]), message) for one in envelope["signatures"]))
    except (KeyError, TypeError, ValueError, UnsupportedAlgorithm):
        raise RefusedError from None
    need(payload_type == "application/vnd.in-toto+json")
    digest = hashlib.sha256(found["commitment"]).hexdigest()
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": found["file id"].hex(), "digest": {"sha256": digest}}],
        "predicateType": "https://privguard.dev/sealed/v1",
        "predicate": manifest,
    }
    need(parse(payload) == statement)
    return hashlib.sha256(der).hexdigest()


def holds(der: bytes, signature: bytes, message: bytes) -> bool:
    key = load_der_public_key(der)
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
