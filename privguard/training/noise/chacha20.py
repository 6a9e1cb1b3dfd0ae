# SPDX-License-Identifier: Apache-2.0
"""ChaCha20 (RFC 8439) in 32-bit integers of torch: words of the noise on an accelerator, without a copy from the host.

Signed words wrap as unsigned ones do; only the shift to the right has to be masked. On a CPU it would take 26 times as
long as AES does in hardware, so the host never uses it.
"""

import torch
from torch import Tensor

_CONSTANTS = b"expand 32-byte k"
_DOUBLE_ROUNDS = 10
BLOCK = 64  # bytes


def keystream(key: bytes, *, first: int, blocks: int, device: torch.device, nonce: bytes = bytes(12)) -> Tensor:
    """The key stream from block ``first`` on, as int32 (blocks, 16): little-endian words in their order.

    The counter has 32 bits, so one key and nonce give 256 GiB.
    """
    if not 0 <= first <= first + blocks <= 1 << 32:
        raise ValueError(f"first={first}, blocks={blocks}: expected a counter below 2³²; take another key")
    fixed = torch.frombuffer(bytearray(_CONSTANTS + key + bytes(4) + nonce), dtype=torch.int32)
    start = fixed.to(device, non_blocking=True).view(4, 4, 1).repeat(1, 1, blocks)
    counters = torch.arange(first, first + blocks, dtype=torch.int64, device=device)
    start[3, 0] = counters.to(torch.int32)  # wraps above 2³¹, as the bits of an unsigned word
    a, b, c, d = start.clone()  # the rows of the square: four quarter rounds at once
    for _ in range(_DOUBLE_ROUNDS):
        a, b, c, d = _four(a, b, c, d)
        b, c, d = (row.roll(-shift, 0) for shift, row in enumerate((b, c, d), start=1))  # diagonals become columns
        a, b, c, d = _four(a, b, c, d)
        b, c, d = (row.roll(shift, 0) for shift, row in enumerate((b, c, d), start=1))
    return torch.stack([a, b, c, d]).add_(start).view(16, blocks).t().contiguous()


def _four(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a = a + b
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 12)
    a += b
    d = _rotate(d ^ a, 8)
    c += d
    return a, _rotate(b ^ c, 7), c, d


def _rotate(word: Tensor, left: int) -> Tensor:
    return (word << left) | ((word >> (32 - left)) & ((1 << left) - 1))
