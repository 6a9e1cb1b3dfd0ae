# SPDX-License-Identifier: Apache-2.0
"""Merkle trees (RFC 6962): one hash stands for an append-only list, short proofs show membership and growth.

Leaves are hashed with a 0x00 prefix, nodes with 0x01, so a leaf can never pass for a node. Sizes are in leaves, hashes
are 32 bytes.
"""

import hashlib
from collections.abc import Sequence

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Hash of one leaf (RFC 6962, 2.1).

    Args:
        data: the leaf's content.
    """
    return hashlib.sha256(b"\0" + data).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """Head of the tree over these leaf hashes; the empty tree has SHA-256 of nothing.

    Args:
        leaves: leaf hashes, in order.
    """
    head = Frontier()
    for leaf in leaves:
        head.append(leaf)
    return head.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of leaf ``index`` (RFC 6962, 2.1.1): the hashes from which the head can be recomputed.

    Args:
        leaves: leaf hashes, in order.
        index: the leaf's number, from 0.
    """
    if not 0 <= index < len(leaves):
        raise ValueError(f"index={index}: expected 0 to {len(leaves) - 1}")
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*inclusion_proof(leaves[:split], index), root(leaves[split:])]
    return [*inclusion_proof(leaves[split:], index - split), root(leaves[:split])]


def verify_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], head: bytes) -> bool:
    """Whether the leaf hash stands at ``index`` of ``size`` leaves under this ``head`` (RFC 9162, 2.1.3.2).

    Args:
        leaf: a leaf hash.
        index: the leaf's number, from 0.
        size: how many leaves the later tree has.
        proof: hashes, in the order of the RFC.
        head: head of the later tree.
    """
    if not 0 <= index < size:
        return False
    node, last, current = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            current = _node(sibling, current)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            current = _node(current, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and current == head


def consistency_proof(leaves: Sequence[bytes], earlier: int) -> list[bytes]:
    """Hashes which show that the tree of the first ``earlier`` leaves is a prefix of this one (RFC 6962, 2.1.2).

    Args:
        leaves: leaf hashes, in order.
        earlier: how many leaves the earlier tree has.
    """
    if not 0 < earlier <= len(leaves):
        raise ValueError(f"earlier={earlier}: expected 1 to {len(leaves)}")
    return _subproof(leaves, earlier, complete=True)


def verify_consistency(*, earlier: int, earlier_head: bytes, size: int, head: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree of ``size`` leaves only appended to the tree of ``earlier`` leaves (RFC 9162, 2.1.4.2).

    Args:
        earlier: how many leaves the earlier tree has.
        earlier_head: head of the earlier tree.
        size: how many leaves the later tree has.
        head: head of the later tree.
        proof: hashes, in the order of the RFC.
    """
    if not 0 < earlier <= size:
        return False
    if earlier == size:
        return not proof and earlier_head == head
    path = list(proof)
    if earlier & (earlier - 1) == 0:
        path.insert(0, earlier_head)
    if not path:
        return False
    node, last = earlier - 1, size - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = _node(sibling, old), _node(sibling, new)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            new = _node(new, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and old == earlier_head and new == head


class Frontier:
    """A growing tree that keeps one hash per level: appending costs O(log n) at most, O(1) on average."""

    def __init__(self) -> None:
        self._levels: list[bytes | None] = []
        self.size = 0

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash at the end.

        Args:
            leaf: a leaf hash.
        """
        carry, level = leaf, 0
        while level < len(self._levels) and (left := self._levels[level]) is not None:
            carry = _node(left, carry)
            self._levels[level] = None
            level += 1
        if level == len(self._levels):
            self._levels.append(None)
        self._levels[level] = carry
        self.size += 1

    def root(self) -> bytes:
        """Head over all leaves so far."""
        head: bytes | None = None
        for node in self._levels:
            if node is not None:
                head = node if head is None else _node(node, head)
        return EMPTY_ROOT if head is None else head


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << ((size - 1).bit_length() - 1)


def _subproof(leaves: Sequence[bytes], earlier: int, *, complete: bool) -> list[bytes]:
    if earlier == len(leaves):
        return [] if complete else [root(leaves)]
    split = _split(len(leaves))
    if earlier <= split:
        return [*_subproof(leaves[:split], earlier, complete=complete), root(leaves[split:])]
    return [*_subproof(leaves[split:], earlier - split, complete=False), root(leaves[:split])]
