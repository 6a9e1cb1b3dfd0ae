# SPDX-License-Identifier: Apache-2.0
"""How a writer on the CPU uses the secret words of one context: pick a token, or raise the green ones.

Each chooser works on one row of final logits, (V,) float32 with −inf for what temperature, top-k and top-p removed, in
arrays that stay in the second-level cache; that is 2.5 times faster than whole-batch torch operations. Where few tokens
are left, only their words are made.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.errors import MarkError
from privguard.watermark.text.prf.streams import ContextStream, Ids, bytes_of, pack, words_of
from privguard.watermark.text.scheme import SCHEMES, UNIFORM_BITS, GreenList, Gumbel, Scheme, TextScheme, Tournament

Row: TypeAlias = NDArray[np.float32]
_SHIFT = np.uint32(32 - UNIFORM_BITS)
_STEP = np.float32(2.0**-UNIFORM_BITS)
_SPARSE = 16  # below V/16 tokens left, single words are cheaper than all words


class Chooser(Protocol):
    """One token from a row of logits under one context, (1, h), and the uniform numbers (3,) of ordinary chance."""

    def __call__(self, row: Row, stream: ContextStream, context: Ids, *, chance: NDArray[np.float64]) -> int:
        """The chosen token id."""
        ...


@final
@dataclass(frozen=True)
class PickGumbel:
    """argmax of logits + Gumbel noise made from the words; ``turn`` and ``modulus`` shift them for a payload.

    Guarantee: over a uniform key each token is taken with its softmax probability, up to the 2⁻²³ steps of float32
    uniforms (tokens far below 10⁻⁷ are taken less often, as in any float32 Gumbel sampler).
    """

    turn: int = 0
    modulus: int | None = None

    def __call__(self, row: Row, stream: ContextStream, context: Ids, *, chance: NDArray[np.float64]) -> int:  # noqa: ARG002
        """The marked token; ordinary chance plays no part."""
        modulus = self.modulus or len(row)
        alive = _few_alive(row)
        if alive is not None:
            words = _words_of(stream, context, (alive + self.turn) % modulus)
            return int(alive[(row[alive] - _log_exponential(words)).argmax()])
        words = stream.vocabulary(context, 4 * modulus).view(np.uint32)[0]
        if self.turn:
            words = np.concatenate([words[self.turn :], words[: self.turn]])
        return int((row - _log_exponential(words[: len(row)])).argmax())


@final
@dataclass(frozen=True)
class PickTournament:
    """Two-leaf tournament on the top k, then an ordinary draw; the rest of the vocabulary is drawn unmarked.

    Guarantee: over a uniform key each token is taken with its softmax probability. Source: Dathathri et al. 2024, the
    vectorised form p ← p·(1 + g − ⟨p, g⟩), one layer after the other.
    """

    scheme: Tournament

    def __call__(self, row: Row, stream: ContextStream, context: Ids, *, chance: NDArray[np.float64]) -> int:
        """The marked token; the three uniforms choose inside or outside the top k, and where."""
        top = largest(row, self.scheme.top_k)
        mass = np.exp(row - row.max())
        inside = mass[top].astype(np.float64)
        share = float(inside.sum()) / float(mass.sum()) if len(top) < len(row) else 1.0
        if chance[0] >= share:
            mass[top] = 0
            return _draw(mass.astype(np.float64), chance[1])
        words = _words_of(stream, context, top).view(np.uint8).reshape(-1, 4)
        bits = np.unpackbits(words, axis=1, bitorder="little").T.astype(np.float64)  # (32, k): one row for each layer
        p = inside / inside.sum()
        for g in bits[: self.scheme.depth]:
            p *= g + (1.0 - p @ g)
        return int(top[_draw(p, chance[2])])


CHOOSERS: dict[type[Any], Callable[[Any], Chooser]] = {Gumbel: lambda _: PickGumbel(), Tournament: PickTournament}
_SchemeType = TypeVar("_SchemeType", bound=TextScheme)


def register_scheme(kind: type[_SchemeType], *, chooser: Callable[[_SchemeType], Chooser]) -> None:
    """Enter a scheme of one's own, so that profiles may name it, detectors read it and writers on the CPU write it.

    Guarantee: nothing is guessed. A profile that names a scheme which is not entered where it is read is refused, and
    so are logits on another device. What its null promises is for ``privguard.testing.check_text_scheme`` to test.

    Args:
        kind: a frozen dataclass that is a ``TextScheme``; ``samples`` is true.
        chooser: from a scheme to what picks a token from a row of logits.

    Raises:
        ValueError: no frozen dataclass, a scheme that raises logits, or a name that is taken.
    """
    frozen = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    _check.require(frozen, "kind", kind, wanted="a frozen dataclass, whose fields go into the signed profile")
    _check.require(kind.samples, "samples", kind.samples, wanted="True: a registered scheme chooses its tokens")
    _check.require(kind.name not in SCHEMES, "name", kind.name, wanted="a name that no scheme has yet")
    SCHEMES[kind.name] = kind
    CHOOSERS[kind] = chooser


def chooser_of(scheme: Scheme) -> Chooser:
    """What picks this scheme's tokens on the CPU.

    Args:
        scheme: a scheme without a message that chooses its tokens.

    Raises:
        MarkError: nobody entered a way to write it.
    """
    if type(scheme) not in CHOOSERS:
        raise MarkError(f"scheme {scheme.name}: has no chooser here; enter it with register_scheme")
    return CHOOSERS[type(scheme)](scheme)


def raise_green(row: Row, stream: ContextStream, context: Ids, *, scheme: GreenList) -> None:
    """Add the bias to the logits of the green tokens, in place; what was −inf stays so."""
    alive = _few_alive(row)
    if alive is not None:
        contexts = np.repeat(context, len(alive), 0)
        green = bytes_of(contexts, alive, block_bytes=stream.block_bytes).read(stream) < scheme.green
        row[alive[green]] += np.float32(scheme.bias)
    else:
        green = stream.vocabulary(context, len(row))[0] < scheme.green
        row += green * np.float32(scheme.bias)


def largest(row: Row, k: int) -> NDArray[np.int64]:
    """Indices of the k largest values, in no order; fewer where fewer are above −inf.

    A threshold from every sixteenth value leaves few candidates; it is only trusted when at least k pass it.
    """
    sample = row[::_SPARSE]
    rank = min(len(sample), k // _SPARSE * 5 // 4 + 32)
    threshold = np.partition(sample, len(sample) - rank)[len(sample) - rank]
    candidates = np.flatnonzero(row >= threshold)
    if threshold == -np.inf or len(candidates) < k:
        candidates = np.flatnonzero(row > -np.inf)
    if len(candidates) <= k:
        return candidates
    cut = len(candidates) - k
    return candidates[np.argpartition(row[candidates], cut)[cut:]]


def _few_alive(row: Row) -> NDArray[np.int64] | None:
    """The tokens above −inf where they are less than a sixteenth; else ``None``, and the whole row is cheaper."""
    left = row > -np.inf
    return np.flatnonzero(left) if int(np.count_nonzero(left)) * _SPARSE < len(row) else None


def selector_words(stream: ContextStream, contexts: Ids) -> NDArray[np.uint32]:
    """(N, h) contexts to the (N,) words that stand beyond all vocabularies, in block 2³²−1 of each context."""
    inputs = np.concatenate([pack(contexts), np.full((len(contexts), 1), 0xFFFFFFFF, "<u4")], 1)
    return stream.blocks(inputs)[:, 0]


def _words_of(stream: ContextStream, context: Ids, tokens: NDArray[Any]) -> NDArray[np.uint32]:
    contexts = np.repeat(context, len(tokens), 0)
    return words_of(contexts, tokens, block_bytes=stream.block_bytes).read(stream)


def _log_exponential(words: NDArray[np.uint32]) -> Row:
    """ln(−ln u) with u = (m+½)/2²³ of the top 23 bits m, which float32 holds exactly and never rounds to 0 or 1."""
    u = (words >> _SHIFT).astype(np.float32)
    u += np.float32(0.5)
    u *= _STEP
    np.log(u, out=u)
    np.negative(u, out=u)
    return np.log(u, out=u)


def _draw(weights: NDArray[np.float64], uniform: float) -> int:
    """Index i with probability weights[i]/Σ weights."""
    total = np.cumsum(weights)
    return int(np.searchsorted(total, uniform * total[-1], side="right").clip(max=np.flatnonzero(weights)[-1]))
