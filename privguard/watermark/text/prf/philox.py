# SPDX-License-Identifier: Apache-2.0
"""Philox4x32-10 (Salmon et al. 2011) over numpy arrays: what vLLM's watermark draws from. Not a cryptographic function.

The mapping of a context to a state is vLLM's ``philox4x32-10-v1``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS = 10
_CONTEXT_TAG, _TOKEN_TAG = 0x574D4358, 0x574D544B
_SLOTS = 4


def philox(counter: NDArray[np.uint32], low: NDArray[np.uint32], high: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(N, 4) counters under the (N,) key words to (N, 4) words."""
    x = [counter[:, i].astype(np.uint64) for i in range(_SLOTS)]
    k0, k1 = low.astype(np.uint32), high.astype(np.uint32)
    for _ in range(_ROUNDS):
        first, second = x[0] * _MULTIPLIERS[0], x[2] * _MULTIPLIERS[1]
        x = [(second >> _HIGH) ^ x[1] ^ k0, second & _LOW, (first >> _HIGH) ^ x[3] ^ k1, first & _LOW]
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return np.stack(x, 1).astype(np.uint32)


def vllm_words(contexts: NDArray[Any], tokens: NDArray[Any], *, key: int) -> NDArray[np.uint32]:
    """The word of each token under its context, (N, h) and (N,) to (N,), for vLLM's 64-bit ``key``.

    A context id of −1 stands for "before the beginning".
    """
    count, width = contexts.shape
    low = np.full(count, key & 0xFFFFFFFF, np.uint32)
    high = np.full(count, key >> 32, np.uint32)
    state = np.zeros((count, _SLOTS), np.uint32)
    state[:, 0], state[:, 1] = _CONTEXT_TAG, width
    for block in range(-(-width // _SLOTS)):
        for slot in range(_SLOTS):
            at = _SLOTS * block + slot
            word = contexts[:, at] if at < width else np.full(count, -1 - slot, np.int64)
            state[:, slot] ^= (np.asarray(word, np.int64) & 0xFFFFFFFF).astype(np.uint32)
        state = philox(state, low ^ np.uint32(_SLOTS * block), high)
    ids = np.asarray(tokens, np.int64)
    last = np.stack([(ids >> 2).astype(np.uint32), state[:, 0], state[:, 1], state[:, 2]], 1)
    words = philox(last, low ^ state[:, 3], high ^ np.uint32(_TOKEN_TAG))
    return words[np.arange(count), ids & 3]
