# SPDX-License-Identifier: Apache-2.0
"""The schemes of a text mark: what each token's secret word is worth, and what the sum looks like without a mark.

A scheme is a frozen value. Its numbers are public and stand in the profile; its null is fixed with it. How a writer
uses the same words to choose tokens is in ``privguard.watermark.text.writing.choose``.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.watermark.statistics.null import BinomialCount, ExponentialSum, Null, WeightedBits
from privguard.watermark.statistics.tails import Floats
from privguard.watermark.text.prf.streams import Bytes, Ids, Lookup, Words, bytes_of, words_of

UNIFORM_BITS = 23
_LEVELS = 256  # a green list takes a whole number of 256ths of the vocabulary
_WORD_BITS = 32


def exponential(words: Words) -> Floats:
    """−ln(1−m/2²³) of the top 23 bits m: never above the Exp(1) variable that a full-precision uniform would give.

    Args:
        words: secret words, (N,).
    """
    uniform = (words >> np.uint32(_WORD_BITS - UNIFORM_BITS)).astype(np.float64)
    uniform *= -(2.0**-UNIFORM_BITS)
    np.log1p(uniform, out=uniform)
    return np.negative(uniform, out=uniform)


class TextScheme(Protocol):
    """What a scheme without a message is: a frozen dataclass of public numbers, and these names.

    A package of its own enters one with ``privguard.watermark.text.writing.host.register_scheme`` and shows with
    ``privguard.testing.check_text_scheme`` that it keeps what is promised here.

    Attributes:
        name: how a profile calls it; part of every key, so two schemes never read the same words.
        statistic: the name of its statistic and its version; a detector of another version refuses the profile.
        samples: whether it chooses tokens itself, which greedy decoding leaves no room for.
    """

    name: ClassVar[str]
    statistic: ClassVar[str]
    samples: ClassVar[bool]

    @property
    def null(self) -> Null:
        """The law of the sum of scores of unique n-grams where there is no mark; every p-value rests on it."""
        ...

    def lookup(self, contexts: Ids, tokens: Ids, *, block_bytes: int) -> Lookup:
        """Where the secret words of n-grams stand in a stream; contexts (N, h), tokens (N,).

        Args:
            contexts: token ids before, (N, h), oldest first.
            tokens: token ids, (N,).
            block_bytes: bytes of one block of the stream.
        """
        ...

    def scores(self, words: Any, /) -> Floats:
        """What the words (N,) are worth, (N,): independent and of the null's law where the key had no part.

        Args:
            words: secret words, (N,).
        """
        ...


@final
@dataclass(frozen=True)
class Gumbel:
    """Gumbel-max (Aaronson 2023): the token with the largest u^(1/p) is taken; no distortion of any one token.

    The default: the most evidence per token of all schemes here. Needs sampling; cannot mark greedy decoding.
    """

    name: ClassVar[str] = "gumbel"
    statistic: ClassVar[str] = "exponential-sum-v1"
    samples: ClassVar[bool] = True

    @property
    def null(self) -> ExponentialSum:
        """Each unique n-gram adds Exp(1)."""
        return ExponentialSum()

    def lookup(self, contexts: Ids, tokens: Ids, *, block_bytes: int) -> Lookup:
        """A 32-bit word per n-gram.

        Args:
            contexts: token ids before, (N, h), oldest first.
            tokens: token ids, (N,).
            block_bytes: bytes of one block of the stream.
        """
        return words_of(contexts, tokens, block_bytes=block_bytes)

    def scores(self, words: Words) -> Floats:
        """The exponential score of each word.

        Args:
            words: secret words, (N,).
        """
        return exponential(words)


@final
@dataclass(frozen=True)
class GreenList:
    """Soft green list (Kirchenbauer et al. 2023), each token green independently with chance ``green``/256.

    ``bias`` is δ, added to the logits of green tokens. Distorts the text a little, works with greedy decoding and
    through an API's logit bias.
    """

    green: int = 64
    bias: float = 2.0

    name: ClassVar[str] = "green-list"
    statistic: ClassVar[str] = "binomial-count-v1"
    samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check.require(
            type(self.green) is int and 0 < self.green < _LEVELS, "green", self.green, wanted="1 to 255, in 256ths"
        )
        _check.positive("bias", self.bias)
        object.__setattr__(self, "bias", float(self.bias))  # canonical JSON writes 2.0 as 2; the keys' label must not

    @property
    def null(self) -> BinomialCount:
        """Each unique n-gram is green with chance ``green``/256."""
        return BinomialCount(Fraction(self.green, _LEVELS))

    def lookup(self, contexts: Ids, tokens: Ids, *, block_bytes: int) -> Lookup:
        """A byte per n-gram.

        Args:
            contexts: token ids before, (N, h), oldest first.
            tokens: token ids, (N,).
            block_bytes: bytes of one block of the stream.
        """
        return bytes_of(contexts, tokens, block_bytes=block_bytes)

    def scores(self, octets: Bytes) -> Floats:
        """1 where the n-gram is green, else 0.

        Args:
            octets: secret bytes, (N,).
        """
        return (octets < self.green).astype(np.float64)


@final
@dataclass(frozen=True)
class Tournament:
    """Two-leaf tournament sampling (SynthID-Text, Dathathri et al. 2024), ``depth`` layers on the ``top_k`` tokens.

    Layer i reads bit i of a token's word. Tokens outside the top k keep their probability and lose only the mark. No
    distortion of any one token. Needs sampling.
    """

    depth: int = 30
    top_k: int = 1000

    name: ClassVar[str] = "tournament"
    statistic: ClassVar[str] = "weighted-bits-v1"
    samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check.require(
            type(self.depth) is int and 0 < self.depth <= _WORD_BITS, "depth", self.depth, wanted="1 to 32 layers"
        )
        _check.count("top_k", self.top_k, least=2)

    @property
    def weights(self) -> tuple[int, ...]:
        """From 10 at the first layer, which carries the most evidence, down to 1 at the last."""
        return tuple(10 - 10 * layer // self.depth for layer in range(self.depth))

    @property
    def null(self) -> WeightedBits:
        """Each unique n-gram adds independent fair bits with these weights."""
        return WeightedBits(self.weights)

    def lookup(self, contexts: Ids, tokens: Ids, *, block_bytes: int) -> Lookup:
        """A 32-bit word per n-gram.

        Args:
            contexts: token ids before, (N, h), oldest first.
            tokens: token ids, (N,).
            block_bytes: bytes of one block of the stream.
        """
        return words_of(contexts, tokens, block_bytes=block_bytes)

    def scores(self, words: Words) -> Floats:
        """Weighted sum of each word's bits, read through two tables of 2¹⁶ entries that fit the second-level cache.

        Args:
            words: secret words, (N,).
        """
        low, high = _bit_sums(self.weights)
        return (low.take(words & np.uint32(0xFFFF)) + high.take(words >> np.uint32(16))).astype(np.float64)


@lru_cache(maxsize=8)
def _bit_sums(weights: tuple[int, ...]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Weighted sums of the bits of every 16-bit number, read as the low half of a word and as its high half."""
    padded = np.zeros(_WORD_BITS, np.int16)
    padded[: len(weights)] = weights
    octets = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(-1, 2)
    bits = np.unpackbits(octets, axis=1, bitorder="little").astype(np.int16)
    return bits @ padded[:16], bits @ padded[16:]


