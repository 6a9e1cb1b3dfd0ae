# SPDX-License-Identifier: Apache-2.0
"""Whether a kind of model mark is a function of its leaves, and its verdict exact."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from privguard.testing.promise import law_holds, promise, refused
from privguard.watermark.claims.kinds import ANSWERED, AnsweredMark
from privguard.watermark.claims.leaf import Leaf

_TREES, _LEAVES = 300, 32
_PULSE, _OTHER = bytes(64), bytes(63) + b"\1"


def check_answered_mark(
    kind: AnsweredMark,
    *,
    settings: Mapping[str, Any],
    right: Callable[[Sequence[Leaf], bytes], Sequence[int]],
) -> None:
    """Ask for queries and verdicts of many trees, answered rightly, and by suspects that know nothing of the leaves.

    Args:
        kind: a kind that ``register_mark`` has entered.
        settings: settings of a mark of this kind, as they would be committed.
        right: the answers that the marked model would give, from leaves and pulse; what the owner embeds.

    Raises:
        AssertionError: queries or verdicts depend on anything else, the alphabet is not stated, right answers prove
            nothing, or answers that were fixed without the leaves prove something too often.
    """
    name = kind.name
    promise(ANSWERED.get(name) is kind, f"{name}: is entered with register_mark")
    leaves = _tree(name, 0)
    queries = kind.queries(leaves, pulse=_PULSE, settings=settings)
    promise(len(queries) == _LEAVES, f"{name}: one query for each leaf")
    again = kind.queries(_tree(name, 0), pulse=_PULSE, settings=settings)
    promise(np.array_equal(queries, again), f"{name}: leaves, pulse and settings fix the queries")
    other = kind.queries(leaves, pulse=_OTHER, settings=settings)
    promise(not np.array_equal(queries, other), f"{name}: the queries depend on the pulse")
    _check_verdicts(kind, settings, right)


def _check_verdicts(
    kind: AnsweredMark, settings: Mapping[str, Any], right: Callable[[Sequence[Leaf], bytes], Sequence[int]]
) -> None:
    leaves = _tree(kind.name, 0)
    own = kind.verdict(right(leaves, _PULSE), leaves, pulse=_PULSE, settings=settings)
    alphabet = own.details.get("alphabet")
    promise(isinstance(alphabet, int) and alphabet > 1, f"{kind.name}: details state the alphabet; got {alphabet}")
    promise(own.log10_p <= -6, f"{kind.name}: {_LEAVES} right answers are proof; p = 10^{own.log10_p:.1f}")  # noqa: PLR2004
    with refused(ValueError, f"{kind.name}: one answer too few"):
        kind.verdict(right(leaves, _PULSE)[1:], leaves, pulse=_PULSE, settings=settings)
    verdicts = [
        kind.verdict(right(_tree(kind.name, -tree), _PULSE), _tree(kind.name, tree), pulse=_PULSE, settings=settings)
        for tree in range(1, _TREES + 1)
    ]
    promise(all(each.log10_e is not None for each in verdicts), f"{kind.name}: every verdict has an e-value")
    log10_e = np.array([each.log10_e for each in verdicts], np.float64)
    law_holds(np.array([each.log10_p for each in verdicts]), log10_e, kind.name)


def _tree(mark: str, number: int) -> list[Leaf]:
    seeds = [hashlib.sha256(f"conformance {number} {index}".encode()).digest() for index in range(_LEAVES)]
    return [Leaf(mark=mark, index=index, seed=seed) for index, seed in enumerate(seeds)]
