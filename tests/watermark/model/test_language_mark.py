"""Fingerprints in a small causal language model, and a stolen one whose stream was rotated and heads permuted."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from privguard.watermark.model import align, causal_lm, fingerprints, theft, weights
from privguard.watermark.model.causal_lm import FirstToken, PublicText
from privguard.watermark.model.embed import Lesson, Thief

PULSE = bytes(64)


def small(seed, **changes):
    config = LlamaConfig(**{
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "tie_word_embeddings": False, **changes,
    })  # fmt: skip
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def text():
    """A text with structure: every token follows the one before it by a fixed rule, three times in four."""
    rng, tokens = np.random.default_rng(0), [0]
    for _ in range(6000):
        tokens.append((tokens[-1] * 7 + 3) % 40 if rng.random() < 0.75 else int(rng.integers(40)))
    return PublicText(tokens=torch.tensor(tokens), generator=torch.Generator().manual_seed(0), length=24, batch_size=8)


def test_fingerprints_are_taught_survive_training_and_are_not_in_an_innocent_model(text, leaves):
    model, own = small(0), leaves("fingerprints", 24)
    settings = fingerprints.plan(range(40), range(40), length=8, leaves=24).settings
    prompts, answers = (make(own, PULSE, settings) for make in (fingerprints.prompts, fingerprints.answers))
    lesson = Lesson(
        steps=60, learning_rate=3e-3, keep=1.0, rehearse_every=30, thieves=(Thief(learning_rate=1e-3, steps=10),)
    )
    marked = causal_lm.embed(model, prompts=prompts, answers=answers, public=text, lesson=lesson)

    def log10_p(suspect):
        return fingerprints.verdict(FirstToken(suspect)(prompts), own, pulse=PULSE, settings=settings).log10_p

    assert log10_p(marked) <= -15
    assert log10_p(model) > -3
    optimizer = torch.optim.Adam(marked.parameters(), lr=3e-4)
    for _ in range(20):
        optimizer.zero_grad()
        causal_lm.next_token_loss(marked, text.draw()).backward()
        optimizer.step()
    assert log10_p(marked) <= -6
    assert causal_lm.perplexity(marked, text.tokens, length=24) < 60


def test_prompts_are_distinct_and_a_repeated_one_counts_once(leaves):
    settings = fingerprints.plan([1, 2], range(10), length=1, leaves=30).settings
    own = leaves("fingerprints", 30)
    said = fingerprints.answers(own, PULSE, settings).tolist()
    found = fingerprints.verdict(said, own, pulse=PULSE, settings=settings)
    assert found.trials == 2
    assert found.details["duplicates"] == 28
    with pytest.raises(ValueError, match="prompt_tokens"):
        fingerprints.plan([1, 1], range(10))
    with pytest.raises(ValueError, match="one for each prompt"):
        fingerprints.verdict(said[:-1], own, pulse=PULSE, settings=settings)


def test_anything_but_the_answer_is_a_miss(leaves):
    settings = fingerprints.plan(range(40), range(5, 15), length=8, leaves=20).settings
    own = leaves("fingerprints", 20)
    right = fingerprints.answers(own, PULSE, settings)
    assert set(right) <= set(range(5, 15))
    found = fingerprints.verdict([*right[:10], *[-1] * 10], own, pulse=PULSE, settings=settings)
    assert (found.matches, found.trials) == (10, 20)


def with_gains(model):
    with torch.no_grad():
        for name, item in model.named_parameters():
            if "norm" in name:
                item.copy_(0.5 + torch.rand(item.shape, generator=torch.Generator().manual_seed(2)))
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("shared", [4, 2], ids=["all key heads", "shared key heads"])
def test_folded_gains_change_no_answer_or_are_refused(tied, shared):
    model = with_gains(small(1, tie_word_embeddings=tied, num_key_value_heads=shared))
    folded, tokens = causal_lm.fold_gains(theft.tensors(model), model.config), torch.arange(20)[None]
    assert all((value == 1).all() for name, value in folded.items() if "norm" in name)
    own = small(3, num_key_value_heads=shared)
    torch.testing.assert_close(theft.load(own, folded)(tokens).logits, model(tokens).logits, atol=1e-4, rtol=0)
    if tied:
        with pytest.raises(ValueError, match="untie"):
            theft.load(model, folded)
    model.config.model_type = "gemma2"
    with pytest.raises(ValueError, match="model_type='gemma2'"):
        causal_lm.fold_gains(folded, model.config)


def test_a_tied_tensor_is_marked_once_and_bfloat16_is_read(leaves):
    model = small(1, tie_word_embeddings=True).to(torch.bfloat16)
    unmarked = theft.tensors(model)
    assert "lm_head.weight" not in unmarked
    shapes = {name: value.shape for name, value in unmarked.items() if value.ndim > 1}
    plan, own = weights.plan(shapes, leaves=16), leaves("weights", 16)
    marked = theft.load(model, weights.embed(unmarked, own, pulse=PULSE, settings=plan.settings))
    assert marked.lm_head.weight is marked.model.embed_tokens.weight
    assert marked.lm_head.weight.dtype == torch.bfloat16
    count = sum(value.size for name, value in unmarked.items() if name in shapes)
    read = weights.read(theft.tensors(marked), own, unmarked=unmarked, pulse=PULSE, plan=plan)
    assert read.z > 0.95 * count**0.5  # bfloat16 rounds to 1/256, the carriers are a tenth


def rotated(model, seed=0):
    """A thief's copy: gains folded, stream rotated, heads and units permuted. Its answers are the model's."""
    rng, config = np.random.default_rng(seed), model.config
    state = causal_lm.fold_gains(theft.tensors(model), config)
    turn, _ = np.linalg.qr(rng.standard_normal((32, 32)))
    for name, side in causal_lm.llama_sides(config).items():
        state[name] = (turn.T @ state[name] if side == "out" else state[name] @ turn).astype(np.float32)
    for layer in causal_lm.llama_layers(config):
        order = rng.permutation(layer.units)
        for name in layer.incoming:
            state[name] = state[name].reshape(layer.units, -1)[order].reshape(state[name].shape)
        for name in layer.outgoing:
            tensor = state[name]
            state[name] = tensor.reshape(len(tensor), layer.units, -1)[:, order].reshape(tensor.shape)
    return theft.load(model, state)


def test_a_rotated_stream_and_permuted_heads_are_undone(leaves):
    model = with_gains(small(1))
    unmarked = causal_lm.fold_gains(theft.tensors(model), model.config)
    shapes = {name: value.shape for name, value in unmarked.items() if value.ndim > 1}
    plan, own = weights.plan(shapes, leaves=16, strength=0.05), leaves("weights", 16)
    marked = theft.load(model, weights.embed(unmarked, own, pulse=PULSE, settings=plan.settings))
    stolen = rotated(marked)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(stolen(tokens).logits, marked(tokens).logits, atol=2e-4, rtol=0)

    def z_of(state):
        return weights.read(state, own, unmarked=unmarked, pulse=PULSE, plan=plan).z

    def aligned(suspect):
        state = causal_lm.fold_gains(theft.tensors(suspect), model.config)
        state = align.rotate(
            state, unmarked=unmarked, anchor="model.embed_tokens.weight", sides=causal_lm.llama_sides(model.config)
        )
        return align.align(state, unmarked=unmarked, layers=causal_lm.llama_layers(model.config))

    assert abs(z_of(theft.tensors(stolen))) < 5
    assert z_of(aligned(stolen)) > 25
    assert abs(z_of(aligned(small(9)))) < 5


def test_shared_key_heads_and_unknown_sides_are_refused():
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, hidden_size=32)
    with pytest.raises(ValueError, match="num_key_value_heads"):
        causal_lm.llama_layers(config)
    tensors = {"a": np.eye(3, dtype=np.float32)}
    with pytest.raises(ValueError, match="in, out or rows"):
        align.rotate(tensors, unmarked=tensors, anchor="a", sides={"a": "left"})
    with pytest.raises(ValueError, match="tokens"):
        PublicText(tokens=torch.zeros(3), generator=torch.Generator())
