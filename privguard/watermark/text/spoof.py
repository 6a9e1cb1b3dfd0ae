# SPDX-License-Identifier: Apache-2.0
"""Forging by list stealing: learn from marked text which token a mark prefers after which context, then write it.

The attacker sees marked and unmarked text and no key (Jovanović et al. 2024, "Watermark stealing in large language
models"): for each context seen, the ratio of a token's frequency in marked text to its frequency in unmarked text. The
forger walks through learnt contexts and takes the most over-represented token. A scheme that accepts such text cannot
attribute anything to its owner.
"""

from dataclasses import dataclass, field
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]


@final
@dataclass
class Thief:
    """What was learnt from ``marked`` and ``plain`` texts (lists of (T,) ids) about contexts of ``width`` tokens.

    ``plain_share`` smooths the estimate for tokens rarely seen; the forger chooses only among tokens seen after the
    context in either corpus, so a forgery reads like the language.
    """

    width: int
    marked: dict[tuple[int, ...], dict[int, int]] = field(default_factory=dict[tuple[int, ...], dict[int, int]])
    plain: dict[tuple[int, ...], dict[int, int]] = field(default_factory=dict[tuple[int, ...], dict[int, int]])

    def learn(self, marked: list[Ids], plain: list[Ids]) -> "Thief":
        """Count continuations in both corpora."""
        for texts, table in ((marked, self.marked), (plain, self.plain)):
            for text in texts:
                row = text.tolist()
                for i in range(self.width, len(row)):
                    after = table.setdefault(tuple(row[i - self.width : i]), {})
                    after[row[i]] = after.get(row[i], 0) + 1
        return self

    def forge(self, start: Ids, *, tokens: int, rng: np.random.Generator) -> Ids:
        """A text of ``tokens`` new tokens after ``start`` (at least ``width`` ids), which is not part of the result.

        No n-gram is used twice while there is another: the forger knows that repetitions do not count.
        """
        text, used = start.tolist(), set[tuple[int, ...]]()
        for _ in range(tokens):
            context = tuple(text[-self.width :])
            text.append(self._next(context, used, rng))
            used.add((*context, text[-1]))
        return np.array(text[len(start) :], np.int64)

    def _next(self, context: tuple[int, ...], used: set[tuple[int, ...]], rng: np.random.Generator) -> int:
        marked, plain = self.marked.get(context, {}), self.plain.get(context, {})
        options = [token for token in {*marked, *plain} if (*context, token) not in used]
        if not options:
            fallback = list(self.marked)[int(rng.integers(len(self.marked)))]
            return fallback[0]
        total_marked, total_plain = sum(marked.values()) + 1, sum(plain.values()) + 1
        ratio = [(marked.get(t, 0) + 0.1) / total_marked / ((plain.get(t, 0) + 0.5) / total_plain) for t in options]
        best = np.flatnonzero(np.isclose(ratio, max(ratio)))
        return options[int(rng.choice(best))]
