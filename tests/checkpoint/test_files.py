# SPDX-License-Identifier: Apache-2.0
"""Any file or folder, sealed and opened; recipients changed without touching the content."""

import contextlib
import hashlib
import os

import pytest
import safetensors.torch
import torch

from privguard.checkpoint import Key, Sealed, inspect, open_into, open_sealed, rewrap, save, seal
from privguard.checkpoint.archive import HEAD
from privguard.checkpoint.envelope import PREAMBLE_BYTES, Preamble
from privguard.checkpoint.opened import LeftoverWarning
from privguard.errors import NoRecipientError, PlainCheckpointError, SealError, TamperedError
from tests.checkpoint.test_store import snapshot


def payload(path) -> dict[str, str]:
    """Digests of everything that a re-wrap must not touch."""
    if path.is_dir():
        return {
            part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in path.iterdir() if part.name != HEAD
        }
    content = path.read_bytes()
    preamble = Preamble.unpack(content)
    return {
        "preamble": content[:PREAMBLE_BYTES].hex(),
        "rest": hashlib.sha256(content[preamble.head_bytes :]).hexdigest(),
    }


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "checkpoint-500"
    (source / "sub").mkdir(parents=True)
    safetensors.torch.save_file({"layer.weight": torch.arange(12.0).reshape(3, 4)}, source / "model.safetensors")
    (source / "config.json").write_text('{"canary": true}')
    (source / "sub" / "empty").write_bytes(b"")
    return source


@pytest.fixture(params=["file", "folder"])
def sealed(request, folder, tmp_path, key):
    source = folder if request.param == "folder" else folder / "model.safetensors"
    seal(source, tmp_path / "out.sealed", to=[key])
    return tmp_path / "out.sealed"


def test_a_folder_comes_back_file_by_file(folder, tmp_path, key):
    seal(folder, tmp_path / "sealed", to=[key])
    names = [path.name for path in (tmp_path / "sealed").iterdir()]
    assert not any("model" in name or "config" in name for name in names)
    assert not any(b"canary" in path.read_bytes() for path in (tmp_path / "sealed").iterdir())
    open_into(tmp_path / "sealed", tmp_path / "again", key=key)
    for name in ("model.safetensors", "config.json", "sub/empty"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(FileExistsError):
        open_into(tmp_path / "sealed", tmp_path / "again", key=key)


def test_a_file_comes_back_under_the_name_that_was_asked_for(tmp_path, key):
    for size in (0, 1, 3_000_001):
        content = os.urandom(size)
        (tmp_path / f"{size}.bin").write_bytes(content)
        seal(tmp_path / f"{size}.bin", tmp_path / f"{size}.sealed", to=[key])
        assert open_into(tmp_path / f"{size}.sealed", tmp_path / f"{size}.out", key=key) == [tmp_path / f"{size}.out"]
        assert (tmp_path / f"{size}.out").read_bytes() == content


def test_nothing_appears_in_clear_when_the_end_is_damaged(tmp_path, key):
    (tmp_path / "a").write_bytes(os.urandom(200_000))
    seal(tmp_path / "a", tmp_path / "a.sealed", to=[key])
    content = bytearray((tmp_path / "a.sealed").read_bytes())
    content[136 + (32 << 10) + 200_000] ^= 1
    (tmp_path / "a.sealed").write_bytes(content)
    with pytest.raises(TamperedError):
        open_into(tmp_path / "a.sealed", tmp_path / "out", key=key)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.sealed"]


def test_a_folder_sealed_again_keeps_only_the_new_parts(folder, tmp_path, key, other_key):
    seal(folder, tmp_path / "sealed", to=[other_key])
    before = set((tmp_path / "sealed").iterdir())
    (folder / "config.json").write_text("new")
    seal(folder, tmp_path / "sealed", to=[key])
    after = set((tmp_path / "sealed").iterdir())
    assert before & after == {tmp_path / "sealed" / HEAD}
    assert open_sealed(tmp_path / "sealed", key).read("config.json") == b"new"


def test_parts_of_two_folders_do_not_mix(folder, tmp_path, key):
    seal(folder, tmp_path / "one", to=[key])
    seal(folder, tmp_path / "two", to=[key])
    ids = [inspect(tmp_path / name).file_id for name in ("one", "two")]
    part = tmp_path / "one" / f"{ids[0]}.1"
    part.write_bytes((tmp_path / "two" / f"{ids[1]}.1").read_bytes())
    with Sealed(tmp_path / "one", key) as one, pytest.raises(TamperedError):
        one.read("model.safetensors")
    part.unlink()
    with pytest.raises(TamperedError):
        Sealed(tmp_path / "one", key)


def test_a_place_with_files_in_clear_or_inside_the_source_is_refused(folder, tmp_path, key):
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "file").touch()
    with pytest.raises(FileExistsError):
        seal(folder, tmp_path / "busy", to=[key])
    with pytest.raises(SealError, match="outside"):
        seal(folder, folder / "sealed", to=[key])
    os.mkfifo(folder / "pipe")
    with pytest.raises(SealError, match="files and folders only"):
        seal(folder, tmp_path / "out", to=[key])


