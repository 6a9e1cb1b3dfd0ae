# SPDX-License-Identifier: Apache-2.0
"""The plain private loop: what a step computes, what the ledger says, what is refused."""

import json
import os
from dataclasses import replace

import pytest
import torch
from small import SmallRun, small_data, small_plan
from torch.nn import functional
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from privguard._random import Stream
from privguard.accounting.accountant import spent
from privguard.accounting.ledger import Ledger
from privguard.errors import BudgetExceededError, NoRecipientError, PrivacyError, ResumeError, SensitivityError
from privguard.training.sampling.sample import Poisson


def reference_run(model, optimizer, data, plan, seed):
    """DP-SGD as in Abadi et al. 2016, Algorithm 1, one example at a time, with the run's own samples and no noise."""
    source = Stream.from_insecure_seed(seed, "run").child("sampler")
    for position in range(plan.steps):
        records = Poisson(plan.sample_rate).draw(examples=len(data), source=source.child(position))
        total = [torch.zeros_like(parameter) for parameter in model.parameters()]
        for record in records:
            x, y = data[record]
            loss = functional.cross_entropy(model(x[None]), y[None])
            gradient = torch.autograd.grad(loss, list(model.parameters()))
            norm = torch.stack([part.norm() for part in gradient]).norm()
            for sum_, part in zip(total, gradient, strict=True):
                sum_ += part * min(1.0, plan.max_grad_norm / norm.item())
        for parameter, sum_ in zip(model.parameters(), total, strict=True):
            parameter.grad = sum_ / plan.expected_batch_size
        optimizer.step()


def test_a_run_without_noise_is_algorithm_1_to_float32(small):
    plan = small_plan(noise_multiplier=0.0)
    assert SmallRun.go(small.start(plan, insecure_seed=4, batch_size=7)) == plan.steps
    private = small.model
    small.renew()
    reference_run(small.model, small.optimizer, small.data, plan, seed=4)
    for ours, theirs in zip(private.parameters(), small.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_physical_batch_size_changes_nothing_but_rounding(small):
    finals = []
    for batch_size in (1, 8, 64):
        small.renew()
        folder = small.folder / str(batch_size)
        SmallRun.go(small.start(run=folder, insecure_seed=4, batch_size=batch_size))
        finals.append(torch.cat([parameter.detach().flatten() for parameter in small.model.parameters()]))
    assert torch.allclose(finals[0], finals[1], atol=1e-5)
    assert torch.allclose(finals[0], finals[2], atol=1e-5)


def test_the_ledger_holds_every_step_and_the_claim_prices_it(small):
    plan = small_plan()
    private = small.start(plan)
    SmallRun.go(private)
    history = Ledger.read(small.folder / "ledger.jsonl")
    assert sum(times for _, times in history.spent()) == plan.steps
    assert replace(private.claim(), unchecked=()) == spent([(plan.event(), plan.steps)], delta=plan.delta)


def test_two_runs_share_neither_samples_nor_noise(small):
    finals = []
    for number in range(2):
        small.renew()
        SmallRun.go(small.start(small_plan(steps=1, sample_rate=1.0), run=small.folder / str(number)))
        finals.append(torch.cat([parameter.detach().flatten() for parameter in small.model.parameters()]))
    assert torch.isclose(finals[0], finals[1]).float().mean() < 0.1  # all 83 would agree if anything were shared


def test_empty_draws_and_broken_records_do_what_every_other_step_does(small):
    """A step without records and a record of NaN leave no trace in ledger, exceptions or finiteness."""
    x = small.data.tensors[0]
    x[:10] = float("nan")
    x[10:20] = float("inf")
    assert SmallRun.go(small.start(small_plan(sample_rate=0.01, steps=60))) == 60
    assert all(bool(parameter.isfinite().all()) for parameter in small.model.parameters())
    assert Ledger.read(small.folder / "ledger.jsonl").position == 60


def test_workers_and_collate_function_are_the_loaders_own(small):
    pairs = [(x, int(y)) for x, y in zip(*small.data.tensors, strict=True)]

    def collate(rows):
        return torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])

    plan = small_plan(steps=4)
    loader = DataLoader(pairs, batch_size=16, collate_fn=collate, num_workers=2)
    SmallRun.go(small.start(plan, loader=loader, insecure_seed=2))
    with_workers = [parameter.detach().clone() for parameter in small.model.parameters()]
    small.renew()
    SmallRun.go(small.start(plan, run=small.folder / "again", insecure_seed=2))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(with_workers, small.model.parameters(), strict=True))


