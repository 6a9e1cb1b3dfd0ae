# SPDX-License-Identifier: Apache-2.0
"""A run goes on from snapshots of its own signer alone: who knows the public recipient can make all the rest."""

import shutil
from dataclasses import replace

import pytest
import torch
from small import SmallRun

from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.checkpoint import Key, Trust, load, save
from privguard.errors import LedgerError, RollbackError, SealError, TamperedError
from privguard.integrations.accelerate import PrivateAccelerator
from privguard.runs.options import RunOptions
from privguard.training.plan import Plan

PAIR = Key.generate_x25519()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "privguard" / "signing.pem"


@pytest.fixture
def stopped(small):
    """A run that was sealed to a public recipient and stopped cleanly after three steps."""
    assert SmallRun.go(small.start(seal_to=[PAIR.recipient()]), steps=3) == 3
    small.renew()
    return small


def newest(small):
    return max((small.folder / "checkpoints").glob("*.sealed"))


def resumed(small, **more):
    small.renew()
    return small.start(seal_to=[PAIR.recipient()], key=PAIR, resume=True, **more)


def forge(small, *, signer=None):
    """Right run, step, ledger head and streams, other weights, sealed to the right recipient: all but the signature."""
    genuine = load(newest(small), PAIR)
    evil = replace(genuine, weights={name: torch.zeros_like(tensor) for name, tensor in genuine.weights.items()})
    save(evil, newest(small), to=PAIR.recipient(), signer=signer)


def test_a_user_with_public_recipients_has_nothing_to_do(stopped, home):
    assert home.exists()
    assert SmallRun.go(resumed(stopped), steps=2) == 2


@pytest.mark.parametrize("signer", [None, SigningKey.generate()], ids=["unsigned", "signed-by-a-stranger"])
def test_a_substituted_snapshot_is_refused_before_the_model_changes(stopped, signer):
    forge(stopped, signer=signer)
    stopped.renew()
    before = [parameter.clone() for parameter in stopped.model.parameters()]
    with pytest.raises(TamperedError, match="is not signed" if signer is None else signer.identity.key_id):
        stopped.start(seal_to=[PAIR.recipient()], key=PAIR, resume=True)
    assert all(torch.equal(*pair) for pair in zip(before, stopped.model.parameters(), strict=True))


def test_the_forgery_is_perfect_but_for_its_signature(stopped):
    """The test above cannot fail for another reason: named as the signer, the stranger is believed."""
    stranger = SigningKey.generate()
    forge(stopped, signer=stranger)
    private = resumed(stopped, trust=Trust(sealed_by=stranger.identity.key_id))
    assert all(parameter.abs().sum() == 0 for parameter in private.model.parameters())
    private.close()


def test_on_another_machine_the_message_names_the_signer_and_naming_it_helps(stopped, home):
    signer = SigningKey.read(home).identity
    shutil.move(home, home.with_name("elsewhere.pem"))
    with pytest.raises(TamperedError, match=rf"is signed by {signer.key_id}; .*sealed_by="):
        resumed(stopped)
    assert SmallRun.go(resumed(stopped, trust=Trust(sealed_by=signer)), steps=1) == 1
    assert SmallRun.go(resumed(stopped), steps=1) == 1  # what was sealed since is signed here, with the key at hand


def test_a_signing_key_file_of_the_users_own(small, tmp_path, home):
    SigningKey.generate().write(tmp_path / "run.pem")
    trust = Trust(signer=tmp_path / "run.pem")
    assert SmallRun.go(small.start(seal_to=[PAIR.recipient()], trust=trust), steps=2) == 2
    assert not home.exists()
    assert SmallRun.go(resumed(small, trust=trust), steps=1) == 1
    with pytest.raises(TamperedError, match="is signed by"):
        resumed(small)


def test_a_run_that_nobody_could_resume_is_not_begun(small, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/nowhere")
    with pytest.raises(SealError, match="key new --signing"):
        small.start(seal_to=[PAIR.recipient()])
    assert not small.folder.exists()


def test_an_older_step_and_an_older_ledger_can_be_refused(stopped, tmp_path):
    noted = Ledger.read(stopped.folder / "ledger.jsonl").head
    shutil.copytree(stopped.folder, tmp_path / "older")
    assert SmallRun.go(resumed(stopped, trust=Trust(min_step=3, expect_head=noted)), steps=4) == 4
    later = Ledger.read(stopped.folder / "ledger.jsonl").head
    resumed(stopped, trust=Trust(min_step=7, expect_head=noted)).close()  # a later ledger extends the noted head
    shutil.rmtree(stopped.folder)
    shutil.copytree(tmp_path / "older", stopped.folder)  # ledger and snapshots put back together: whole, and older
    with pytest.raises(RollbackError, match=r"step 3 .*at least step 7"):
        resumed(stopped, trust=Trust(min_step=7))
    with pytest.raises(LedgerError, match="never had the expected head"):
        resumed(stopped, trust=Trust(expect_head=later))
    resumed(stopped, trust=Trust(expect_head=noted)).close()


def accelerated(folder, **more):
    plan = Plan(
        sample_rate=0.3, noise_multiplier=1.0, max_grad_norm=0.5, steps=4, delta=1e-3, expected_batch_size=18
    )  # fmt: skip
    accelerator = PrivateAccelerator(
        plan=plan, run=folder, seal_to=[PAIR.recipient()], cpu=True, options=RunOptions(key=PAIR, **more)
    )
    net = torch.nn.Linear(6, 3)
    data = torch.utils.data.TensorDataset(torch.randn(60, 6), torch.zeros(60, dtype=torch.long))
    loader = torch.utils.data.DataLoader(data, batch_size=20, shuffle=True)
    accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1), loader)
    return accelerator


def test_private_accelerator_takes_the_same_trust(tmp_path):
    first = accelerated(tmp_path / "run", trust=Trust(signer=SigningKey.generate()))
    first.save_state(tmp_path / "state")
    first.end_training()
    with pytest.raises(TamperedError, match="is signed by"):
        accelerated(tmp_path / "run").load_state(tmp_path / "state")
