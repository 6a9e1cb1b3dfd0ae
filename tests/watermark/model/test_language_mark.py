# SPDX-License-Identifier: Apache-2.0
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


def test_unknown_sides_and_short_texts_are_refused():
    tensors = {"a": np.eye(3, dtype=np.float32)}
    with pytest.raises(ValueError, match="in, out or rows"):
        align.rotate(tensors, unmarked=tensors, anchor="a", sides={"a": "left"})
    with pytest.raises(ValueError, match="tokens"):
        PublicText(tokens=torch.zeros(3), generator=torch.Generator())
