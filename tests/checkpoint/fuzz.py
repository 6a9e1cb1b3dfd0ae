# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of the reader: head, stanzas, index, payload, tensor headers and trees.

    pip install atheris && python -m tests.checkpoint.fuzz -max_total_time=1800 -rss_limit_mb=2048 CORPUS

A mutated file alone would end at the first checksum. So the first byte chooses how far the input is helped on: from
"this is the whole file" to "this is the index, sealed as it should be". Whatever the input, the reader opens it or
refuses it with an error of privguard's own, in bounded time and memory: what is read, plus 64 MiB.
"""

import contextlib
import hashlib
import json
import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["privguard"]):
    from privguard.attest.statement import SigningKey, sign
    from privguard.checkpoint import load
    from privguard.checkpoint.archive import statement
    from privguard.checkpoint.content import tensors, tree
    from privguard.checkpoint.content.payload import Bytes
    from privguard.checkpoint.envelope import Preamble
    from privguard.checkpoint.opened import Sealed
    from privguard.errors import PrivguardError
    from tests.checkpoint import make_vectors as making

SLOT = making.SLOT
SIGNER = SigningKey.from_seed(bytes(32))
FILE = making.File(members={"a": b"first member", "w.safetensors": b""})
PARTS = FILE.parts()
PREAMBLE = FILE.preamble(PARTS).pack()
BODY = FILE.body(FILE.stanzas())
TAIL = b"".join(PARTS.values())
PLACE = Path(tempfile.mkdtemp(dir="/dev/shm")) / "file"
SNAPSHOT = json.dumps(
    {"content": "snapshot", "run": "r", "step": 1, "ledger_head": "0" * 64, "ledger_size": 0}
).encode()
ALLOWED = 64 << 10  # KiB beyond the largest input


def the_file(data: bytes) -> bytes:
    return data


def the_preamble(data: bytes) -> bytes:
    preamble = (PREAMBLE[:16] + data)[:136].ljust(136, b"\0")
    return preamble + FILE.slot(preamble, BODY) + bytes(SLOT) + TAIL


def the_slot(data: bytes) -> bytes:
    sealed = data[: SLOT - 32].ljust(SLOT - 32, b"\0")
    return PREAMBLE + sealed + hashlib.sha256(sealed).digest() + bytes(SLOT) + TAIL


def the_maced_body(data: bytes) -> bytes:
    return PREAMBLE + FILE.slot(PREAMBLE, data[: SLOT - 96]) + bytes(SLOT) + TAIL


def the_index(data: bytes) -> bytes:
    return FILE.again(PARTS | {"index": FILE.part("index", data)})


def the_manifest(data: bytes) -> bytes:
    return FILE.again(PARTS | {"manifest": FILE.part("manifest", data)})


def the_signature(data: bytes) -> bytes:
    """A manifest whose envelope is the input, under a signer that is one."""
    manifest = b'{"signer":"' + SIGNER.identity.to_json().encode() + b'","signature":' + data + b"}"
    return FILE.again(PARTS | {"manifest": FILE.part("manifest", manifest)})


def the_signed_manifest(data: bytes) -> bytes:
    """Whatever facts somebody signed with a key of their own."""
    try:
        manifest = {**json.loads(data), "signer": SIGNER.identity.to_json()}
        manifest["signature"] = sign(statement(FILE.secrets, manifest), by=SIGNER).to_json()
        plain = json.dumps(manifest).encode()
    except (ValueError, TypeError, RecursionError):
        plain = data
    return FILE.again(PARTS | {"manifest": FILE.part("manifest", plain)})


def the_message(data: bytes) -> bytes:
    return FILE.again(PARTS | {0: data})


def the_tensor_file(data: bytes) -> bytes:
    listed = [{"name": "a", "size": 12}, {"name": "w.safetensors", "size": len(data)}]
    index = FILE.part("index", json.dumps(listed).encode())
    return FILE.again(PARTS | {1: FILE.part(1, data), "index": index})


def the_state(data: bytes) -> bytes:
    layout = tensors.Layout({"t": tensors.torch.ones(2)})
    file = b"".join(bytes(view) for view in layout.views(0, layout.size))
    members = {"weights.safetensors": file, "state.json": data, "state.safetensors": file}
    return making.File(secrets=FILE.secrets, members=members, manifest=SNAPSHOT).whole()


WAYS = (
    the_state,
    the_file,
    the_preamble,
    the_slot,
    the_maced_body,
    the_index,
    the_manifest,
    the_message,
    the_tensor_file,
    the_signature,
    the_signed_manifest,
)


def read_everything(content: bytes) -> None:
    PLACE.write_bytes(content)
    with contextlib.suppress(PrivguardError):
        load(PLACE, making.TEAM)
    for key in (making.TEAM, making.OFFICER):
        with contextlib.suppress(PrivguardError), Sealed(PLACE, key) as sealed:
            with contextlib.suppress(PrivguardError):
                sealed.signer()
            sealed.ledger  # noqa: B018
            for name in sealed.names():
                sealed.read(name)
                sealed.reader(name).read(0, sealed.size(name))
            for name in (found := sealed.tensors()):
                found[name]


def test_one_input(data: bytes) -> None:
    if not data:
        return
    way, rest = data[0] % (len(WAYS) + 1), data[1:]
    if way < len(WAYS):
        read_everything(WAYS[way](rest))
    else:
        with contextlib.suppress(PrivguardError):
            tree.loads(rest, {"t": tensors.torch.ones(2)})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if peak > BASE + ALLOWED + len(data) // 1024:
        raise MemoryError(f"peak={peak} KiB: expected at most {ALLOWED} KiB above {BASE}")


def seeds(folder: Path) -> None:
    """What each way starts from: its part of a good file."""
    folder.mkdir(parents=True, exist_ok=True)
    layout = tensors.Layout({"w": tensors.torch.arange(6.0), "v": tensors.torch.ones(2, 2)})
    whole = b"".join(bytes(view) for view in layout.views(0, layout.size))
    packed = json.dumps(tree.pack({"a": [1, 2.5, (None, b"x")]}, prefix="s")[0]).encode()
    slot = BODY.ljust(SLOT - 96, b"\0") + bytes(64)
    index, manifest = b'[{"name":"a","size":12}]', b'{"content":"file"}'
    signature = json.dumps(sign(statement(FILE.secrets, {}), by=SIGNER).to_json()).encode()
    good = [
        packed,
        FILE.whole(),
        PREAMBLE[16:],
        slot,
        BODY,
        index,
        manifest,
        PARTS[0],
        whole,
        signature,
        manifest,
        packed,
    ]
    for way, content in enumerate(good):
        (folder / f"seed-{way}").write_bytes(bytes([way]) + content)
    assert Preamble.unpack(PREAMBLE)
    assert Bytes(b"").size == 0


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if not argument.startswith("-"):
            seeds(Path(argument))
    for way in range(len(WAYS)):
        read_everything(WAYS[way](b"warm up"))
    BASE = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
