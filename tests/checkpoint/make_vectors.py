# SPDX-License-Identifier: Apache-2.0
"""Makes tests/vectors/checkpoint-v1: one file for each way to open a sealed file, and each way not to.

    python -m tests.checkpoint.make_vectors tests/vectors/checkpoint-v1

Run it for a new version of the format only: what lies in the folder is what later versions have to go on reading. A
vector is a JSON object: what it shows, the outcome ("opens", "refused" or "unknown version"), the key, the files (zlib,
base64), and for those that open the role and the SHA-256 of each part's plaintext.
"""

import base64
import hashlib
import json
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from privguard import _canon
from privguard.checkpoint import archive, envelope
from privguard.checkpoint.archive import HEAD, SMALL
from privguard.checkpoint.content.payload import Bytes, Place, sealed_size
from privguard.checkpoint.envelope import PREAMBLE_BYTES, Form, Preamble, Secrets
from privguard.checkpoint.keys import stanza, unsafe
from privguard.checkpoint.keys.key import Key, Kind
from privguard.checkpoint.keys.stanza import Role, Stanza

SLOT = 16 << 10
KEYS = {
    Kind.SYMMETRIC: bytes(range(32)),
    Kind.X25519: bytes(range(32, 64)),
    Kind.X25519_MLKEM768: bytes(range(64, 160)),
}
TEAM = unsafe.key_of(Kind.SYMMETRIC, KEYS[Kind.SYMMETRIC])
OFFICER = unsafe.key_of(Kind.X25519, KEYS[Kind.X25519])
HYBRID = unsafe.key_of(Kind.X25519_MLKEM768, KEYS[Kind.X25519_MLKEM768])
WORDS = Key.from_passphrase("correct horse battery staple")
STRANGER = unsafe.symmetric_key(bytes(32))
MEMBERS = {"a": b"first member", "b": bytes(range(256)), "c": b""}
LONG = MEMBERS | {"b": bytes(range(256)) * 130}  # three chunks


@dataclass
class File:
    """A sealed file taken apart, so that every field can be set to anything and put together again."""

    secrets: Secrets = field(default_factory=Secrets.fresh)
    members: dict[str, bytes] = field(default_factory=lambda: dict(MEMBERS))
    ledger: bytes = b'{"event":"step"}\n'
    manifest: bytes = b'{"content":"folder"}'
    index: bytes | None = None
    to: tuple[Key, ...] = (TEAM,)
    auditors: tuple[Key, ...] = (OFFICER,)
    form: Form = Form.FILE

    def parts(self) -> dict[int | str, bytes]:
        listed = [{"name": name, "size": len(content)} for name, content in self.members.items()]
        index = _canon.canonical(listed) if self.index is None else self.index
        plain = dict(enumerate(self.members.values())) | {
            "index": index,
            "ledger": self.ledger,
            "manifest": self.manifest,
        }
        return {name: self.part(name, content) for name, content in plain.items()}

    def part(self, name: int | str, content: bytes) -> bytes:
        lock = archive.member(self.secrets, name) if isinstance(name, int) else archive.small_part(self.secrets, name)
        with tempfile.TemporaryFile() as file:
            lock.seal(Bytes(content), Place(Path("-"), file.fileno(), 0, sealed_size(len(content))))
            file.seek(0)
            return file.read()

    def preamble(self, parts: dict[int | str, bytes]) -> Preamble:
        return Preamble(
            form=self.form,
            slot_bytes=SLOT,
            file_id=self.secrets.file_id,
            data_bytes=sum(len(part) for name, part in parts.items() if isinstance(name, int)),
            index_bytes=len(parts["index"]),
            ledger_bytes=len(parts["ledger"]),
            manifest_bytes=len(parts["manifest"]),
            ledger_digest=hashlib.sha256(parts["ledger"]).digest(),
            manifest_digest=hashlib.sha256(parts["manifest"]).digest(),
        )

    def stanzas(self) -> list[Stanza]:
        return envelope.wrap(
            self.secrets, [key.recipient() for key in self.to], [key.recipient() for key in self.auditors]
        )

    def slot(self, preamble: bytes, body: bytes, *, resume: bool = True) -> bytes:
        body = body.ljust(SLOT - 96, b"\0")
        mac = self.secrets.mac(preamble, body) if resume else bytes(32)
        sealed = body + mac + self.secrets.audit().mac(preamble, body)
        return sealed + hashlib.sha256(sealed).digest()

    def whole(self) -> bytes:
        return self.again(self.parts())

    def again(self, parts: dict[int | str, bytes]) -> bytes:
        """The file with these parts, MACed as if they belonged there."""
        return self.joined(self.preamble(parts).pack(), self.body(self.stanzas()), parts)

    def joined(self, preamble: bytes, body: bytes, parts: dict[int | str, bytes]) -> bytes:
        return preamble + self.slot(preamble, body) + bytes(SLOT) + b"".join(parts.values())

    @staticmethod
    def body(stanzas: list[Stanza], *, sequence: int = 1, count: int | None = None) -> bytes:
        packed = struct.pack(">QH", sequence, len(stanzas) if count is None else count)
        return packed + b"".join(one.pack() for one in stanzas)


