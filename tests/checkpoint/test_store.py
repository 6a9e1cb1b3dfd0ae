# SPDX-License-Identifier: Apache-2.0
"""A snapshot comes back whole or not at all, and nothing of it is on disk in clear."""

import os
import stat

import pytest
import torch

from privguard.checkpoint import Key, Sealed, Snapshot, load, save
from privguard.checkpoint.archive import Contents
from privguard.checkpoint.content.payload import SEGMENT, Bytes, plain_size, sealed_size
from privguard.checkpoint.opened import LeftoverWarning
from privguard.errors import NoRecipientError, PlainCheckpointError, RollbackError, SealError, TamperedError

CANARY = b"weight canary, sixteen times "


def snapshot(step: int = 7, **changes) -> Snapshot:
    words = torch.frombuffer(bytearray(CANARY * 400), dtype=torch.uint8)
    weights = {"canary.layer.name": words, "w": torch.arange(50_000.0), "bf": torch.randn(33, 5).bfloat16()}
    facts = {
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "m": torch.ones(9)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}],
        },
        "scheduler": {"last_epoch": 3},
        "generators": {"noise": b"canary of a stream key", "python": (3, None)},
        "extra": None,
        "ledger_head": "ab" * 32,
        "ledger_size": 3,
        "ledger": b'{"canary":"ledger"}\n',
    }
    return Snapshot(weights=weights, run="canary-run", step=step, **(facts | changes))


@pytest.fixture
def sealed(tmp_path, key):
    save(snapshot(), tmp_path / "run.sealed", to=[key])
    return tmp_path / "run.sealed"


def test_a_snapshot_comes_back_as_it_was(sealed, key):
    before, after = snapshot(), load(sealed, key)
    assert list(after.weights) == list(before.weights)
    assert torch.equal(after.weights["canary.layer.name"], before.weights["canary.layer.name"])
    assert torch.equal(after.optimizer["state"][0]["m"], torch.ones(9))
    assert after.optimizer["param_groups"] == before.optimizer["param_groups"]
    for name in ("run", "step", "scheduler", "generators", "extra", "ledger_head", "ledger_size", "ledger"):
        assert getattr(after, name) == getattr(before, name), name


def test_no_canary_is_in_the_file_and_only_its_owner_reads_it(sealed):
    content = sealed.read_bytes()
    assert b"canary" not in content
    assert b"layer" not in content
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o600
    assert list(sealed.parent.iterdir()) == [sealed]


def test_a_wrong_key_a_flip_a_cut_and_a_swap_end_in_one_and_the_same_way(sealed, key, other_key):
    whole = sealed.read_bytes()
    damaged = {
        "cut": whole[:-1],
        "cut at a part": whole[:-72],
        "longer": whole + b"\0",
        "empty": b"",
        "head only": whole[:200],
        "flip": whole[:60_000] + bytes([whole[60_000] ^ 1]) + whole[60_001:],
    }
    messages = {}
    for damage, content in damaged.items():
        sealed.write_bytes(content)
        with pytest.raises(TamperedError) as refusal:
            load(sealed, key)
        messages[damage] = str(refusal.value)
    assert "does not begin as a sealed file does" in messages.pop("empty")  # no byte is left to tell what it was
    sealed.write_bytes(whole)
    with pytest.raises(TamperedError) as refusal:
        load(sealed, other_key)
    assert {*messages.values(), str(refusal.value)} == {
        f"{sealed}: wrong key, or the file is not what was written; nothing was released"
    }


