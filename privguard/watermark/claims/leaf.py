# SPDX-License-Identifier: Apache-2.0
"""Leaves of a claim: what is committed before the pulse, and what a leaf becomes after it.

A leaf is 32 bytes that only the secret's owner can compute. Its hash is committed; nothing is known of its content, not
even by the owner, before a public pulse is mixed in. Opening a leaf reveals its seed, and so burns it. Format:
``docs/spec/claim-v1.md``, sections 2 and 4.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from privguard import _check
from privguard.attest import merkle
from privguard.errors import TamperedError
from privguard.watermark.secret import Secret

_DOMAIN = b"privguard claim v1\0"
SEED_BYTES = 32


@final
@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One leaf: the mark it belongs to, its index there, and its seed (not shown by ``repr``)."""

    mark: str
    index: int
    seed: bytes = field(repr=False)

    def hash(self) -> bytes:
        """The Merkle leaf hash; the seed's 256 bits hide it."""
        place = self.mark.encode() + b"\0" + self.index.to_bytes(8, "big")
        return merkle.leaf_hash(_DOMAIN + b"leaf\0" + place + self.seed)

    def expand(self, pulse: bytes, purpose: str, size: int) -> bytes:
        """``size`` bytes of this leaf's content: SHAKE-256 over purpose, seed and pulse.

        Guarantee: as a random oracle, uniform and independent for every purpose, to everybody who chose the seed before
        the pulse was known.
        """
        return hashlib.shake_256(_DOMAIN + purpose.encode() + b"\0" + self.seed + pulse).digest(size)

    def below(self, bound: int, pulse: bytes, purpose: str) -> int:
        """One number in [0, bound): 128 bits modulo ``bound``, so no value has a chance above 1/bound + 2⁻¹²⁸."""
        return int.from_bytes(self.expand(pulse, purpose, 16), "big") % bound


@final
@dataclass(frozen=True, kw_only=True)
class Opening:
    """A revealed leaf with the Merkle path that shows it was committed."""

    leaf: Leaf
    path: tuple[bytes, ...]

    def to_json(self) -> dict[str, Any]:
        """The opening as plain JSON; it holds the seed, which is public from now on."""
        path = [item.hex() for item in self.path]
        return {"mark": self.leaf.mark, "index": self.leaf.index, "seed": self.leaf.seed.hex(), "path": path}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Opening":
        """Read an opening; what is none raises ``TamperedError``."""
        try:
            leaf = Leaf(mark=str(value["mark"]), index=int(value["index"]), seed=bytes.fromhex(value["seed"]))
            path = tuple(bytes.fromhex(item) for item in value["path"])
        except (KeyError, TypeError, ValueError):
            raise TamperedError("opening: expected mark, index, seed and path") from None
        if len(leaf.seed) != SEED_BYTES:
            raise TamperedError(f"opening: a seed of {len(leaf.seed)} bytes; expected {SEED_BYTES}")
        return cls(leaf=leaf, path=path)


@final
class Tree:
    """The owner's side: all leaves of a claim, in the manifest's order, and the openings that the verifier asks for."""

    def __init__(self, leaves: Mapping[str, Sequence[Leaf]]) -> None:
        self.leaves = {name: list(items) for name, items in leaves.items()}
        self._first: dict[str, int] = {}
        self._hashes: list[bytes] = []
        for name, items in self.leaves.items():
            self._first[name] = len(self._hashes)
            self._hashes += [leaf.hash() for leaf in items]

    @classmethod
    def derive(cls, secret: Secret, sizes: Sequence[tuple[str, int]]) -> "Tree":
        """The tree of a secret: seed i of a mark is a child of its own (HKDF), so nothing else need be kept."""
        names = [name for name, _ in sizes]
        _check.require(len(set(names)) == len(names), "sizes", sizes, wanted="every mark once")
        return cls(
            {
                name: [Leaf(mark=name, index=i, seed=secret.derive("claim leaf", name, i)) for i in range(count)]
                for name, count in sizes
            }
        )

    @property
    def root(self) -> bytes:
        """The Merkle root over all leaves of all marks."""
        return merkle.root(self._hashes)

    def open(self, mark: str, index: int) -> Opening:
        """Reveal one leaf. It must not be used for another challenge afterwards."""
        leaf = self.leaves[mark][index]
        path = merkle.inclusion_proof(self._hashes, self._first[mark] + index)
        return Opening(leaf=leaf, path=tuple(path))