def test_a_schedule_follows_logical_batches(small):
    private = small.start(batch_size=4)
    scheduler = torch.optim.lr_scheduler.StepLR(small.optimizer, step_size=1, gamma=0.9)
    seen = 0
    for inputs, targets in private.batches():
        private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))
        if private.step():
            scheduler.step()
            seen += 1
    assert seen == scheduler.last_epoch == 20


def test_a_seeded_run_has_no_claim(small):
    private = small.start(insecure_seed=1)
    SmallRun.go(private, steps=1)
    with pytest.raises(PrivacyError, match="insecure_seed"):
        private.claim()
    assert json.loads((small.folder / "run.json").read_text())["insecure"] is True


def test_the_model_is_given_back(small):
    before = {name: id(parameter) for name, parameter in small.model.named_parameters()}
    SmallRun.go(small.start())
    loss = small.model(torch.ones(2, 6)).sum()
    wanted = torch.autograd.grad(loss, list(small.model.parameters()), retain_graph=True)
    loss.backward()  # adds to what is there: the last private step has to be gone
    assert all(torch.equal(p.grad, g) for p, g in zip(small.model.parameters(), wanted, strict=True))
    assert before == {name: id(parameter) for name, parameter in small.model.named_parameters()}


def loop(private, losses):
    for inputs, targets in private.batches():
        private.backward(losses(private.model(inputs), targets))
        private.step()


def test_a_scalar_loss_is_refused_with_the_remedy(small):
    with pytest.raises(ValueError, match=r"losses.shape=\(\): expected \(\d+,\).*reduction='none'"):
        loop(small.start(), functional.cross_entropy)


def test_a_loss_of_the_wrong_length_is_refused(small):
    with pytest.raises(ValueError, match=r"losses.shape"):
        loop(small.start(), lambda out, y: functional.cross_entropy(out, y, reduction="none")[1:])


def test_a_second_backward_is_refused(small):
    private = small.start()
    with pytest.raises(SensitivityError, match="second time"):
        for inputs, targets in private.batches():
            for _ in range(2):
                private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))


def test_forgetting_step_is_refused(small):
    private = small.start()
    with pytest.raises(PrivacyError, match="step"):
        for inputs, targets in private.batches():
            private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))


def test_step_outside_a_batch_is_refused(small):
    with pytest.raises(PrivacyError, match="no batch is open"):
        small.start().step()


def test_a_sampler_of_the_users_is_refused(small):
    loader = DataLoader(small.data, batch_size=8, sampler=WeightedRandomSampler([1.0] * 100, 100))
    with pytest.raises(PrivacyError, match="WeightedRandomSampler"):
        small.start(loader=loader)


def test_a_data_set_of_unknown_length_is_refused(small):
    class Endless(IterableDataset):
        def __iter__(self):
            yield torch.zeros(6), 0

    with pytest.raises(PrivacyError, match="Endless: its length is unknown"):
        small.start(loader=DataLoader(Endless(), batch_size=8))


def test_a_collate_function_that_loses_records_is_refused(small):
    loader = DataLoader(small.data, batch_size=8, collate_fn=lambda rows: (torch.zeros(1, 6), torch.zeros(1)))
    with pytest.raises(ValueError, match=r"rows=1: expected \d+, one for each record"):
        SmallRun.go(small.start(loader=loader))


def test_an_optimizer_of_another_model_is_refused(small):
    small.optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=1.0)
    with pytest.raises(PrivacyError, match="2 of its tensors are not the model's and 4 of the model's are not in it"):
        small.start()
    assert not (small.folder / "run.json").exists()


def test_saving_for_nobody_is_refused(small):
    with pytest.raises(NoRecipientError):
        small.start(seal_to=[])


def test_a_folder_with_a_run_is_not_overwritten(small):
    SmallRun.go(small.start(), steps=2)
    with pytest.raises(ResumeError, match="resume=True"):
        small.start()


def test_more_steps_than_planned_are_refused(small):
    private = small.start(small_plan(steps=1))
    SmallRun.go(private)
    with pytest.raises(BudgetExceededError, match="steps=1: all are spent"):
        private._run.reserve()
    assert list(private.batches()) == []