def test_every_flipped_bit_of_preamble_and_slots_is_refused_or_without_effect(sealed, key, other_key):
    whole = bytearray(sealed.read_bytes())
    from privguard.checkpoint.envelope import PREAMBLE_BYTES, Preamble

    preamble = Preamble.unpack(bytes(whole))
    used = range(8 * PREAMBLE_BYTES)
    first = range(8 * PREAMBLE_BYTES, 8 * (PREAMBLE_BYTES + 160))
    middle = range(8 * (PREAMBLE_BYTES + 160), 8 * (PREAMBLE_BYTES + preamble.slot_bytes - 96), 1009)
    end = range(8 * (PREAMBLE_BYTES + preamble.slot_bytes - 96), 8 * (PREAMBLE_BYTES + preamble.slot_bytes))
    for bit in (*used, *first, *middle, *end):
        whole[bit // 8] ^= 1 << bit % 8
        sealed.write_bytes(whole)
        with pytest.raises((TamperedError, SealError)):
            Sealed(sealed, key)
        whole[bit // 8] ^= 1 << bit % 8
    for bit in range(8 * (PREAMBLE_BYTES + preamble.slot_bytes), 8 * preamble.head_bytes, 2003):
        whole[bit // 8] ^= 1 << bit % 8
        sealed.write_bytes(whole)
        with pytest.warns(LeftoverWarning):
            Sealed(sealed, key).close()
        with pytest.raises(TamperedError):
            Sealed(sealed, other_key)
        whole[bit // 8] ^= 1 << bit % 8


def test_swapped_chunks_are_refused(sealed, key):
    whole = sealed.read_bytes()
    start, chunk = 136 + 2 * (16 << 10) + 56, (16 << 10) + 16
    first, second = whole[start : start + chunk], whole[start + chunk : start + 2 * chunk]
    sealed.write_bytes(whole[:start] + second + first + whole[start + 2 * chunk :])
    with pytest.raises(TamperedError):
        load(sealed, key)


def test_an_older_snapshot_is_refused_where_a_newer_one_is_wanted(sealed, key):
    assert load(sealed, key, min_step=7).step == 7
    with pytest.raises(RollbackError, match="step 7"):
        load(sealed, key, min_step=8)


def test_a_checkpoint_in_clear_is_refused_by_its_name(tmp_path, key):
    torch.save({"w": torch.ones(3)}, tmp_path / "pickle.pt")
    import safetensors.torch

    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    for name in ("pickle.pt", "model.safetensors"):
        with pytest.raises(PlainCheckpointError, match="in clear"):
            load(tmp_path / name, key)


def test_nothing_is_written_for_nobody_or_when_a_value_cannot_be_kept(tmp_path, key):
    with pytest.raises(NoRecipientError):
        save(snapshot(), tmp_path / "x", to=[])
    with pytest.raises(TypeError):
        save(snapshot(extra=object()), tmp_path / "x", to=[key])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_older_file(sealed, key, monkeypatch):
    from privguard.checkpoint import durable

    calls = 0

    def full(descriptor, content, offset):
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(28, "No space left on device")
        os.pwrite(descriptor, content, offset)

    monkeypatch.setattr(durable, "pwrite_all", full)
    with pytest.raises(OSError, match="No space"):
        save(snapshot(step=9), sealed, to=[key])
    assert load(sealed, key).step == 7
    assert list(sealed.parent.iterdir()) == [sealed]


def test_an_auditor_reads_ledger_and_manifest_and_no_weights(tmp_path, key):
    officer = Key.generate_x25519()
    save(snapshot(), tmp_path / "x", to=[key], auditors=[officer.recipient()])
    with Sealed(tmp_path / "x", officer) as sealed:
        assert sealed.ledger == snapshot().ledger
        assert sealed.manifest["step"] == 7
        for forbidden in (
            sealed.names,
            lambda: sealed.read("weights.safetensors"),
            lambda: sealed.reader("weights.safetensors"),
        ):
            with pytest.raises(SealError, match="may audit"):
                forbidden()
    with pytest.raises(SealError, match="may audit"):
        load(tmp_path / "x", officer)


def test_sizes_of_members_and_their_plaintext_belong_together():
    for plain in (0, 1, 16383, 16384, 16385, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, 3 * SEGMENT + 5):
        assert plain_size(sealed_size(plain)) == plain


def test_members_over_several_segments_come_back(tmp_path, key, monkeypatch):
    from privguard.checkpoint import archive
    from privguard.checkpoint.content import payload
    from privguard.checkpoint.sealed_folder import write_folder

    monkeypatch.setattr(payload, "SEGMENT", 64 << 10)
    content = os.urandom(300_000)
    contents = Contents(members={"a": Bytes(content), "empty": Bytes(b""), "b": Bytes(content[:65536])})
    archive.write_file(tmp_path / "f", contents, archive.Audience.of(key))
    write_folder(tmp_path / "d", contents, archive.Audience.of(key))
    for path in (tmp_path / "f", tmp_path / "d"):
        with Sealed(path, key) as sealed:
            assert sealed.names() == ["a", "empty", "b"]
            assert sealed.read("a") == content
            assert sealed.read("empty") == b""
            assert sealed.read("b") == content[:65536]
            reader = sealed.reader("a")
            for start, stop in (
                (0, 300_000),
                (65_530, 65_540),
                (131_072, 131_073),
                (299_999, 300_000),
                (16_383, 16_386),
                (5, 5),
            ):
                assert reader.read(start, stop) == content[start:stop]


def test_a_snapshot_says_whose_it_is(tmp_path, key):
    from privguard.attest.statement import SigningKey

    run, mallory, officer = SigningKey.generate(), SigningKey.generate(), Key.generate_x25519()
    save(snapshot(), tmp_path / "x", to=key, auditors=officer, signer=run)
    assert load(tmp_path / "x", key, signer=run.identity).step == 7
    Sealed(tmp_path / "x", officer).verify_signer(run.identity)
    with pytest.raises(TamperedError, match="is signed by"):
        load(tmp_path / "x", key, signer=mallory.identity)
    save(snapshot(), tmp_path / "y", to=key)
    with pytest.raises(TamperedError, match="is not signed"):
        load(tmp_path / "y", key, signer=run.identity)


def test_a_signature_moved_into_another_file_is_refused(tmp_path, key):
    """Who knows a public key only can seal anything to it; the run's own signature does not come along."""
    from privguard.attest.statement import SigningKey
    from privguard.checkpoint import archive

    run = SigningKey.generate()
    save(snapshot(), tmp_path / "x", to=key, signer=run)
    with Sealed(tmp_path / "x", key) as original:
        stolen = original.manifest
        members = {name: Bytes(bytes(original.read(name))) for name in original.names()}
    archive.write_file(tmp_path / "x", Contents(members=members, manifest=stolen), archive.Audience.of(key))
    with pytest.raises(TamperedError, match="another file"):
        load(tmp_path / "x", key, signer=run.identity)


def test_a_snapshot_that_the_ledger_at_hand_does_not_extend_is_refused(tmp_path, key):
    save(snapshot(), tmp_path / "x", to=key)
    assert load(tmp_path / "x", key, expect=lambda size: {3: "ab" * 32}[size]).step == 7
    with pytest.raises(RollbackError, match="does not extend"):
        load(tmp_path / "x", key, expect=lambda _: "cd" * 32)
