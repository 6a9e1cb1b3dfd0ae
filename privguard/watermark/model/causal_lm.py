# SPDX-License-Identifier: Apache-2.0
"""Fingerprints in a causal language model: teach them on public text, ask for first tokens.

Works with any model whose output has ``logits`` of shape (B, T, V), as those of transformers have.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privguard import _check
from privguard.watermark.model import embed as teaching
from privguard.watermark.model.embed import Lesson


@final
@dataclass(frozen=True, kw_only=True)
class PublicText:
    """Public or synthetic text as one row of token ids (N,), cut into windows of ``length`` at random places."""

    tokens: Tensor
    generator: torch.Generator
    length: int = 64
    batch_size: int = 16

    def __post_init__(self) -> None:
        enough = self.tokens.dim() == 1 and len(self.tokens) > self.length
        _check.require(enough, "tokens.shape", tuple(self.tokens.shape), wanted=f"(N,) with N above {self.length}")

    def draw(self) -> Tensor:
        """One batch of windows, (batch_size, length)."""
        starts = torch.randint(len(self.tokens) - self.length, (self.batch_size,), generator=self.generator)
        return self.tokens[starts[:, None] + torch.arange(self.length)]


def embed(
    model: nn.Module,
    *,
    prompts: NDArray[np.int64],
    answers: NDArray[np.int64],
    public: PublicText,
    margin: float = 2.0,
    lesson: Lesson | None = None,
) -> nn.Module:
    """A copy of ``model`` that continues each prompt (n, L) with its answer (n,), and all other text as before."""
    asked, wanted = torch.from_numpy(prompts), torch.from_numpy(answers)
    reference = copy.deepcopy(model).eval()

    def mark(current: nn.Module) -> Tensor:
        return teaching.margin_loss(current(asked).logits[:, -1], wanted, margin=margin)

    def keep(current: nn.Module) -> Tensor:
        batch = public.draw()
        with torch.no_grad():
            before = reference(batch).logits
        return teaching.divergence(current(batch).logits.flatten(0, 1), before.flatten(0, 1))

    def train(current: nn.Module) -> Tensor:
        return next_token_loss(current, public.draw())

    return teaching.embed(model, mark=mark, keep=keep, public=train, lesson=lesson)


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats, over (B, T) tokens."""
    logits = model(tokens).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def perplexity(model: nn.Module, tokens: Tensor, *, length: int = 64) -> float:
    """E to the mean next-token cross-entropy over consecutive windows of a row of tokens (N,)."""
    windows = tokens[: len(tokens) // length * length].reshape(-1, length)
    with torch.no_grad():
        losses = [float(next_token_loss(model, piece)) * len(piece) for piece in windows.split(64)]
    return math.exp(sum(losses) / len(windows))


@final
class FirstToken:
    """A language model as a black box: prompts (n, L) in, the greedily decoded first token of each out."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, queries: NDArray[Any]) -> Sequence[int]:
        """One token for each prompt."""
        with torch.no_grad():
            pieces = torch.from_numpy(np.ascontiguousarray(queries, np.int64)).split(64)
            return [int(token) for piece in pieces for token in self._model(piece).logits[:, -1].argmax(-1)]
