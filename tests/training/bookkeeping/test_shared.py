# SPDX-License-Identifier: Apache-2.0
"""What the batch shares, T5's relative bias and peft's soft prompt: each example's own gradient of it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privguard.errors import UnsupportedModelError
from privguard.training.attach import attach
from privguard.training.bookkeeping import BookKeeper
from privguard.training.one_by_one import OneByOne
from tests.training.bookkeeping.compare import distance

transformers = pytest.importorskip("transformers")
HUGE, VOCABULARY, LENGTH = 1e6, 40, 6
Batch = tuple[Tensor, Tensor, Tensor]

T5 = {
    "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config, {}),
    "mt5": (transformers.MT5ForConditionalGeneration, transformers.MT5Config, {}),
    "umt5": (transformers.UMT5ForConditionalGeneration, transformers.UMT5Config, {}),
    "longt5": (
        transformers.LongT5ForConditionalGeneration,
        transformers.LongT5Config,
        {"local_radius": 3, "encoder_attention_type": "transient-global", "global_block_size": 3},
    ),
}


def t5(kind: str = "t5") -> nn.Module:
    torch.manual_seed(0)
    cls, config, more = T5[kind]
    settings = config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False, **more,
    )  # fmt: skip
    model = cls(settings)
    for name, parameter in model.named_parameters():
        if "relative" in name:
            nn.init.normal_(parameter)
    return model.eval()


def texts(rows: int) -> Batch:
    """Source, mask and target; every second source is shorter."""
    source = torch.randint(2, VOCABULARY, (rows, LENGTH))
    mask = torch.ones_like(source)
    mask[::2, -2:] = 0
    return source, mask, torch.randint(2, VOCABULARY, (rows, LENGTH - 1))


def losses_of(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(input_ids=batch[0], attention_mask=batch[1], decoder_input_ids=batch[2]).logits
    return functional.cross_entropy(logits.mT, batch[2], reduction="none").mean(1)


def clip(model: nn.Module, batch: Batch, *, way: type = BookKeeper, bound: float = HUGE, losses: Callable = losses_of):
    clipper = way(model, max_grad_norm=bound)
    for rows in zip(*(t.split(clipper.rows or len(batch[0])) for t in batch), strict=True):
        clipper.begin(torch.ones(len(rows[0]), dtype=torch.bool))
        clipper.backward(losses(model, rows))
    sums = clipper.take().gradients
    clipper.close()
    return sums


@pytest.mark.parametrize(("rows", "bound"), [(3, 0.3), (LENGTH, HUGE)])  # 6 examples with 6 positions look alike
@pytest.mark.parametrize("kind", T5)
def test_relative_biases_are_exact(kind: str, rows: int, bound: float) -> None:
    model, batch = t5(kind), texts(rows)
    fast, slow = clip(model, batch, bound=bound), clip(model, batch, bound=bound, way=OneByOne)
    tables = [name for name in slow if "relative_attention_bias" in name]
    assert len(tables) >= 2
    assert all(slow[name].norm() > 1e-3 for name in tables)
    assert distance(fast, slow) < 1e-5
    assert all(distance({"": fast[name]}, {"": slow[name]}) < 1e-5 for name in tables)


def test_one_record_moves_the_sum_by_at_most_the_clipping_norm() -> None:
    bound, model, batch = 0.3, t5(), texts(5)
    whole = clip(model, batch, bound=bound)
    for gone in range(5):
        rest = clip(model, tuple(torch.cat([t[:gone], t[gone + 1 :]]) for t in batch), bound=bound)
        moved = sum(float((whole[n].double() - rest[n].double()).square().sum()) for n in whole) ** 0.5
        assert 0.9 * bound < moved <= bound * (1 + 1e-4)


def test_padding_rows_and_rows_of_one_user_count_as_they_should() -> None:
    """Three users of two rows each, the last of them padding."""
    model, batch = t5(), texts(6)
    clipper = BookKeeper(model, max_grad_norm=0.3)
    clipper.begin(torch.tensor([True, True, False]), rows_each=2)
    clipper.backward(losses_of(model, batch).unflatten(0, (3, 2)).mean(1))
    found = clipper.take().gradients
    clipper.close()
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for user in (slice(0, 2), slice(2, 4)):
        losses = losses_of(model, tuple(t[user] for t in batch))
        gradient = torch.autograd.grad(losses.mean(), list(model.parameters()))
        norm = torch.cat([g.flatten() for g in gradient]).norm()
        for name, g in zip(wanted, gradient, strict=True):
            wanted[name] += g * min(1.0, float(0.3 / norm))
    assert distance(found, wanted) < 1e-5


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_is_exact() -> None:
    model, batch = t5("umt5").train(), texts(3)
    plain = clip(copy.deepcopy(model), batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert distance(clip(model, batch), plain) < 1e-6


def test_several_forwards_count_together() -> None:
    def twice(model: nn.Module, batch: Batch) -> Tensor:
        shorter = tuple(t[:, :4] for t in batch)
        return losses_of(model, batch) + losses_of(model, shorter).square()

    model, batch = t5(), texts(3)
    assert distance(clip(model, batch, losses=twice), clip(model, batch, losses=twice, way=OneByOne)) < 1e-5


def test_bfloat16_autocast_keeps_the_bound_and_the_sum() -> None:
    def rounded(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return losses_of(model, batch).float()

    model, batch = t5(), texts(4)
    whole = clip(model, batch, losses=rounded)
    assert all(value.dtype == torch.float64 for value in whole.values())
    assert distance(whole, clip(model, batch)) < 0.1
    with torch.autocast("cpu", torch.bfloat16):  # around the backward pass as well: not one bit may change
        inside = clip(model, batch, losses=rounded)
    assert all(torch.equal(inside[name], value) for name, value in whole.items())
    with_it, rest = (clip(model, tuple(t[k:] for t in batch), losses=rounded, bound=0.3) for k in (0, 1))
    assert sum(float((with_it[n] - rest[n]).double().square().sum()) for n in rest) ** 0.5 <= 0.3 * (1 + 1e-4)


def test_a_frozen_table_stays_out() -> None:
    model, batch = t5(), texts(3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "relative" not in name
    assert distance(clip(model, batch), clip(model, batch, way=OneByOne)) < 1e-5


def test_names_stay_and_forwards_without_gradients_are_left_alone() -> None:
    model, (source, mask, target) = t5(), texts(3)
    attention = model.encoder.block[0].layer[0].SelfAttention
    names, before = list(model.state_dict()), model.generate(source, attention_mask=mask, max_new_tokens=4)
    clipper = attach(model, max_grad_norm=1.0)
    assert list(model.state_dict()) == names
    clipper.begin(torch.ones(3, dtype=torch.bool))
    with torch.no_grad():
        assert len(attention.compute_bias(4, 4)) == 1
    assert len(attention.compute_bias(4, 4)) == 3
    assert torch.equal(model.generate(source, attention_mask=mask, max_new_tokens=4), before)
    clipper.backward(losses_of(model, (source, mask, target)))
    assert len(attention.compute_bias(4, 4)) == 1  # no batch is open
    clipper.close()
    assert "compute_bias" not in vars(attention)
    assert not any("forward" in vars(module) for module in model.modules())


class Odd(nn.Module):
    """Looks its table up in another order than T5 does."""

    def __init__(self) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(9, 2)

    def compute_bias(self, length: int) -> Tensor:
        place = torch.arange(length)
        return self.relative_attention_bias((place - place[:, None]) % 9)[None]  # (1, queries, keys, heads)

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :, None] + self.compute_bias(x.shape[1]).mean(-1)).square().flatten(1).sum(1)


def test_a_bias_in_another_order_is_refused_by_name() -> None:
    model = nn.Sequential(Odd())
    clipper = attach(model, max_grad_norm=1.0)
    clipper.begin(torch.ones(2, dtype=torch.bool))
    with pytest.raises(UnsupportedModelError, match=r"module='0': compute_bias gave \(1, 5, 5, 2\)"):
        model(torch.randn(2, 5))


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends, use_cache=False))


def prompted(kind: str) -> nn.Module:
    peft = pytest.importorskip("peft")
    causal = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    config = {
        "prompt": lambda: peft.PromptTuningConfig(**causal),
        "prompt, T5": lambda: peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3),
        "encoded": lambda: peft.PromptEncoderConfig(**causal, encoder_hidden_size=8),
        "encoded, LSTM": lambda: peft.PromptEncoderConfig(
            **causal, encoder_hidden_size=8, encoder_reparameterization_type="LSTM", encoder_dropout=0.0
        ),
        "prefix": lambda: peft.PrefixTuningConfig(**causal),
        "prefix, projected": lambda: peft.PrefixTuningConfig(**causal, prefix_projection=True, encoder_hidden_size=8),
    }[kind]()
    return peft.get_peft_model(t5() if kind == "prompt, T5" else gpt2(), config).eval()


def losses_after_prompt(model: nn.Module, batch: Batch) -> Tensor:
    target = {"decoder_input_ids": batch[2]} if model.config.is_encoder_decoder else {}
    logits = model(input_ids=batch[0], attention_mask=batch[1], **target).logits
    return functional.cross_entropy(logits[:, 1 - LENGTH :].mT, batch[2], reduction="none").mean(1)


PROMPTS = ["prompt", "prompt, T5", "encoded", "encoded, LSTM", "prefix", "prefix, projected"]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # peft's own
@pytest.mark.parametrize(("rows", "bound"), [(2, 0.01), (3, HUGE)])  # three prompts of three tokens
@pytest.mark.parametrize("kind", PROMPTS)
def test_soft_prompts_are_exact(kind: str, rows: int, bound: float) -> None:
    model, batch = prompted(kind), texts(rows)
    fast = clip(model, batch, bound=bound, losses=losses_after_prompt)
    slow = clip(model, batch, bound=bound, losses=losses_after_prompt, way=OneByOne)
    assert all("prompt_encoder" in name for name in slow)
    assert distance(fast, slow) < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_prompted_model_is_given_back_as_it_was() -> None:
    model, (source, mask, target) = prompted("prompt"), texts(3)
    names, before = list(model.state_dict()), model.get_prompt(2)
    clipper = attach(model, max_grad_norm=1.0)
    assert list(model.state_dict()) == names
    assert torch.equal(model.get_prompt(2), before)  # no batch is open
    clipper.begin(torch.ones(3, dtype=torch.bool))
    with torch.no_grad():
        assert torch.equal(model.get_prompt(batch_size=2), before)
    assert torch.equal(model.get_prompt(batch_size=3)[:2], before)
    with pytest.raises(UnsupportedModelError, match="batch_size=2 prompts for a batch of 3"):
        model.get_prompt(2)
    clipper.backward(losses_after_prompt(model, (source, mask, target)))
    clipper.close()
    assert "get_prompt" not in vars(model)
