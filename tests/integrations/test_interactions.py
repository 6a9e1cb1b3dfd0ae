# SPDX-License-Identifier: Apache-2.0
"""Examples that interact in some later batch: the run stops, its claim is void, and ledger and report say so."""

import pytest
import torch
from small import small_plan
from torch import nn
from torch.nn import functional

from privguard.accounting.ledger import Ledger
from privguard.errors import InteractionError, PrivacyError
from privguard.report.assemble import assemble


def losses_of(private, batch, *, mixed=False):
    logits = private.model(batch[0])
    if mixed and len(logits) > 1:
        logits = logits + logits.roll(1, 0)
    return functional.cross_entropy(logits, batch[1], reduction="none")


def go(private, *, mixed_from):
    steps = 0
    for batch in private.batches():
        private.backward(losses_of(private, batch, mixed=steps >= mixed_from))
        steps += private.step()


def test_an_interaction_in_the_first_step_is_refused_and_voids_nothing(small):
    private = small.start()
    with pytest.raises(InteractionError, match=r"module='2'.*reach rows of other examples"):
        go(private, mixed_from=0)
    assert Ledger.read(small.folder / "ledger.jsonl").void == ()


def test_an_interaction_after_released_steps_voids_the_claim(small):
    private = small.start()
    with pytest.raises(InteractionError):
        go(private, mixed_from=1)
    history = Ledger.read(small.folder / "ledger.jsonl")
    assert len(history.void) == 1
    assert "module='2'" in history.void[0]
    with pytest.raises(PrivacyError, match="void"):
        private.claim()
    report = assemble(small.folder)
    assert report.claim is None
    assert not report.figures
    assert "has no claim" in report.summary[0]
    assert history.void[0] in report.summary


def test_a_void_run_that_is_resumed_stays_void(small):
    with pytest.raises(InteractionError):
        go(small.start(), mixed_from=1)
    small.renew()
    private = small.start(resume=True)
    go(private, mixed_from=10**6)
    with pytest.raises(PrivacyError, match="void"):
        private.claim()
    assert assemble(small.folder).claim is None


def test_claim_and_report_say_how_many_steps_were_checked(small):
    private = small.start(small_plan(steps=20))
    go(private, mixed_from=10**6)
    history = Ledger.read(small.folder / "ledger.jsonl")
    assert 2 <= history.checked <= 12  # two, and each of 18 others with probability 1/32: more than 10 of them, 1e-11
    sentence = f"While training, {history.checked} of 20 steps were checked for examples that interact"
    assert any(line.startswith(sentence) for line in private.claim().unchecked)
    report = assemble(small.folder)
    assert any(line.startswith(sentence) for line in report.assumptions)
    assert report.claim.unchecked == private.claim().unchecked


def test_a_run_without_a_checked_step_says_why(small):
    """As where a compiler made the graph: it can be gone through once."""
    private = small.start(small_plan(steps=2))
    private._clipper.checks.impossible = "the graph of a compiled part can be gone through once"
    go(private, mixed_from=10**6)
    sentence = "0 of 2 steps were checked for examples that interact; every batch had one record, or a compiler made"
    assert any(sentence in line for line in private.claim().unchecked)
    assert any(sentence in line for line in assemble(small.folder).assumptions)


def test_a_loop_over_single_records_is_refused_in_the_first_batch_of_two():
    from privguard.training.bookkeeping import BookKeeper

    layer = nn.Linear(4, 3)
    keeper = BookKeeper(layer, max_grad_norm=1.0)
    x = torch.randn(6, 4)
    keeper.begin(torch.ones(6, dtype=torch.bool))
    with pytest.raises(InteractionError):
        keeper.backward(torch.stack([layer(row[None])[0] for row in x]).sum(1))
    keeper.close()


def test_packed_rows_are_refused_when_their_number_changes_long_after_the_first_steps():
    """Rows that are shared out evenly, for 40 steps, and then not: the batch with another number of rows is checked."""
    from privguard.training.bookkeeping import BookKeeper

    table = nn.Linear(4, 3)
    keeper = BookKeeper(table, max_grad_norm=1.0)

    def losses(counts):
        x = torch.randn(sum(counts), 4)
        rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return torch.zeros(len(counts)).index_add(0, rows, table(x).sum(1))

    for _ in range(40):
        keeper.begin(torch.ones(2, dtype=torch.bool), shapes=((10,),))
        keeper.backward(losses([3, 3]))
        keeper.take()
    keeper.begin(torch.ones(2, dtype=torch.bool), shapes=((10,),))
    with pytest.raises(InteractionError):
        keeper.backward(losses([1, 9]))
    keeper.close()
