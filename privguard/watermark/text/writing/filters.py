# SPDX-License-Identifier: Apache-2.0
"""Temperature, min-p, top-k and top-p as a serving engine applies them, for writers that stand before them.

A mark without distortion has to see the distribution that the token is drawn from. Where an engine lets processors in
only before its own filters, the writer applies them itself and hands on a row that they cannot change any more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch


@final
@dataclass(frozen=True)
class Filters:
    """What the sampling of one request removes.

    That is tokens below ``min_p`` times the likeliest one's probability, all but the ``top_k`` likeliest (0 or less
    keeps all; equals of the last stay), and all behind a probability mass of ``top_p``.
    """

    temperature: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


def final_logits(logits: torch.Tensor, filters: Sequence[Filters]) -> torch.Tensor:
    """(B, V) logits as they are sampled from, −inf for what each row's filters remove; the argument stays as it is.

    In the order of vLLM: temperature, then min-p, top-k and top-p, each on what the one before it left.
    """
    column = [torch.tensor([getattr(f, name) for f in filters]) for name in ("temperature", "min_p", "top_p")]
    temperature, least, mass = (values.to(logits.device, torch.float32)[:, None] for values in column)
    out = logits.float() / temperature
    if any(f.min_p > 0 for f in filters):
        out = out.masked_fill(out < out.amax(-1, keepdim=True) + least.log(), -torch.inf)
    out = _keep_top_k(out, [f.top_k for f in filters])
    return _keep_nucleus(out, mass) if any(f.top_p < 1 for f in filters) else out


def _keep_top_k(logits: torch.Tensor, wanted: list[int]) -> torch.Tensor:
    width = logits.shape[1]
    largest = max((k for k in wanted if 0 < k < width), default=0)
    if not largest:
        return logits
    ranks = torch.tensor([k - 1 if 0 < k < width else -1 for k in wanted], device=logits.device)[:, None]
    last = logits.topk(largest, -1).values.gather(1, ranks.clamp_min(0))
    return logits.masked_fill((logits < last) & (ranks >= 0), -torch.inf)


def _keep_nucleus(logits: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """The likeliest tokens until their mass reaches ``mass`` (B, 1); the first one always stays."""
    values, ids = logits.topk(int((logits > -math.inf).sum(-1).amax().clamp_min(1)), -1)
    share = torch.softmax(values, -1)
    behind = (share.cumsum(-1) - share >= mass) & (mass < 1)
    return torch.full_like(logits, -torch.inf).scatter_(1, ids, values.masked_fill(behind, -torch.inf))