def test_one_tensor_is_read_by_its_name(sealed, key):
    with open_sealed(sealed, key) as file:
        assert torch.equal(file["layer.weight"], torch.arange(12.0).reshape(3, 4))
        assert torch.equal(file.tensors().rows("layer.weight", 1, 2), torch.arange(4.0, 8).reshape(1, 4))
        with pytest.raises(KeyError):
            file["absent"]


def test_a_snapshot_shows_its_weights_one_by_one(tmp_path, key):
    save(snapshot(), tmp_path / "x", to=key)
    with open_sealed(tmp_path / "x", key) as file:
        assert set(file.tensors()) == set(snapshot().weights)
        assert torch.equal(file["w"], snapshot().weights["w"])


def test_rewrapping_changes_who_may_open_and_nothing_else(sealed, key):
    before = payload(sealed)
    new, officer = Key.generate(), Key.generate_x25519()
    shown = rewrap(sealed, key, add=[new], add_auditors=[officer])
    assert len(shown.resume) == 2
    assert shown.audit == (f"x25519 {officer.id}",)
    assert open_sealed(sealed, new).names() == open_sealed(sealed, key).names()
    assert open_sealed(sealed, officer).manifest
    shown = rewrap(sealed, new, remove=[key])
    assert shown.rewraps == 2
    with pytest.raises(TamperedError):
        Sealed(sealed, key)
    assert open_sealed(sealed, new)["layer.weight"].shape == (3, 4)
    assert payload(sealed) == before


def test_rewrapping_again_and_again_alternates_and_leaves_no_old_stanza(tmp_path, key):
    save(snapshot(), tmp_path / "x", to=key)
    keys = [Key.generate_symmetric() for _ in range(5)]
    for last, new in zip([key, *keys], keys, strict=False):
        rewrap(tmp_path / "x", last, add=[new], remove=[last])
        assert bytes.fromhex(last.id) not in (tmp_path / "x").read_bytes()
        assert open_sealed(tmp_path / "x", new)


def test_an_auditor_cannot_rewrap(tmp_path, key):
    officer = Key.generate_x25519()
    save(snapshot(), tmp_path / "x", to=key, auditors=[officer])
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(SealError, match="cannot re-wrap"):
        rewrap(tmp_path / "x", officer, add=[Key.generate()])
    assert (tmp_path / "x").read_bytes() == before


def test_rewrapping_refuses_to_lock_everybody_out(sealed, key, other_key):
    before = payload(sealed)
    with pytest.raises(NoRecipientError):
        rewrap(sealed, key, remove=[key])
    with pytest.raises(SealError, match="not among"):
        rewrap(sealed, key, remove=[other_key])
    with pytest.raises(SealError, match="at most one passphrase"):
        rewrap(sealed, key, add=[Key.from_passphrase("a")], add_auditors=[Key.from_passphrase("b")])
    with pytest.raises(TamperedError):
        rewrap(sealed, other_key, add=[other_key])
    with pytest.raises(SealError, match="seal the content again"):
        rewrap(sealed, key, add=[Key.generate() for _ in range(14)])
    assert open_sealed(sealed, key).names()
    assert payload(sealed) == before
    assert inspect(sealed).rewraps == 0