def cases() -> Iterator[dict[str, object]]:
    yield from opening()
    yield from preambles()
    yield from slots()
    yield from stanza_cases()
    yield from payloads()
    yield from auditors()
    yield from folders()


def opening() -> Iterator[dict[str, object]]:
    for key in (TEAM, WORDS, OFFICER, HYBRID):
        file = File(to=(key,), auditors=())
        yield case(f"opens-{key.kind.label}", "one recipient of this kind", file.whole(), key, file)
        yield case(f"wrong-key-{key.kind.label}", "a key that is not among the recipients", file.whole(), STRANGER)
    everybody = File(to=(HYBRID, WORDS, TEAM), auditors=(OFFICER,))
    content = everybody.whole()
    for key in (TEAM, WORDS, HYBRID):
        yield case(f"opens-several-{key.kind.label}", "several recipients, one of them this", content, key, everybody)
    yield case("opens-several-auditor", "the auditor among several", content, OFFICER, everybody, role=Role.AUDIT)
    for key in (TEAM, HYBRID, WORDS):
        file = File(to=(OFFICER,), auditors=(key,))
        yield case(
            f"opens-audit-{key.kind.label}",
            "an auditor's stanza of this kind",
            file.whole(),
            key,
            file,
            role=Role.AUDIT,
        )
    both = File(to=(TEAM,), auditors=(TEAM,))
    yield case("opens-both-roles", "a key with both roles resumes", both.whole(), TEAM, both)
    empty = File(members={}, ledger=b"", manifest=b"{}")
    yield case("opens-empty", "no members, no ledger", empty.whole(), TEAM, empty)
    names = File(members={"wörter/ünd \u2603": b"x", "../outside": b"y"})
    yield case("opens-names", "names are any text for a reader that writes nothing out", names.whole(), TEAM, names)
    for size in (16383, 16384, 16385, 32768):
        file = File(members={"m": bytes(size)})
        yield case(
            f"opens-chunks-{size}", "a member that ends at or beside the end of a chunk", file.whole(), TEAM, file
        )


def preambles() -> Iterator[dict[str, object]]:
    file = File()
    whole = file.whole()
    for version in (0, 2, 65535):
        yield case(
            f"version-{version}", "another version", set_at(whole, 16, ">H", version), TEAM, outcome="unknown version"
        )
    for name, at, format_, value in [
        ("magic", 0, ">B", ord("P")),
        ("form-0", 18, ">H", 0),
        ("form-3", 18, ">H", 3),
        ("form-folder", 18, ">H", 2),
        ("slot-size-0", 20, ">I", 0),
        ("slot-size-8k", 20, ">I", 8192),
        ("slot-size-odd", 20, ">I", SLOT + 1),
        ("slot-size-2m", 20, ">I", 2 << 20),
        ("slot-size-32k", 20, ">I", 2 * SLOT),
        ("slot-size-4g", 20, ">I", 0xFFFFFFFF),
        ("data-size-huge", 40, ">Q", 1 << 63),
        ("index-size-huge", 48, ">Q", (1 << 64) - 1),
        ("ledger-size-0", 56, ">Q", 0),
        ("manifest-size-huge", 64, ">Q", 1 << 40),
    ]:
        yield case(
            f"preamble-{name}",
            "a field of the preamble set to a value no writer uses",
            set_at(whole, at, format_, value),
            TEAM,
        )
    for name, at in (
        ("file-id", 24),
        ("data-size", 47),
        ("index-size", 55),
        ("ledger-digest", 72),
        ("manifest-digest", 104),
    ):
        yield case(f"preamble-flip-{name}", "one bit of the preamble flipped", flipped(whole, at), TEAM)
    parts = file.parts()
    for name in ("data_bytes", "index_bytes"):
        lying = replace(file.preamble(parts), **{name: getattr(file.preamble(parts), name) + 16}).pack()
        content = file.joined(lying, file.body(file.stanzas()), parts) + bytes(16)
        yield case(f"preamble-maced-{name}", "a size that is wrong although the MAC covers it", content, TEAM)
    swapped = replace(
        file.preamble(parts), ledger_bytes=len(parts["manifest"]), manifest_bytes=len(parts["ledger"])
    ).pack()
    yield case(
        "preamble-maced-swapped-sizes",
        "sizes of ledger and manifest swapped under the MAC",
        file.joined(swapped, file.body(file.stanzas()), parts),
        TEAM,
    )


