# SPDX-License-Identifier: Apache-2.0
"""Odd names, sizes, types, links and sources: what is sealed opens, and what cannot be sealed is refused by name."""

import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import threading

import pytest
import safetensors
import torch

from privguard.checkpoint import Key, Snapshot, load, open_into, open_sealed, rewrap, save, seal
from privguard.checkpoint.archive import HEAD, Audience, Contents, write_file
from privguard.checkpoint.content.payload import Bytes, sealed_size
from privguard.checkpoint.content.tensors import DTYPES, Layout, from_buffer
from privguard.checkpoint.files import FileContent, seal_stream
from privguard.checkpoint.sealed_folder import write_folder
from privguard.errors import SealError, TamperedError


def test_names_of_every_length_and_odd_letters_come_back(tmp_path, key):
    source, draws = tmp_path / "source", random.Random(5)
    source.mkdir()
    names = ["x" * count for count in (1, 200, *range(225, 256))] + [
        ".y.aaaa.sealing",
        "y",
        "*?[a]",
        "a b\n",
        "ü" * 100,
    ]
    names += [".0123456789abcdef.0123456789abcdef.sealing", "privguard.seal", "-", "\\", "'\""]
    for name in names:
        (source / name).write_bytes(draws.randbytes(draws.choice([0, 1, 16383, 16384, 16385])))
    seal(source, tmp_path / "s", to=key)
    open_into(tmp_path / "s", tmp_path / "out", key=key)
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name
        seal(source / name, tmp_path / "f", to=key)
        long = tmp_path / "outs" / name
        long.parent.mkdir(exist_ok=True)
        open_into(tmp_path / "f", long, key=key)
        assert long.read_bytes() == (source / name).read_bytes(), name


def test_a_name_that_is_not_utf_8_is_refused_in_a_folder_and_served_by_itself(tmp_path, key):
    (tmp_path / "source").mkdir()
    odd = os.path.join(os.fsencode(tmp_path / "source"), b"caf\xe9")  # noqa: PTH118 — bytes
    with open(odd, "wb") as file:  # noqa: PTH123
        file.write(b"x")
    with pytest.raises(SealError, match="UTF-8"):
        seal(tmp_path / "source", tmp_path / "s", to=key)
    seal(os.fsdecode(odd), tmp_path / "f", to=key)
    open_into(tmp_path / "f", tmp_path / "out", key=key)
    assert (tmp_path / "out").read_bytes() == b"x"


def test_a_folder_of_more_files_than_descriptors_and_an_empty_one_come_back(tmp_path, key):
    (tmp_path / "empty").mkdir()
    seal(tmp_path / "empty", tmp_path / "e", to=key)
    assert open_into(tmp_path / "e", tmp_path / "e.out", key=key) == []
    assert list((tmp_path / "e.out").iterdir()) == []
    members = {str(number): Bytes(str(number).encode()) for number in range(600)}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        write_folder(tmp_path / "s", Contents(members=members), Audience.of(key))
        assert len(open_into(tmp_path / "s", tmp_path / "out", key=key)) == 600
        with open_sealed(tmp_path / "s", key) as opened:
            assert bytes(opened.read("599")) == b"599"
            write_folder(tmp_path / "s", Contents(members={"0": Bytes(b"new")}), Audience.of(key))
            assert bytes(opened.read("1")) == b"1"  # is open
            with pytest.raises(SealError, match="saved anew"):  # and not tampered with
                opened.read("599")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (tmp_path / "out" / "599").read_bytes() == b"599"


def test_sources_without_a_size_are_read_to_their_end(tmp_path, key):
    code = "import sys; from privguard.checkpoint import *; seal(sys.argv[1], sys.argv[2], to=Key.read(sys.argv[3]))"
    content = os.urandom(100_000)
    key.write(tmp_path / "key")
    arguments = [sys.executable, "-c", code, "/dev/stdin", tmp_path / "stdin", tmp_path / "key"]
    subprocess.run(arguments, input=content, check=True)
    open_into(tmp_path / "stdin", tmp_path / "out", key=key)
    assert (tmp_path / "out").read_bytes() == content
    if os.path.exists("/proc/version"):  # noqa: PTH110
        seal("/proc/version", tmp_path / "v", to=key)
        with open("/proc/version", "rb") as file, open_sealed(tmp_path / "v", key) as opened:  # noqa: PTH123
            assert bytes(opened.read("version")) == file.read()


