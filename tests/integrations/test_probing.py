# SPDX-License-Identifier: Apache-2.0
"""Before step 1: leaks between examples are refused, slow models are announced, and the report says what was probed."""

import pytest
import torch
from small import SmallRun, small_plan
from torch import nn
from torch.nn import functional

from privguard.errors import PrivacyError, SensitivityError, UnsupportedModelError


@pytest.fixture(autouse=True)
def rehearsed(small):
    small.rehearsal = True


def cross_entropy(private_model):
    return lambda batch: functional.cross_entropy(private_model(batch[0]), batch[1], reduction="none")


def test_model_and_loss_are_probed_where_the_loss_is_given(small):
    private = small.start(losses=cross_entropy(small.model))
    assert private._run.manifest.probe == "model and loss"


def test_model_and_loop_are_probed_otherwise(small):
    private = small.start()
    assert private._run.manifest.probe == "the model, with a synthetic loss, and the loop, in a rehearsal"
    assert not [line for line in private._run.manifest.unchecked if "loss" in line or "model" in line]


def test_what_was_not_rehearsed_is_said_by_manifest_and_claim(small):
    private = small.start(rehearsal=False)
    assert "neither shown to the probe nor rehearsed" in private._run.manifest.unchecked[0]
    assert SmallRun.go(private, steps=1) == 1
    assert private._run.manifest.unchecked[0] in private.claim().unchecked


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x, scale):
        return self.linear(x) * scale


def use(small, model):
    small.model = model
    small.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return small


def test_a_model_called_in_another_way_is_rehearsed(small):
    private = use(small, TwoInputs()).start()
    assert private._run.manifest.probe == "the loop, in a rehearsal"
    steps = turns = 0
    weights = [parameter.detach().clone() for parameter in small.model.parameters()]
    for x, y in private.batches():
        turns += 1
        private.backward(functional.cross_entropy(private.model(x, 2.0), y, reduction="none"))
        steps += private.step()
        if turns == 9:
            assert steps == 0
            assert private._run.taken == 0
            assert all(torch.equal(a, b) for a, b in zip(weights, small.model.parameters(), strict=True))
        if steps == 2:
            break
    assert turns >= 11


def loop(private, losses):
    for batch in private.batches():
        private.backward(losses(private.model, batch))
        private.step()


def divided(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none") / len(batch[0])


def weighted(model, batch):
    losses = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return losses * (losses / losses.sum()).detach()


def by_number(model, batch):
    losses = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return losses / losses.sum().item()


def hardest(model, batch):
    losses = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return losses * (losses.detach() >= losses.detach().median())


def centred(model, batch):
    return functional.cross_entropy(model(batch[0] - batch[0].mean(0)), batch[1], reduction="none")


@pytest.mark.parametrize("losses", [divided, weighted, by_number, centred, hardest])
def test_a_loop_whose_loss_depends_on_the_batch_is_refused_in_its_rehearsal(small, losses):
    private = small.start()
    with pytest.raises(SensitivityError, match="rehearsal: an example's gradient"):
        loop(private, losses)
    assert private._run.taken == 0


class Queue(nn.Module):
    """Remembers the first record of the batch before, and subtracts it; no buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(6, 3), torch.zeros(6)

    def forward(self, x):
        last, self.last = self.last, x[-1].detach()
        return self.layer(x - last)


class Centre(Queue):
    """A running mean in a buffer, re-assigned."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(6))

    def forward(self, x):
        self.centre = 0.5 * self.centre + 0.5 * x.mean(0).detach()
        return self.layer(x - self.centre)


class Stack(nn.Module):
    """One record at a time."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return torch.stack([self.layer(row[None])[0] for row in x])


class Unprobed(nn.Module):
    """A model that the probe does not know how to call."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, y):
        return self.inner(x)


def two_arguments(model, batch):
    return functional.cross_entropy(model(*batch), batch[1], reduction="none")


@pytest.mark.parametrize("kind", [Queue, Centre, Stack])
@pytest.mark.parametrize("probed", [True, False])
def test_what_one_batch_leaves_for_the_next_and_loops_over_records_are_refused(small, kind, probed):
    if probed and kind is Stack:
        pytest.skip("served one example at a time")
    use(small, kind() if probed else Unprobed(kind()))
    with pytest.raises((SensitivityError, UnsupportedModelError)):
        loop(small.start(), two_arguments)


def test_a_loop_with_dropout_that_is_switched_on_in_every_turn_trains(small):
    private = use(small, nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))).start()
    steps = 0
    for x, y in private.batches():
        private.model.train()
        private.backward(functional.cross_entropy(private.model(x), y, reduction="none"))
        steps += private.step()
        if steps == 2:
            break
    assert steps == 2


def test_a_loop_that_skips_a_synthetic_batch_is_told_what_to_do(small):
    with pytest.raises(PrivacyError, match=r"RunOptions\(rehearsal=False\)"):
        for _ in small.start().batches():
            pass


def test_a_loss_that_divides_by_the_batch_is_refused_before_step_1(small):
    def normalised(batch):
        losses = functional.cross_entropy(small.model(batch[0]), batch[1], reduction="none")
        return losses / losses.detach().sum()

    with pytest.raises(SensitivityError, match="exchanging example"):
        small.start(losses=normalised)
    assert not small.folder.exists()


def test_a_model_that_centres_on_the_batch_is_refused_before_step_1(small):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return self.linear(x - x.mean(0))

    small.model = Centred()
    small.optimizer = torch.optim.SGD(small.model.parameters(), lr=0.1)
    with pytest.raises(SensitivityError, match="exchanging example"):
        small.start()


def test_batch_normalisation_is_refused_by_name(small):
    small.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    small.optimizer = torch.optim.SGD(small.model.parameters(), lr=0.1)
    with pytest.raises(UnsupportedModelError, match=r"'1'.*BatchNorm1d|BatchNorm1d.*'1'"):
        small.start()


def test_a_parameter_used_behind_its_modules_back_is_trained_one_example_at_a_time_and_announced(small):
    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return functional.linear(x, self.linear.weight, self.linear.bias)

    small.model = Behind()
    small.optimizer = torch.optim.SGD(small.model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="one backward pass for each example"):
        private = small.start(small_plan(steps=2))
    assert SmallRun.go(private) == 2


def test_probing_leaves_model_and_generators_as_they_were(small):
    weights = [parameter.detach().clone() for parameter in small.model.parameters()]
    state = torch.get_rng_state()
    small.start(losses=cross_entropy(small.model))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, small.model.parameters(), strict=True))


@pytest.mark.parametrize("size", [5, 3])
def test_a_rehearsed_loop_refuses_a_buffer_written_in_batches_of_one_size(small, size):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.register_buffer("kept", torch.zeros(6))

        def forward(self, x, scale):
            if len(x) == size:
                self.kept = x.detach().mean(0)
            return self.layer(x) * scale

    private = use(small, Keeps()).start()
    with pytest.raises(UnsupportedModelError, match="buffer='kept': takes the data in"):
        for x, y in private.batches():
            private.backward(functional.cross_entropy(private.model(x, 1.0), y, reduction="none"))
            private.step()
