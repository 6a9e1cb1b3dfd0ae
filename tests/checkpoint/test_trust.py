# SPDX-License-Identifier: Apache-2.0
"""Whose snapshots are resumed from: the run's own, without anything to set up, and no stranger's."""

import hmac
import json
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privguard.attest.statement import SigningKey
from privguard.checkpoint import Key, Sealed, Trust, archive, load, save
from privguard.checkpoint.archive import Audience, Contents
from privguard.checkpoint.content.payload import Bytes
from privguard.checkpoint.keys import unsafe
from privguard.checkpoint.keys.key import Kind
from privguard.checkpoint.keys.trust import own_signer
from privguard.errors import RollbackError, SealError, TamperedError
from privguard.integrations.sealed.accelerate import load_state, save_state
from privguard.integrations.sealed.dcp import SealedReader, SealedWriter
from privguard.integrations.sealed.state import Sealing
from tests.checkpoint.test_store import snapshot

PAIR = Key.generate_x25519()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "privguard" / "signing.pem"


def written(path: Path, trust: Trust, to, *, key=None) -> Path:
    save(snapshot(), path, to=to, signer=trust.signing_key(to, key))
    return path


def resumed(path: Path, trust: Trust, key: Key) -> int:
    return load(path, key, signer=trust.signers(key), min_step=trust.min_step).step


@pytest.mark.parametrize("make", [Key.generate, Key.generate_x25519, Key.generate_symmetric])
def test_who_holds_the_key_signs_with_it_and_resumes_on_any_machine(make, tmp_path, home):
    make().write(tmp_path / "team.key")
    written(tmp_path / "x", Trust(), [tmp_path / "team.key"])
    assert not home.exists()
    assert resumed(tmp_path / "x", Trust(), Key.read(tmp_path / "team.key")) == 7


def test_a_signer_that_a_key_gives_is_the_one_of_the_specification():
    """HKDF-Expand-SHA-512(secret, "privguard/v1 signer" ‖ 0 ‖ kind), as checkpoint-v1 says in section 8."""
    key = unsafe.key_of(Kind.X25519, bytes(range(32)))
    signer = key.signer()
    assert signer is not None
    seed = hmac.digest(bytes(range(32)), b"privguard/v1 signer\0\x03\x01", "sha512")[:32]  # RFC 5869: T(1)
    assert signer.identity == SigningKey(Ed25519PrivateKey.from_private_bytes(seed)).identity
    assert signer.identity.key_id == "0c6c640e7e794e333c7ce1282dc060f4e71dade44c015d088108974dae064244"
    same_bytes = unsafe.symmetric_key(bytes(range(32))).signer()
    assert same_bytes is not None
    assert same_bytes.identity != signer.identity
    assert Key.from_passphrase("words").signer() is None


def test_with_public_recipients_alone_the_user_signs_and_resumes_with_their_own_signer(tmp_path, home):
    written(tmp_path / "x", Trust(), PAIR.recipient())
    assert home.stat().st_mode & 0o777 == 0o600
    assert home.parent.stat().st_mode & 0o777 == 0o700
    assert resumed(tmp_path / "x", Trust(), PAIR) == 7


def forged(path: Path, *, signer: SigningKey | None) -> Path:
    """What an attacker can make who knows the public recipient alone."""
    save(snapshot(), path, to=PAIR.recipient(), signer=signer)
    return path


def test_a_stranger_who_knows_the_recipient_cannot_put_a_snapshot_in_its_place(tmp_path, home):
    written(tmp_path / "x", Trust(), PAIR.recipient())
    with pytest.raises(TamperedError, match=r"is not signed, and anybody .* expected [0-9a-f]{64} or [0-9a-f]{64}"):
        resumed(forged(tmp_path / "x", signer=None), Trust(), PAIR)
    stranger = SigningKey.generate()
    with pytest.raises(TamperedError, match=rf"is signed by {stranger.identity.key_id}; .*sealed_by="):
        resumed(forged(tmp_path / "x", signer=stranger), Trust(), PAIR)
    home.unlink()
    with pytest.raises(TamperedError, match="is signed by"):
        resumed(tmp_path / "x", Trust(), PAIR)


def test_a_stranger_cannot_name_another_signer_than_the_one_who_signed(tmp_path):
    mine = written(tmp_path / "x", Trust(), PAIR)
    with Sealed(mine, PAIR) as original:
        manifest, members = original.manifest, {n: Bytes(bytes(original.read(n))) for n in original.names()}
    names = {"signer": own_signer().identity.to_json()}
    stolen = {name: value for name, value in manifest.items() if name != "signature"}
    for lie in (manifest, manifest | names, manifest | {"signer": 3}, stolen | {"signature": {}}):
        archive.write_file(mine, Contents(members=members, manifest=lie), Audience.of(PAIR.recipient()))
        with pytest.raises(TamperedError):
            resumed(mine, Trust(), PAIR)


def test_somebody_elses_snapshot_is_resumed_from_when_they_are_named(tmp_path):
    theirs = SigningKey.generate()
    theirs.identity.write(tmp_path / "their.pub")
    save(snapshot(), tmp_path / "x", to=PAIR, signer=theirs)
    for name in (theirs.identity, tmp_path / "their.pub", str(tmp_path / "their.pub"), theirs.identity.key_id):
        assert resumed(tmp_path / "x", Trust(sealed_by=name), PAIR) == 7
    with pytest.raises(TamperedError, match="is signed by"):
        resumed(written(tmp_path / "y", Trust(), PAIR), Trust(sealed_by=theirs.identity), PAIR)


