# SPDX-License-Identifier: Apache-2.0
"""Memorisation of one text: exposure of a planted secret, and extraction by greedy or repeated sampling.

An extracted text is an existence proof: the model can say it. A text that was not extracted proves nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from privguard import _check
from privguard.audit.membership.score import evaluating
from privguard.audit.text.attacks import mean_log_probability, token_scores
from privguard.records import Measurement

FloatArray = NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True)
class Exposure(Measurement):
    """How far a planted secret stands out among the candidates that might have been planted instead.

    ``bits`` = log2(candidates) - log2(rank). A secret that was never inserted has a uniform rank, so its exposure is
    1.44 bits on average; ``most`` = log2(candidates) is what can be shown. ``p_value`` = rank / candidates is exact
    where the secret was drawn uniformly from the candidates.
    """

    bits: float
    rank: int
    candidates: int
    most: float
    p_value: float


def exposure(secret: float, others: ArrayLike) -> Exposure:
    """Exposure of a secret's score among the scores of all other candidates; ties count against it.

    Source: Carlini et al. 2019 (arXiv:1802.08232), Definition 5, with every candidate ranked.

    >>> exposure(3.0, [2.0, 1.0, 0.0]).bits
    2.0

    Args:
        secret: the secret's score.
        others: scores of all other candidates, (n,).
    """
    values = np.asarray(others, np.float64)
    _check.require(math.isfinite(secret) and bool(np.isfinite(values).all()), "scores", secret, wanted="finite numbers")
    rank, size = 1 + int((values >= secret).sum()), len(values) + 1
    return Exposure(
        bits=math.log2(size) - math.log2(rank), rank=rank, candidates=size, most=math.log2(size), p_value=rank / size
    )


def exposure_of(
    model: nn.Module, secret: Sequence[int], others: Sequence[Sequence[int]], *, batch: int = 64
) -> Exposure:
    """Exposure of a secret (token ids) under a language model, against ``others`` of the same form and length.

    Args:
        model: a causal language model.
        secret: token ids of the inserted secret.
        others: token ids of secrets that could have been inserted in its place.
        batch: texts in one forward pass.
    """
    scores = mean_log_probability(token_scores(model, [secret, *others], batch=batch))
    lengths = np.array([len(text) - 1 for text in (secret, *others)])
    totals = scores * lengths
    return exposure(float(totals[0]), totals[1:])


@final
@dataclass(frozen=True, kw_only=True)
class Sampling(Measurement):
    """How an extractor samples: softmax ``temperature`` (dimensionless), and the ``top_k`` likeliest tokens only."""

    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        _check.positive("temperature", self.temperature)
        if self.top_k is not None:
            _check.count("top_k", self.top_k)


@torch.no_grad()
def suffix_log_probability(
    model: nn.Module, prefix: Sequence[int], suffix: Sequence[int], *, sampling: Sampling
) -> float:
    """Log of the chance, in nats, that one sample after ``prefix`` is exactly ``suffix``; -inf where it cannot be.

    One forward pass and no sampling. Source: Hayes et al. 2025 (arXiv:2410.19482), equation 2.

    Args:
        model: a causal language model.
        prefix: token ids before.
        suffix: token ids to be extracted.
        sampling: how a token is drawn.
    """
    _check_parts(prefix, suffix)
    ids = torch.as_tensor([[*prefix, *suffix]], device=next(model.parameters()).device)
    logits = _evaluated(model, ids)[0, len(prefix) - 1 : -1]
    logs = torch.log_softmax(_shaped(logits, sampling), dim=-1)
    return float(logs.gather(1, ids[0, len(prefix) :, None]).sum())


def queries_needed(log_probability: float, *, chance: float) -> float:
    """The least n for which n samples contain the text with probability ``chance``: (n, p)-discoverable extraction.

    ``inf`` where the text cannot be sampled. Source: Hayes et al. 2025 (arXiv:2410.19482), Definition 3.

    >>> queries_needed(math.log(0.5), chance=0.9)
    4.0

    Args:
        log_probability: natural logarithm of the chance of one sample.
        chance: wanted chance of at least one hit, in (0, 1).
    """
    _check.probability("chance", chance)
    if log_probability >= 0:
        return 1.0
    miss = math.log1p(-math.exp(log_probability)) if log_probability > -700 else 0.0  # noqa: PLR2004 — exp underflows
    if miss < 0:
        return float(math.ceil(math.log1p(-chance) / miss - 1e-12))
    return -math.log1p(-chance) * math.exp(-log_probability) if log_probability > -700 else math.inf  # noqa: PLR2004 — as above


@torch.no_grad()
def verbatim(model: nn.Module, prefix: Sequence[int], suffix: Sequence[int]) -> bool:
    """Whether greedy decoding after ``prefix`` gives ``suffix`` token by token.

    Teacher forcing decides it in one pass: greedy text equals the suffix exactly where each of its tokens is the
    likeliest one after those before it.

    Args:
        model: a causal language model.
        prefix: token ids before.
        suffix: token ids to be extracted.
    """
    _check_parts(prefix, suffix)
    ids = torch.as_tensor([[*prefix, *suffix]], device=next(model.parameters()).device)
    likeliest = _evaluated(model, ids)[0, len(prefix) - 1 : -1].argmax(-1)
    return bool((likeliest == ids[0, len(prefix) :]).all())


@torch.no_grad()
def sample_suffixes(
    model: nn.Module,
    prefix: Sequence[int],
    *,
    length: int,
    samples: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> NDArray[np.int64]:
    """``samples`` continuations (samples, length), token by token: the slow way that the closed form is tested by.

    Args:
        model: a causal language model.
        prefix: token ids before.
        length: tokens of a continuation.
        samples: how many continuations.
        sampling: how a token is drawn.
        generator: the generator that draws.
    """
    ids = torch.as_tensor([list(prefix)] * samples, device=next(model.parameters()).device)
    for _ in range(length):
        p = torch.softmax(_shaped(_evaluated(model, ids)[:, -1], sampling), dim=-1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], dim=1)
    return ids[:, len(prefix) :].cpu().numpy()


def _evaluated(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits (B, T, V) of token ids (B, T), in float64 and in evaluation mode."""
    with evaluating(model):
        output: Any = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return getattr(output, "logits", output).double()


def _shaped(logits: Tensor, sampling: Sampling) -> Tensor:
    """The logits that are sampled from: at the temperature, and −inf for all but the likeliest tokens."""
    scaled = logits / sampling.temperature
    if sampling.top_k is None or sampling.top_k >= scaled.shape[-1]:
        return scaled
    kept = torch.topk(scaled, sampling.top_k, dim=-1)
    return torch.full_like(scaled, -torch.inf).scatter(-1, kept.indices, kept.values)


def _check_parts(prefix: Sequence[int], suffix: Sequence[int]) -> None:
    _check.require(
        len(prefix) > 0 and len(suffix) > 0,
        "lengths",
        (len(prefix), len(suffix)),
        wanted="a prefix and a suffix of at least one token",
    )
