# SPDX-License-Identifier: Apache-2.0
"""The owner's secret: 256 bits from the operating system, HKDF children for every purpose, AES-256 as keyed function.

A mark is as strong as its key is hidden. So the secret never signs, marks or encrypts anything itself: each scheme,
context width, sub-key, user and decoy gets a child of its own (HKDF-Expand, RFC 5869), and what is published is a key
id or a salted commitment, from which nothing can be computed back.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any, final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import NDArray

from privguard import _os
from privguard.errors import TamperedError

SECRET_BYTES = 32
SALT_BYTES = 16
BLOCK_BYTES = 16
_HEADER = "privguard-mark-secret-v1"


@final
class Secret:
    """A 256-bit secret from which all keys of an owner's marks descend.

    Guarantee: children with different labels are computationally independent, and neither ``key_id`` nor
    ``commitment`` helps to find the secret or any child. ``repr`` shows the key id only; a secret is not picklable
    and leaves this object through ``write`` alone.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != SECRET_BYTES:
            raise ValueError(f"len(key)={len(key)}: expected {SECRET_BYTES} bytes; use Secret.generate()")
        self._key = bytes(key)

    @classmethod
    def generate(cls) -> "Secret":
        """A fresh secret from the operating system's entropy."""
        return cls(os.urandom(SECRET_BYTES))

    @classmethod
    def read(cls, path: str | Path) -> "Secret":
        """Read what ``write`` wrote.

        Args:
            path: the secret's file.

        Raises:
            TamperedError: the file is not a secret, or a character of it changed (the key id stands beside it).
        """
        words = Path(path).read_text(encoding="utf-8").split()
        try:
            header, encoded, key_id = words
            secret = cls(base64.b64decode(encoded, altchars=b"-_", validate=True))
        except (ValueError, binascii.Error):
            raise TamperedError(f"{path}: not a secret of privguard; expected '{_HEADER} <key> <key id>'") from None
        if header != _HEADER or not hmac.compare_digest(secret.key_id, key_id):
            raise TamperedError(f"{path}: the secret does not belong to the key id beside it; restore it from a copy")
        return secret

    def write(self, path: str | Path) -> None:
        """Write the secret to a new file that only its owner may read (mode 0600); an existing file is never replaced.

        Law: ``Secret.read(path)`` equals the secret written there.

        Args:
            path: the secret's file.
        """
        line = f"{_HEADER} {base64.urlsafe_b64encode(self._key).decode()} {self.key_id}\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            _os.sync(descriptor)

    @property
    def key_id(self) -> str:
        """A public name of the secret: 128 bits in hexadecimal, from a child used for nothing else."""
        return self.derive("key id")[:16].hex()

    def derive(self, *labels: str | int) -> bytes:
        """A 32-byte key for the purpose that the labels name; different labels give independent keys."""
        name = json.dumps(labels)  # injective, so no label can imitate two
        return HKDFExpand(SHA256(), SECRET_BYTES, b"privguard mark v1\0" + name.encode()).derive(self._key)

    def child(self, *labels: str | int) -> "Secret":
        """The secret of this name below this one: one per user to trace, per decoy, per customer."""
        return Secret(self.derive("child", *labels))

    def prf(self, *labels: str | int) -> "Prf":
        """The keyed function for the purpose that the labels name."""
        return Prf(self.derive("prf", *labels))

    def commitment(self, salt: bytes) -> str:
        """SHA-256(secret ‖ salt) in hexadecimal: binds the owner before release, reveals nothing until opened.

        Args:
            salt: at least 16 random bytes, kept until the secret is opened.

        Raises:
            ValueError: the salt is shorter than 16 bytes.
        """
        if len(salt) < SALT_BYTES:
            raise ValueError(f"len(salt)={len(salt)}: expected at least {SALT_BYTES} random bytes")
        return hashlib.sha256(self._key + salt).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._key, other._key)

    def __hash__(self) -> int:
        return hash(self.key_id)

    def __repr__(self) -> str:
        return f"Secret(key_id={self.key_id!r})"

    def __reduce__(self) -> Any:
        raise TypeError("Secret: not picklable; send the path of its file and read it there with Secret.read(path)")


@final
class Prf:
    """AES-256 on single blocks: a keyed function from 128-bit inputs to 128-bit outputs.

    Guarantee: without the key, the outputs on distinct inputs cannot be told from uniform words, up to the birthday
    bound of 2⁶⁴ blocks. Vectorised: one call of AES for all inputs. Not picklable.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != SECRET_BYTES:
            raise ValueError(f"len(key)={len(key)}: expected {SECRET_BYTES} bytes; use Secret.prf(label)")
        self._key = bytes(key)

    def blocks(self, inputs: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Encrypt (..., 4) little-endian 32-bit words, block by block, to an array of the same shape.

        Args:
            inputs: (..., 4) words of 32 bits: one block of AES in the last axis.

        Raises:
            ValueError: the last axis is not 4.
        """
        if inputs.shape[-1:] != (4,):
            raise ValueError(f"inputs.shape={inputs.shape}: expected (..., 4), four 32-bit words per block")
        plain = np.ascontiguousarray(inputs, dtype="<u4")
        encryptor = Cipher(algorithms.AES(self._key), modes.ECB()).encryptor()  # noqa: S305 — a PRF, not a cipher
        out = np.empty(plain.nbytes + BLOCK_BYTES - 1, np.uint8)  # the slack is what update_into asks for
        if plain.size:
            encryptor.update_into(plain.data.cast("B"), out.data)
        return out[: plain.nbytes].view("<u4").reshape(plain.shape)

    def words(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.uint32]:
        """One uniform 32-bit word for each 32-bit index, any shape.

        Args:
            indices: 32-bit whole numbers, of any shape.
        """
        inputs = np.zeros((*np.shape(indices), 4), "<u4")
        inputs[..., 0] = indices
        return self.blocks(inputs)[..., 0]

    def below(self, bound: int, indices: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """One number in [0, bound) for each 32-bit index, uniform to within ``bound``/2⁶⁴.

        Source: Lemire 2019, multiply and keep the high word (here of 64 bits, so the bias is below 2⁻³² for any
        ``bound`` up to 2³²).

        Args:
            bound: how many values there are, in [1, 2³²].
            indices: 32-bit whole numbers, of any shape.

        Raises:
            ValueError: ``bound`` is not in [1, 2³²].
        """
        if not 1 <= bound <= 1 << 32:
            raise ValueError(f"bound={bound}: expected 1 to 2**32")
        inputs = np.zeros((*np.shape(indices), 4), "<u4")
        inputs[..., 0] = indices
        output = self.blocks(inputs).astype(np.uint64)
        high, low, wide = output[..., 1], output[..., 0], np.uint64(bound)
        return ((high * wide + ((low * wide) >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)

    def __repr__(self) -> str:
        return "Prf(AES-256)"

    def __reduce__(self) -> Any:
        raise TypeError("Prf: not picklable; it holds a key")
