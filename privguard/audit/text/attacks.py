# SPDX-License-Identifier: Apache-2.0
"""Attacks on language models: what a model says of each token in, one score per text out.

All scores rise with the likelihood of membership. The reference is the model before fine-tuning, or another model of
the same language; without one, a text that is merely easy looks like a member. Only a random split supports a statement
about one text, and the blind baseline (``privguard.audit.membership.blind``) tells whether the split was one.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privguard import _check
from privguard.audit.membership.score import evaluating

FloatArray = NDArray[np.float64]
WINDOWS = (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)  # tokens, spaced geometrically as in arXiv 2601.02751
LOWEST = 0.2  # the share k of Min-K% that its authors recommend


@final
@dataclass(frozen=True)
class TokenScores:
    """For one text of T + 1 tokens, what the model said of tokens 2 to T + 1, in nats.

    ``observed`` (T,) is the log-probability of the token that came; ``mean`` and ``deviation`` (T,) are those of the
    log-probability of a token drawn from the model itself, and NaN where only the observed is known. ``greedy`` (T,)
    says where the token was the likeliest one.
    """

    observed: FloatArray
    mean: FloatArray
    deviation: FloatArray
    greedy: NDArray[np.bool_]


@torch.no_grad()
def token_scores(model: nn.Module, texts: Sequence[Sequence[int]], *, batch: int = 16) -> list[TokenScores]:
    """Run a causal language model over texts of token ids; padding stands on the right and is never counted.

    ``model(input_ids=…, attention_mask=…)`` returns logits, or an object that has them as ``.logits``.

    Args:
        model: a causal language model.
        texts: token ids of each text.
        batch: texts in one forward pass.

    Raises:
        ValueError: for a text of fewer than two tokens, of which nothing can be predicted.
    """
    short = [number for number, text in enumerate(texts) if len(text) < 2]  # noqa: PLR2004 — one token predicts one
    _check.require(not short, "texts", f"numbers {short[:5]}", wanted="at least two tokens each")
    with evaluating(model):
        return [
            scores for start in range(0, len(texts), batch) for scores in _batch(model, texts[start : start + batch])
        ]


def mean_log_probability(scores: Sequence[TokenScores]) -> FloatArray:
    """Minus the mean loss per token: the plain loss attack, (texts,).

    Args:
        scores: log-probabilities of the tokens of each text.
    """
    return np.array([text.observed.mean() for text in scores])


def reference_ratio(target: Sequence[TokenScores], reference: Sequence[TokenScores]) -> FloatArray:
    """Mean log ratio of target to reference per token (Carlini et al. 2021, arXiv:2012.07805), (texts,).

    Args:
        target: scores of the attacked model.
        reference: scores of a model that saw none of the texts.
    """
    return mean_log_probability(target) - mean_log_probability(reference)


def zlib_ratio(scores: Sequence[TokenScores], texts: Sequence[str]) -> FloatArray:
    """Mean log-probability over the bytes that zlib needs for the text (Carlini et al. 2021), (texts,).

    Args:
        scores: log-probabilities of the tokens of each text.
        texts: the texts, as strings.
    """
    sizes = np.array([len(zlib.compress(text.encode())) for text in texts])
    return mean_log_probability(scores) / sizes


def min_k(scores: Sequence[TokenScores], *, share: float = LOWEST) -> FloatArray:
    """Mean of the lowest ``share`` of log-probabilities (Min-K%, Shi et al. 2024, arXiv:2310.16789), (texts,).

    Args:
        scores: log-probabilities of the tokens of each text.
        share: share of the tokens that counts, in (0, 1].
    """
    return np.array([_lowest(text.observed, share) for text in scores])


def min_k_plus_plus(scores: Sequence[TokenScores], *, share: float = LOWEST) -> FloatArray:
    """Min-K% of standardised log-probabilities (Min-K%++, Zhang et al. 2025, arXiv:2404.02936), (texts,).

    Args:
        scores: log-probabilities of the tokens of each text.
        share: share of the tokens that counts, in (0, 1].
    """
    return np.array([_lowest((text.observed - text.mean) / text.deviation, share) for text in scores])


def window_votes(
    target: Sequence[TokenScores], reference: Sequence[TokenScores], *, windows: Sequence[int] = WINDOWS
) -> FloatArray:
    """Share of windows in which the target's loss lies below the reference's, averaged over window sizes (texts,).

    Signs and not sums are counted, as few tokens carry very large differences in both directions. Source: WBC, Tian et
    al. 2026 (arXiv:2601.02751). A text shorter than a window has one vote, over all its tokens.

    Args:
        target: scores of the attacked model.
        reference: scores of a model that saw none of the texts.
        windows: lengths of the windows, in tokens.
    """
    return np.array(
        [_votes(ours.observed - theirs.observed, windows) for ours, theirs in zip(target, reference, strict=True)]
    )


def _batch(model: nn.Module, texts: Sequence[Sequence[int]]) -> list[TokenScores]:
    device = next(model.parameters()).device
    width = max(len(text) for text in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.as_tensor(list(text), device=device)
        mask[row, : len(text)] = 1
    output: Any = model(input_ids=ids, attention_mask=mask)
    logs = torch.log_softmax(getattr(output, "logits", output)[:, :-1].double(), dim=-1)
    observed = logs.gather(2, ids[:, 1:, None])[:, :, 0]
    greedy = logs.argmax(-1) == ids[:, 1:]
    mean, deviation = _moments(logs)
    lengths = [len(text) - 1 for text in texts]
    return [
        TokenScores(*(part[row, :size].cpu().numpy() for part in (observed, mean, deviation, greedy)))
        for row, size in enumerate(lengths)
    ]


def _moments(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of log p(token) for a token drawn from p; a token of probability 0 adds nothing."""
    p = logs.exp()
    finite = logs.masked_fill(p == 0, 0.0)
    mean = (p * finite).sum(-1)
    return mean, ((p * (finite - mean[..., None]) ** 2).sum(-1)).clamp_min(1e-12).sqrt()


def _lowest(values: FloatArray, share: float) -> float:
    kept = max(1, int(len(values) * _check.probability("share", share, one=True)))
    return float(np.partition(values, kept - 1)[:kept].mean())


def _votes(gain: FloatArray, windows: Sequence[int]) -> float:
    sums = np.concatenate([[0.0], np.cumsum(gain)])
    sizes = [min(size, len(gain)) for size in windows]
    return float(np.mean([np.mean(sums[size:] - sums[:-size] > 0) for size in sizes]))
