# SPDX-License-Identifier: Apache-2.0
"""Stacked training against one model at a time, and the promise that every member is seen."""

import numpy as np
import pytest
import torch
from torch import nn

from privguard.audit.references import reference
from privguard.audit.references.reference import Place, Schedule, batches, draw_inclusion, train_references
from privguard.audit.references.stack import stack_modules, stackable
from privguard.errors import AuditError, UnsupportedModelError


def dense():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(20, 3),
    )


def without_bias():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.outer(x + torch.relu(self.inner(x)))


def normalised():
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


SHAPES = {dense: (12,), convolutional: (2, 11, 11), without_bias: (12,), Residual: (12,), normalised: (12,)}


def made(make, seed):
    return reference._fresh(make, seed, 0)


def problem(make, records=60, seed=0):
    random = np.random.default_rng(seed)
    inputs = torch.from_numpy(random.standard_normal((records, *SHAPES[make])).astype(np.float32))
    return inputs, torch.from_numpy(random.integers(0, 3, records))


@pytest.mark.parametrize("make", [dense, convolutional, without_bias])
def test_stacked_gradients_equal_autograd_of_each_model(make):
    modules = [made(make, seed) for seed in range(3)]
    inputs, labels = problem(make, records=3 * 7)
    inputs, labels = inputs.view(3, 7, *SHAPES[make]), labels.view(3, 7)
    weights = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    stack = stack_modules(modules)
    names = [name for name, _ in modules[0].named_parameters()]
    found = stack.gradients(inputs, labels, weights)
    held = [parameter.clone() for parameter in stack.parameters]
    for parameter, gradient in zip(stack.parameters, found, strict=True):
        parameter.copy_(gradient)  # `state` then gives the gradients in the layout of the modules
    for k, module in enumerate(modules):
        losses = nn.functional.cross_entropy(module(inputs[k]), labels[k], reduction="none")
        (losses * weights[k]).sum().backward()
        ours = stack.state(k, names)
        for name, parameter in module.named_parameters():
            assert torch.allclose(ours[name], parameter.grad, atol=1e-6), name
    assert all(value.shape == parameter.shape for value, parameter in zip(held, stack.parameters, strict=True))


@pytest.mark.parametrize("make", [dense, convolutional, without_bias])
def test_a_stack_says_what_its_models_say(make):
    modules = [made(make, seed) for seed in range(3)]
    inputs, _ = problem(make)
    logits = stack_modules(modules).logits(inputs.expand(3, *inputs.shape).contiguous())
    for k, module in enumerate(modules):
        assert torch.allclose(logits[k], module(inputs), atol=1e-5)
        back = stack_modules(modules).state(k, [name for name, _ in module.named_parameters()])
        assert all(torch.equal(back[name], parameter) for name, parameter in module.named_parameters())


@pytest.mark.parametrize(
    "stranger",
    [
        nn.LSTM(3, 3),
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 2, 3, dilation=2),
        nn.MaxPool2d(3, stride=1),
        nn.GELU(),
        Residual(),
    ],
    ids=["recurrent", "grouped", "dilated", "overlapping", "activation", "residual"],
)
def test_what_cannot_be_stacked_is_said_to_be_so(stranger):
    assert not stackable(nn.Sequential(nn.Linear(3, 3), stranger))
    with pytest.raises(UnsupportedModelError, match="expected"):
        stack_modules([nn.Sequential(stranger)])


@pytest.mark.parametrize("batch_size", [1, 7, 16, 100])
def test_every_member_is_seen_exactly_once_in_every_epoch(batch_size):
    included = draw_inclusion(5, 83, seed=3)
    included[0, :] = False
    included[0, 5] = True  # one model has a single member
    generators = [torch.Generator().manual_seed(k) for k in range(5)]
    for _ in range(3):
        seen = np.zeros_like(included, int)
        for chosen, weights in batches(included, batch_size, generators):
            assert chosen.shape[1] <= batch_size
            totals = weights.sum(1)
            assert torch.allclose(totals[totals > 0], torch.ones(int((totals > 0).sum())))
            for k in range(5):
                np.add.at(seen[k], chosen[k][weights[k] > 0].numpy(), 1)
        assert np.array_equal(seen, included.astype(int))


