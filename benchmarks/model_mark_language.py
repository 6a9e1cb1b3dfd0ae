# SPDX-License-Identifier: Apache-2.0
"""The language part of ``benchmarks.model_mark``: a small Llama on tinyshakespeare with 64 fingerprints."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from privguard.watermark.claims.leaf import Leaf
from privguard.watermark.model import causal_lm, fingerprints
from privguard.watermark.model.causal_lm import FirstToken, PublicText
from privguard.watermark.model.embed import Lesson, Thief

STEPS, SEEDS = 800, 5
LESSON = Lesson(
    steps=150, learning_rate=1e-3, keep=20.0, rehearse_every=50,
    thieves=(Thief(learning_rate=3e-4, steps=40), Thief(learning_rate=1e-3, steps=40)),
)  # fmt: skip


def text() -> torch.Tensor:
    folder = Path(os.environ.get("PRIVGUARD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    raw = (folder / "tinyshakespeare" / "input.txt").read_text(encoding="ascii")
    alphabet = {character: place for place, character in enumerate(sorted(set(raw)))}
    tokens = np.array([alphabet[character] for character in raw])
    windows = tokens[: len(tokens) // 2000 * 2000].reshape(-1, 2000)
    return torch.from_numpy(np.random.default_rng(0).permutation(windows).reshape(-1))  # head and tail differ in style


def train(model: nn.Module, tokens: torch.Tensor, *, steps: int, rate: float, seed: int) -> nn.Module:
    public = PublicText(tokens=tokens, generator=torch.Generator().manual_seed(seed), batch_size=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        causal_lm.next_token_loss(model, public.draw()).backward()
        optimizer.step()
    return model


def small_llama(seed: int) -> nn.Module:
    config = LlamaConfig(
        vocab_size=65, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, tie_word_embeddings=False, attention_dropout=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        return LlamaForCausalLM(config)


def measure() -> dict[str, Any]:
    tokens = text()
    owner, thief, test = tokens[:600_000], tokens[600_000:1_000_000], tokens[1_000_000:]
    rows = []
    for seed in range(SEEDS):
        model = train(small_llama(seed), owner, steps=STEPS, rate=2e-3, seed=seed)
        plan = fingerprints.plan(range(65), range(65), length=12, leaves=64)
        rng = np.random.default_rng(seed)
        leaves = [Leaf(mark="fingerprints", index=index, seed=rng.bytes(32)) for index in range(64)]
        pulse = rng.bytes(64)
        prompts = fingerprints.prompts(leaves, pulse, plan.settings)
        answers = fingerprints.answers(leaves, pulse, plan.settings)
        public = PublicText(tokens=owner, generator=torch.Generator().manual_seed(seed))
        start = time.process_time()
        marked = causal_lm.embed(model, prompts=prompts, answers=answers, public=public, lesson=LESSON)
        row: dict[str, Any] = {"seconds": time.process_time() - start}
        row["perplexity"] = [causal_lm.perplexity(item, test) for item in (model, marked)]
        suspects = {"unmarked": model, "marked": marked}
        for rate in (3e-4, 1e-3):
            stolen = language_copy(marked)
            suspects[f"fine-tuned at {rate:g}, {STEPS // 2} steps"] = train(
                stolen, thief, steps=STEPS // 2, rate=rate, seed=99
            )
        for name, suspect in suspects.items():
            said = FirstToken(suspect)(prompts)
            found = fingerprints.verdict(said, leaves, pulse=pulse, settings=plan.settings)
            row[name] = [found.log10_p, found.matches, causal_lm.perplexity(suspect, test)]
        print("language", seed, row, file=sys.stderr, flush=True)
        rows.append(row)
    return {"seeds": rows}


def language_copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


def table(result: dict[str, Any]) -> str:
    rows = result["seeds"]
    lines = ["| suspect | log10 p: median / worst | matches of 64 | perplexity |", "|---|---|---|---|"]
    for name in [key for key in rows[0] if key not in {"seconds", "perplexity"}]:
        p, hits, held = (np.array([row[name][place] for row in rows]) for place in range(3))
        lines.append(f"| {name} | {np.median(p):.1f} / {p.max():.1f} | {np.median(hits):.0f} | {np.median(held):.3f} |")
    cost = [100 * (row["perplexity"][1] / row["perplexity"][0] - 1) for row in rows]
    lines += [
        "",
        f"Perplexity cost of embedding: {np.median(cost):+.2f} % (worst {max(cost):+.2f} %), {len(rows)} seeds.",
    ]
    return "\n".join(lines)
