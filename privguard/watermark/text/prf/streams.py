# SPDX-License-Identifier: Apache-2.0
"""From a context of at most four token ids to its own stream of secret bytes: word t and byte t belong to token t.

The specification is docs/spec/text-mark-v1.md. Detection seeks: it makes only the block in which a token's word stands,
so its cost does not depend on the vocabulary. Generation makes the words of all tokens at once.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.watermark.secret import Prf
from privguard.watermark.text.prf import chacha

Ids: TypeAlias = NDArray[np.integer[Any]]
Words: TypeAlias = NDArray[np.uint32]
Bytes: TypeAlias = NDArray[np.uint8]

SLOTS = 4
FILLER = (1 << 24) - 1  # stands in every context slot that no token fills


class ContextStream(Protocol):
    """A keyed function from (context, block counter) to a block of bytes."""

    block_bytes: ClassVar[int]

    def blocks(self, inputs: Words) -> Words:
        """Blocks as words: (N, 4) packed contexts and counters to (N, block_bytes/4)."""
        ...

    def vocabulary(self, contexts: Ids, count: int) -> Bytes:
        """The first ``count`` bytes of each context's stream: (B, h) to (B, count)."""
        ...


@final
class AesStream:
    """``aes256-v1``: block c of a context is AES-256 of (four 24-bit ids ‖ c as 32 bits little-endian)."""

    block_bytes: ClassVar[int] = 16

    def __init__(self, key: bytes) -> None:
        self._prf = Prf(key)

    def blocks(self, inputs: Words) -> Words:
        """One AES call for all blocks."""
        return self._prf.blocks(inputs)

    def vocabulary(self, contexts: Ids, count: int) -> Bytes:
        """ECB over counters 0, 1, 2, …: about 2 GB/s on one core with AES instructions."""
        blocks = -(-count // self.block_bytes)
        inputs = np.repeat(_counted(blocks), len(contexts), 0)
        for place, words in enumerate(pack(contexts).T):
            inputs[:, :, place] = words[:, None]
        return self._prf.blocks(inputs).reshape(len(contexts), -1).view(np.uint8)[:, :count]


@lru_cache(maxsize=8)
def _counted(blocks: int) -> Words:
    """(1, blocks, 4) words with the counter in the last and zeros elsewhere: copied, not counted again, every step."""
    inputs = np.zeros((1, blocks, 4), "<u4")
    inputs[0, :, 3] = np.arange(blocks)
    return inputs


@final
class ChaChaStream:
    """``aes256-chacha8-v1``: AES-256 makes a 256-bit seed per context, ChaCha8 expands it on the host or a device.

    The seed is the AES blocks 0 and 1 of the context; block c of the stream is the ChaCha8 block c under that seed.
    """

    block_bytes: ClassVar[int] = chacha.BLOCK_BYTES

    def __init__(self, key: bytes) -> None:
        self._aes = AesStream(key)

    def seeds(self, contexts: Ids) -> NDArray[np.int32]:
        """The (N, 8) seed words of (N, h) contexts, for expansion on another device."""
        return np.ascontiguousarray(self._aes.vocabulary(contexts, 32)).view("<i4")

    def blocks(self, inputs: Words) -> Words:
        """Seed and expand each input on its own."""
        halves = [
            self._aes.blocks(np.concatenate([inputs[:, :3], np.full((len(inputs), 1), i, "<u4")], 1)) for i in (0, 1)
        ]
        seeds = np.concatenate(halves, 1).view("<i4")
        parts = chacha.blocks([seeds[:, i] for i in range(8)], inputs[:, 3].view(np.int32))
        return np.stack(parts, -1).view(np.uint32)

    def vocabulary(self, contexts: Ids, count: int) -> Bytes:
        """Blocks 0, 1, 2, … of each context."""
        seeds = self.seeds(contexts)
        counters = np.arange(-(-count // self.block_bytes), dtype=np.int32)
        parts = chacha.blocks([seeds[:, i, None] for i in range(8)], counters[None, :])
        stream = np.stack(parts, -1).reshape(len(contexts), -1)
        return stream.view(np.uint8)[:, :count]


STREAMS: dict[str, type[AesStream] | type[ChaChaStream]] = {"aes256-v1": AesStream, "aes256-chacha8-v1": ChaChaStream}


@final
@dataclass(frozen=True)
class Lookup:
    """Where the values of some n-grams stand under any key: block ``inputs`` (N, 4), flat ``places`` in the blocks."""

    inputs: Words
    places: NDArray[np.int64]
    dtype: type[np.uint32] | type[np.uint8]

    def read(self, stream: ContextStream) -> NDArray[Any]:
        """The (N,) words or bytes of the n-grams under the stream's key."""
        return stream.blocks(self.inputs).ravel().view(self.dtype)[self.places]


def words_of(contexts: Ids, tokens: Ids, *, block_bytes: int) -> Lookup:
    """Look up the 32-bit word of each token under its context: (N, h) and (N,)."""
    return _lookup(contexts, tokens, block_bytes // 4, np.uint32)


def bytes_of(contexts: Ids, tokens: Ids, *, block_bytes: int) -> Lookup:
    """Look up the byte of each token under its context: (N, h) and (N,)."""
    return _lookup(contexts, tokens, block_bytes, np.uint8)


def _lookup(contexts: Ids, tokens: Ids, per_block: int, dtype: type[np.uint32] | type[np.uint8]) -> Lookup:
    tokens = np.asarray(tokens, np.int64)
    inputs = np.empty((len(tokens), 4), "<u4")
    inputs[:, :3] = pack(contexts)
    inputs[:, 3] = tokens // per_block
    return Lookup(inputs, np.arange(len(tokens)) * per_block + tokens % per_block, dtype)


def pack(contexts: Ids) -> Words:
    """(N, h) token ids, oldest first, to the (N, 3) words that hold four 24-bit slots; missing old slots are FILLER.

    Injective: two contexts never share a block.

    Raises:
        ValueError: more than four columns, or an id outside [0, 2²⁴).
    """
    ids = np.asarray(contexts)
    width = ids.shape[1]
    _check.require(width <= SLOTS, "context width", width, wanted=f"at most {SLOTS} token ids")
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) > FILLER):
        raise ValueError(f"token ids from {ids.min()} to {ids.max()}: expected 0 to {FILLER}, 24 bits each")
    oldest = SLOTS - width
    slot = [np.uint32(FILLER) if i < oldest else ids[:, i - oldest].astype(np.uint32) for i in range(SLOTS)]
    out = np.empty((len(ids), 3), "<u4")
    out[:, 0] = slot[0] | (slot[1] << np.uint32(24))
    out[:, 1] = (slot[1] >> np.uint32(8)) | (slot[2] << np.uint32(16))
    out[:, 2] = (slot[2] >> np.uint32(16)) | (slot[3] << np.uint32(8))
    return out