def slots() -> Iterator[dict[str, object]]:
    file = File()
    parts = file.parts()
    preamble, stanzas = file.preamble(parts).pack(), file.stanzas()
    tail = b"".join(parts.values())
    good = file.slot(preamble, file.body(stanzas))
    new = file.slot(preamble, file.body(envelope.wrap(file.secrets, [HYBRID.recipient()]), sequence=2))
    yield case(
        "slot-second", "after a re-wrap the second slot is active", preamble + bytes(SLOT) + new + tail, HYBRID, file
    )
    yield case(
        "slot-both-new", "both slots whole: the greater sequence counts", preamble + good + new + tail, HYBRID, file
    )
    yield case("slot-both-old", "both slots whole: the older one opens nothing", preamble + good + new + tail, TEAM)
    yield case(
        "slot-torn",
        "the other slot torn in the middle of a write is ignored",
        preamble + good + new[: SLOT // 2] + bytes(SLOT // 2) + tail,
        TEAM,
        file,
    )
    yield case(
        "slot-idle-noise",
        "bytes in the idle slot are without effect",
        preamble + good + flipped(bytes(SLOT), 77) + tail,
        TEAM,
        file,
    )
    yield case("slot-none", "no whole slot", preamble + bytes(2 * SLOT) + tail, TEAM)
    yield case("slot-same-sequence", "two slots of one sequence", preamble + good + good + tail, TEAM)
    for name, at in (
        ("sequence", 7),
        ("count", 9),
        ("stanza", 100),
        ("padding", SLOT - 100),
        ("resume-mac", SLOT - 96),
        ("audit-mac", SLOT - 64),
        ("checksum", SLOT - 1),
    ):
        yield case(
            f"slot-flip-{name}",
            "one bit of the only slot flipped",
            preamble + flipped(good, at) + bytes(SLOT) + tail,
            TEAM,
        )
        if name != "checksum":
            noticed = flipped(good, at)[:-32]
            noticed += hashlib.sha256(noticed).digest()
            content = preamble + noticed + bytes(SLOT) + tail
            yield case(f"slot-flip-{name}-checksum-mended", "the same with the checksum made anew", content, TEAM)
    content = preamble + (flip := flipped(good, SLOT - 64)[:-32]) + hashlib.sha256(flip).digest() + bytes(SLOT) + tail
    yield case("slot-flip-audit-mac-for-auditor", "an auditor checks the audit MAC", content, OFFICER)
    for name, body in {
        "sequence-0": file.body(stanzas, sequence=0),
        "count-more": file.body(stanzas, count=3),
        "count-less": file.body(stanzas, count=1),
        "count-65535": file.body(stanzas, count=65535),
        "no-stanza": file.body([]),
        "padding": file.body(stanzas).ljust(SLOT - 97, b"\0") + b"\1",
    }.items():
        yield case(
            f"slot-maced-{name}",
            "a body no writer makes, under right MACs",
            preamble + file.slot(preamble, body) + bytes(SLOT) + tail,
            TEAM,
        )
    other = file.slot(file.preamble(parts).pack(), file.body(stanzas))
    strange = File(secrets=replace(file.secrets, root=bytes(32)))
    yield case(
        "slot-maced-by-another-key",
        "MACs of a key that is not in the stanzas",
        preamble + strange.slot(preamble, other[: SLOT - 96]) + bytes(SLOT) + tail,
        TEAM,
    )


def stanza_cases() -> Iterator[dict[str, object]]:
    file = File(auditors=())
    parts = file.parts()
    preamble = file.preamble(parts).pack()
    (mine,) = file.stanzas()

    def with_stanzas(*stanzas: bytes) -> bytes:
        body = struct.pack(">QH", 1, len(stanzas)) + b"".join(stanzas)
        return file.joined(preamble, body, parts)

    head = lambda kind, role, length: struct.pack(">HH16sI", kind, role, mine.key_id, length) + mine.body
    yield case("stanza-kind-0", "an unknown kind", with_stanzas(head(0, 1, len(mine.body))), TEAM)
    yield case("stanza-kind-6", "an unknown kind", with_stanzas(head(6, 1, len(mine.body))), TEAM)
    yield case("stanza-role-0", "an unknown role", with_stanzas(head(1, 0, len(mine.body))), TEAM)
    yield case("stanza-role-3", "an unknown role", with_stanzas(head(1, 3, len(mine.body))), TEAM)
    yield case("stanza-length-huge", "a length that points outside", with_stanzas(head(1, 1, 0xFFFFFFFF)), TEAM)
    yield case(
        "stanza-length-short", "a length that leaves bytes behind", with_stanzas(head(1, 1, len(mine.body) - 1)), TEAM
    )
    yield case(
        "stanza-relabelled", "a resume stanza relabelled as audit", with_stanzas(head(1, 2, len(mine.body))), TEAM
    )
    yield case("stanza-twice", "one key named twice in one role", with_stanzas(mine.pack(), mine.pack()), TEAM)
    again = [
        stanza.wrap(file.secrets.root, WORDS.recipient(), role=role, file_id=file.secrets.file_id).pack()
        for role in Role
    ]
    yield case("stanza-two-passphrases", "a second passphrase", with_stanzas(mine.pack(), *again), TEAM)
    foreign = File(auditors=()).stanzas()[0].pack()
    yield case("stanza-of-another-file", "a stanza moved from another file", with_stanzas(foreign), TEAM)
    short = stanza.wrap(b"short", TEAM.recipient(), role=Role.RESUME, file_id=file.secrets.file_id).pack()
    yield case("stanza-short-secret", "a wrapped key of five bytes", with_stanzas(short), TEAM)
    empty = struct.pack(">HH16sI", 1, 1, mine.key_id, 0)
    yield case("stanza-empty", "a stanza without a body", with_stanzas(empty), TEAM)
    for name, cost in {
        "memory-4g": (1 << 22, 3, 4),
        "memory-0": (0, 3, 4),
        "passes-0": (65536, 0, 4),
        "passes-2g": (65536, 1 << 31, 4),
        "lanes-0": (65536, 3, 0),
        "lanes-17": (65536, 3, 17),
    }.items():
        body = struct.pack(">III", *cost) + bytes(16 + 48)
        hostile = struct.pack(">HH16sI", 2, 1, bytes(16), len(body)) + body
        yield case(
            f"stanza-argon2-{name}",
            "Argon2id parameters out of bounds are refused before they are paid",
            with_stanzas(hostile),
            WORDS,
        )


def payloads() -> Iterator[dict[str, object]]:
    file = File(members=LONG)
    parts = file.parts()
    preamble, body = file.preamble(parts).pack(), file.body(file.stanzas())
    whole = file.joined(preamble, body, parts)
    start = PREAMBLE_BYTES + 2 * SLOT
    chunks = start + len(parts[0]) + 56
    boundaries = {
        "empty": 0,
        "magic": 16,
        "preamble": PREAMBLE_BYTES,
        "first-slot": PREAMBLE_BYTES + SLOT,
        "slots": start,
        "salt": start + 24,
        "prefix": start + 56,
        "first-member": start + len(parts[0]),
        "chunk": chunks + 16400,
        "members": start + sum(len(parts[n]) for n in range(3)),
        "index": len(whole) - len(parts["ledger"]) - len(parts["manifest"]),
        "ledger": len(whole) - len(parts["manifest"]),
        "last-byte": len(whole) - 1,
    }
    for name, at in boundaries.items():
        yield case(f"truncated-{name}", "cut at this boundary", whole[:at], TEAM)
    yield case("trailing-byte", "one byte more", whole + b"\0", TEAM)
    yield case("trailing-chunk", "a chunk more", whole + whole[-16400:], TEAM)

    def moved(name: str, comment: str, message: bytes, key: Key = TEAM) -> dict[str, object]:
        changed = parts | {1: message}
        return case(name, comment, file.again(changed), key)

    prefix, first, second, rest = parts[1][:56], parts[1][56:16456], parts[1][16456:32856], parts[1][32856:]
    yield moved("chunks-swapped", "two chunks of a member swapped", prefix + second + first + rest)
    yield moved("chunk-repeated", "a chunk stands twice", prefix + first + first + second + rest)
    yield moved("chunk-replaced", "a chunk stands in the place of another", prefix + first + first + rest)
    yield moved("chunk-dropped", "a chunk is missing, the sizes say so too", prefix + second + rest)
    yield moved("chunk-last-dropped", "the last chunk is missing", prefix + first + second)
    yield moved("payload-flip-salt", "a bit of the salt", flipped(parts[1], 3))
    yield moved("payload-flip-commitment", "a bit of the commitment", flipped(parts[1], 40))
    yield moved("payload-flip-chunk", "a bit of a chunk", flipped(parts[1], 20_000))
    yield moved("payload-flip-tag", "a bit of the last tag", flipped(parts[1], len(parts[1]) - 1))
    twins = File(members={"a": b"one" * 99, "b": b"two" * 99})
    sealed = twins.parts()
    mixed = {0: sealed[1], 1: sealed[0]} | {name: sealed[name] for name in SMALL}
    yield case(
        "members-swapped",
        "two members of one file change places",
        twins.joined(twins.preamble(mixed).pack(), twins.body(twins.stanzas()), mixed),
        TEAM,
    )
    doubled = sealed | {1: sealed[0]}
    yield case(
        "member-repeated",
        "one member stands in both places",
        twins.joined(twins.preamble(doubled).pack(), twins.body(twins.stanzas()), doubled),
        TEAM,
    )
    file = File()
    parts, stranger = file.parts(), File().parts()
    body = file.body(file.stanzas())
    for name in (1, *SMALL):
        changed = parts | {name: stranger[name]}
        yield case(
            f"mixed-{name}",
            "this part of another file for the same key",
            file.joined(file.preamble(changed).pack(), body, changed),
            TEAM,
        )
    for name, index in {
        "not-json": b"[",
        "not-a-list": b"{}",
        "size-negative": b'[{"name":"a","size":-1}]',
        "size-wrong": b'[{"name":"a","size":5}]',
        "no-name": b'[{"size":12}]',
        "name-twice": _canon.canonical([{"name": "a", "size": len(value)} for value in MEMBERS.values()]),
    }.items():
        lying = File(index=index)
        yield case(f"index-{name}", "an index that does not fit the members", lying.whole(), TEAM)
    yield case("manifest-not-json", "a manifest that is not JSON", File(manifest=b"{").whole(), TEAM)


def auditors() -> Iterator[dict[str, object]]:
    file = File()
    parts, stanzas = file.parts(), file.stanzas()
    body = file.body(stanzas)
    forged = parts | {"ledger": file.part("ledger", b'{"event":"nothing was spent"}\n')}
    preamble = file.preamble(forged).pack()
    content = preamble + file.slot(preamble, body, resume=False) + bytes(SLOT) + b"".join(forged.values())
    yield case("auditor-forges-ledger", "an auditor seals another ledger; who may resume refuses it", content, TEAM)
    told = replace_ledger(file, b'{"event":"nothing was spent"}\n')
    yield case(
        "auditor-forges-for-auditor",
        "towards another auditor the forgery holds: sign the file",
        content,
        OFFICER,
        told,
        role=Role.AUDIT,
    )
    preamble = file.preamble(parts).pack()
    extra = [
        *stanzas,
        stanza.wrap(file.secrets.audit().root, HYBRID.recipient(), role=Role.AUDIT, file_id=file.secrets.file_id),
    ]
    content = (
        preamble
        + file.slot(preamble, file.body(extra, sequence=2), resume=False)
        + bytes(SLOT)
        + b"".join(parts.values())
    )
    yield case("auditor-rewraps", "an auditor adds an auditor; who may resume refuses the head", content, TEAM)
    false = stanza.wrap(bytes(32), TEAM.recipient(), role=Role.RESUME, file_id=file.secrets.file_id)
    content = (
        preamble
        + file.slot(preamble, file.body([false, stanzas[1]]), resume=False)
        + bytes(SLOT)
        + b"".join(parts.values())
    )
    yield case(
        "auditor-replaces-file-key", "an auditor wraps a file key of their own for who may resume", content, TEAM
    )


def folders() -> Iterator[dict[str, object]]:
    file = File(form=Form.FOLDER)
    parts = file.parts()
    preamble, body = file.preamble(parts).pack(), file.body(file.stanzas())
    head = preamble + file.slot(preamble, body)
    name = lambda part: f"{file.secrets.file_id.hex()}.{part}"
    files = {HEAD: head} | {name(part): content for part, content in parts.items()}
    yield case("folder-opens", "a folder", files, TEAM, file)
    yield case("folder-audit", "a folder, for the auditor", files, OFFICER, file, role=Role.AUDIT)
    yield case(
        "folder-strangers",
        "other files in the folder are not looked at",
        files | {"README": b"hello", "0" * 32 + ".0": b"old"},
        TEAM,
        file,
    )
    for part in (1, *SMALL):
        yield case(
            f"folder-missing-{part}",
            "a part is missing",
            {key: value for key, value in files.items() if key != name(part)},
            TEAM,
        )
        yield case(
            f"folder-truncated-{part}", "a part is cut short", files | {name(part): files[name(part)][:-1]}, TEAM
        )
        yield case(
            f"folder-longer-{part}", "a part has a byte more", files | {name(part): files[name(part)] + b"\0"}, TEAM
        )
    yield case("folder-swapped", "two parts change names", files | {name(0): parts[1], name(1): parts[0]}, TEAM)
    yield case("folder-head-longer", "a byte after the head", files | {HEAD: head + b"\0"}, TEAM)
    yield case("folder-head-of-a-file", "the head of a single file in a folder", files | {HEAD: File().whole()}, TEAM)
    yield case("folder-head-alone", "the head of a folder as a single file", head, TEAM)


def replace_ledger(file: File, ledger: bytes) -> File:
    return File(secrets=file.secrets, members=file.members, ledger=ledger, manifest=file.manifest)


def case(name, comment, content, key, opens=None, *, role=Role.RESUME, outcome="refused") -> dict[str, object]:
    files = content if isinstance(content, dict) else {"file": content}
    packed = {path: base64.b64encode(zlib.compress(data, 9)).decode() for path, data in files.items()}
    shape = "folder" if isinstance(content, dict) else "file"
    vector = {
        "name": name,
        "shows": comment,
        "outcome": "opens" if opens else outcome,
        "shape": shape,
        "key": {"kind": key.kind.label, "secret": unsafe.raw_bytes(key).hex()},
        "files": packed,
    }
    if opens:
        digest = lambda data: hashlib.sha256(data).hexdigest()
        plain = {"ledger": digest(opens.ledger), "manifest": digest(_canon.canonical(json.loads(opens.manifest)))}
        members = {name: digest(data) for name, data in opens.members.items()} if role is Role.RESUME else {}
        vector |= {"role": role.name.lower(), "plain": plain, "members": members}
        if shape == "file" and left_over(content):
            vector["leftover"] = True  # opening says a word of it
    return vector


def left_over(content: bytes) -> bool:
    preamble = Preamble.unpack(content)
    slots = [content[PREAMBLE_BYTES + at * SLOT : PREAMBLE_BYTES + (at + 1) * SLOT] for at in range(preamble.slots)]
    return any(slots[1 - envelope.active(slots)[0]])


def set_at(data: bytes, at: int, format_: str, value: int) -> bytes:
    packed = struct.pack(format_, value)
    return data[:at] + packed + data[at + len(packed) :]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def write(vectors: Iterator[dict[str, object]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for vector in vectors:
        path = folder / f"{vector['name']}.json"
        if path.exists():
            raise FileExistsError(f"{path}: two vectors of one name, or vectors of an earlier run")
        path.write_text(json.dumps(vector, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(cases(), Path(sys.argv[1]))