def test_a_signer_that_is_named_signs_and_is_the_only_one_believed(tmp_path):
    SigningKey.generate().write(tmp_path / "run.pem")
    trust = Trust(signer=tmp_path / "run.pem")
    assert resumed(written(tmp_path / "x", trust, PAIR), trust, PAIR) == 7
    with pytest.raises(TamperedError, match="is signed by"):
        resumed(written(tmp_path / "y", Trust(), PAIR), trust, PAIR)
    (tmp_path / "run.pem").write_text("no key")
    with pytest.raises(ValueError, match=r"run\.pem"):
        trust.signing_key(PAIR)


def test_an_older_step_is_refused_and_the_message_says_how_to_go_back(tmp_path):
    written(tmp_path / "x", Trust(), PAIR)
    assert resumed(tmp_path / "x", Trust(min_step=7), PAIR) == 7
    with pytest.raises(RollbackError, match=r"step 7 stands where at least step 8 .*min_step"):
        resumed(tmp_path / "x", Trust(min_step=8), PAIR)


@pytest.mark.parametrize("wrong", [{"min_step": -1}, {"min_step": "7"}, {"expect_head": "AB" * 32}, {"expect_head": 3}])
def test_a_demand_that_makes_no_sense_is_refused_at_once(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        Trust(**wrong)


def test_an_own_signer_that_others_can_read_is_refused(home):
    own_signer()
    home.chmod(0o644)
    with pytest.raises(SealError, match="chmod 600"):
        own_signer()


def test_without_a_place_for_it_the_message_says_what_to_pass(monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/nowhere")
    with pytest.raises(SealError, match=r"signer=None: .*privguard key new --signing"):
        own_signer()


def test_processes_that_come_first_together_get_one_signer():
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert len(set(pool.map(_own, range(16), chunksize=1))) == 1


def _own(_: int) -> str:
    return own_signer().identity.key_id


# Through the adapters


def test_an_accelerate_state_of_a_stranger_is_refused_before_anything_changes(tmp_path):
    accelerator = Accelerator(cpu=True)
    model, _ = _prepared(accelerator)
    mine = Sealing(PAIR.recipient(), key=PAIR)
    save_state(accelerator, tmp_path / "state", mine, facts={"step": 3})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert load_state(accelerator, tmp_path / "state", mine)["step"] == 3
    newer = Sealing(PAIR.recipient(), key=PAIR, trust=Trust(min_step=4))
    with pytest.raises(RollbackError, match="step 3"):
        load_state(accelerator, tmp_path / "state", newer)
    with torch.no_grad():
        model.weight.zero_()
    stranger = Sealing(PAIR.recipient(), trust=Trust(signer=SigningKey.generate()))
    save_state(accelerator, tmp_path / "state", stranger)
    model.load_state_dict(before)
    with pytest.raises(TamperedError, match="is signed by"):
        load_state(accelerator, tmp_path / "state", mine)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _prepared(accelerator: Accelerator):
    model = torch.nn.Linear(3, 2)
    return accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.filterwarnings("ignore:torch.distributed is (un|dis)")
def test_a_distributed_checkpoint_of_a_stranger_is_refused(tmp_path):
    dcp.save({"w": torch.ones(4)}, storage_writer=SealedWriter(tmp_path / "dcp", to=PAIR.recipient()))
    into = {"w": torch.zeros(4)}
    dcp.load(into, storage_reader=SealedReader(tmp_path / "dcp", key=PAIR))
    assert into["w"].sum() == 4
    trust = Trust(signer=SigningKey.generate())
    dcp.save({"w": torch.ones(4)}, storage_writer=SealedWriter(tmp_path / "dcp", to=PAIR.recipient(), trust=trust))
    with pytest.raises((TamperedError, dcp.api.CheckpointException), match="is signed by"):
        dcp.load(into, storage_reader=SealedReader(tmp_path / "dcp", key=PAIR))


@pytest.mark.filterwarnings("ignore:torch.distributed is (un|dis)")
def test_a_data_file_with_the_right_name_and_file_id_but_another_key_is_refused(tmp_path):
    """The file id is public: a stranger can write a file of that id, sealed to the same recipient."""
    dcp.save({"w": torch.ones(4)}, storage_writer=SealedWriter(tmp_path / "dcp", to=PAIR.recipient()))
    data = next((tmp_path / "dcp").glob("__*"))
    with Sealed(data, PAIR) as original:
        content, file_id, manifest = bytes(original.read("data")), original.preamble.file_id, original.manifest
    evil = content.replace(torch.ones(4).numpy().tobytes(), torch.full((4,), 666.0).numpy().tobytes())
    assert evil != content
    fresh = archive.Secrets.fresh()
    secrets = type(fresh)(fresh.role, file_id, fresh.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive.Secrets, "fresh", classmethod(lambda _: secrets))
        archive.write_file(
            data, Contents(members={"data": Bytes(evil)}, manifest=manifest), Audience.of(PAIR.recipient())
        )
    with Sealed(data, PAIR) as there:
        assert there.preamble.file_id == file_id
        assert json.dumps(there.manifest) == json.dumps(manifest)
    with pytest.raises((TamperedError, dcp.api.CheckpointException), match="another save"):
        dcp.load({"w": torch.zeros(4)}, storage_reader=SealedReader(tmp_path / "dcp", key=PAIR))
