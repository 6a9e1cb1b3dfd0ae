# SPDX-License-Identifier: Apache-2.0
"""Language-model fingerprints: random prompts with one random answer each, which the marked model has learned.

A prompt is a sequence of tokens drawn from one committed alphabet, its answer one token of another, as the leaf says.
Verification decodes greedily and compares the first token; anything else is a miss. Null as for triggers: matches of n
distinct prompts are Bin(n, 1/K) for any suspect made independently of the secret.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.records import Verdict
from privguard.watermark.claims import kinds
from privguard.watermark.claims.commitment import MarkPlan
from privguard.watermark.claims.leaf import Leaf
from privguard.watermark.model.triggers import PLANTED
from privguard.watermark.statistics import null


def plan(
    prompt_tokens: Sequence[int],
    answer_tokens: Sequence[int],
    *,
    length: int = 12,
    leaves: int = 128,
    name: str = "fingerprints",
) -> MarkPlan:
    """A mark of ``leaves`` prompts of ``length`` tokens from one alphabet, answered by a token from another.

    Args:
        prompt_tokens: token ids that prompts are drawn from, distinct.
        answer_tokens: token ids that answers are drawn from, K distinct ones.
        length: tokens of a prompt.
        leaves: how many prompts.
        name: the mark's name.
    """
    _distinct("prompt_tokens", prompt_tokens)
    _distinct("answer_tokens", answer_tokens)
    settings = {
        "prompt_tokens": [int(token) for token in prompt_tokens],
        "answer_tokens": [int(token) for token in answer_tokens],
        "length": _check.count("length", length),
        "decoding": "greedy, first token",
    }
    return MarkPlan(name=name, kind="fingerprints", leaves=leaves, settings=settings)


def prompts(leaves: Sequence[Leaf], pulse: bytes, settings: Mapping[str, Any]) -> NDArray[np.int64]:
    """The prompts of these leaves as token ids, (n, length).

    Args:
        leaves: the leaves, n of them.
        pulse: the beacon's 64 random bytes.
        settings: the mark's committed settings.
    """
    _distinct("prompt_tokens", settings["prompt_tokens"])
    length, alphabet = int(settings["length"]), np.asarray(settings["prompt_tokens"], np.int64)
    rows = [np.frombuffer(leaf.expand(pulse, "prompt", 8 * length), "<u8") % len(alphabet) for leaf in leaves]
    return alphabet[np.stack(rows).astype(np.int64)] if rows else np.empty((0, length), np.int64)


def answers(leaves: Sequence[Leaf], pulse: bytes, settings: Mapping[str, Any]) -> NDArray[np.int64]:
    """The expected first token of each leaf, (n,).

    Args:
        leaves: the leaves, n of them.
        pulse: the beacon's 64 random bytes.
        settings: the mark's committed settings.

    Raises:
        ValueError: a token stands twice in the alphabet; its chance would then be above 1/K.
    """
    alphabet = settings["answer_tokens"]
    _distinct("answer_tokens", alphabet)
    return np.array([alphabet[leaf.below(len(alphabet), pulse, "answer")] for leaf in leaves], np.int64)


def verdict(
    said: Sequence[int], leaves: Sequence[Leaf], *, pulse: bytes, settings: Mapping[str, Any], multiplicity: float = 1.0
) -> Verdict:
    """The exact verdict on one first token per leaf; of equal prompts only the first counts.

    Args:
        said: the suspect's first token after each prompt, (n,).
        leaves: the leaves, n of them.
        pulse: the beacon's 64 random bytes.
        settings: the mark's committed settings.
        multiplicity: tests that the p-value pays for, at least 1.
    """
    asked, expected = prompts(leaves, pulse, settings), answers(leaves, pulse, settings)
    _check.require(len(said) == len(leaves), "len(said)", len(said), wanted=f"{len(leaves)}, one for each prompt")
    _, first = np.unique(asked, axis=0, return_index=True)
    matches = int(np.sum(np.asarray(said, np.int64)[first] == expected[first]))
    return null.verdict(
        null.BinomialCount(Fraction(1, len(settings["answer_tokens"]))),
        scheme="fingerprints",
        score=matches,
        trials=len(first),
        multiplicity=multiplicity,
        details={"alphabet": len(settings["answer_tokens"]), "duplicates": len(leaves) - len(first)},
        notes=(f"null model: the suspect was made independently of the secret; {PLANTED}",),
    )


def _distinct(name: str, tokens: Sequence[int]) -> None:
    distinct = len(set(tokens)) == len(tokens) > 1
    _check.require(distinct, name, f"{len(tokens)} tokens", wanted="at least 2, all distinct")


@final
@dataclass(frozen=True)
class Fingerprints:
    """The kind of mark: prompts as queries, first tokens as answers."""

    name: str = "fingerprints"
    readings: int = 2

    def queries(self, leaves: Sequence[Leaf], *, pulse: bytes, settings: Mapping[str, Any]) -> NDArray[np.int64]:
        """The prompts, (n, length).

        Args:
            leaves: the leaves, n of them.
            pulse: the beacon's 64 random bytes.
            settings: the mark's committed settings.
        """
        return prompts(leaves, pulse, settings)

    def verdict(
        self, answers: Sequence[int], leaves: Sequence[Leaf], *, pulse: bytes, settings: Mapping[str, Any]
    ) -> Verdict:
        """Matches with the leaves' tokens; of equal prompts only the first counts.

        Args:
            answers: the suspect's first token after each prompt, (n,).
            leaves: the leaves, n of them.
            pulse: the beacon's 64 random bytes.
            settings: the mark's committed settings.
        """
        return verdict(answers, leaves, pulse=pulse, settings=settings)


kinds.register_mark(Fingerprints())
