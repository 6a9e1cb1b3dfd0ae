# SPDX-License-Identifier: Apache-2.0
"""What counts as checked by halves, in the number that a report prints."""

import torch
from torch import nn

from privguard.training.attach import attach


def one_step(model, clipper):
    clipper.begin(torch.ones(4, dtype=torch.bool))
    clipper.backward(model(torch.ones(4, 3)).sum(1))
    clipper.take()


def test_a_step_counts_as_checked_only_where_both_halves_went_backward(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    clipper = attach(model, max_grad_norm=1.0)
    checks = clipper.checks
    one_step(model, clipper)
    assert checks.checked == 1

    def only_once(losses, weights):  # what a graph does that a compiler made
        checks.impossible = "the graph of a compiled part can be gone through once"

    monkeypatch.setattr(checks, "_send", only_once)
    one_step(model, clipper)
    assert checks.checked == 1
    clipper.close()
