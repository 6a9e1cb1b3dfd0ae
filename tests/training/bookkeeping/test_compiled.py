# SPDX-License-Identifier: Apache-2.0
"""A compiler leaves tapped layers alone, so what is clipped stays what it was; aot_eager traces as inductor does."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from privguard.errors import UnsupportedModelError
from privguard.training.attach import attach


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(5, 6), nn.Tanh()).requires_grad_(False)
        self.first, self.norm, self.last = nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3)

    def forward(self, x):
        return self.last(functional.gelu(self.norm(self.first(self.frozen(x)))) * 2)


def whole_before(net):
    net.compile(backend="aot_eager")
    return net, attach(net, max_grad_norm=0.3)


def layer_before(net):
    net.first.compile(backend="aot_eager")
    return net, attach(net, max_grad_norm=0.3)


def frozen_part(net):
    net.frozen = torch.compile(net.frozen, backend="aot_eager")
    return net, attach(net, max_grad_norm=0.3)


def afterwards(net):
    clipper = attach(net, max_grad_norm=0.3)
    return torch.compile(net, backend="aot_eager"), clipper


def clipped(call, clipper):
    x = torch.arange(20.0).view(4, 5).sin()
    for _ in range(2):  # the second time from the cache
        clipper.begin(torch.tensor([True, True, False, True]))
        clipper.backward(call(x).square().sum(1))
        found = clipper.take().gradients
    clipper.close()
    return found


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it itself
@pytest.mark.parametrize("compiled", [whole_before, layer_before, frozen_part, afterwards])
def test_a_compiled_model_is_clipped_exactly(compiled):
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = Net()
    wanted = clipped(same := copy.deepcopy(net), attach(same, max_grad_norm=0.3))
    found = clipped(*compiled(net))
    assert set(found) == set(wanted)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


def test_what_torch_compile_returns_is_refused():
    with pytest.raises(UnsupportedModelError, match="attach to the model itself"):
        attach(torch.compile(Net(), backend="aot_eager"), max_grad_norm=0.3)
