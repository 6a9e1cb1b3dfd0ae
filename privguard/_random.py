# SPDX-License-Identifier: Apache-2.0
"""Where chance comes from: keys from the operating system's entropy, expanded by AES-256-CTR.

A ``Stream`` is a 256-bit key with a name. Two different labels give two independent streams (HKDF-Expand, RFC
5869), so the sampler and the noise each get a child of their own, and each ledger position a grandchild: nothing is
ever drawn twice. A stream has no position and no state; asking twice gives the same bytes, which is how a run resumes
exactly.
"""

import json
import os
from collections.abc import Callable
from typing import Any, cast, final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import NDArray

KEY_BYTES = 32
_BLOCK = 1 << 18  # zeros are encrypted in blocks that stay in the second-level cache


@final
class Stream:
    """A named source of random bytes: AES-256 in counter mode under a secret key.

    Guarantee: without the key the bytes cannot be told from uniform (AES-256 as a PRP; far below 2⁶⁴ blocks are drawn
    from one key). ``repr`` shows the label only. A stream is not picklable: its key leaves this object through
    ``secret`` alone, for sealed snapshots.
    """

    __slots__ = ("_key", "insecure", "label")

    def __init__(self, key: bytes, label: str, *, insecure: bool = False) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"len(key)={len(key)}: expected {KEY_BYTES} bytes; use Stream.from_entropy(label)")
        self._key = key
        self.label = label
        self.insecure = insecure

    @classmethod
    def from_entropy(cls, label: str) -> "Stream":
        """A fresh stream keyed by the operating system."""
        return cls(os.urandom(KEY_BYTES), label)

    @classmethod
    def from_insecure_seed(cls, seed: int, label: str) -> "Stream":
        """A stream that anybody who knows ``seed`` can repeat: for tests and figures, never for a run with a claim."""
        return cls(_expand(seed.to_bytes(KEY_BYTES, "big", signed=True), "insecure seed"), label, insecure=True)

    def child(self, *labels: str | int) -> "Stream":
        """The independent stream of this name below this one; equal labels give equal streams."""
        name = json.dumps(labels)  # injective, so no label can imitate two
        return Stream(_expand(self._key, name), f"{self.label}/{'/'.join(map(str, labels))}", insecure=self.insecure)

    @property
    def nonce(self) -> str:
        """The key's public name, 64 hexadecimal characters: equal names mean equal keys, and tell nothing else.

        It is an output of HKDF under the key, as every child is, and no child has this label.
        """
        return _expand(self._key, "public name").hex()  # labels of children are JSON lists, so this is none of them

    def secret(self) -> bytes:
        """The key itself, for a sealed snapshot and nothing else."""
        return self._key

    def reader(self, start: int = 0) -> Callable[[NDArray[Any]], None]:
        """A function that overwrites one contiguous array after another with consecutive bytes.

        They begin at byte ``start`` of the stream, a multiple of 16: AES in counter mode begins at any of its blocks.
        """
        counter, inside = divmod(start, 16)
        if inside or counter < 0:
            raise ValueError(f"start={start}: expected a multiple of 16, at least 0")
        encryptor = Cipher(algorithms.AES(self._key), modes.CTR(counter.to_bytes(16, "big"))).encryptor()

        def fill(target: NDArray[Any]) -> None:
            view = memoryview(cast("Any", target)).cast("B")  # numpy arrays are buffers; their stubs do not say so
            for first in range(0, len(view), _BLOCK):
                piece = view[first : first + _BLOCK]
                encryptor.update_into(_ZEROS[: len(piece)], piece)

        return fill

    def fill(self, target: NDArray[Any]) -> None:
        """Overwrite a contiguous array with this stream's first bytes."""
        self.reader()(target)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The first ``count`` uniform 64-bit words of the stream."""
        words = np.empty(count, np.uint64)
        self.fill(words)
        return words

    def __repr__(self) -> str:
        return f"Stream({self.label!r}{', insecure' if self.insecure else ''})"

    def __reduce__(self) -> Any:
        raise TypeError("Stream: not picklable; its key may only be written into a sealed snapshot")


_ZEROS = memoryview(bytes(_BLOCK))


def _expand(key: bytes, label: str) -> bytes:
    return HKDFExpand(SHA256(), KEY_BYTES, b"privguard stream v1\0" + label.encode()).derive(key)
