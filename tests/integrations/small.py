# SPDX-License-Identifier: Apache-2.0
"""A small private run to take apart."""

from dataclasses import fields

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from privguard.checkpoint.keys.key import Key
from privguard.integrations.torch_loop import privatize
from privguard.runs.options import RunOptions
from privguard.training.plan import Plan


def with_options(arguments):
    """The arguments of an entry point, with those that belong into :class:`RunOptions` put there."""
    names = {field.name for field in fields(RunOptions)}
    options = RunOptions(**{name: value for name, value in arguments.items() if name in names})
    return {"options": options, **{name: value for name, value in arguments.items() if name not in names}}


def small_plan(**changes):
    facts = {
        "sample_rate": 0.2,
        "noise_multiplier": 1.0,
        "max_grad_norm": 0.5,
        "steps": 20,
        "delta": 1e-3,
        "expected_batch_size": 20,
    }
    return Plan(**{**facts, **changes})


def small_data(count=100):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator))


class Scored(nn.Module):
    """A model as transformers' Trainer calls it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x, labels=None):
        return {"logits": self.layer(x)}


def small_model():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


class SmallRun:
    """Model, optimizer, data and key; ``start`` makes them private, ``go`` trains.

    The loop is rehearsed only where ``rehearsal`` is set: most tests look at the batches that come first.
    """

    rehearsal = False

    def __init__(self, folder):
        self.folder = folder
        self.key = Key.generate_symmetric()
        self.data = small_data()
        self.renew()

    def renew(self):
        """A fresh process would start with a fresh model and optimizer."""
        self.model = small_model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5, momentum=0.9)

    def start(self, plan=None, *, batch_size=16, loader=None, **more):
        if loader is None:
            loader = DataLoader(self.data, batch_size=batch_size, shuffle=True)
        if "losses" not in more:
            more = {"rehearsal": self.rehearsal, **more}
        settings = {"run": self.folder, "seal_to": [self.key], **with_options({"quiet": True, **more})}
        return privatize(self.model, self.optimizer, loader, plan or small_plan(), **settings)

    @staticmethod
    def go(private, *, steps=None):
        done = 0
        for inputs, targets in private.batches():
            private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))
            done += private.step()
            if done == steps:
                break
        return done
