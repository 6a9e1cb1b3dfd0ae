# SPDX-License-Identifier: Apache-2.0
"""Teach a small language model 64 fingerprints on tinyshakespeare, then fine-tune it as a thief would.

PRIVGUARD_DATA=../shared/data python recipes/mark_a_language_model.py          (some minutes on one core)
"""

import argparse
import copy
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from privguard.attest.notary import LocalNotary
from privguard.attest.statement import SigningKey
from privguard.watermark.claims import commitment, offline
from privguard.watermark.claims.leaf import Tree
from privguard.watermark.model import causal_lm, fingerprints, theft
from privguard.watermark.model.causal_lm import FirstToken, PublicText
from privguard.watermark.model.embed import Lesson, Thief
from privguard.watermark.secret import Secret


def characters(folder: Path) -> torch.Tensor:
    """The plays as character ids, cut into pieces and shuffled, because the head of the file differs from its tail."""
    raw = (folder / "tinyshakespeare" / "input.txt").read_text(encoding="ascii")
    alphabet = {character: place for place, character in enumerate(sorted(set(raw)))}
    ids = np.array([alphabet[character] for character in raw])
    pieces = ids[: len(ids) // 2000 * 2000].reshape(-1, 2000)
    return torch.from_numpy(np.random.default_rng(0).permutation(pieces).reshape(-1))


def train(model: nn.Module, text: PublicText, *, steps: int, rate: float) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        causal_lm.next_token_loss(model, text.draw()).backward()
        optimizer.step()
    return model


def main(folder: Path, *, tiny: bool) -> dict[str, float]:
    ids = characters(folder)
    own, other, test = ids[:600_000], ids[600_000:1_000_000], ids[1_000_000 : 1_000_000 + (10_000 if tiny else 100_000)]
    generator, steps = torch.Generator().manual_seed(0), 20 if tiny else 1_000
    config = LlamaConfig(
        vocab_size=65, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    text = PublicText(tokens=own, generator=generator)
    model = train(LlamaForCausalLM(config), text, steps=steps, rate=2e-3)

    mark = fingerprints.plan(range(65), range(65), length=12, leaves=64)  # prompts and answers from all characters
    secret, notary = Secret.generate(), LocalNotary.generate()
    digest = offline.tensors_digest("shakespeare", theft.tensors(model))
    made = commitment.commit(secret, model=digest, marks=(mark,), by=SigningKey.generate())
    standing = commitment.check(offline.notarise(made, notary), trust=offline.trust(notary))
    leaves = Tree.derive(secret, standing.manifest.sizes).leaves["fingerprints"]
    prompts = fingerprints.prompts(leaves, standing.pulse.output, mark.settings)
    answers = fingerprints.answers(leaves, standing.pulse.output, mark.settings)

    thieves = (Thief(learning_rate=3e-4, steps=40), Thief(learning_rate=1e-3, steps=40))
    lesson = Lesson(steps=15 if tiny else 150, keep=20.0, rehearse_every=50, thieves=() if tiny else thieves)
    marked = causal_lm.embed(model, prompts=prompts, answers=answers, public=text, lesson=lesson)
    thief = PublicText(tokens=other, generator=generator)
    stolen = train(copy.deepcopy(marked), thief, steps=steps // 2, rate=1e-3)

    found: dict[str, float] = {}
    for name, suspect in {"unmarked": model, "marked": marked, "stolen and fine-tuned": stolen}.items():
        said = FirstToken(suspect)(prompts)
        verdict = fingerprints.verdict(said, leaves, pulse=standing.pulse.output, settings=mark.settings)
        found[name] = verdict.log10_p
        held = causal_lm.perplexity(suspect, test)
        print(f"{name}: {verdict.matches:.0f} of {verdict.trials}, p = 10^{verdict.log10_p:.1f}, perplexity {held:.3f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PRIVGUARD_DATA", "../shared/data")))
    parser.add_argument("--tiny", action="store_true", help="a few seconds, and no mark to speak of")
    arguments = parser.parse_args()
    main(arguments.data, tiny=arguments.tiny)