@final
@dataclass(frozen=True)
class Payload:
    """Gumbel-max that also carries a message of at most 32 bits, without distortion: the message turns the words.

    A message is cut into pieces of at most ``PIECE`` bits; the secret assigns each context to one piece, and under
    message piece m token t uses word (t + m) mod R, R the larger of the logits width and 2^piece. A detector tries all
    values of a piece at once, because their words stand side by side in the stream.
    """

    bits: int = 32

    name: ClassVar[str] = "gumbel-payload"
    statistic: ClassVar[str] = "exponential-sum-max-v1"
    samples: ClassVar[bool] = True
    PIECE: ClassVar[int] = 16

    def __post_init__(self) -> None:
        _check.require(
            type(self.bits) is int and 0 < self.bits <= 2 * self.PIECE, "bits", self.bits, wanted="1 to 32 bits"
        )

    @property
    def null(self) -> ExponentialSum:
        """For one given message: each unique n-gram adds Exp(1)."""
        return ExponentialSum()

    @property
    def pieces(self) -> tuple[int, ...]:
        """Bits of each piece, the low piece first."""
        return (self.bits,) if self.bits <= self.PIECE else (self.PIECE, self.bits - self.PIECE)


Scheme: TypeAlias = TextScheme | Payload
SCHEMES: dict[str, type[TextScheme] | type[Payload]] = {
    kind.name: kind for kind in (Gumbel, GreenList, Tournament, Payload)
}
