# SPDX-License-Identifier: Apache-2.0
"""The choosers of ``privguard.watermark.text.writing.host`` in torch, for logits that live on another device.

Under ``aes256-v1`` the words are made on the host and copied, B × V × 4 bytes a step; under ``aes256-chacha8-v1`` only
32 bytes a row are copied and the words are made where the logits are. Both give the bytes that the detector reads.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from privguard.errors import MarkError
from privguard.watermark.text.prf import chacha
from privguard.watermark.text.prf.streams import ChaChaStream, ContextStream
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.scheme import UNIFORM_BITS, GreenList, Gumbel, Tournament


def choose(
    scores: torch.Tensor,
    contexts: NDArray[np.int64],
    streams: list[ContextStream],
    *,
    profile: Profile,
    repeated: NDArray[np.bool_],
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The marked tokens of (B, V) logits, (B,); rows with a repeated context are drawn unmarked.

    Raises:
        MarkError: a scheme that is written on the host only.
    """
    logits = scores.float()
    if isinstance(profile.scheme, Gumbel):
        chosen = _gumbel(logits, vocabulary_words(contexts, streams, width=scores.shape[1], device=scores.device))
    elif isinstance(profile.scheme, Tournament):
        chosen = _tournament(logits, contexts, streams, scheme=profile.scheme, generator=generator)
    else:
        raise MarkError(f"scheme {profile.scheme.name}: written on the CPU only; move the logits there")
    if repeated.any():
        rows = torch.from_numpy(np.flatnonzero(repeated)).to(scores.device)
        chosen[rows] = torch.multinomial(torch.softmax(logits[rows], -1), 1, generator=generator)[:, 0]
    return chosen


def raise_green(
    scores: torch.Tensor, contexts: NDArray[np.int64], streams: list[ContextStream], *, scheme: GreenList
) -> torch.Tensor:
    """(B, V) logits with the bias added to the green ones."""
    width = scores.shape[1]
    words = vocabulary_words(contexts, streams, width=-(-width // 4), device=scores.device)
    octets = words.view(torch.uint8)[:, :width]
    return scores + (octets < scheme.green) * scheme.bias


def vocabulary_words(
    contexts: NDArray[np.int64], streams: list[ContextStream], *, width: int, device: torch.device
) -> torch.Tensor:
    """The first ``width`` words of each row's context as int32, (B, width), on ``device``."""
    if all(isinstance(stream, ChaChaStream) for stream in streams):
        seeds = np.empty((len(contexts), 8), np.int32)
        for stream, rows in _grouped(streams):
            if isinstance(stream, ChaChaStream):
                seeds[rows] = stream.seeds(contexts[rows])
        key = torch.from_numpy(seeds).to(device)
        counter = torch.arange(-(-width // 16), dtype=torch.int32, device=device)
        parts = chacha.blocks([key[:, i, None] for i in range(8)], counter[None, :])
        return torch.stack(parts, -1).reshape(len(contexts), -1)[:, :width].contiguous()
    words = np.empty((len(contexts), width), np.int32)
    for stream, rows in _grouped(streams):
        words[rows] = stream.vocabulary(contexts[rows], 4 * width).view(np.int32)
    return torch.from_numpy(words).to(device, non_blocking=True)


def _grouped(streams: list[ContextStream]) -> list[tuple[ContextStream, NDArray[np.int64]]]:
    """The distinct streams, each with its rows: one call of the cipher for each sub-key in the batch."""
    names = np.array([id(stream) for stream in streams])
    _, first, group = np.unique(names, return_index=True, return_inverse=True)
    return [(streams[int(at)], np.flatnonzero(group == number)) for number, at in enumerate(first)]


def _gumbel(logits: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    top = (words >> (32 - UNIFORM_BITS)) & ((1 << UNIFORM_BITS) - 1)
    u = top.to(torch.float32).add_(0.5).mul_(2.0**-UNIFORM_BITS)
    return (logits - u.log_().neg_().log_()).argmax(-1)


def _tournament(
    logits: torch.Tensor,
    contexts: NDArray[np.int64],
    streams: list[ContextStream],
    *,
    scheme: Tournament,
    generator: torch.Generator | None,
) -> torch.Tensor:
    k = min(scheme.top_k, logits.shape[1])
    probabilities = torch.softmax(logits, -1)
    inside, ids = probabilities.topk(k, dim=-1)
    words = vocabulary_words(contexts, streams, width=logits.shape[1], device=logits.device).gather(1, ids)
    share = inside.sum(-1, keepdim=True)
    p = inside / share
    for layer in range(scheme.depth):
        g = ((words >> layer) & 1).to(p.dtype)
        p = p * (1 + g - (p * g).sum(-1, keepdim=True))
    whole = probabilities.scatter(1, ids, (p * share).clamp_min(0))
    return torch.multinomial(whole, 1, generator=generator)[:, 0]
