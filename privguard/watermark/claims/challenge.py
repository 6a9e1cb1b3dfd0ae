# SPDX-License-Identifier: Apache-2.0
"""The challenge: a neutral verifier asks, the owner opens, the suspect answers, and everything is written down.

The verifier draws a random subset of unburned leaves and fixes the plan (``draw``), the log records it, the owner
opens exactly those leaves (``open_leaves``), and the verifier sends triggers among natural queries, one answer
each, no retries (``run``). The result is one signed file, ``privguard.watermark.claims.evidence``.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard import _canon, _check
from privguard.attest.log import Entry
from privguard.errors import ProtocolInvalidError
from privguard.records import Digest
from privguard.watermark.claims.commitment import Manifest, Standing
from privguard.watermark.claims.leaf import Leaf, Opening, Tree

Queries = NDArray[Any]
Answerer = Callable[[Queries], Sequence[int]]  # a batch of queries in, one answer for each out: the suspect


@final
@dataclass(frozen=True, kw_only=True)
class ChallengePlan:
    """Everything that is fixed before the first query.

    ``asked`` names the leaves by mark, ``label_map`` gives for each of the suspect's answers its place in the committed
    alphabet (empty: they are the same), ``natural`` is how many natural queries hide the triggers.
    """

    claim: str
    suspect: Digest
    asked: Mapping[str, tuple[int, ...]]
    natural: int = 0
    label_map: tuple[int, ...] = ()
    decoding: str = "one deterministic answer per query, no retries, all queries sent"
    nonce: str = field(default_factory=lambda: secrets.token_hex(32))
    drawn: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def digest(self) -> str:
        """SHA-256 of the plan: the first link of the transcript's chain."""
        return _canon.digest(self)

    def entry(self, owner: str) -> Entry:
        """The log line that makes this challenge count, and shows which leaves it burned.

        Args:
            owner: key id of the owner.
        """
        details = {"claim": self.claim, "asked": _canon.to_json(self.asked)}
        return Entry(identity=owner, kind="challenge", digest=self.digest, details=details)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ChallengePlan":
        """Read a plan; what is none raises ``KeyError``, ``TypeError`` or ``ValueError``.

        Args:
            value: JSON values, as they were read.
        """
        asked = {str(name): tuple(int(i) for i in indices) for name, indices in value["asked"].items()}
        return cls(
            claim=str(value["claim"]),
            suspect=Digest(**value["suspect"]),
            asked=asked,
            natural=int(value["natural"]),
            label_map=tuple(int(i) for i in value["label_map"]),
            decoding=str(value["decoding"]),
            nonce=str(value["nonce"]),
            drawn=str(value["drawn"]),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of the transcript: the query's digest, the suspect's answer, and the leaf it came from, if any."""

    query: str
    answer: int
    mark: str | None = None
    index: int | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Transcript:
    """All answers in the order of asking, and the head of their hash chain."""

    answers: tuple[Answer, ...]
    head: str

    @classmethod
    def chain(cls, plan: ChallengePlan, answers: Iterable[Answer]) -> "Transcript":
        """Link the answers behind the plan's digest.

        Args:
            plan: the drawn plan.
            answers: answers in the order in which they were given.
        """
        lines = tuple(answers)
        head = bytes.fromhex(plan.digest)
        for line in lines:
            head = hashlib.sha256(head + _canon.canonical(line)).digest()
        return cls(answers=lines, head=head.hex())


def draw(
    standing: Standing,
    *,
    suspect: Digest,
    sizes: Mapping[str, int],
    burned: Iterable[Entry] = (),
    natural: int = 0,
    label_map: Sequence[int] = (),
) -> ChallengePlan:
    """Draw ``sizes[mark]`` unburned leaves of each mark at random and fix the plan.

    ``burned`` are the log's entries so far; leaves that an earlier challenge of this claim opened are left out.

    Args:
        standing: a checked commitment.
        suspect: digest of the suspect.
        sizes: how many leaves of each mark are opened.
        burned: the log's entries so far.
        natural: how many ordinary queries are mixed in.
        label_map: from the suspect's labels to the committed alphabet; empty for none.

    Raises:
        ProtocolInvalidError: a mark was not committed, or has too few unburned leaves left.
    """
    used = burned_leaves(burned, claim=standing.digest)
    chance, asked = secrets.SystemRandom(), dict[str, tuple[int, ...]]()
    for name, size in sizes.items():
        free = [index for index in range(standing.manifest.mark(name).leaves) if (name, index) not in used]
        if len(free) < size:
            raise ProtocolInvalidError(f"sizes[{name!r}]={size}: {len(free)} unburned leaves are left; ask for fewer")
        asked[name] = tuple(sorted(chance.sample(free, size)))
    return ChallengePlan(
        claim=standing.digest, suspect=suspect, asked=asked, natural=natural, label_map=tuple(label_map)
    )


def burned_leaves(entries: Iterable[Entry], *, claim: str) -> set[tuple[str, int]]:
    """The leaves of this claim that logged challenges have opened, as (mark, index).

    Args:
        entries: entries of the log.
        claim: digest of the claim.
    """
    found = [entry.details for entry in entries if entry.kind == "challenge" and entry.details.get("claim") == claim]
    return {(str(name), int(i)) for details in found for name, indices in details["asked"].items() for i in indices}


def open_leaves(tree: Tree, plan: ChallengePlan) -> tuple[Opening, ...]:
    """The owner's answer to a plan: exactly the leaves asked for, which are burned from now on.

    Args:
        tree: the owner's leaves.
        plan: the drawn plan.
    """
    return tuple(tree.open(name, index) for name, indices in plan.asked.items() for index in indices)


def check_openings(manifest: Manifest, plan: ChallengePlan, openings: Sequence[Opening]) -> Mapping[str, list[Leaf]]:
    """The opened leaves by mark.

    Args:
        manifest: the committed manifest.
        plan: the drawn plan.
        openings: what the owner opened.

    Raises:
        ProtocolInvalidError: they are not exactly the ones asked for, or one was never committed.
    """
    asked = [(name, index) for name, indices in plan.asked.items() for index in indices]
    if len(set(asked)) != len(asked) or [(item.leaf.mark, item.leaf.index) for item in openings] != asked:
        raise ProtocolInvalidError("openings: not exactly the leaves that the plan asks for, in its order")
    for opening in openings:
        if not manifest.holds(opening):
            raise ProtocolInvalidError(f"opening: leaf {opening.leaf.index} of {opening.leaf.mark} was never committed")
    return {name: [item.leaf for item in openings if item.leaf.mark == name] for name in plan.asked}


def run(
    plan: ChallengePlan, *, triggers: Mapping[str, Queries], natural: Queries | None, suspect: Answerer
) -> Transcript:
    """Ask the suspect everything in one random order and chain its answers.

    ``triggers[mark]`` holds one query for each leaf asked for, in the plan's order, (n, *shape); ``natural`` at least
    ``plan.natural`` queries of the same shape, or ``None`` when the plan has none. Answers are mapped by
    ``plan.label_map``; what is outside the map counts as a miss (-1).

    Args:
        plan: the drawn plan.
        triggers: queries by mark, (n, *shape), in the plan's order.
        natural: ordinary queries, (m, *shape); None for none.
        suspect: from queries (k, *shape) to k answers.
    """
    lines = [
        (name, index, query)
        for name, queries in triggers.items()
        for index, query in zip(plan.asked[name], queries, strict=True)
    ]
    extra = 0 if natural is None else len(natural)
    _check.require(extra >= plan.natural, "natural", extra, wanted=f"{plan.natural} queries, as the plan says")
    rows: list[tuple[str | None, int | None, Queries]] = list(lines)
    if natural is not None:
        rows += [(None, None, query) for query in natural[: plan.natural]]
    secrets.SystemRandom().shuffle(rows)
    if not rows:
        return Transcript.chain(plan, ())
    said = list(suspect(np.stack([query for _, _, query in rows])))
    _check.require(len(said) == len(rows), "len(answers)", len(said), wanted=f"{len(rows)}, one for each query")
    answers = [
        Answer(query=query_digest(query), answer=_mapped(int(raw), plan.label_map), mark=mark, index=index)
        for (mark, index, query), raw in zip(rows, said, strict=True)
    ]
    return Transcript.chain(plan, answers)


def query_digest(query: Queries) -> str:
    """SHA-256 of a query: its dtype and shape as text, then its little-endian bytes in C order.

    Args:
        query: one query, of any shape.
    """
    array = np.ascontiguousarray(query).astype(np.asarray(query).dtype.newbyteorder("<"))
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + b"\0" + array.tobytes()).hexdigest()


def _mapped(answer: int, label_map: Sequence[int]) -> int:
    if not label_map:
        return answer
    return label_map[answer] if 0 <= answer < len(label_map) else -1
