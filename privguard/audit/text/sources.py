# SPDX-License-Identifier: Apache-2.0
"""Texts → what a model says of each token: a causal model in memory, or an address that speaks completions.

Texts are asked about in batches of like length, so that little padding is computed, and what was answered once is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, final

import numpy as np
from torch import nn

from privguard import _check
from privguard.audit.targets.http import Client
from privguard.audit.targets.kept import Kept
from privguard.audit.text.attacks import TokenScores, token_scores

LEAST = 2  # tokens of a text: the first is not predicted


class Source(Protocol):
    """A model that can be asked about texts."""

    @property
    def name(self) -> str:
        """Which model it is, for the record."""
        ...

    def scores(self, texts: Sequence[str]) -> list[TokenScores]:
        """What the model says of each text.

        Args:
            texts: n texts.

        Returns:
            One record of its tokens for each, in their order.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Local:
    """A causal model and its tokenizer; texts are cut after ``longest`` tokens.

    Args:
        name: which model it is; what was kept under another name is not taken.
        model: ``model(input_ids=…, attention_mask=…)`` returns logits.
        ids: text → token ids, as the model was trained on them.
        longest: tokens of a text that count.
        batch: texts in one forward pass.
        kept: answers of an earlier call.
        on_text: hears of the number of texts answered.
    """

    name: str
    model: nn.Module
    ids: Callable[[str], list[int]]
    longest: int = 512
    batch: int = 16
    kept: Kept = field(default_factory=lambda: Kept(None))
    on_text: Callable[[int], None] = field(default=lambda _: None)

    def scores(self, texts: Sequence[str]) -> list[TokenScores]:
        """What the model says of each text.

        Args:
            texts: n texts.

        Raises:
            ValueError: for a text of fewer than two tokens.
        """
        digests = [Kept.digest(self.name, str(self.longest), text) for text in texts]
        missing = [at for at, digest in enumerate(digests) if digest not in self.kept]
        self.on_text(len(texts) - len(missing))
        cut = {at: self.ids(texts[at])[: self.longest] for at in missing}
        short = [at for at in missing if len(cut[at]) < LEAST]
        _check.require(not short, "texts", f"numbers {short[:5]}", wanted="at least two tokens each")
        order = sorted(missing, key=lambda at: -len(cut[at]))  # the longest first: memory fails at once or never
        for start in range(0, len(order), self.batch):
            part = order[start : start + self.batch]
            for at, answer in zip(part, token_scores(self.model, [cut[at] for at in part]), strict=True):
                self.kept.keep(digests[at], _plain(answer))
            self.on_text(len(part))
        return [_scores(self.kept[digest]) for digest in digests]


@final
@dataclass(frozen=True, kw_only=True)
class Completions:
    """An address that speaks OpenAI's completions, with ``echo`` and ``logprobs``; ``model`` is its name there.

    It says what it thinks of the tokens that came and of the likeliest ones: Min-K%++, which needs all, is left out.
    """

    client: Client
    model: str
    on_text: Callable[[int], None] = field(default=lambda _: None)

    @property
    def name(self) -> str:
        """The address and the model's name there."""
        return f"{self.client.address} {self.model}"

    def scores(self, texts: Sequence[str]) -> list[TokenScores]:
        """What the model says of each text.

        Args:
            texts: n texts.

        Raises:
            ValueError: where the answer has no log-probabilities of the text itself.
        """
        found: list[TokenScores] = []
        for text in texts:
            question = {"model": self.model, "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}
            found.append(_of_completion(self.client.ask({**question, "temperature": 0})))
            self.on_text(1)
        return found


def _of_completion(answer: Any) -> TokenScores:
    try:
        told = cast("dict[str, Any]", answer["choices"][0]["logprobs"])
        observed = np.array(told["token_logprobs"][1:], np.float64)  # nothing comes before the first
        top = [max(each.values()) if each else -np.inf for each in (told.get("top_logprobs") or [])[1:]]
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(
            "answer: expected choices[0].logprobs.token_logprobs of the prompt; echo must be allowed"
        ) from None
    good = observed.ndim == 1 and len(observed) > 0 and bool(np.isfinite(observed).all())
    _check.require(good, "token_logprobs", observed.shape, wanted="a finite number for each token after the first")
    unknown = np.full(len(observed), np.nan)
    greedy = observed >= np.array(top) - 1e-9 if len(top) == len(observed) else np.zeros(len(observed), bool)
    return TokenScores(observed, unknown, unknown, greedy)


def _plain(scores: TokenScores) -> list[list[float]]:
    parts = (scores.observed, scores.mean, scores.deviation, scores.greedy.astype(float))
    return [part.tolist() for part in parts]


def _scores(parts: list[list[float]]) -> TokenScores:
    observed, mean, deviation, greedy = (np.array(part) for part in parts)
    return TokenScores(observed, mean, deviation, greedy.astype(bool))