def test_identities_and_the_word_passphrase_can_be_removed(tmp_path, key):
    save(snapshot(), tmp_path / "x", to=[key, Key.from_passphrase("words"), Key.generate_x25519()])
    listed = inspect(tmp_path / "x").resume
    assert rewrap(tmp_path / "x", key, remove=["passphrase", listed[2]]).resume == (f"symmetric {key.id}",)


@pytest.mark.parametrize("stage", ["before", "torn", "both", "after"])
def test_a_crash_at_any_moment_of_a_rewrap_leaves_one_whole_head(tmp_path, key, stage):
    """The states of the disk: nothing written, the new slot torn, both slots whole, the old one zeroed."""
    path, new = tmp_path / "x", Key.generate_symmetric()
    save(snapshot(), path, to=key)
    old = path.read_bytes()
    rewrap(path, key, add=[new], remove=[key])
    now = path.read_bytes()
    size = Preamble.unpack(old).slot_bytes
    first, second = (
        slice(PREAMBLE_BYTES, PREAMBLE_BYTES + size),
        slice(PREAMBLE_BYTES + size, PREAMBLE_BYTES + 2 * size),
    )
    state = bytearray(now)
    if stage != "after":
        state[first] = old[first]
    if stage == "before":
        state[second] = bytes(size)
    if stage == "torn":
        state[second] = now[second][: size // 2] + bytes(size // 2)
    path.write_bytes(state)
    opens, shut = (key, new) if stage in ("before", "torn") else (new, key)
    cut_short = stage in ("torn", "both")
    assert inspect(path).leftover is cut_short
    with pytest.warns(LeftoverWarning) if cut_short else contextlib.nullcontext():
        assert open_sealed(path, opens).names()
    with pytest.raises(TamperedError):
        Sealed(path, shut)
    assert not rewrap(path, opens).leftover  # mends what was cut short
    assert not any(path.read_bytes()[first if path.read_bytes()[second].strip(b"\0") else second])
    if opens is new:
        rewrap(path, new, add=[key])
        assert open_sealed(path, key).names()


def test_inspecting_needs_no_key_and_names_what_is_no_sealed_file(sealed, tmp_path):
    shown = inspect(sealed)
    assert shown.resume
    assert shown.to_json()["record"] == "Inspection"
    (tmp_path / "text").write_bytes(b"hello, I am a text of some length" * 9)
    with pytest.raises(TamperedError):
        inspect(tmp_path / "text")
    torch.save({}, tmp_path / "plain.pt")
    with pytest.raises(PlainCheckpointError):
        inspect(tmp_path / "plain.pt")


def test_a_head_of_another_version_says_so(sealed, key):
    head = sealed / HEAD if sealed.is_dir() else sealed
    content = bytearray(head.read_bytes())
    content[17] = 2
    head.write_bytes(content)
    with pytest.raises(SealError, match="version=2"):
        Sealed(sealed, key)


def test_the_disk_is_told_of_every_stretch_once_while_it_is_written(tmp_path, key, monkeypatch):
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, __: told.append((start, start + size)))
    (tmp_path / "data").write_bytes(bytes(70 << 20))
    seal(tmp_path / "data", tmp_path / "data.sealed", to=[key])
    stretch = 16 << 20
    whole = (tmp_path / "data.sealed").stat().st_size // stretch
    assert sorted(told) == [(n * stretch, (n + 1) * stretch) for n in range(whole)]


def test_a_file_system_that_takes_no_advice_is_sealed_to_all_the_same(tmp_path, key, monkeypatch):
    def refuse(*_: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    (tmp_path / "data").write_bytes(bytes(17 << 20))
    seal(tmp_path / "data", tmp_path / "data.sealed", to=[key])
    open_into(tmp_path / "data.sealed", tmp_path / "again", key=key)
    assert (tmp_path / "again").read_bytes() == bytes(17 << 20)
