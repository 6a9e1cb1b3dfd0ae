# SPDX-License-Identifier: Apache-2.0
"""PrivateTrainer killed without warning, on two ranks, and with one of them lost."""

from pathlib import Path

import pytest
import torch
import trainer_alone
from processes import WAIT, launch, spawn, until

from privguard.accounting.ledger import Ledger
from privguard.checkpoint.keys.key import Key

SCRIPT = Path(trainer_alone.__file__)


@pytest.fixture
def out(tmp_path):
    Key.generate().write(tmp_path / "key")
    return tmp_path


def test_a_killed_run_keeps_what_was_reserved_spent_draws_afresh_and_ends_within_the_budget(out):
    steps = 30
    killed = spawn(SCRIPT, out / "run", out, steps, 1.0, "hold", 5)
    said = until(killed, "step 5")
    killed.kill()
    said += killed.communicate()[0].split("\n")
    reserved = Ledger.read(out / "run" / "ledger.jsonl").position
    assert 5 <= reserved <= 5 + 1
    again = spawn(SCRIPT, out / "run", out, steps, 1.0, "resume")
    more, err = again.communicate(timeout=WAIT)
    assert again.returncode == 0, err
    assert more.count("step ") == steps - reserved  # lost steps are not taken again: their budget is gone
    keys = [line for line in [*said, *more.split("\n")] if line.startswith("keyed")]
    assert len(set(keys)) == 2
    history = Ledger.read(out / "run" / "ledger.jsonl")
    assert history.position == steps
    assert history.settled


def test_two_ranks_are_one_process_and_hold_the_same_weights(tmp_path):
    alone, two = tmp_path / "1", tmp_path / "2"
    for out in (alone, two):
        out.mkdir()
        Key.generate().write(out / "key")
    trainer_alone.main(str(alone / "run"), str(alone), "4", "0.0")
    codes, said = launch(SCRIPT, 2, two / "run", two, 4, 0.0)
    assert codes == [0, 0], said
    assert Ledger.read(two / "run" / "ledger.jsonl").position == 4
    ours, theirs = (torch.load(two / f"rank{r}.pt") for r in (0, 1))
    assert torch.equal(ours, theirs)
    assert torch.allclose(ours, torch.load(alone / "rank0.pt"), atol=1e-5)


def test_losing_a_rank_ends_the_run_and_leaves_a_checkpoint_to_go_on_from(out):
    codes, said = launch(SCRIPT, 2, out / "run", out, 12, 1.0, "die", 1, 3)
    assert codes[1] == -9, said
    assert codes[0] not in {0, -9}
    assert Ledger.read(out / "run" / "ledger.jsonl").position >= 3
    codes, said = launch(SCRIPT, 2, out / "run", out, 12, 1.0, "resume")
    assert codes == [0, 0], said
    assert Ledger.read(out / "run" / "ledger.jsonl").position == 12
