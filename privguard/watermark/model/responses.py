# SPDX-License-Identifier: Apache-2.0
"""The API-response mark: a few answers are changed, always in the same way, so that a copy trained on them tells.

A keyed function of the canonical query picks at most 0.5 % of all queries and gives each another label (DAWN, Szyller
et al. 2021). Consistency means that asking twice shows nothing. Every altered query is logged; a suspect is asked only
those. Null: a suspect made independently of the secret gives the altered label with a chance of at most 1/(K−1) per
query, because that label is uniform over the K−1 labels that the honest answer is not.

The condition: whoever holds the key must not have chosen the queries, nor claimed another honest answer than was
given. An accuser who fabricates the log chooses both. So this mark never enters a claim's verdict; it is read on its
own, from a log that was timestamped before the suspect was known, and its verdict says so.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, final

import numpy as np

from privguard import _canon, _check
from privguard.attest import merkle
from privguard.errors import TamperedError
from privguard.records import Verdict
from privguard.watermark.claims.challenge import Queries, query_digest
from privguard.watermark.claims.commitment import MarkPlan
from privguard.watermark.claims.leaf import Leaf
from privguard.watermark.secret import Prf
from privguard.watermark.statistics import null

MOST = 0.005
CONDITION = "holds if the key's holder neither chose the logged queries nor misreported the honest answers"


@final
@dataclass(frozen=True, kw_only=True)
class Altered:
    """One altered answer: the query's digest, the query itself, the honest label and the one that was given."""

    digest: str
    query: Queries
    honest: int
    given: int

    def leaf(self) -> bytes:
        """The Merkle leaf under which the log is timestamped."""
        return merkle.leaf_hash(_canon.canonical([self.digest, self.honest, self.given]))


def plan(*, classes: int, share: float = MOST, decimals: int = 3) -> MarkPlan:
    """A mark with one leaf, whose opening gives the key away, so it is opened last.

    ``decimals`` is how queries are rounded before they are hashed, so that invisible noise does not make a new query.

    Args:
        classes: how many labels there are.
        share: share of queries whose answer is altered, in (0, 1).
        decimals: to which queries are rounded before they are hashed.
    """
    _check.require(0 < share <= MOST, "share", share, wanted=f"above 0 and at most {MOST}")
    _check.count("classes", classes, least=3)
    settings = {"classes": classes, "share": share, "decimals": decimals}
    return MarkPlan(name="responses", kind="responses", leaves=1, settings=settings)


@final
class ResponseMark:
    """Stands between the model and the API: gives out labels, alters a keyed few, and remembers which."""

    def __init__(self, leaf: Leaf, *, pulse: bytes, settings: Mapping[str, Any]) -> None:
        self._prf = Prf(leaf.expand(pulse, "responses", 32))
        self._classes, self._decimals = int(settings["classes"]), int(settings["decimals"])
        self._threshold = int(float(settings["share"]) * 2**32)
        self.log: dict[str, Altered] = {}

    def answer(self, queries: Queries, honest: Sequence[int]) -> list[int]:
        """The labels to give out for a batch (n, *shape) with these honest labels.

        Args:
            queries: inputs of the API, (n, *shape).
            honest: the model's own labels, (n,).
        """
        given: list[int] = []
        for query, label in zip(queries, honest, strict=True):
            digest = self.canonical(query)
            words = self._prf.blocks(np.frombuffer(bytes.fromhex(digest)[:16], "<u4").reshape(1, 4))[0]
            if words[0] >= self._threshold:
                given.append(int(label))
                continue
            shift = 1 + (int(words[1]) << 32 | int(words[2])) % (self._classes - 1)
            given.append((int(label) + shift) % self._classes)
            self.log[digest] = Altered(digest=digest, query=np.array(query), honest=int(label), given=given[-1])
        return given

    def canonical(self, query: Queries) -> str:
        """SHA-256 of the query rounded to the committed number of decimals.

        Args:
            query: one input, of any shape.
        """
        return query_digest(np.round(np.asarray(query, np.float64), self._decimals) + 0.0)

    def root(self) -> bytes:
        """The Merkle root of the log in order of asking: timestamp it often, before any suspect is known."""
        return merkle.root([line.leaf() for line in self.log.values()])

    def write(self, path: Path) -> None:
        """Write the log as JSON lines; it holds the queries, so it is as private as they are.

        Args:
            path: the log's file.
        """
        lines = [
            {"query": line.query.tolist(), "honest": line.honest, "given": line.given} for line in self.log.values()
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def read(self, path: Path) -> tuple[Altered, ...]:
        """Read a log and check that this key alters exactly so.

        Args:
            path: the log's file.

        Raises:
            TamperedError: a line that this key would not have written.
        """
        found: list[Altered] = []
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            query = np.array(line["query"])
            if self.answer(query[None], [line["honest"]]) != [line["given"]] or line["honest"] == line["given"]:
                raise TamperedError(f"{path}: a line that this key would not have altered so")
            found.append(self.log[self.canonical(query)])
        return tuple(found)


def verdict(said: Sequence[int], altered: Iterable[Altered], *, classes: int) -> Verdict:
    """The verdict on a suspect's answers to the altered queries, one each; the binomial tail bounds the chance.

    Args:
        said: the suspect's labels, one for each altered query.
        altered: altered queries and what was answered.
        classes: how many labels there are.
    """
    lines = tuple(altered)
    _check.require(len(said) == len(lines), "len(said)", len(said), wanted=f"{len(lines)}, one for each altered query")
    matches = sum(int(answer) == line.given for answer, line in zip(said, lines, strict=True))
    return null.verdict(
        null.BinomialCount(Fraction(1, classes - 1)),
        scheme="responses",
        score=matches,
        trials=len(lines),
        details={"classes": classes, "condition": CONDITION},
        notes=("null model: the suspect was made independently of the secret", CONDITION),
    )
