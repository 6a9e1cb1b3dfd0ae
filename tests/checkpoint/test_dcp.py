# SPDX-License-Identifier: Apache-2.0
"""Distributed checkpoints: sealed data and metadata, no names in clear, no pickle trusted, crash-safe."""

import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from privguard.attest import journal
from privguard.attest.statement import SigningKey
from privguard.checkpoint import Key
from privguard.errors import PlainCheckpointError, SealError, TamperedError
from privguard.integrations.sealed.dcp import SealedReader, SealedWriter

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (un|dis)")


def state(value: float) -> dict:
    torch_state = nn.Linear(40, 30).state_dict()
    return {
        "model": {f"canary.{name}": torch.full_like(tensor, value) for name, tensor in torch_state.items()},
        "optimizer": {"step": torch.tensor(3.0), "groups": [{"lr": 0.5, "name": "canary"}]},
        "epoch": 7,
    }


@pytest.fixture
def sealed(tmp_path, key) -> Path:
    dcp.save(state(1.5), storage_writer=SealedWriter(tmp_path / "dcp", to=key))
    return tmp_path / "dcp"


def loaded(path: Path, key: Key) -> dict:
    into = state(0.0) | {"epoch": 0}
    dcp.load(into, storage_reader=SealedReader(path, key=key))
    return into


def test_a_distributed_checkpoint_comes_back(sealed, key):
    after = loaded(sealed, key)
    assert all(torch.equal(tensor, torch.full_like(tensor, 1.5)) for tensor in after["model"].values())
    assert after["epoch"] == 7
    assert after["optimizer"]["groups"] == [{"lr": 0.5, "name": "canary"}]


def test_every_file_is_recorded_also_those_that_torch_writes_in_threads_of_its_own(tmp_path, key):
    signer = SigningKey.generate()
    with journal.recorded_in(journal.Journal(tmp_path / "journal", by=signer)):
        dcp.save(state(1.0), storage_writer=SealedWriter(tmp_path / "dcp", to=key, thread_count=3))
        loaded(tmp_path / "dcp", key)
    done = [one for one in journal.read(tmp_path / "journal") if one.result == "done"]
    names = {path.name for path in (tmp_path / "dcp").iterdir()}
    assert len(names) == 4
    for action in ("seal", "open"):
        assert {Path(one.subject).name for one in done if one.action == action} == names


def test_nothing_of_it_is_in_clear(sealed):
    for path in sealed.rglob("*"):
        content = path.read_bytes()
        assert b"canary" not in content
        assert b"weight" not in content
        assert torch.full((8,), 1.5).numpy().tobytes() not in content


def test_saving_again_replaces_the_metadata_last_and_deletes_the_older_data(sealed, key):
    before = {path.name for path in sealed.iterdir()}
    dcp.save(state(2.5), storage_writer=SealedWriter(sealed, to=key))
    after = {path.name for path in sealed.iterdir()}
    assert before & after == {".metadata"}
    assert float(loaded(sealed, key)["model"]["canary.bias"][0]) == 2.5


def test_a_save_that_dies_before_the_metadata_leaves_the_older_checkpoint(sealed, key, monkeypatch):
    def die(*_, **__):
        raise OSError("power cut")

    monkeypatch.setattr(SealedWriter, "finish", die)
    with pytest.raises(dcp.api.CheckpointException, match="power cut"):
        dcp.save(state(2.5), storage_writer=SealedWriter(sealed, to=key))
    assert float(loaded(sealed, key)["model"]["canary.bias"][0]) == 1.5


def test_a_wrong_key_and_a_flip_are_refused(sealed, other_key, key):
    with pytest.raises((TamperedError, dcp.api.CheckpointException), match="nothing was released"):
        loaded(sealed, other_key)
    data = next(sealed.glob("__*"))
    content = bytearray(data.read_bytes())
    content[40_000] ^= 1
    data.write_bytes(content)
    with pytest.raises((TamperedError, dcp.api.CheckpointException), match="nothing was released"):
        loaded(sealed, key)


def test_data_of_another_save_is_refused(sealed, tmp_path, key):
    dcp.save(state(9.0), storage_writer=SealedWriter(tmp_path / "other", to=key))
    mine, theirs = next(sealed.glob("__*")), next((tmp_path / "other").glob("__*"))
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises((TamperedError, dcp.api.CheckpointException), match="another save"):
        loaded(sealed, key)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_metadata_in_clear_is_refused_before_it_could_run(tmp_path, key, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dcp.save(state(1.0), checkpoint_id=tmp_path / "plain")
    (tmp_path / "plain" / ".metadata").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises((PlainCheckpointError, dcp.api.CheckpointException), match="in clear"):
        loaded(tmp_path / "plain", key)
    assert not Path("exploded").exists()


def test_an_object_that_needs_code_is_refused_although_it_is_sealed(tmp_path, key, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dcp.save({"object": Bomb()}, storage_writer=SealedWriter(tmp_path / "dcp", to=key))
    with pytest.raises((SealError, dcp.api.CheckpointException), match="without code"):
        dcp.load({"object": None}, storage_reader=SealedReader(tmp_path / "dcp", key=key))
    assert not Path("exploded").exists()