def test_a_named_pipe_is_refused_and_a_pipe_is_sealed(tmp_path, key):
    os.mkfifo(tmp_path / "pipe")
    for act in (lambda: seal(tmp_path / "pipe", tmp_path / "s", to=key), lambda: open_sealed(tmp_path / "pipe", key)):
        with pytest.raises((SealError, OSError), match="pipe"):
            act()
    reading, writing = os.pipe()
    content = os.urandom(300_000)
    writer = threading.Thread(target=send, args=(writing, content))
    writer.start()
    with os.fdopen(reading, "rb", buffering=0) as file:
        seal_stream(file, tmp_path / "s", to=key)
    writer.join()
    open_into(tmp_path / "s", tmp_path / "out", key=key)
    assert (tmp_path / "out").read_bytes() == content


def send(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite"])
def test_a_file_that_changes_while_it_is_sealed_is_noticed(tmp_path, key, change):
    (tmp_path / "a").write_bytes(bytes(50_000))
    content = FileContent.of(tmp_path / "a")
    (tmp_path / "a").write_bytes({"grow": bytes(50_001), "shrink": bytes(3), "rewrite": bytes(49_999) + b"x"}[change])
    with pytest.raises(OSError, match="changed while it was sealed"):
        write_file(tmp_path / "s", Contents(members={"a": content}), Audience.of(key))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("form", ["file", "folder"])
def test_nothing_is_written_through_a_planted_link(tmp_path, key, form):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_text("x")
    seal(tmp_path / "source" if form == "folder" else tmp_path / "source" / "a", tmp_path / "s", to=key)
    (tmp_path / "out").symlink_to(tmp_path / "stranger")
    with pytest.raises(FileExistsError):
        open_into(tmp_path / "s", tmp_path / "out", key=key)
    with pytest.raises(FileExistsError):
        seal(tmp_path / "source" / "a", tmp_path / "out", to=key)
    assert not (tmp_path / "stranger").exists()


def test_one_damaged_member_leaves_nothing_of_a_folder_in_clear(tmp_path, key):
    (tmp_path / "source").mkdir()
    for name in "ab":
        (tmp_path / "source" / name).write_text(name)
    seal(tmp_path / "source", tmp_path / "s", to=key)
    part = next((tmp_path / "s").glob("*.1"))
    content = bytearray(part.read_bytes())
    content[60] ^= 1
    part.write_bytes(content)
    with pytest.raises(TamperedError):
        open_into(tmp_path / "s", tmp_path / "out", key=key)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "s"}


@pytest.mark.parametrize("names", [("a", "./a"), ("a", "a/b"), ("../a",), ("/a",), ("",)])
def test_names_that_cannot_stand_side_by_side_are_refused(tmp_path, key, names):
    members = {name: Bytes(b"x") for name in names}
    write_folder(tmp_path / "s", Contents(members=members, manifest={"content": "folder"}), Audience.of(key))
    with pytest.raises(SealError):
        open_into(tmp_path / "s", tmp_path / "out", key=key)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("part", ["0", "index", "ledger", "manifest"])
def test_a_part_that_somebody_made_long_is_refused_before_it_is_read(tmp_path, key, part):
    write_folder(tmp_path / "s", Contents(members={"a": Bytes(b"x")}), Audience.of(key))
    os.truncate(next((tmp_path / "s").glob(f"*.{part}")), sealed_size(3 << 40))
    with pytest.raises(TamperedError):
        open_sealed(tmp_path / "s", key)


def test_modes_stay_when_a_file_is_saved_again_or_its_folder_re_wrapped(tmp_path, key):
    for name, mode in (("f", 0o640), ("s", 0o640)):
        for _ in range(2):
            if name == "f":
                write_file(tmp_path / name, Contents(members={"a": Bytes(b"x")}), Audience.of(key))
                (tmp_path / name).chmod(mode)
            else:
                write_folder(tmp_path / name, Contents(members={"a": Bytes(b"x")}), Audience.of(key))
                (tmp_path / name / HEAD).chmod(mode)
    rewrap(tmp_path / "s", key, add=Key.generate_x25519())
    write_file(tmp_path / "f", Contents(members={"a": Bytes(b"x")}), Audience.of(key))
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("f", f"s/{HEAD}")] == [0o640, 0o640]