def test_a_larger_or_smaller_data_set_than_planned_is_no_error(small):
    """The real size is private: it must not show as an exception."""
    plan = small_plan(examples=5, steps=2)
    small.data = TensorDataset(*(tensor[:50] for tensor in small_data().tensors))
    assert SmallRun.go(small.start(plan)) == 2


def one_batch(private, batch):
    private.backward(functional.cross_entropy(private.model(batch[0]), batch[1], reduction="none"))
    return private.step()


def test_parameters_added_to_the_optimizer_later_are_refused_before_they_move(small):
    """A head outside the model, in the optimizer alone: autograd would write its gradient without clip and noise."""
    head = torch.nn.Linear(3, 3)
    before = head.weight.detach().clone()
    private = small.start()
    small.optimizer.add_param_group({"params": head.parameters()})
    for inputs, targets in (batches := private.batches()):
        with pytest.raises(SensitivityError, match="that is no parameter of the model"):
            private.backward(functional.cross_entropy(head(private.model(inputs)), targets, reduction="none"))
        break
    batches.close()
    small.renew()
    private = small.start(run=small.folder / "unused")
    small.optimizer.add_param_group({"params": head.parameters()})
    with pytest.raises(PrivacyError, match="2 of its tensors are not the model's"):
        SmallRun.go(private)
    assert torch.equal(head.weight, before)


def test_a_schedule_that_moves_between_the_physical_batches_of_a_step_is_refused(small):
    """Their number is the sample's secret, and the learning rate would tell it."""
    private = small.start(small_plan(sample_rate=1.0), batch_size=40)
    with pytest.raises(PrivacyError, match="moved between two physical batches"):
        for batch in private.batches():
            one_batch(private, batch)
            small.optimizer.param_groups[0]["lr"] *= 0.9
    assert Ledger.read(small.folder / "ledger.jsonl").position == 0


def test_a_second_loop_over_the_batches_of_the_first_is_refused(small):
    private = small.start()
    with pytest.raises(PrivacyError, match="one loop at a time"):
        list(zip(private.batches(), private.batches(), strict=True))


@pytest.mark.parametrize(
    "doubled",
    [
        lambda data: Subset(data, [0, 1, 2, 1]),
        lambda data: ConcatDataset([data, Subset(data, [3]), data]),
        lambda data: Subset(ConcatDataset([data, Subset(data, [3, 3])]), range(102)),
    ],
    ids=["by index", "by data set", "further down"],
)
def test_a_record_that_is_put_in_twice_is_refused(small, doubled):
    """Each copy is clipped by itself, so the record would move the sum by twice the clipping norm."""
    with pytest.raises(PrivacyError, match="is the one at index"):
        small.start(loader=DataLoader(doubled(small.data), shuffle=True))


def test_parts_of_a_data_set_and_several_of_them_are_fine(small):
    parts = ConcatDataset([Subset(small.data, range(50)), Subset(small.data, range(50, 90))])
    assert SmallRun.go(small.start(loader=DataLoader(parts, batch_size=16, shuffle=True))) == 20


def test_a_data_set_that_changes_what_its_tensors_hold_is_asked_for_each_record(small):
    class Halved(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x / 2, y

    private = small.start(
        loader=DataLoader(Halved(*small.data.tensors), batch_size=200), plan=small_plan(sample_rate=1.0)
    )
    inputs, _ = next(private.batches())
    assert torch.equal(inputs, small.data.tensors[0] / 2)


def test_a_forked_child_takes_no_step_of_its_parents(small):
    """Parent and child would draw the same noise for different weights."""
    private = small.start()
    batches = private.batches()
    one_batch(private, next(batches))  # the child would have to write for the next, and so would its checkpoint
    child = os.fork()
    if child == 0:
        try:
            one_batch(private, next(batches))
        except Exception as error:  # the clean stop fails as well: the ledger is the parent's
            os._exit(7 if "forked process" in f"{error} {error.__context__}" else 8)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert one_batch(private, next(batches)) in {True, False}


def test_a_schedule_that_moves_a_tensor_with_each_physical_batch_is_refused(small):
    """A tensor shows four digits of itself: a rate that moved by a millionth looked as it was."""
    optimizer = torch.optim.SGD(small.model.parameters(), lr=torch.tensor(0.01))
    small.optimizer = optimizer
    private = small.start(small_plan(sample_rate=1.0, expected_batch_size=100), batch_size=8)
    with pytest.raises(PrivacyError, match="its settings moved between two physical batches"):
        for inputs, targets in private.batches():
            private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))
            if not private.step():
                optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * 1.000001
