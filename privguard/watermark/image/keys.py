# SPDX-License-Identifier: Apache-2.0
"""The keyed parts of an image mark, from the owner's secret: sync tile, hash directions, evidence signs.

The three come from independent keys. That is what makes the p-value exact: sync and hash keys only choose which weights
of the picture meet which evidence signs, and whatever was searched with them costs nothing. The specification is
docs/spec/image-mark-v1.md.
"""

from functools import cached_property
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from privguard.watermark.secret import Prf, Secret

Reals: TypeAlias = NDArray[np.float32]
Spectra: TypeAlias = NDArray[np.complex64]

VERSION = "image-mark-v1"
TILE = 128  # side of the sync tile, in pixels
BLOCK = 64  # side of an evidence block, in pixels
POSITIONS = BLOCK * BLOCK
PIECE_BITS = 12  # one field of 4,096 signs carries 12 bits of the identifier, as one of 4,096 Walsh functions
HASH_BITS = 12
SHAPES = 15  # cosines (a, b) with a, b < 4, without the constant
ORIENTATIONS = 8
_SIGNS_PER_AES = 128


@final
class ImageKeys:
    """All keyed arrays of one owner's image mark with ``pieces`` fields per block; not picklable, as no key is."""

    def __init__(self, secret: Secret, *, pieces: int) -> None:
        self.pieces = pieces
        self._sync = secret.prf(VERSION, "sync")
        self._hash = secret.prf(VERSION, "hash")
        self._evidence = secret.prf(VERSION, "evidence", pieces)
        self._choice = secret.prf(VERSION, "choice")
        self._binding = secret.prf(VERSION, "binding")

    @cached_property
    def sync(self) -> Reals:
        """The ±1 signs of the sync tile, (128, 128)."""
        counters = np.arange(TILE * TILE // _SIGNS_PER_AES, dtype=np.uint32)
        return _signs(self._sync, _inputs(counters)).reshape(TILE, TILE)

    @cached_property
    def sync_spectra(self) -> Spectra:
        """Conjugate spectra of the tile in the place where a picture of each orientation shows it, (8, 128, 65)."""
        tiles = np.stack([undone(self.sync, k) for k in range(ORIENTATIONS)])
        return np.conj(rfft2(tiles))

    @cached_property
    def directions(self) -> NDArray[np.float64]:
        """The 12 orthonormal directions of the hash in the space of the 15 shapes, (12, 15).

        Entry (b, k) starts as the number of ones in AES block 15b+k, less 64: nearly normal, so none is preferred.
        """
        bits = _signs(self._hash, _inputs(np.arange(HASH_BITS * SHAPES, dtype=np.uint32))) > 0
        start = bits.reshape(HASH_BITS, SHAPES, _SIGNS_PER_AES).sum(-1) - _SIGNS_PER_AES / 2
        rows: list[NDArray[np.float64]] = []
        for row in start:  # Gram and Schmidt, in this order
            rest = row - sum((np.dot(row, other) * other for other in rows), np.zeros(SHAPES))
            rows.append(rest / np.linalg.norm(rest))
        return np.array(rows)

    def evidence(self, hashes: NDArray[np.integer[Any]], *, subkey: int) -> NDArray[np.int8]:
        """The ±1 signs of each hash under one sub-key, before an identifier turns them: (K,) to (pieces, K, 4096)."""
        counters = np.arange(POSITIONS // _SIGNS_PER_AES, dtype=np.uint32)
        inputs = np.zeros((self.pieces, len(hashes), len(counters), 4), "<u4")
        inputs[..., 0] = counters
        inputs[..., 1] = np.asarray(hashes)[:, None]
        inputs[..., 2] = np.arange(self.pieces)[:, None, None]
        inputs[..., 3] = subkey
        return _signs(self._evidence, inputs, np.int8).reshape(self.pieces, len(hashes), POSITIONS)

    def choose(self, digest: bytes, *, below: int, purpose: int) -> int:
        """A number in [0, below) that depends on the key and on 12 bytes of a digest: one picture, one choice."""
        inputs = np.concatenate([np.frombuffer(digest[:12], "<u4"), np.array([purpose], "<u4")])
        low, high = self._choice.blocks(inputs[None])[0, :2].tolist()
        return ((high << 32 | low) * below) >> 64

    def binding(self, identifier: int) -> str:
        """What a public manifest says in an identifier's place: one AES block of it, 32 hexadecimal digits.

        Whoever knows the identifiers of many pictures can turn their fields back and learn from all of them together.
        """
        words = np.array([[identifier & 0xFFFFFFFF, identifier >> 32, self.pieces, 0]], "<u4")
        return self._binding.blocks(words).tobytes().hex()

    def __reduce__(self) -> Any:
        raise TypeError("ImageKeys: not picklable; it holds keys")


def oriented(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """One of the eight ways to turn and mirror an array (H, W, …): mirrored where 4 or above, then quarter turns."""
    mirrored = array[:, ::-1] if orientation >= ORIENTATIONS // 2 else array
    return np.rot90(mirrored, orientation % 4)


def undone(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The inverse of ``oriented``."""
    back = np.rot90(array, -(orientation % 4))
    return back[:, ::-1] if orientation >= ORIENTATIONS // 2 else back


def rfft2(array: Reals) -> Spectra:
    """The real Fourier transform of the last two axes, in single precision."""
    return np.asarray(fft.rfft2(array), np.complex64)


def walsh(message: int) -> NDArray[np.int8]:
    """The Walsh function of a 12-bit number over the 4,096 positions: (−1)^(ones in message AND position)."""
    return 1 - 2 * (np.bitwise_count(np.arange(POSITIONS) & message) & 1).astype(np.int8)


_HADAMARD = np.array([[1.0 - 2 * ((i & j).bit_count() & 1) for j in range(BLOCK)] for i in range(BLOCK)])


def walsh_transform(sums: NDArray[Any]) -> NDArray[np.float64]:
    """Products of (…, 4096) with all 4,096 Walsh functions: (…, 4096) indexed by message. Whole numbers stay exact."""
    square = sums.astype(np.float64).reshape(*sums.shape[:-1], BLOCK, BLOCK)
    return (_HADAMARD @ square @ _HADAMARD).reshape(sums.shape)


def pieces_of(identifier: int, *, pieces: int) -> list[int]:
    """The 12-bit pieces of an identifier, the low one first."""
    return [(identifier >> (PIECE_BITS * i)) & (POSITIONS - 1) for i in range(pieces)]


def _inputs(counters: NDArray[np.uint32]) -> NDArray[np.uint32]:
    inputs = np.zeros((len(counters), 4), "<u4")
    inputs[:, 0] = counters
    return inputs


def _signs(prf: Prf, inputs: NDArray[np.uint32], dtype: Any = np.float32) -> NDArray[Any]:
    """The bits of the AES blocks as ±1, lowest bit of the lowest byte first, flat."""
    octets = prf.blocks(inputs).view(np.uint8).ravel()
    signs = np.unpackbits(octets, bitorder="little").view(np.int8)
    signs += signs
    signs -= 1
    return signs if dtype is np.int8 else signs.astype(dtype)