def test_lazy_views_come_back_as_themselves(tmp_path, key):
    x = torch.randn(3, dtype=torch.complex64)
    weights = {"x": x, "conj": x.conj(), "imag": x.imag, "neg": x.conj().imag, "same": x}
    save(Snapshot(weights=weights, run="r", step=1, optimizer={"a": x, "b": x.conj()}), tmp_path / "s", to=key)
    again = load(tmp_path / "s", key)
    for name, value in weights.items():
        assert torch.equal(again.weights[name], value.resolve_conj().resolve_neg()), name
    assert torch.equal(again.optimizer["b"], x.conj().resolve_conj())
    assert again.weights["same"].data_ptr() == again.weights["x"].data_ptr()


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_what_safetensors_writes(tmp_path, key, name):
    raw = torch.randint(0, 2, (4, 6, DTYPES[name].itemsize), dtype=torch.uint8)
    tensor = raw.view(DTYPES[name]).squeeze(-1) if DTYPES[name].itemsize > 1 else raw.squeeze(-1).view(DTYPES[name])
    save(Snapshot(weights={"w": tensor}, run="r", step=1), tmp_path / "s", to=key)
    again = load(tmp_path / "s", key).weights["w"]
    assert again.dtype is tensor.dtype
    assert again.shape == tensor.shape
    assert torch.equal(again.view(torch.uint8), tensor.view(torch.uint8))
    layout = Layout({"w": tensor})
    (tmp_path / "plain.safetensors").write_bytes(b"".join(bytes(view) for view in layout.views(0, layout.size)))
    with safetensors.safe_open(tmp_path / "plain.safetensors", "pt") as file:
        assert file.get_slice("w").get_dtype() == name
        doubled = 2 if name == "F4" else 1
        assert file.get_slice("w").get_shape() == [4, 6 * doubled]


def entry(start: int, stop: int, **more) -> dict:
    return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop], **more}


HEADERS = {
    "whole": ({"a": entry(0, 2), "b": entry(2, 4)}, 4),
    "order": ({"a": entry(2, 4), "b": entry(0, 2)}, 4),
    "empty between": ({"a": entry(0, 2), "z": entry(0, 0)}, 2),
    "nothing": ({}, 0),
    "more fields": ({"a": entry(0, 2, more=1)}, 2),
    "hole": ({"a": entry(0, 2), "b": entry(3, 4)}, 4),
    "overlap": ({"a": entry(0, 3), "b": entry(2, 4)}, 4),
    "trailing": ({"a": entry(0, 3)}, 4),
    "data without tensors": ({}, 1),
    "number in metadata": ({"__metadata__": {"x": 1}, "a": entry(0, 2)}, 2),
    "list as metadata": ({"__metadata__": [], "a": entry(0, 2)}, 2),
    "unknown type": ({"a": entry(0, 2, dtype="F3")}, 2),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_taken_and_refused_as_safetensors_does(name):
    header, size = HEADERS[name]
    text = json.dumps(header).encode()
    data = bytearray(len(text).to_bytes(8, "little") + text + bytes(size))
    try:
        theirs = set(dict(safetensors.deserialize(bytes(data))))
    except safetensors.SafetensorError:
        with pytest.raises(TamperedError):
            from_buffer(memoryview(data))
        return
    assert set(from_buffer(memoryview(data))) == theirs


@pytest.mark.parametrize("aliases", ["[]", "3", '{"b": 1}', '{"b": ["a"]}', '{"b": {}}', "null", '"x"', "{"])
def test_hostile_second_names_are_tampering_and_no_type_error(aliases):
    text = json.dumps({"__metadata__": {"privguard.same-tensor": aliases}, "a": entry(0, 2)}).encode()
    with pytest.raises(TamperedError):
        from_buffer(memoryview(len(text).to_bytes(8, "little") + text + bytes(2)))


def test_a_full_disk_leaves_no_key_file(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            Key.generate().write(tmp_path / "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_streams_go_in_and_come_out_through_the_commands(tmp_path, key):
    content = os.urandom(200_000)
    key.write(tmp_path / "key")
    command = [sys.executable, "-m", "privguard"]
    keys = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": os.getcwd()}}  # noqa: PTH109
    subprocess.run([*command, "seal", "-", "--to", "key", "-o", "s"], input=content, check=True, **keys)
    back = subprocess.run([*command, "open", "s", "--key", "key", "-o", "-"], capture_output=True, check=True, **keys)
    assert hashlib.sha256(back.stdout).digest() == hashlib.sha256(content).digest()
    damaged = bytearray((tmp_path / "s").read_bytes())
    damaged[-1000 - sealed_size(0)] ^= 1
    (tmp_path / "s").write_bytes(damaged)
    back = subprocess.run([*command, "open", "s", "--key", "key", "-o", "-"], capture_output=True, check=False, **keys)
    assert (back.returncode, back.stdout) == (3, b"")
