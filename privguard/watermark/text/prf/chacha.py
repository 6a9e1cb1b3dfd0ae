# SPDX-License-Identifier: Apache-2.0
"""ChaCha8 blocks over whole arrays: one code for numpy on the host and torch on any device.

All arithmetic is on signed 32-bit words that wrap, which numpy and torch define alike, so both give the same bytes.
ChaCha8 (Bernstein 2008) is the eight-round member of the ChaCha family; best known attacks reach seven rounds.
"""

from typing import Any, TypeAlias

Words: TypeAlias = Any  # an int32 numpy array or torch tensor of any shape

BLOCK_BYTES = 64
_SIGMA = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
_DOUBLE_ROUNDS = 4
_ROUND = (
    *((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),
    *((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)),
)


def blocks(key: list[Words], counter: Words) -> list[Words]:
    """The 16 words of the ChaCha8 block at ``counter`` under an all-zero nonce.

    ``key`` is eight arrays of words that broadcast with ``counter``; the result is 16 arrays of the broadcast shape, in
    the order of the key stream (little-endian words).
    """
    zero = counter ^ counter
    start = [*(zero + c for c in _SIGMA), *(word + zero for word in key), counter + zero, zero, zero, zero]
    state = list(start)
    for _ in range(_DOUBLE_ROUNDS):
        for a, b, c, d in _ROUND:
            _quarter(state, (a, b, c, d))
    return [after + before for after, before in zip(state, start, strict=True)]


def _quarter(x: list[Words], at: tuple[int, int, int, int]) -> None:
    a, b, c, d = at
    x[a] = x[a] + x[b]
    x[d] = _rotate(x[d] ^ x[a], 16)
    x[c] = x[c] + x[d]
    x[b] = _rotate(x[b] ^ x[c], 12)
    x[a] = x[a] + x[b]
    x[d] = _rotate(x[d] ^ x[a], 8)
    x[c] = x[c] + x[d]
    x[b] = _rotate(x[b] ^ x[c], 7)


def _rotate(word: Words, left: int) -> Words:
    """Rotate to the left; the mask turns the arithmetic right shift of signed words into a logical one."""
    return (word << left) | ((word >> (32 - left)) & ((1 << left) - 1))
