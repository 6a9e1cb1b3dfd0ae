# SPDX-License-Identifier: Apache-2.0
"""Texts and synthetic language models that the text-mark benchmarks share.

Null texts: prose (tiny Shakespeare), program code (the standard library of the running Python), templated text, and a
padded batch, tokenized by a BPE trained on the first two. Synthetic steps: softmax of scaled normal logits over 512
tokens, three steps in ten sharpened four-fold, the scale set for a wanted mean entropy.
"""

import os
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

WIDTH = 512
SHARP_SHARE, SHARPENING = 0.3, 4.0


def prose() -> str:
    folder = Path(os.environ.get("PRIVGUARD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return (folder / "tinyshakespeare" / "input.txt").read_text(encoding="ascii")


def code() -> str:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:120]
    return "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in files)[:2_000_000]


@cache
def tokenizer() -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=16_000, show_progress=False, special_tokens=["<pad>"])
    bpe.train_from_iterator(
        [prose()[i : i + 5000] for i in range(0, 1_000_000, 5000)]
        + [code()[i : i + 5000] for i in range(0, 1_500_000, 5000)],
        trainer,
    )
    return bpe


def documents(text: str, *, count: int, tokens: int) -> np.ndarray:
    """``count`` pieces of ``tokens`` tokens from random places, (count, tokens)."""
    ids = np.array(tokenizer().encode(text).ids)
    starts = np.random.default_rng(0).integers(0, len(ids) - tokens, count)
    return np.stack([ids[s : s + tokens] for s in starts])


def templated(*, count: int, tokens: int) -> np.ndarray:
    """Invoices: one template, a few changing words, many repetitions inside each document."""
    rng, out = np.random.default_rng(1), []
    for _ in range(count):
        lines = [
            f"item {rng.integers(9)}: {rng.integers(20)} pieces at {rng.integers(100)}.00 each, total due on receipt.\n"
            for _ in range(60)
        ]
        out.append(tokenizer().encode("".join(lines)).ids[:tokens])
    return np.array(out)


def step_logits(rng: np.random.Generator, rows: int, scale: float, *, tokens: int = WIDTH) -> np.ndarray:
    """(rows, tokens) float32 logits of independent steps."""
    factor = np.where(rng.random((rows, 1)) < SHARP_SHARE, SHARPENING, 1.0) * scale
    return (rng.standard_normal((rows, tokens)) * factor).astype(np.float32)


def entropy(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    p /= p.sum(1, keepdims=True)
    return -(p * np.log(np.maximum(p, 1e-300))).sum(1)


@cache
def scale_for(nats: float) -> float:
    """The scale whose steps have this mean entropy, by bisection on one fixed sample."""
    low, high = 0.5, 60.0
    for _ in range(30):
        middle = (low * high) ** 0.5
        mean = entropy(step_logits(np.random.default_rng(2), 4000, middle)).mean()
        low, high = (middle, high) if mean > nats else (low, middle)
    return (low * high) ** 0.5