def test_epochs_are_in_a_new_order_each_time_and_models_in_their_own():
    included = np.ones((2, 40), bool)
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    first, second = (next(iter(batches(included, 40, generators)))[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def slow_reference(make, inputs, labels, included, schedule, k):
    """One model, the same batches, autograd and torch's own SGD."""
    module = reference._fresh(make, schedule.seed, k)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=1.0, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )
    generators = [torch.Generator().manual_seed(schedule.seed * 1_000_003 + i) for i in range(len(included))]
    epochs = [list(batches(included, schedule.batch_size, generators)) for _ in range(schedule.epochs)]
    steps = [step for epoch in epochs for step in epoch]
    for number, (chosen, weights) in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * 0.5 * (1 + np.cos(np.pi * number / len(steps)))
        real = weights[k] > 0
        losses = nn.functional.cross_entropy(module(inputs[chosen[k]][real]), labels[chosen[k]][real], reduction="none")
        optimizer.zero_grad()
        (losses * weights[k][real]).sum().backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("make", [dense, convolutional, Residual, normalised])
def test_training_together_equals_training_one_by_one(make):
    inputs, labels = problem(make)
    included = draw_inclusion(3, 60, seed=1)
    schedule = Schedule(epochs=3, batch_size=8, learning_rate=0.05, seed=4, at_once=3)
    trained = train_references(make, inputs, labels, included=included, schedule=schedule)
    logits = trained.logits(inputs)
    for k in range(3):
        module = slow_reference(make, inputs, labels, included, schedule, k).eval()
        assert np.allclose(logits[k], module(inputs).detach().numpy(), atol=2e-4)


def test_models_do_not_depend_on_how_many_are_trained_at_once():
    inputs, labels = problem(dense)
    included = np.ones((4, 60), bool)  # equal sizes: the number of steps follows from the largest member set of a group
    together, apart = (
        train_references(
            dense,
            inputs,
            labels,
            included=included,
            schedule=Schedule(epochs=2, batch_size=8, learning_rate=0.1, at_once=size),
        )
        for size in (4, 1)
    )
    assert np.allclose(together.logits(inputs), apart.logits(inputs), atol=1e-4)


def test_bfloat16_products_stay_near_float32():
    inputs, labels = problem(dense)
    included = draw_inclusion(2, 60, seed=1)
    exact, half = (
        train_references(
            dense,
            inputs,
            labels,
            included=included,
            schedule=Schedule(epochs=3, batch_size=8, learning_rate=0.05, precision=precision),
        )
        for precision in (torch.float32, torch.bfloat16)
    )
    assert np.abs(exact.logits(inputs) - half.logits(inputs)).max() < 0.1
    assert half.states[0]["0.weight"].dtype is torch.float32


def test_a_broken_run_goes_on_where_it_was_and_ends_the_same(tmp_path):
    inputs, labels = problem(dense)
    included = draw_inclusion(6, 60, seed=1)
    schedule = Schedule(epochs=1, batch_size=8, learning_rate=0.1, at_once=2)
    whole = train_references(dense, inputs, labels, included=included, schedule=schedule)

    def stop(done, total, left):
        assert total == 6
        assert left >= 0
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_references(
            dense, inputs, labels, included=included, schedule=schedule, place=Place(folder=tmp_path, on_progress=stop)
        )
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    (tmp_path / "references-00004.safetensors.part").write_bytes(b"half a file")
    done = []
    again = train_references(
        dense,
        inputs,
        labels,
        included=included,
        schedule=schedule,
        place=Place(folder=tmp_path, on_progress=lambda *args: done.append(args[0])),
    )
    assert done == [2]
    assert np.array_equal(again.logits(inputs), whole.logits(inputs))


def test_references_of_other_settings_are_not_mixed(tmp_path):
    inputs, labels = problem(dense)
    included = draw_inclusion(2, 60, seed=1)
    schedule = Schedule(epochs=1, batch_size=8, learning_rate=0.1)
    train_references(dense, inputs, labels, included=included, schedule=schedule, place=Place(folder=tmp_path))
    for other in (Schedule(epochs=2, batch_size=8, learning_rate=0.1), schedule):
        with pytest.raises(AuditError, match="other settings"):
            train_references(dense, inputs, labels, included=~included, schedule=other, place=Place(folder=tmp_path))


def test_shares_of_several_processes_add_up(tmp_path):
    inputs, labels = problem(dense)
    included = draw_inclusion(6, 60, seed=1)
    schedule = Schedule(epochs=1, batch_size=8, learning_rate=0.1, at_once=2)
    with pytest.raises(AuditError, match="not trained yet"):
        train_references(
            dense, inputs, labels, included=included, schedule=schedule, place=Place(folder=tmp_path, share=(0, 2))
        )
    shared = train_references(
        dense, inputs, labels, included=included, schedule=schedule, place=Place(folder=tmp_path, share=(1, 2))
    )
    alone = train_references(dense, inputs, labels, included=included, schedule=schedule)
    assert np.array_equal(shared.logits(inputs), alone.logits(inputs))


def test_the_global_generator_is_left_alone():
    inputs, labels = problem(dense)
    before = torch.get_rng_state()
    train_references(
        dense,
        inputs,
        labels,
        included=draw_inclusion(2, 60, seed=1),
        schedule=Schedule(epochs=1, batch_size=8, learning_rate=0.1),
    )
    assert torch.equal(before, torch.get_rng_state())


def test_inclusion_is_by_independent_coins_and_not_by_halves():
    included = draw_inclusion(64, 2_000, seed=0)
    assert abs(included.mean() - 0.5) < 0.005
    assert included.sum(0).std() == pytest.approx(4.0, abs=0.3)  # exact halves would give 0


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 60), bool), np.ones((2, 59), bool), np.ones(60, bool)], ids=["nobody", "short", "flat"]
)
def test_sets_that_mean_nothing_are_refused(wrong):
    inputs, labels = problem(dense)
    with pytest.raises(ValueError, match="expected"):
        train_references(
            dense, inputs, labels, included=wrong, schedule=Schedule(epochs=1, batch_size=8, learning_rate=0.1)
        )
