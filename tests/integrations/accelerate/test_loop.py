# SPDX-License-Identifier: Apache-2.0
"""An accelerate loop under ε: what a step is, what is refused, and how it goes on."""

import json
from dataclasses import replace

import pytest
import torch
from loop import data, go, network, plan, start, weights
from torch.nn import functional

from privguard._random import Stream
from privguard.accounting.accountant import spent
from privguard.accounting.ledger import Ledger
from privguard.checkpoint.keys.key import Key
from privguard.errors import PrivacyError, SensitivityError
from privguard.integrations.accelerate import PrivateAccelerator
from privguard.records import Manifest
from privguard.training.sampling.sample import Poisson

KEY = Key.generate_symmetric()


def test_a_run_without_noise_is_algorithm_1_with_a_schedule_that_moves_once_a_step(tmp_path):
    accelerator, net, *rest = start(tmp_path, KEY)
    assert len(rest[1]) == 4
    assert go(accelerator, net, *rest) == 8
    reference, rate, source = network(), 0.5, Stream.from_insecure_seed(1, "run").child("sampler")
    for position in range(8):
        total = [torch.zeros_like(p) for p in reference.parameters()]
        for record in Poisson(0.3).draw(examples=60, source=source.child(position)):
            x, y = data()[record]
            gradient = torch.autograd.grad(
                functional.cross_entropy(reference(x[None]), y[None]), list(reference.parameters())
            )
            norm = torch.stack([g.norm() for g in gradient]).norm().item()
            for sum_, g in zip(total, gradient, strict=True):
                sum_ += g * min(1, 0.5 / norm)
        with torch.no_grad():
            for p, sum_ in zip(reference.parameters(), total, strict=True):
                p -= rate * sum_ / 18
        rate *= 0.9
    assert torch.allclose(weights(net), weights(reference), atol=1e-5)


def test_the_ledger_holds_every_step(tmp_path):
    parts = start(tmp_path, KEY, seed=None, noise_multiplier=1.0)
    go(*parts)
    assert Ledger.read(tmp_path / "ledger.jsonl").position == 8
    assert replace(parts[0].claim(), unchecked=()) == spent([(plan(noise_multiplier=1.0).event(), 8)], delta=1e-3)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_save_state_and_load_state_are_the_uninterrupted_run(tmp_path, stop):
    whole = start(tmp_path / "whole", KEY, noise_multiplier=1.0)
    go(*whole)
    first = start(tmp_path / "parts", KEY, noise_multiplier=1.0)
    go(*first, stop=stop)
    first[0].save_state(tmp_path / "state")
    first[0]._private.run.end()
    second = start(tmp_path / "parts", KEY, noise_multiplier=1.0)
    second[0].load_state(tmp_path / "state")
    assert go(*second) == 8 - stop
    assert torch.equal(weights(whole[1]), weights(second[1]))
    assert second[4].get_last_lr() == whole[4].get_last_lr()


def test_a_scalar_loss_is_refused(tmp_path):
    accelerator, net, _, loader, _ = start(tmp_path, KEY)
    with pytest.raises(ValueError, match="reduction='none'"):
        for inputs, targets in loader:
            accelerator.backward(functional.cross_entropy(net(inputs), targets))


class Coupled(torch.nn.Module):
    """Divides by a statistic of the batch: one example changes every other's gradient."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        y = self.inner(x)
        return y / (1 + y.detach().abs().sum())


def test_a_model_in_which_examples_meet_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(SensitivityError, match="exchanging example"):
        start(tmp_path, KEY, net=Coupled())
    assert not (tmp_path / "run.json").exists()


def test_a_loss_in_which_examples_meet_is_refused_where_it_is_shown(tmp_path):
    net = network()

    def losses(batch):
        each = functional.cross_entropy(net(batch[0]), batch[1], reduction="none")
        return each / (1 + each.detach().sum())

    with pytest.raises(SensitivityError, match="exchanging example"):
        start(tmp_path, KEY, net=net, losses=losses)


def test_the_manifest_says_what_was_probed(tmp_path):
    go(*start(tmp_path, KEY))
    probe = Manifest.from_json(json.loads((tmp_path / "run.json").read_text())).probe
    assert probe == "the model, with a synthetic loss, and the loop, in a rehearsal"


def test_a_forgotten_step_is_refused(tmp_path):
    accelerator, net, _, loader, _ = start(tmp_path, KEY, batch_size=64)
    with pytest.raises(PrivacyError, match=r"optimizer.step\(\) was not called"):
        for inputs, targets in loader:
            accelerator.backward(functional.cross_entropy(net(inputs), targets, reduction="none"))


def test_clipping_the_sum_again_is_refused(tmp_path):
    accelerator, net, *_ = start(tmp_path, KEY)
    with pytest.raises(PrivacyError, match="leave the call away"):
        accelerator.clip_grad_norm_(net.parameters(), 1.0)


@pytest.mark.parametrize(
    "setting", [{"gradient_accumulation_steps": 2}, {"mixed_precision": "fp16"}, {"dynamo_backend": "inductor"}]
)
def test_settings_that_cannot_be_private_are_refused(tmp_path, setting):
    with pytest.raises(PrivacyError, match=next(iter(setting))):
        PrivateAccelerator(plan=plan(), run=tmp_path, seal_to=[KEY], cpu=True, **setting)
