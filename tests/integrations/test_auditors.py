# SPDX-License-Identifier: Apache-2.0
"""Who may audit a run reads its ledger and manifest out of the checkpoints, and not one weight."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers as hf
from small import Scored, SmallRun, small_data, small_plan, with_options
from torch.nn import functional
from torch.utils.data import DataLoader

from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.checkpoint import Key, Trust, load
from privguard.checkpoint.opened import Sealed
from privguard.checkpoint.store import WEIGHTS
from privguard.errors import SealError
from privguard.integrations.accelerate import PrivateAccelerator
from privguard.integrations.sealed.dcp import SealedReader, SealedWriter
from privguard.integrations.transformers.trainer import PrivateTrainer

OFFICER, TEAM, RUN = Key.generate_x25519(), Key.generate_symmetric(), SigningKey.generate()
WHOM = {"seal_to": [TEAM], "auditors": [OFFICER.recipient()], "trust": Trust(signer=RUN)}


def check_what_the_officer_sees(snapshot, ledger, *, step):
    """All of the ledger by then, bound to the snapshot by its head and by the run's signature; no weight."""
    with Sealed(snapshot, OFFICER) as sealed:
        sealed.verify_signer(RUN.identity)
        assert sealed.manifest["step"] == step
        assert sealed.ledger
        assert ledger.read_bytes().startswith(sealed.ledger)
        with ledger.with_name("seen.jsonl").open("xb") as seen:
            seen.write(sealed.ledger)
        found = Ledger.read(ledger.with_name("seen.jsonl"))
        assert (found.head, found.size) == (sealed.manifest["ledger_head"], sealed.manifest["ledger_size"])
        assert found.position == step
        for forbidden in (sealed.names, lambda: sealed.read(WEIGHTS)):
            with pytest.raises(SealError, match="may audit"):
                forbidden()
    with pytest.raises(SealError, match="may audit"):
        load(snapshot, OFFICER)
    assert load(snapshot, TEAM, signer=RUN.identity).step == step


def test_of_a_plain_loop(small):
    assert SmallRun.go(small.start(**WHOM), steps=3) == 3
    check_what_the_officer_sees(
        small.folder / "checkpoints" / "step-00000003.sealed", small.folder / "ledger.jsonl", step=3
    )
    with pytest.raises(SealError, match="may audit"):
        small.start(**WHOM, key=OFFICER, resume=True)
    small.renew()
    assert SmallRun.go(small.start(**WHOM, resume=True), steps=2) == 2


class StopAfterFour(hf.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


def losses(outputs, batch):
    return functional.cross_entropy(outputs["logits"], batch["labels"], reduction="none")


def test_of_a_trainer(tmp_path):
    args = hf.TrainingArguments(
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=20, use_cpu=True, disable_tqdm=True,
        save_strategy="no", report_to="none", max_steps=8, dataloader_pin_memory=False,
        max_grad_norm=0.5,
    )  # fmt: skip
    rows = [{"x": x, "labels": y} for x, y in small_data()]

    def trainer(**more):
        plan = small_plan(steps=8)
        return PrivateTrainer(
            Scored(), args, train_dataset=rows, plan=plan, per_example_loss=losses, **with_options(WHOM), **more
        )

    trainer(callbacks=[StopAfterFour()]).train()
    folder = tmp_path / "run"
    check_what_the_officer_sees(folder / "checkpoint-4" / "state.sealed", folder / "ledger.jsonl", step=4)
    again = trainer()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8


def accelerated(folder):
    run = SmallRun(folder)
    accelerator = PrivateAccelerator(plan=small_plan(), run=folder, cpu=True, **with_options(WHOM))
    loader = DataLoader(run.data, batch_size=16, shuffle=True)
    return accelerator, *accelerator.prepare(run.model, run.optimizer, loader)


def steps(accelerator, model, optimizer, loader, *, count):
    for inputs, targets in loader:
        accelerator.backward(functional.cross_entropy(model(inputs), targets, reduction="none"))
        optimizer.step()
        count -= accelerator.sync_gradients
        if not count:
            return


def test_of_accelerate(tmp_path):
    accelerator, *prepared = accelerated(tmp_path / "run")
    steps(accelerator, *prepared, count=2)
    accelerator.save_state(tmp_path / "state")
    check_what_the_officer_sees(tmp_path / "state" / "state.sealed", tmp_path / "run" / "ledger.jsonl", step=2)
    accelerator.end_training()
    again, *prepared = accelerated(tmp_path / "run")
    again.load_state(tmp_path / "state")
    steps(again, *prepared, count=1)
    again.end_training()


@pytest.mark.filterwarnings("ignore:torch.distributed is (un|dis)")
def test_of_a_distributed_checkpoint(tmp_path):
    facts = {"step": 5, "ledger": b'{"kind":"opened"}\n'}
    writer = SealedWriter(tmp_path, to=TEAM, auditors=[OFFICER], facts=facts, trust=Trust(signer=RUN))
    dcp.save({"w": torch.ones(3)}, storage_writer=writer)
    for path in tmp_path.iterdir():
        with Sealed(path, OFFICER) as sealed, pytest.raises(SealError, match="may audit"):
            sealed.names()
    with Sealed(tmp_path / ".metadata", OFFICER) as sealed:
        sealed.verify_signer(RUN.identity)
        assert (sealed.manifest["step"], sealed.manifest["content"]) == (5, "dcp")
        assert sealed.ledger == facts["ledger"]
    into = {"w": torch.zeros(3)}
    dcp.load(into, storage_reader=SealedReader(tmp_path, key=TEAM, trust=Trust(sealed_by=RUN.identity)))
    assert torch.equal(into["w"], torch.ones(3))


def test_without_auditors_the_ledger_lies_beside_the_snapshot_alone(small):
    SmallRun.go(small.start(), steps=1)
    assert load(small.folder / "checkpoints" / "step-00000001.sealed", small.key).ledger == b""


def test_a_key_that_is_no_auditors_is_refused_before_anything_is_written(small, tmp_path):
    with pytest.raises(FileNotFoundError):
        small.start(auditors=[tmp_path / "no.pub"])
    assert not small.folder.exists()
