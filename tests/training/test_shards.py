# SPDX-License-Identifier: Apache-2.0
"""Parameters cut by ``fully_shard``, on a mesh of one rank; ``tests/integrations/accelerate/test_ranks.py`` has two."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from privguard.errors import SensitivityError, UnsupportedModelError
from privguard.training.attach import attach
from privguard.training.one_by_one import OneByOne


@pytest.fixture(scope="module", autouse=True)
def _one_rank():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

    def forward(self, x):
        return self.blocks(x)


def pictures():
    return (
        Pictures(),
        (torch.randn(4, 1, 6, 6), torch.randint(3, (4,))),
        lambda model, x, y: model(x),
        lambda m: m.blocks,
    )


def text():
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=8, vocab_size=20, n_positions=12, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    ids = torch.randint(20, (4, 7))
    model = GPT2LMHeadModel(config)  # with its head tied to the table
    return model, (ids, ids), lambda model, x, y: model(x).logits.transpose(1, 2), lambda m: m.transformer.h


def translation():
    config = T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, dropout_rate=0, decoder_start_token_id=0
    )
    ids = torch.randint(20, (4, 7))
    model = T5ForConditionalGeneration(config)  # one table of relative positions for all blocks, in the first of them

    def logits(model, x, y):
        return model(input_ids=x, decoder_input_ids=y).logits.mT

    return model, (ids, ids.flip(1)), logits, lambda m: [*m.encoder.block, *m.decoder.block]


def clipped(model, batch, forward, clipper):
    clipper.begin(torch.tensor([True, True, False, True]))
    losses = functional.cross_entropy(forward(model, *batch), batch[1], reduction="none")
    clipper.backward(losses.flatten(1).mean(1) if losses.dim() > 1 else losses)
    return clipper.take().gradients


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")  # T5's bias, without privguard too
@pytest.mark.parametrize("make", [pictures, text, translation])
def test_the_sum_of_a_cut_model_is_that_of_a_whole_one(make):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model, batch, forward, blocks = make()
    whole = clipped(twin := copy.deepcopy(model), batch, forward, attach(twin, max_grad_norm=0.3))
    for block in blocks(model):
        if list(block.parameters()):
            fully_shard(block)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    found = clipped(model, batch, forward, attach(model, max_grad_norm=0.3))
    assert set(found) == set(whole)
    for name, value in found.items():
        assert isinstance(value, DTensor)
        assert torch.allclose(value.full_tensor(), whole[name], atol=1e-7), name
    assert all(parameter.grad is None for parameter in model.parameters())


class Escaping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x) + functional.linear(x, self.layer.weight)


def test_a_gradient_that_fsdp_writes_by_itself_is_refused_and_removed():
    """Autograd has no hook on a cut parameter; FSDP2 calls those that it finds, which is private to torch."""
    model = fully_shard(Escaping())
    clipper = attach(model, max_grad_norm=1.0)
    clipper.begin(torch.ones(2, dtype=torch.bool))
    with pytest.raises(SensitivityError, match=r"layer.weight.*not clipped"):
        clipper.backward(model(torch.randn(2, 3)).square().sum(1))
    assert model.layer.weight.grad is None


def test_a_forward_without_gradients_in_between_is_no_change_of_the_model():
    """FSDP2 leaves the parameters of the root whole after a forward; they are other objects."""
    model = fully_shard(nn.Sequential(nn.Linear(3, 2)))
    clipper = attach(model, max_grad_norm=1.0)
    with torch.no_grad():
        model(torch.randn(2, 3))
    clipper.begin(torch.ones(2, dtype=torch.bool))
    clipper.backward(model(torch.randn(2, 3)).square().sum(1))
    assert all(isinstance(value, DTensor) for value in clipper.take().gradients.values())


def test_one_example_at_a_time_is_refused():
    with pytest.raises(UnsupportedModelError, match="cut over ranks"):
        OneByOne(fully_shard(nn.Sequential(nn.Linear(3, 2))), max_grad_norm=1.0)
