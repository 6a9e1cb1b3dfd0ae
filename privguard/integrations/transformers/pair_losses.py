# SPDX-License-Identifier: Apache-2.0
"""Losses of preference training, one for each pair: the value that TRL computes for a batch of that pair alone.

A batch holds a pair in one row, (B, 2, T), the chosen text first; the model sees its two texts side by side. What a
loss needs of a text is the sum of the log-probabilities of its completion's tokens, as the model and as its frozen
reference have it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from privguard.runs.driver import Batch


@final
@dataclass(frozen=True)
class Pairs:
    """What is known of B pairs, each tensor (B, 2) with the chosen text first.

    Attributes:
        logps: log-probability of each completion under the model.
        ratios: the same less that under the reference.
        tokens: how many tokens each completion has, at least 1.
        scored: how many of them have a log-probability, at least 1: a text's first token has none.
    """

    logps: Tensor
    ratios: Tensor
    tokens: Tensor
    scored: Tensor

    @property
    def delta(self) -> Tensor:
        """By how much the model prefers the chosen text more than the reference does, (B,)."""
        return self.ratios[:, 0] - self.ratios[:, 1]

    @property
    def mean_delta(self) -> Tensor:
        """The same for means over tokens, (B,)."""
        means = self.ratios / self.tokens
        return means[:, 0] - means[:, 1]


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """The fields of ``DPOConfig`` that a loss of one pair depends on."""

    beta: float
    smoothing: float
    tau: float
    types: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, args: Any) -> "Settings":
        """Those of a ``DPOConfig``."""
        types: Sequence[str] = [args.loss_type] if isinstance(args.loss_type, str) else args.loss_type
        return cls(
            beta=args.beta,
            smoothing=args.label_smoothing,
            tau=args.discopop_tau,
            types=tuple(types),
            weights=tuple(args.loss_weights or [1.0] * len(types)),
        )


def preference_losses(pairs: Pairs, settings: Settings) -> Tensor:
    """The weighted sum of the losses that ``settings`` name, (B,)."""
    parts = [
        weight * LOSSES[kind](pairs, settings) for kind, weight in zip(settings.types, settings.weights, strict=True)
    ]
    return torch.stack(parts).sum(0)


def reward_losses(rewards: Tensor, *, margin: Tensor | None, centering: float | None) -> Tensor:
    """The loss of TRL's reward trainer, (B,), from the rewards of the chosen and the rejected text, (B, 2)."""
    chosen, rejected = rewards.unbind(1)
    losses = -logsigmoid(chosen - rejected - (0.0 if margin is None else margin))
    return losses if centering is None else losses + centering * (chosen + rejected).square()


def pairs_of(logits: Tensor, batch: Batch) -> Pairs:
    """The pairs of a batch, from the logits of its texts, (2B, T, vocabulary)."""
    ids, mask = batch["input_ids"].flatten(0, 1), batch["completion_mask"].flatten(0, 1)[:, 1:]
    words = logits[:, -ids.shape[1] :][:, :-1].float().log_softmax(-1)  # the tokens of a learned prompt come before
    each = words.gather(-1, ids[:, 1:, None]).squeeze(-1)
    logps = (each * mask).sum(1).view(-1, 2)
    reference = torch.stack([batch["ref_chosen_logps"], batch["ref_rejected_logps"]], 1)
    return Pairs(
        logps=logps,
        ratios=logps - reference,
        tokens=batch["completion_mask"].sum(2).clamp(min=1),
        scored=mask.sum(1).view(-1, 2).clamp(min=1),
    )


def _exo(pairs: Pairs, settings: Settings) -> Tensor:
    """Ji et al. 2024 (arXiv 2402.00856), equation 16, for two answers."""
    margin, smoothing = settings.beta * pairs.delta, settings.smoothing
    won = margin.sigmoid() * (logsigmoid(margin) - math.log1p(-smoothing))
    return won + (-margin).sigmoid() * (logsigmoid(-margin) - math.log(smoothing))


def _robust(pairs: Pairs, settings: Settings) -> Tensor:
    """Chowdhury et al. 2024 (arXiv 2403.00409): labels are flipped with a known probability."""
    margin, flipped = settings.beta * pairs.delta, settings.smoothing
    return (-(1 - flipped) * logsigmoid(margin) + flipped * logsigmoid(-margin)) / (1 - 2 * flipped)


def _nca(pairs: Pairs, settings: Settings) -> Tensor:
    chosen, rejected = (settings.beta * pairs.ratios).unbind(1)
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _bco(pairs: Pairs, settings: Settings) -> Tensor:
    chosen, rejected = (settings.beta * pairs.ratios).unbind(1)
    return -logsigmoid(chosen) - logsigmoid(-rejected)


def _sppo(pairs: Pairs, settings: Settings) -> Tensor:
    chosen, rejected = pairs.ratios.unbind(1)
    return (chosen - 0.5 / settings.beta).square() + (rejected + 0.5 / settings.beta).square()


def _apo_zero(pairs: Pairs, settings: Settings) -> Tensor:
    chosen, rejected = (settings.beta * pairs.ratios).unbind(1)
    return 1 - chosen.sigmoid() + rejected.sigmoid()


def _apo_down(pairs: Pairs, settings: Settings) -> Tensor:
    chosen, rejected = (settings.beta * pairs.ratios).unbind(1)
    return chosen.sigmoid() + 1 - (chosen - rejected).sigmoid()


def _discopop(pairs: Pairs, settings: Settings) -> Tensor:
    """Lu et al. 2024 (arXiv 2406.08414), equation 5."""
    margin = settings.beta * pairs.delta
    mixed = (margin / settings.tau).sigmoid()
    return -logsigmoid(margin) * (1 - mixed) + (-margin).exp() * mixed


LOSSES: dict[str, Callable[[Pairs, Settings], Tensor]] = {
    "sigmoid": lambda pairs, settings: -logsigmoid(settings.beta * pairs.delta),
    "sigmoid_norm": lambda pairs, settings: -logsigmoid(settings.beta * pairs.mean_delta),
    "hinge": lambda pairs, settings: (1 - settings.beta * pairs.delta).relu(),
    "ipo": lambda pairs, settings: (pairs.mean_delta - 1 / (2 * settings.beta)).square(),
    "sft": lambda pairs, _: -pairs.logps[:, 0] / pairs.scored[:, 0],
    "exo_pair": _exo,
    "robust": _robust,
    "nca_pair": _nca,
    "bco_pair": _bco,
    "sppo_hard": _sppo,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
}
"""TRL's losses of one pair, by their names in ``DPOConfig.loss_type``."""
