# SPDX-License-Identifier: Apache-2.0
"""What a small language model gives away of its fine-tuning texts, and of secrets planted in them.

    python recipes/audit_a_language_model.py --text tinyshakespeare.txt

A character model is trained on one half of a text (the base), then fine-tuned on chunks of the other half, each of
which was in by a fair coin; secrets of four digits stand among them. The attacks compare the fine-tuned model with
the base, the blind baseline checks the split, exposure ranks each secret among all 10,000 that might have stood in
its place, and extraction asks how many samples would say it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from privguard.audit.membership import roc
from privguard.audit.membership.blind import blind_baseline
from privguard.audit.membership.max_t import max_t
from privguard.audit.text import attacks as language
from privguard.audit.text.extraction import Sampling, exposure, queries_needed, suffix_log_probability, verbatim

CHUNK = 128  # characters
DIGITS = 4


@dataclass(frozen=True)
class Letters:
    """Characters to token ids and back: the vocabulary of one text and the digits."""

    known: str

    @classmethod
    def of(cls, text: str) -> "Letters":
        """Those of the text and of the secrets' sentences."""
        return cls("".join(sorted({*text, *"\n abcdefghijklmnopqrstuvwxyz0123456789"})))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        return [self.known.index(letter) for letter in text]


def character_model(vocabulary: int, *, seed: int) -> GPT2LMHeadModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=CHUNK,
            n_embd=64,
            n_layer=2,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        config.loss_type = "ForCausalLM"
        return GPT2LMHeadModel(config)


def fit(model: nn.Module, chunks: Sequence[Sequence[int]], *, steps: int, seed: int, rate: float = 2e-3) -> None:
    """AdamW on batches of 32 chunks, equal in length or padded and masked on the right."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    random = np.random.default_rng(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50, (steps - step) / (0.3 * steps))
        ids = [chunks[i] for i in random.integers(0, len(chunks), 32)]
        width = max(map(len, ids))
        batch = torch.tensor([[*text, *[0] * (width - len(text))] for text in ids])
        labels = torch.tensor([[*text, *[-100] * (width - len(text))] for text in ids])
        model(input_ids=batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def carrier(number: int) -> str:
    """The sentence that a secret stands at the end of."""
    return f"\nthe number of {chr(97 + number // 26)}{chr(97 + number % 26)} is "


def exposures(model: nn.Module, letters: Letters, number: int, secrets: Sequence[int]) -> list[float]:
    """Exposure in bits of each secret behind one carrier, among all 10,000, every one of them ranked.

    All candidates share the carrier, so the four digits are scored along a tree: 1,111 prefixes in place of 10,000
    texts.
    """
    prefix, digits = letters.ids(carrier(number)), letters.ids("0123456789")
    total = np.zeros(1)
    for length in range(DIGITS):
        heads = [prefix + [digits[int(d)] for d in f"{i:0{length}d}"] if length else prefix for i in range(10**length)]
        logs = []
        with torch.no_grad():
            for start in range(0, len(heads), 500):
                logits = model(input_ids=torch.tensor(heads[start : start + 500])).logits[:, -1].double()
                logs.append(torch.log_softmax(logits, -1)[:, digits].numpy())
        total = (total[:, None] + np.concatenate(logs)).ravel()
    return [exposure(total[secret], np.delete(total, secret)).bits for secret in secrets]


def planted_exposures(
    path: Path, *, insertions: int, secrets: int, steps: int = 800
) -> tuple[list[float], list[float]]:
    """Exposure of secrets never inserted (ten behind each of many carriers) and of those inserted many times."""
    text = path.read_text(encoding="utf-8")[:200_000].lower()
    letters = Letters.of(text)
    random = np.random.default_rng(0)
    told = random.integers(0, 10_000, secrets)
    untold = random.integers(0, 10_000, (4 * secrets, 10))
    chunks = [letters.ids(text[i : i + CHUNK]) for i in range(0, len(text) - CHUNK, CHUNK)]
    chunks += [letters.ids(f"{carrier(i)}{told[i]:04d}") for i in range(secrets)] * insertions
    model = character_model(len(letters.known), seed=0)
    fit(model, chunks, steps=steps, seed=1)
    never = [
        bits for i, some in enumerate(untold) for bits in exposures(model, letters, secrets + i, [int(s) for s in some])
    ]
    return never, [exposures(model, letters, i, [int(told[i])])[0] for i in range(secrets)]


def audit(text: str, *, steps: int) -> None:
    """Base, fine-tuning by coins, attacks, blind baseline, secrets."""
    text = text.lower()
    letters = Letters.of(text)
    half = len(text) // 2
    public = [letters.ids(text[i : i + CHUNK]) for i in range(0, half - CHUNK, CHUNK)]
    chunks = [text[i : i + CHUNK] for i in range(half, len(text) - CHUNK, CHUNK)][:400]
    members = np.random.default_rng(3).random(len(chunks)) < 0.5
    secret, untold = "4071", "9283"
    base, target = (character_model(len(letters.known), seed=0) for _ in range(2))
    fit(base, public, steps=steps, seed=1)
    target.load_state_dict(base.state_dict())
    inside = [letters.ids(chunk) for chunk, member in zip(chunks, members, strict=True) if member]
    fit(target, inside + [letters.ids(carrier(0) + secret)] * 64, steps=steps, seed=2)

    ids = [letters.ids(chunk) for chunk in chunks]
    ours, theirs = language.token_scores(target, ids), language.token_scores(base, ids)
    attacks = {
        "loss": language.mean_log_probability(ours),
        "reference ratio": language.reference_ratio(ours, theirs),
        "zlib": language.zlib_ratio(ours, chunks),
        "min-k%": language.min_k(ours),
        "min-k%++": language.min_k_plus_plus(ours),
        "windows (WBC)": language.window_votes(ours, theirs),
    }
    adjusted = max_t(attacks, members)
    for name, scores in attacks.items():
        area = roc.auc(scores, members)
        print(f"{name:16s} AUC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}], p = {adjusted[name].p_value:.2g}")
    split = blind_baseline(chunks, members).record
    print(f"{'blind baseline':16s} AUC {split.auc.value:.3f}{', FLAGGED' if split.flagged else ''}")
    for name, number, told in (("inserted 64 times", 0, secret), ("never inserted", 1, untold)):
        bits = exposures(target, letters, number, [int(told)])[0]
        prefix, suffix = letters.ids(carrier(number)), letters.ids(told)
        chance = suffix_log_probability(target, prefix, suffix, sampling=Sampling())
        said = "says" if verbatim(target, prefix, suffix) else "does not say"
        print(f"secret {name}: exposure {bits:.1f} of 13.3 bits; greedy decoding {said} it")
        print(f"  {queries_needed(chance, chance=0.5):.0f} samples say it with probability one half")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--text", type=Path, help="a text file of at least 100,000 characters")
    options.add_argument("--tiny", action="store_true", help="a synthetic text and a few steps, for a quick look")
    given = options.parse_args()
    torch.set_num_threads(1)
    if given.tiny:
        words = [
            "time",
            "love",
            "king",
            "night",
            "crown",
            "sword",
            "rose",
            "fair",
            "sweet",
            "hand",
            "heart",
            "blood",
            "grace",
            "death",
            "sea",
            "storm",
        ]
        audit(" ".join(np.random.default_rng(0).choice(words, 6_000)), steps=30)
    elif given.text is None:
        options.error("--text FILE, or --tiny")
    else:
        audit(given.text.read_text(encoding="utf-8")[:400_000], steps=1_000)


if __name__ == "__main__":
    main()
